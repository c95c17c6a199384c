"""Several scans that should be one examination: one grid or several, and do their heads lie in one place?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codebrain.errors import CodeBrainError
from codebrain.imaging.align import TRUSTED, Movement, finest, movements_onto
from codebrain.imaging.examine import Examination, Finding
from codebrain.imaging.volume import Volume, same_grid
from codebrain.vocabulary import Modality

Place = Literal["reference", "in place", "moved", "doubtful", "not measured"]

_IN_PLACE_MM, _IN_PLACE_DEG = 2.0, 2.0
"""Registration on 2 mm voxels finds less than this between contrasts that lie on one another: at most 0.4 mm in four
real studies on one grid, 1.5 mm in eight visits whose headers are good; 3.9 to 20 mm in the five scans that moved."""


@dataclass(frozen=True)
class Placed:
    """Where one scan lies beside the reference.

    Attributes:
        path: of the scan.
        same_grid: shape equal and corners within a micrometre.
        place: ``in place`` within 2 mm and 2 degrees; ``doubtful`` where not even moving it makes it alike.
        movement: how it would have to be moved; ``None`` for the reference.
    """

    path: Path
    same_grid: bool
    place: Place
    movement: Movement | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        facts: dict[str, Any] = {"file": str(self.path), "same_grid": self.same_grid, "place": self.place}
        if self.movement is not None:
            facts |= {
                "shift_mm": round(self.movement.shift_mm, 2),
                "rotation_deg": round(self.movement.rotation_deg, 2),
                "similarity_before": self.movement.similarity_before,
                "similarity_after": self.movement.similarity_after,
            }
        return facts


@dataclass(frozen=True)
class Comparison:
    """A group of scans beside each other.

    Attributes:
        reference: whose grid ``impute`` would take.
        scans: the reference first.
        findings: what is odd about the group.
    """

    reference: Path
    scans: tuple[Placed, ...]
    findings: tuple[Finding, ...]

    @property
    def one_grid(self) -> bool:
        """Whether all scans share the reference's grid."""
        return all(scan.same_grid for scan in self.scans)

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "reference": str(self.reference),
            "one_grid": self.one_grid,
            "scans": [scan.as_dict() for scan in self.scans],
            "findings": [finding.as_dict() for finding in self.findings],
        }


def compare(examined: Sequence[Examination]) -> Comparison | None:
    """Compare the usable scans of a group; ``None`` for fewer than two.

    Places are measured as ``impute --align auto`` measures them, some seconds a scan; without SimpleITK only grids
    are compared.
    """
    known = sorted((scan for scan in examined if scan.volume is not None), key=_order)
    volumes = {scan.path: scan.volume for scan in known if scan.volume is not None}
    if len(volumes) < 2:
        return None
    home = finest(volumes)
    others = {path: volume for path, volume in volumes.items() if path != home}
    try:
        movements: dict[Path, Movement] = movements_onto(volumes[home], others)
    except CodeBrainError:  # no SimpleITK
        movements = {}
    placed = [
        Placed(home, True, "reference"),
        *(_placed(p, v, volumes[home], movements.get(p)) for p, v in others.items()),
    ]
    return Comparison(home, tuple(placed), (*_twins(volumes), *_odd(placed)))


def _order(scan: Examination) -> int:
    """As ``impute`` goes through contrasts, so that both take the same reference."""
    named = None if scan.image is None else scan.image.named
    return len(Modality) if named is None else list(Modality).index(Modality(named))


def _placed(path: Path, volume: Volume, home: Volume, movement: Movement | None) -> Placed:
    same = same_grid(volume, home)
    if movement is None:
        return Placed(path, same, "not measured")
    if movement.similarity_after < TRUSTED:
        return Placed(path, same, "doubtful", movement)
    still = movement.shift_mm <= _IN_PLACE_MM and movement.rotation_deg <= _IN_PLACE_DEG
    return Placed(path, same, "in place" if still else "moved", movement)


def _twins(volumes: dict[Path, Volume]) -> list[Finding]:
    """The same bytes under two names."""
    seen: dict[str, Path] = {}
    found = []
    for path, volume in volumes.items():
        if volume.sha256 in seen:
            message = f"{path.name} holds the same image as {seen[volume.sha256].name}"
            found.append(Finding("MOD_SAME_FILE", "warning", message))
        seen.setdefault(volume.sha256, path)
    return found


def _odd(placed: Sequence[Placed]) -> list[Finding]:
    found = []
    for scan in placed:
        if scan.place == "doubtful":
            message = f"{scan.path.name} may not show the same head: no movement makes it like {placed[0].path.name}"
            found.append(Finding("GEO_ALIGN_POOR", "warning", message))
        elif scan.place == "moved" and scan.same_grid and scan.movement is not None:
            message = (
                f"{scan.path.name} is on the grid of {placed[0].path.name} but its head lies"
                f" {scan.movement.shift_mm:.1f} mm and {scan.movement.rotation_deg:.1f} degrees off;"
                " impute believes a common grid and moves nothing"
            )
            found.append(Finding("GEO_NOT_ALIGNED", "warning", message))
    return found
