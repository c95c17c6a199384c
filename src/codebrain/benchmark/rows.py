"""The tidy row: one number of an evaluation, with everything it belongs to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from codebrain.errors import refusal

TASKS = ("imputation", "reconstruction")
REGIONS = ("slice", "brain", "volume")


@dataclass(frozen=True)
class Row:
    """One patient's score.

    Attributes:
        model: the model's label, unique within an evaluation.
        patient: whose study it is.
        subject: the study (a patient may have several).
        pattern: the present contrasts, ``T1+FLAIR``, in the store's order.
        modality: the absent contrast that was judged.
        task: ``imputation``, or ``reconstruction`` from the code of the complete images.
        region: ``slice`` (mean over whole 2-D slices), ``brain`` (mean over slices, inside the foreground
            mask) or ``volume`` (all slices as one image).
        metric: ``PSNR`` in dB, ``SSIM`` in [-1, 1], ``MAE`` in [0, 1].
        value: the score.
        n_slices: slices that it is a mean over (``slice``, ``brain``) or that make up the volume.
    """

    model: str
    patient: str
    subject: str
    pattern: str
    modality: str
    task: str
    region: str
    metric: str
    value: float
    n_slices: int

    @property
    def weight(self) -> int:
        """What the row counts when rows are pooled: its slices, or one volume."""
        return 1 if self.region == "volume" else self.n_slices

    @property
    def one_present(self) -> bool:
        """Whether a single contrast was given (one-to-one)."""
        return "+" not in self.pattern


def rows_to_csv(rows: Iterable[Row]) -> str:
    """CSV with a header; values with all their digits, so that nothing is lost on the way back."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def rows_from_csv(text: str) -> list[Row]:
    """Inverse of :func:`rows_to_csv`.

    Raises:
        InputRefused: ``DATA_CORRUPT`` when the text holds something else.
    """
    try:
        return [
            Row(**{**raw, "value": float(raw["value"]), "n_slices": int(raw["n_slices"])})  # type: ignore[arg-type]
            for raw in csv.DictReader(io.StringIO(text))
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise refusal("DATA_CORRUPT", f"these are not the rows of an evaluation: {error}") from error
