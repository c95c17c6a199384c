"""The tidy row: one number of an evaluation, with everything it belongs to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from codebrain.errors import missing_extra, refusal

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


def rows_to_parquet(rows: Iterable[Row]) -> bytes:
    """Parquet with the columns of the CSV, typed; a benchmark's hundred thousand rows take a megabyte.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    schema = _schema(arrow)
    kept = list(rows)
    table = arrow.table({name: [getattr(row, name) for row in kept] for name in schema.names}, schema=schema)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def rows_from_parquet(data: bytes) -> list[Row]:
    """Inverse of :func:`rows_to_parquet`.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when pyarrow is not installed.
        InputRefused: ``DATA_CORRUPT`` when the bytes hold something else.
    """
    arrow, parquet = _arrow()
    try:
        # On this thread alone: read_table's workers may outlive it and abort the process at exit (apache/arrow 34314).
        table = parquet.ParquetFile(arrow.BufferReader(data)).read(use_threads=False).cast(_schema(arrow))
    except (arrow.ArrowException, ValueError, OSError) as error:
        raise refusal("DATA_CORRUPT", f"these are not the rows of an evaluation: {error}") from error
    return [Row(**record) for record in table.to_pylist()]


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "bench", "Rows as Parquet") from None
    return pyarrow, parquet


def _schema(arrow: Any) -> Any:
    """The columns of a row; none may be empty."""
    kinds = {"str": arrow.string(), "float": arrow.float64(), "int": arrow.int64()}
    return arrow.schema([arrow.field(f.name, kinds[str(f.type)], nullable=False) for f in fields(Row)])
