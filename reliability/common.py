"""What the reliability scripts share: tiny inputs, snapshots of folders, a table at the end."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


@dataclass
class Tally:
    """How often something was tried, how often it went as promised, and what went otherwise.

    Attributes:
        promise: one line.
        kept: trials that went as promised.
        broken: a sentence for each that did not.
    """

    promise: str
    kept: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """All trials."""
        return self.kept + len(self.broken)

    def add(self, trial: str, faults: list[str]) -> None:
        """Count one trial; it went as promised when there is no fault."""
        if faults:
            self.broken.append(f"{trial}: {'; '.join(faults)}")
        else:
            self.kept += 1


def report(tallies: list[Tally], *, worst: int = 20) -> int:
    """Print the table, and what broke; returns the exit status."""
    print("| promise | tried | as promised |\n|---|---|---|")
    for tally in tallies:
        print(f"| {tally.promise} | {tally.tried:,} | {tally.kept:,} |")
    for tally in tallies:
        for sentence in tally.broken[:worst]:
            print(f"BROKEN {tally.promise}: {sentence}")
    return int(any(tally.broken or not tally.tried for tally in tallies))


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder`` by relative name; empty where there is no folder."""
    if not folder.is_dir():
        return {}
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def temporaries(folder: Path) -> list[str]:
    """Hidden names below ``folder``: temporaries and locks."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Which files are missing, new or others, as sentences."""
    return [
        f"{name} is {'missing' if name not in found else 'new' if name not in wanted else 'changed'}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


def status_of(work: Callable[[], object]) -> int:
    """What the command line would answer for ``work``: its own status, or that of its error."""
    from codebrain.app._common import report_error

    try:
        answer = work()
    except Exception as error:
        return report_error(error)
    return answer if isinstance(answer, int) else 0


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Collect what Python code prints meanwhile, on either stream."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """A CodeBrain of width 2 for three contrasts, untrained."""
    import torch

    from codebrain.models import build_model, save_model
    from codebrain.vocabulary import ModalitySet, Preparation

    modalities = ModalitySet.parse("T1,T2,FLAIR")
    torch.manual_seed(seed)
    model = build_model("codebrain", modalities, {"width": 2, "depth": 1, "critic_width": 2})
    scale = {str(modality): 100.0 * (place + 1) for place, modality in enumerate(modalities)}
    save_model(model, folder, preparation=Preparation(modalities, pixel_spacing_mm=None, intensity_scale=scale))
    return folder
