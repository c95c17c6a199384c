"""What comes in: a study, read, planned and prepared for a model, before the model itself is needed.

Nothing here imports torch, so that a study can be prepared while torch is imported (:mod:`codebrain.data.beside`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from codebrain.errors import refusal
from codebrain.imaging.align import AlignMode
from codebrain.imaging.prepared import PreparedStudy, prepare_study
from codebrain.imaging.space import REFERENCE, native_contrasts
from codebrain.imaging.study import Study
from codebrain.machine import available_memory, in_gib
from codebrain.plan import Plan, plan_study
from codebrain.vocabulary import Modality, Preparation


@dataclass(frozen=True, eq=False)
class Intake:
    """A study that is ready for the model.

    Attributes:
        study: as read.
        plan: what the model sees, what is imputed, what is truth.
        prepared: the given contrasts as the model sees them; ``None`` when nothing is to be imputed.
        preparation: what asked for this form.
        spaces: the contrasts in whose native space results are wanted.
        seconds: by step.
    """

    study: Study
    plan: Plan
    prepared: PreparedStudy | None
    preparation: Preparation
    spaces: tuple[Modality, ...]
    seconds: Mapping[str, float]


def take_in(
    inputs: Mapping[Any, Any] | Study,
    preparation: Preparation,
    want: Iterable[str | Modality] | None = None,
    *,
    name: str = "study",
    align: AlignMode = "auto",
    reference: str | Modality | None = None,
    space: str | Iterable[str] = REFERENCE,
    evaluate: bool = False,
    **reading: Any,
) -> Intake:
    """Read, plan and prepare a study.

    Args:
        inputs, want, name, align, reference, space, evaluate, **reading: see :class:`codebrain.impute.Imputer`.
        preparation: of the model.

    Raises:
        CodeBrainError: as documented in the list of bad inputs.
    """
    watch = Stopwatch()
    with watch("read"):
        study = read_study(inputs, name=name, **reading)
    plan = plan_study(study.volumes, preparation.modalities, want, evaluate=evaluate)
    spaces = asked_spaces(space, plan)
    if not plan.targets:
        return Intake(study, plan, None, preparation, spaces, watch.seconds)
    refuse_without_memory(study, plan)
    with watch("prepare"):
        prepared = _prepare_given(study, plan, preparation, align=align, reference=reference)
    return Intake(study, plan, prepared, preparation, spaces, watch.seconds)


def read_study(inputs: Mapping[Any, Any] | Study, *, name: str = "study", **reading: Any) -> Study:
    """A study from files or images by contrast; contrast names may be aliases.

    Raises:
        UsageError: ``MOD_UNKNOWN``, ``MOD_DUPLICATE``, ``MOD_NONE``.
        InputRefused: for a file that cannot be used.
    """
    if isinstance(inputs, Study):
        return inputs
    files = {}
    for key, source in inputs.items():
        modality = Modality.parse(str(key))
        if modality in files:
            raise refusal("MOD_DUPLICATE", f"{modality} is given twice", found=f"{key} and {modality}")
        files[modality] = source
    return Study.read(files, name=name, **reading)


_BYTES_A_VOXEL = (10, 7, 13)
"""Peak memory for every voxel of the reference grid: in any case, for every given and for every imputed contrast.

Fitted to the resident memory of the starter on grids of 0.8 and 6.2 million voxels: 1 or 4 contrasts from one, 1 from
four; 213 to 429 MiB on the larger grid, 110 MiB on the smaller. A registration of two contrasts fitted as well."""

_BYTES_ANYWAY = 2**28
"""Libraries that load late, and one slice in the model. Of 192 x 192 pixels it takes 175 MiB in a CodeBrain of the
paper's size, less in the other architectures and far less in the starter, for which the sum is 165 to 235 MiB above
what was measured."""


def expected_memory(study: Study, plan: Plan) -> int:
    """Bytes that completing a study will need at most, on top of what the process holds with the scans read.

    Weights and scans are in memory by then.
    """
    largest = max(study.volumes[m].data.size for m in plan.given)
    some, given, imputed = _BYTES_A_VOXEL
    return _BYTES_ANYWAY + largest * (some + given * len(plan.given) + imputed * len(plan.targets))


def refuse_without_memory(study: Study, plan: Plan) -> None:
    """Say before the work that it cannot end well.

    Raises:
        EnvironmentRefused: ``ENV_MEMORY``, with the estimate and what there is.
    """
    need, have = expected_memory(study, plan), available_memory()
    if have is not None and need > have:
        raise refusal(
            "ENV_MEMORY", "this study needs more memory than this process may still use",
            found=f"{in_gib(have)} left", expected=f"about {in_gib(need)}",
            hint="Allot more memory, impute fewer contrasts at once with --want, or give --ref a coarser scan.",
        )  # fmt: skip


def asked_spaces(space: str | Iterable[str], plan: Plan) -> tuple[Modality, ...]:
    """The contrasts in whose native space results are wanted.

    Raises:
        UsageError: ``CONFIG`` for a contrast that is not part of the work; see :func:`native_contrasts`.
    """
    asked, here = native_contrasts(space), (*plan.given, *plan.withheld)
    for contrast in asked:
        if contrast not in here:
            raise refusal(
                "CONFIG", "results have no other spaces than those of the given contrasts that the model knows",
                field="space", found=f"native:{contrast}", expected=", ".join(f"native:{m}" for m in here),
            )  # fmt: skip
    return asked


def _prepare_given(
    study: Study,
    plan: Plan,
    preparation: Preparation,
    *,
    align: AlignMode = "auto",
    reference: str | Modality | None = None,
) -> PreparedStudy:
    """The given contrasts on one grid, in [0, 1], as slices. Withheld contrasts have no part in it.

    Raises:
        UsageError: ``CONFIG`` for a reference that is not given.
    """
    grid = None if reference is None else Modality.parse(reference)
    if grid is not None and grid not in plan.given:
        raise refusal(
            "CONFIG", "the reference is not among the contrasts that are imputed from",
            field="ref", found=grid, expected=", ".join(plan.given),
        )  # fmt: skip
    given = Study(study.name, {m: study.volumes[m] for m in plan.given})
    return prepare_study(given, preparation, align=align, reference=grid)


class Stopwatch:
    """Seconds per named step, of all its parts.

    Args:
        before: what was timed already.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.seconds = dict(before or {})

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Time a step."""
        begun = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - begun, 2)
