"""What the numbers of a scan must be: finite where the head is, varied, and not a label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.errors import CodeBrainError, Notice, refusal

Image = NDArray[np.float32]

_EXACT = 1 << 24
"""float32 holds every integer up to here."""

_LABELS = 64
_LEAST_SIGNAL = 0.01
_SATURATED = 0.05
_SAMPLE = 20_000


def scanner_units(
    stored: NDArray[Any], slope: float, intercept: float, path: Path | None, name: str
) -> tuple[Image, list[Notice]]:
    """Stored voxels ``(i, j, k)`` as float32 scanner units.

    Scaled slice by slice in double precision, so that no second copy of the volume is made.

    Raises:
        InputRefused: ``IN_NONFINITE`` when a value does not fit float32.
    """
    data = np.empty(stored.shape, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(stored.shape[2]):
            plane = stored[:, :, k] if stored.dtype.names is None else _from_binary128(stored[:, :, k])
            if (slope, intercept) != (1.0, 0.0):
                plane = plane.astype(np.float64) * slope + intercept
            data[:, :, k] = plane
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize < 4:
        return data, []
    largest = max(abs(int(stored.min())), abs(int(stored.max())))
    if largest <= _EXACT:
        return data, []
    message = f"integers up to {largest} were rounded to float32, which is exact up to {_EXACT}"
    return data, [Notice("IN_PRECISION", message, name)]


def _from_binary128(words: NDArray[Any]) -> NDArray[np.float64]:
    """Source: IEEE 754-2019, table 3.5: 1 sign bit, 15 of exponent (bias 16383), 112 of fraction."""
    high, low = words["high"].astype(np.uint64), words["low"].astype(np.uint64)
    exponent = ((high >> np.uint64(48)) & np.uint64(0x7FFF)).astype(np.int64)
    fraction = (high & np.uint64(0xFFFFFFFFFFFF)).astype(np.float64) * 2.0**-48 + low.astype(np.float64) * 2.0**-112
    value = np.ldexp(np.where(exponent == 0, 0.0, 1.0 + fraction), np.clip(exponent - 16383, -1080, 1080))
    value = np.where(exponent == 0x7FFF, np.where(fraction == 0, np.inf, np.nan), value)
    return np.where(high >> np.uint64(63), -value, value)


def judge_voxels(data: Image, path: Path | None, name: str) -> tuple[Image, list[Notice]]:
    """Check the values of a scan; NaN outside the head becomes 0 (in place).

    Raises:
        InputRefused: ``IN_NONFINITE``, ``IN_NO_SIGNAL``, ``IN_NOT_MRI``.
    """
    notices = _judge_finite(data, path, name)
    low, high = float(data.min()), float(data.max())
    _judge_signal(data, low, high, path)
    _judge_labels(data, low, high, path)
    if low < 0:
        message = f"the scan holds negative intensities, down to {low:.6g}; they count as the darkest signal"
        notices.append(Notice("IN_NEGATIVE", message, name))
    saturated = _saturated_share(data, high)
    if saturated > _SATURATED:
        message = f"{saturated:.0%} of the signal is at its largest value {high:.6g}: the scan is saturated"
        notices.append(Notice("IN_SATURATED", message, name))
    return data, notices


def _judge_finite(data: Image, path: Path | None, name: str) -> list[Notice]:
    if np.isfinite(data.sum(dtype=np.float64)):  # one pass without a mask; NaN and Inf survive a sum
        return []
    infinite = int(np.isinf(data).sum())
    if infinite:
        raise refusal(
            "IN_NONFINITE", "the scan holds infinite values", file=path, found=f"{infinite} voxels",
            expected="finite numbers that fit float32", hint="Export the scan again without them.",
        )  # fmt: skip
    missing = np.isnan(data)
    inside = int((missing & ~_outside(data, missing)).sum())
    if inside:
        raise refusal(
            "IN_NONFINITE", "voxels inside the head are not numbers (NaN)", file=path, found=f"{inside} voxels",
            expected="finite numbers", hint="Export the scan again, or fill the gaps.",
        )  # fmt: skip
    count = int(missing.sum())
    data[missing] = 0.0
    return [Notice("IN_NAN", f"{count} voxels outside the head were not numbers (NaN) and became 0", name)]


def _outside(data: Image, missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which missing voxels hang together with the border, or lie outside the hull of the signal."""
    regions, count = scipy.ndimage.label(missing)
    touching = np.zeros(count + 1, bool)
    for axis in range(3):
        for face in (0, -1):
            touching[np.moveaxis(regions, axis, 0)[face]] = True
    touching[0] = False
    known = data[~missing]
    if not known.size:
        return missing
    signal = np.where(missing, False, data > known.min() + 0.1 * (np.percentile(known, 99.0) - known.min()))
    return np.asarray(touching[regions] | (missing & ~scipy.ndimage.binary_fill_holes(signal)))


def _judge_signal(data: Image, low: float, high: float, path: Path | None) -> None:
    share = float(np.count_nonzero(data)) / data.size
    if low == high or share < _LEAST_SIGNAL:
        raise _no_signal(low, high, share, path)


def _no_signal(low: float, high: float, share: float, path: Path | None) -> CodeBrainError:
    found = f"{low:.6g} everywhere" if low == high else f"{share:.2%} of the voxels are not 0"
    return refusal(
        "IN_NO_SIGNAL", "there is no image in the scan", file=path, found=found,
        expected=f"signal in at least {_LEAST_SIGNAL:.0%} of the voxels", hint="Check that this is the right file.",
    )  # fmt: skip


def _judge_labels(data: Image, low: float, high: float, path: Path | None) -> None:
    """A few distinct integers are a segmentation, not a scan. A sample decides all but the rare case."""
    flat = data.ravel(order="K")
    for part in (flat[:: max(1, flat.size // _SAMPLE)], flat):
        values = np.unique(part)
        if len(values) > _LABELS or not (values == np.rint(values)).all():
            return
    raise refusal(
        "IN_NOT_MRI", "this looks like a label map, not a scan", file=path,
        found=f"{len(values)} distinct whole numbers from {low:.6g} to {high:.6g}",
        expected=f"more than {_LABELS} grey values", hint="Give the scan itself.",
    )  # fmt: skip


def _saturated_share(data: Image, high: float) -> float:
    """Part of the non-zero voxels that sit at the largest value; none where that is 0, the air of an inverted scan."""
    if high == 0:
        return 0.0
    return float((data == high).sum()) / max(1, int(np.count_nonzero(data)))
