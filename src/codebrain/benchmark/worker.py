"""What a worker process of a benchmark does beside its work: let itself be heard, and fail in a sentence."""

from __future__ import annotations

import logging
import multiprocessing

from codebrain.errors import CodeBrainError, as_refusal, refusal

_log = logging.getLogger(__name__)

SILENT_S = 86400.0
"""How long a method may show no progress before it counts as hung: sampling all test patients on a CPU takes hours."""


def speak_up(label: str, level: int) -> None:
    """Let the library's log of this worker reach stderr as its parent's does; in the parent it does already."""
    if multiprocessing.parent_process() is None:
        return
    logger, handler = logging.getLogger("codebrain"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"codebrain: {label}: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(level)


def sentence_of(error: Exception) -> CodeBrainError:
    """The error as a refusal; what is none is a bug, whose traceback ``-vv`` shows."""
    _log.debug("what went wrong", exc_info=error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return as_refusal(error) or refusal("ENV_WORKER", f"{text}. This is a bug of ours or of the model's file",
                                        hint="Use -vv to see where.")  # fmt: skip
