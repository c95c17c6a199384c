"""What the rows of the specification are made of: one input as bytes, and what it must get."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import scans
from scans import affine_of, head, nifti, patch, zipped

nan, inf = float("nan"), float("inf")


@dataclass(frozen=True)
class Row:
    """One input and what it must get."""

    number: str
    what: str
    make: Callable[[], bytes]
    code: str | None = None
    name: str = "t1.nii.gz"
    warning: str | None = None
    says: str = ""
    flags: tuple[str, ...] = ()
    status: int = 3

    def __str__(self) -> str:
        return f"{self.number} {self.what}"


def refused(number, what, make, code, **rest):
    return Row(number, what, make, code, **rest)


def accepted(number, what, make, warning=None, **rest):
    return Row(number, what, make, None, warning=warning, **rest)


def as_parameters(rows):
    """For ``parametrize``: named after the row and marked with its number."""
    return [pytest.param(row, id=str(row), marks=pytest.mark.row(row.number)) for row in rows]


def whole():
    return nifti(head())


def gz():
    return zipped(whole())


def forged(field_, value, index=0, *, zip_=True):
    """A whole scan with one header field changed."""

    def make():
        content = patch(whole(), field_, value, index)
        return zipped(content) if zip_ else content

    return make


def voxels(change, **kwargs):
    """A scan whose voxels were changed."""
    return lambda: zipped(nifti(change(head()), **kwargs))


def flipped_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def as_is(data):
    return data


def grid(spacing=5.0, shape=scans.SHAPE, change=None, **kwargs):
    """A scan on another grid; ``change`` edits the affine."""

    def make():
        affine = affine_of(spacing, shape)
        if change is not None:
            affine = change(affine)
        return zipped(nifti(head(shape=shape), affine, **kwargs))

    return make


def moved(x=0.0, y=0.0, z=0.0):
    def change(affine):
        affine = affine.copy()
        affine[:3, 3] += (x, y, z)
        return affine

    return change


def turned(degrees):
    def change(affine):
        angle = np.deg2rad(degrees)
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return rotation @ affine

    return change


HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def digests(*files):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def files_in(folder: Path):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) if folder.exists() else []


def is_refused(answer, row_code, status, out):
    """One line with the code, the exit status, nothing written."""
    assert (answer.code, answer.status) == (row_code, status), answer.err
    assert answer.err.strip().count("\n") == 0, "one line"
    assert "Traceback" not in answer.err + answer.out
    assert files_in(out) == []


def on_its_own_grid(imputed: Path, reference: Path):
    new, old = nib.load(imputed), nib.load(reference)
    assert new.shape[:3] == old.shape[:3]
    assert new.get_data_dtype() == np.float32
    assert np.isfinite(new.get_fdata()).all()
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x"):
        np.testing.assert_array_equal(new.header[name], old.header[name], err_msg=name)


def refuses(row, tmp_path, impute):
    """Type the row: refused as it says, the input's bytes unchanged."""
    path = tmp_path / "in" / row.name
    path.parent.mkdir()
    path.write_bytes(row.make())
    before, out = digests(path), tmp_path / "out"
    answer = impute("--t1", path, "-o", out, "--want", "T2", *row.flags)
    is_refused(answer, row.code, row.status, out)
    assert path.name in answer.err
    assert row.says.lower() in answer.err.lower()
    assert digests(path) == before


def accepts(row, tmp_path, impute):
    """Type the row: imputed on its own grid, with exactly the warnings that it says."""
    path = tmp_path / "in" / row.name
    path.parent.mkdir()
    path.write_bytes(row.make())
    before, out = digests(path), tmp_path / "out"
    answer = impute("--t1", path, "-o", out, "--want", "T2", *row.flags)
    assert answer.status == 0, answer.err
    warnings = {warning["code"] for warning in json.loads((out / "run.json").read_text())["warnings"]}
    assert warnings == set((row.warning or "").split())
    assert "Traceback" not in answer.err
    assert digests(path) == before
    on_its_own_grid(out / "study_T2_imputed.nii.gz", path)
