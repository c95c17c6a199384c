"""Whether the doubt of a model tells its errors, and where a limit of doubt lies.

::

    python benchmarks/doubt_and_error.py starter STUDIES RAW > doubt.tsv

``STUDIES`` and ``RAW`` hold a folder for each study with files such as ``T1.nii.gz``: stripped scans on one grid, which
the model should do well on, and scans as they come, with skull. Simulated patients that no model has seen are made
here; studies that were seen in training count apart. Every case is a study, its given contrasts and, for the bad
ones, what was done to them: contrasts under each other's names, blur, noise, and so on. Printed is a line per case: the
study's doubt (mean, median and 90th percentile over every sixteenth slice), the PSNR inside the head over the contrasts
that were withheld, and the rank correlation of the two over the slices. After the lines, on stderr: the limits by the
rule, how many of either kind are over them, and rank correlations of doubt and PSNR over studies.

The rule: for every number of given contrasts, the limit is the 99th percentile of the scores of good cases that the
model has never seen. The number matters, because doubt falls with every contrast that is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from codebrain.data.phantom import simulate_study
from codebrain.errors import CodeBrainError
from codebrain.imaging.prepared import PreparedStudy, prepare_study
from codebrain.imaging.study import Study
from codebrain.imaging.volume import Volume
from codebrain.impute import Imputer
from codebrain.plan import plan_study
from codebrain.uncertainty import slice_doubts
from codebrain.vocabulary import Modality, Preparation

EVERY = 16
SEED = 900
UNSEEN = "ms-19"
Spoil = Callable[[dict[Modality, Volume]], dict[Modality, Volume]]


@dataclass(frozen=True, eq=False)
class Case:
    """A study, what is given of it, and what was done to that."""

    kind: str
    name: str
    study: Study
    given: tuple[Modality, ...]
    done: str = "as it is"
    spoil: Spoil = dict


@dataclass(frozen=True)
class Row:
    """What came of a case: doubt over slices, and the error of the withheld contrasts."""

    case: Case
    mean: float
    median: float
    high: float
    psnr: float
    within: float


def voxels(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """The same change of the voxels of every contrast."""
    return lambda given: {m: replace(v, data=change(v.data).astype(np.float32)) for m, v in given.items()}


def noisy(data: np.ndarray) -> np.ndarray:
    """Rician noise of a fifth of the brightest, in the head."""
    chance, sigma = np.random.default_rng(0), 0.2 * np.percentile(data[data > 0], 99)
    return np.where(
        data > 0, np.hypot(data + chance.normal(0, sigma, data.shape), chance.normal(0, sigma, data.shape)), 0
    )


def only_noise(data: np.ndarray) -> np.ndarray:
    """Nothing of the scan but its outline."""
    return np.where(data > 0, np.random.default_rng(0).uniform(1, 100, data.shape), 0)


def inverted(data: np.ndarray) -> np.ndarray:
    """Bright for dark, in the head."""
    return np.where(
        data > 0, np.percentile(data[data > 0], 99.9) * 1.01 - np.minimum(data, np.percentile(data[data > 0], 99.9)), 0
    )


def shuffled(data: np.ndarray) -> np.ndarray:
    """Columns of 16 x 16 voxels of the head's box in another order."""
    places = np.argwhere(data > 0)
    low, size = places.min(0), (np.ptp(places, axis=0) // 16) * 16
    box = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    new = data.copy()
    parts = new[box].reshape(size[0] // 16, 16, size[1] // 16, 16, size[2]).transpose(0, 2, 1, 3, 4)
    flat = parts.reshape(-1, 16, 16, size[2])
    mixed = flat[np.random.default_rng(0).permutation(len(flat))].reshape(parts.shape)
    new[box] = mixed.transpose(0, 2, 1, 3, 4).reshape(new[box].shape)
    return new


def swapped(given: dict[Modality, Volume]) -> dict[Modality, Volume]:
    """Every scan under the name of the next."""
    names = list(given)
    return dict(zip(names, (given[m] for m in names[1:] + names[:1]), strict=True))


def shifted(given: dict[Modality, Volume]) -> dict[Modality, Volume]:
    """All but the first contrast moved by 12 voxels, the header unchanged."""
    first = next(iter(given))
    return {m: v if m is first else replace(v, data=np.roll(v.data, (12, 12), (0, 1))) for m, v in given.items()}


def smaller(given: dict[Modality, Volume]) -> dict[Modality, Volume]:
    """A header that says half the size."""
    return {m: replace(v, affine=v.affine @ np.diag([0.5, 0.5, 0.5, 1.0])) for m, v in given.items()}


def smaller_header(given: dict[Modality, Volume]) -> dict[Modality, Volume]:
    """Stands for :func:`smaller`, which must be done to the truth as well."""
    return given


SPOILT: dict[str, Spoil] = {
    "contrasts swapped": swapped,
    "one contrast shifted by 12 voxels": shifted,
    "blurred (sigma 3 voxels)": voxels(lambda data: np.where(data > 0, gaussian_filter(data, 3), 0)),
    "noise of a fifth": voxels(noisy),
    "noise only": voxels(only_noise),
    "inverted": voxels(inverted),
    "columns shuffled": voxels(shuffled),
    "half the size": smaller_header,
}


def read(folder: Path) -> Study:
    """A study of files named after contrasts."""
    files = {m: folder / f"{m}.nii.gz" for m in Modality}
    reading = {"volume_index": 0} if folder.name == "sri24" else {}
    return Study.read({m: file for m, file in files.items() if file.exists()}, name=folder.name, **reading)


def phantom(seed: int, **settings: object) -> Study:
    """A simulated patient."""
    made = simulate_study(seed, labels=False, **settings)  # type: ignore[arg-type]
    return Study.read(dict(made.images), name=f"phantom-{seed}")


def patterns(study: Study, *sizes: int) -> Iterator[tuple[Modality, ...]]:
    """Every choice of so many contrasts."""
    for size in sizes:
        yield from combinations(study.volumes, size)


def cases(studies: Path, raw: Path) -> Iterator[Case]:
    """Good ones, then bad ones."""
    for seed, settings in enumerate(({}, {"lesion": "tumour"}, {"head": True}), SEED):
        study = phantom(seed, **settings)
        halves = [*patterns(study, 2)][seed % 2 :: 2] + [*patterns(study, 3)][seed % 2 :: 2]
        for given in (*patterns(study, 1), *halves, *patterns(study, 4)):
            yield Case("good", study.name + (" with skull" if "head" in settings else ""), study, given)
        if not settings:
            yield from spoilt(study)
    for folder in sorted(studies.iterdir(), reverse=True):
        study, new = read(folder), folder.name == UNSEEN
        if folder.name not in (UNSEEN, "ms-07"):
            continue
        for given in patterns(study, *(range(1, len(study.volumes)) if new else [len(study.volumes) - 1])):
            yield Case("good" if new else "seen", study.name, study, given)
        if new:
            yield from spoilt(study)
    for name in ("mslong-01-1", "mslong-04-1"):
        study = read(raw / name)
        for given in patterns(study, 2):
            yield Case("bad", name, study, given, "real head with skull, thick slices")


def spoilt(study: Study) -> Iterator[Case]:
    """All but one contrast given, and something done to them."""
    sizes = len(study.volumes) - 1
    for done, spoil in SPOILT.items():
        for given in list(patterns(study, sizes))[::2][:2]:
            yield Case("bad", study.name, study, given, done, spoil)


class Preparer:
    """Prepares a study once for all cases without spoiling: what absent contrasts hold has no influence on a model."""

    def __init__(self, imputer: Imputer) -> None:
        self.preparation = imputer.model.preparation
        self.last: tuple[Study, PreparedStudy] | None = None

    def __call__(self, case: Case) -> PreparedStudy:
        """The study of a case as the model sees it."""
        if case.done in SPOILT:
            return prepared_case(self.preparation, case)
        if self.last is None or self.last[0] is not case.study:
            self.last = case.study, prepared_case(self.preparation, case)
        return self.last[1]


def prepared_case(preparation: Preparation, case: Case) -> PreparedStudy:
    """The study with what was done to the given contrasts; the others, which the model does not see, are the truth."""
    shown = case.study.volumes | case.spoil({m: case.study.volumes[m] for m in case.given})
    study = smaller(dict(shown)) if case.spoil is smaller_header else shown
    return prepare_study(Study(case.study.name, study), preparation)


def measure(imputer: Imputer, prepare: Preparer, case: Case) -> Row:
    """Impute some slices and compare."""
    left = [m for m in case.study.volumes if m not in case.given]
    plan = plan_study(case.study.volumes, imputer.modalities, left, evaluate=True)
    prepared = prepare(case)
    thin = slice(EVERY // 2, None, EVERY)
    some = replace(prepared, slices=prepared.slices[thin])
    stacks, doubt = imputer.complete(some, plan)
    if doubt is None:
        raise SystemExit("this model has no doubt")
    head = prepared.frame.apply(prepared.foreground.astype(np.float32))[thin] > 0.5
    squares = [(stacks[m] - some.slices[:, imputer.modalities.index(m)]) ** 2 for m in plan.withheld]
    errors = [float(np.mean([square[z][head[z]] for square in squares])) for z in range(len(head))]
    pairs = zip(slice_doubts(doubt, head), errors, strict=True)
    both = [(known, -10 * np.log10(max(error, 1e-9))) for known, error in pairs if known is not None]
    doubts = np.array([known for known, _ in both])
    psnr, within = float(np.mean([p for _, p in both])), float(spearmanr(*zip(*both, strict=True)).statistic)
    return Row(case, float(doubts.mean()), float(np.median(doubts)), float(np.quantile(doubts, 0.9)), psnr, within)


def line(row: Row) -> str:
    """A row of the table."""
    case = row.case
    words = (case.kind, case.name, case.done, "+".join(map(str, case.given)))
    return "\t".join(
        (*words, *(f"{x:.4f}" for x in (row.mean, row.median, row.high)), f"{row.psnr:.2f}", f"{row.within:.2f}")
    )


def summary(rows: list[Row]) -> Iterator[str]:
    """What the table says, in a few lines."""
    good, seen, bad = ([row for row in rows if row.case.kind == kind] for kind in ("good", "seen", "bad"))
    for score in ("mean", "median", "high"):
        limits = {
            n: float(np.percentile([getattr(r, score) for r in good if len(r.case.given) == n], 99))
            for n in range(1, 5)
        }

        def over(some: list[Row], score: str = score, limits: dict[int, float] = limits) -> str:
            return f"{sum(getattr(r, score) > limits[len(r.case.given)] for r in some)} of {len(some)}"

        yield f"{score}: limits {limits}; over them {over(good)} good, {over(seen)} seen in training, {over(bad)} bad"
        for done in dict.fromkeys(row.case.done for row in bad):
            some = [row for row in bad if row.case.done == done]
            middle = np.median([getattr(row, score) for row in some])
            yield f"  {done}: {over(some)} over, median {middle:.3f}, {np.median([row.psnr for row in some]):.1f} dB"
        for name, some in {"good": good, "good and bad": good + bad}.items():
            alike = [[r for r in some if len(r.case.given) == n] for n in range(1, 5)]
            ranks = [spearmanr([getattr(r, score) for r in part], [r.psnr for r in part]).statistic
                     for part in (some, *alike) if len(part) > 2]  # fmt: skip
            yield f"  rank correlation with PSNR, {name}: {ranks[0]:.2f}; by number given {np.round(ranks[1:], 2)}"
    yield f"over the slices of one good study: median rank correlation {np.nanmedian([row.within for row in good]):.2f}"


def main() -> None:
    """The table on stdout, the summary on stderr."""
    source, studies, raw = sys.argv[1:]
    imputer = Imputer.from_pretrained(source, device="cpu")
    prepare, rows = Preparer(imputer), []
    print(
        "kind\tstudy\tdone\tgiven\tmean doubt\tmedian\t90th percentile\tPSNR in the head, dB\tcorrelation over slices"
    )
    for case in cases(Path(studies), Path(raw)):
        try:
            rows.append(measure(imputer, prepare, case))
        except CodeBrainError as error:
            print(f"{case.name}, {case.done}: {error.brief}", file=sys.stderr)
            continue
        print(line(rows[-1]), flush=True)
    for text in summary(rows):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
