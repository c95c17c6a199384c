"""One tree of errors; every error is a sentence with a stable code and an exit status.

::

    CodeBrainError                        exit   codes
    ├── UsageError                         2     CONFIG, MOD_UNKNOWN, MOD_DUPLICATE, MOD_NONE
    ├── InputRefused                       3     IN_*, GEO_*, other MOD_*, DCM_*, BIDS_*, DATA_*, OOD,
    │                                              MODEL_DOMAIN
    ├── EnvironmentRefused                 4     OUT_*, ENV_*, LOCKED
    ├── ModelRefused                       5     CKPT_*
    ├── BatchIncomplete                    6     BATCH
    └── TrainingDiverged                   7     DIVERGED

Raise with :func:`refusal`, which picks the class from the code, so that a code has one class for ever.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar


class CodeBrainError(Exception):
    """Base of everything codebrain raises on purpose.

    Args:
        code: stable identifier, for example ``IN_CHECKSUM``.
        message: what was found wrong, one sentence without the file's name.
        file: the file concerned; only its name is shown in logs and reports.
        field: the header field, setting or argument concerned.
        found: what was there.
        expected: what should have been there.
        hint: what to do next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: Path | str | None = None,
        field: str | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.file = None if file is None else Path(file)
        self.field = field
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(self._sentence())

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross from worker processes with all their parts."""
        parts = {name: getattr(self, name) for name in ("file", "field", "found", "expected", "hint")}
        return partial(type(self), self.code, self.message, **parts), ()

    @property
    def brief(self) -> str:
        """The sentence without the file, for tables and records that may be passed on: paths may name people."""
        return self._sentence(where="")

    def _sentence(self, where: str | None = None) -> str:
        if where is None:
            where = f"{self.file}: " if self.file is not None else ""
        facts = [
            f"{name} {value}"
            for name, value in (("found", self.found), ("expected", self.expected))
            if value is not None
        ]
        field = f"{self.field}: " if self.field else ""
        detail = f" ({', '.join(facts)})" if facts else ""
        hint = f" {self.hint}" if self.hint else ""
        return " ".join(f"{where}{field}{self.message.rstrip('.')}{detail}.{hint}".split())

    def as_dict(self) -> dict[str, Any]:
        """The same facts for ``--json``."""
        return {
            "code": self.code,
            "exit": self.exit_code,
            "message": str(self),
            "file": None if self.file is None else str(self.file),
            "field": self.field,
            "found": None if self.found is None else str(self.found),
            "expected": None if self.expected is None else str(self.expected),
            "hint": self.hint,
        }


class UsageError(CodeBrainError):
    """The command line, a configuration or an argument is wrong."""

    exit_code = 2


class InputRefused(CodeBrainError):
    """A scan, study or data set cannot be used as it is."""

    exit_code = 3


class EnvironmentRefused(CodeBrainError):
    """The output place or the machine stands in the way."""

    exit_code = 4


class ModelRefused(CodeBrainError):
    """A model folder or checkpoint cannot be trusted or does not fit."""

    exit_code = 5


class BatchIncomplete(CodeBrainError):
    """Some studies of a batch failed; the others are complete."""

    exit_code = 6


class TrainingDiverged(CodeBrainError):
    """Training met a number that is not finite and stopped before using it."""

    exit_code = 7


_GPU = "CUDA error"
"""How torch begins the message of an error of the driver: a failed assertion on the device, a GPU off the bus."""

_PEER = ("closed by peer", "reset by peer", "NCCL error", "Timed out waiting")
"""How gloo and NCCL speak of a process that was killed or hangs."""

_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "_ALLOC_FAILED")
"""How torch's allocators, on CPU and GPU, and CUDA's libraries say it where no class of its own does."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_USAGE = {"CONFIG", "MOD_UNKNOWN", "MOD_DUPLICATE", "MOD_NONE"}
_BY_PREFIX: tuple[tuple[str, type[CodeBrainError]], ...] = (
    ("OUT_", EnvironmentRefused),
    ("ENV_", EnvironmentRefused),
    ("LOCKED", EnvironmentRefused),
    ("CKPT_", ModelRefused),
    ("BATCH", BatchIncomplete),
    ("DIVERGED", TrainingDiverged),
    *((prefix, InputRefused) for prefix in ("IN_", "GEO_", "MOD_", "DCM_", "BIDS_", "DATA_", "OOD", "MODEL_DOMAIN")),
)


def error_class(code: str) -> type[CodeBrainError]:
    """The class that a code belongs to.

    Raises:
        KeyError: for a code outside the published families (a bug of ours).
    """
    if code in _USAGE:
        return UsageError
    for prefix, cls in _BY_PREFIX:
        if code.startswith(prefix):
            return cls
    raise KeyError(code)


def refusal(
    code: str,
    message: str,
    *,
    file: Path | str | None = None,
    field: str | None = None,
    found: object = None,
    expected: object = None,
    hint: str | None = None,
) -> CodeBrainError:
    """Build the error of the right class for ``code``; the caller raises it."""
    return error_class(code)(code, message, file=file, field=field, found=found, expected=expected, hint=hint)


def one_line(text: str) -> str:
    """``text`` on one line; control and bidirectional characters, which file names may hold, are escaped."""
    if text.isprintable():  # the pictures inside a report are megabytes of such text
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def missing_extra(package: str, extra: str, purpose: str) -> CodeBrainError:
    """The sentence for an optional package that is not installed."""
    return refusal(
        "ENV_EXTRA",
        f"{purpose} needs the package {package}, which is not installed",
        hint=f"Install it once with: pip install 'codebrain-mri[{extra}]'.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of the GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _of_torch(error: RuntimeError) -> CodeBrainError | None:
    """What torch throws for a machine that fails; None for all else."""
    if type(error).__name__ == "AcceleratorError" or _GPU in str(error):
        hint = "Start again; look at the driver's log (dmesg, Xid) if it happens twice, or use --device cpu."
        return refusal("ENV_GPU", f"the GPU failed: {str(error).partition(chr(10))[0]}", hint=hint)
    if any(word in str(error) for word in _PEER):
        hint = "Look at what the other processes said, then start all of them again with --resume."
        return refusal("ENV_PEER", "another process of this training has ended or no longer answers", hint=hint)
    return None


def as_refusal(error: Exception) -> CodeBrainError | None:
    """What an exception of Python's or torch's means to a user; None for one that is a bug of ours."""
    if isinstance(error, CodeBrainError):
        return error
    if is_out_of_memory(error):
        return refusal("ENV_MEMORY", "there was not enough memory", hint="Use a smaller study or another device.")
    if isinstance(error, RuntimeError):
        return _of_torch(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        hint = "Free some space or choose another output folder."
        return refusal("OUT_SPACE", f"nothing can be written: {error.strerror}", file=error.filename, hint=hint)
    if isinstance(error, PermissionError):
        return refusal("OUT_PERMISSION", "this may not be read or written", file=error.filename)
    return None


@dataclass(frozen=True)
class Notice:
    """Something accepted with a warning; travels with the result into sidecar and report."""

    code: str
    message: str
    file: str = ""

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)
