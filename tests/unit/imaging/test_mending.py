"""What doctor tells people to type is typed here: the mended copy is read without the finding."""

from __future__ import annotations

import shlex
import subprocess
from importlib import import_module

import nibabel as nib
import numpy as np
import pytest

import scans
from codebrain.imaging.examine import examine
from codebrain.imaging.mending import Patient, mendings
from codebrain.imaging.volume import read_volume
from scans import affine_of, head, nifti, patch, zipped

nan = float("nan")
WHOLE = nifti(head())


def type_(command, folder):
    """Run a command; Python and nibabel's tools in this process, which is quicker."""
    words = shlex.split(command)
    if words[0] == "python":
        exec(compile(words[2], "<mending>", "exec"), {})
    elif words[0].startswith("nib-"):
        import_module(f"nibabel.cmdline.{words[0].removeprefix('nib-')}").main(words[1:])
    else:
        subprocess.run(["bash", "-c", command], cwd=folder, check=False, capture_output=True)


def with_sform(*values):
    content = WHOLE
    for index, value in values:
        content = patch(content, scans.SROW, value, index)
    return zipped(content)


def complex_scan():
    return zipped(nib.Nifti1Image((head() * 1j).astype(np.complex64), affine_of()).to_bytes())


def hole(value):
    data = head().copy()
    data[16, 18, 15] = value
    return zipped(nifti(data))


def many(*shape):
    return zipped(nifti(np.broadcast_to(head()[..., *([None] * len(shape))], (*scans.SHAPE, *shape)).copy()))


CASES = {
    "IN_TRAILING": ("t1.nii.gz", zipped(WHOLE) + b"garbage", 0),
    "IN_FORMAT gzip named .nii": ("t1.nii", zipped(WHOLE), 0),
    "IN_FORMAT plain named .nii.gz": ("t1.nii.gz", WHOLE, 0),
    "IN_FORMAT plain named .mgz": ("t1.mgz", nib.MGHImage(head(), affine_of()).to_bytes(), 0),
    "IN_DTYPE": ("t1.nii.gz", complex_scan(), 0),
    "IN_NDIM four": ("t1.nii.gz", many(2), 1),
    "IN_NDIM five": ("t1.nii.gz", many(2, 3), 0),
    "IN_NONFINITE nan": ("t1.nii.gz", hole(nan), 0),
    "IN_NONFINITE inf": ("t1.nii.gz", hole(float("-inf")), 0),
    "IN_BITPIX": ("t1.nii.gz", zipped(patch(WHOLE, scans.BITPIX, 8)), 0),
    "GEO_FORMS sform": ("t1.nii.gz", with_sform((3, -60.0)), 0),
    "GEO_FORMS qform": ("t1.nii.gz", with_sform((3, -60.0)), 1),
    "GEO_ZOOM": ("t1.nii.gz", zipped(patch(WHOLE, scans.PIXDIM, 4.0, 1)), 0),
    "GEO_UNITS": ("t1.nii.gz", zipped(patch(WHOLE, scans.XYZT_UNITS, 0)), 0),
    "GEO_AFFINE zero": ("t1.nii.gz", with_sform(*((i, 0.0) for i in range(12))), 0),
    "GEO_AFFINE nan": ("t1.nii.gz", with_sform((0, nan)), 0),
    "GEO_AFFINE sheared": ("t1.nii.gz", with_sform((1, 0.4)), 0),
}


@pytest.mark.parametrize("folder", ["plain", "o'clock $HOME"])
@pytest.mark.parametrize("case", CASES)
def test_the_command_mends_the_scan(case, folder, tmp_path):
    code, (name, content, which) = case.split()[0], CASES[case]
    place = tmp_path / folder
    place.mkdir()
    path = place / name
    path.write_bytes(content)
    (finding,) = (f for f in examine(path).findings if f.code == code)
    type_(finding.mendings[which].command, place)
    (mended,) = (p for p in place.iterdir() if p != path)
    again = examine(mended)
    assert again.usable and code not in [f.code for f in again.findings]
    assert not path.exists() or path.read_bytes() == content
    if "sheared" not in case and "DTYPE" not in case:
        kept = read_volume(mended)
        np.testing.assert_allclose(kept.spacing, 5.0, rtol=1e-6)
        assert kept.data.shape == scans.SHAPE and float(np.abs(kept.data - head()).max()) < (
            800 if "NON" in case else 1e-3
        )


def test_an_nrrd_file_is_converted_with_simple_itk(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(head().T)
    image.SetSpacing([5.0] * 3)
    sitk.WriteImage(image, str(tmp_path / "t1.nrrd"))
    (finding,) = examine(tmp_path / "t1.nrrd").findings
    assert finding.code == "IN_FORMAT"
    type_(finding.mendings[0].command, tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path / "t1_mended.nii.gz").data, head())


def test_an_analyze_pair_is_converted_with_a_caution(tmp_path):
    nib.save(nib.Spm99AnalyzeImage(head(), affine_of()), tmp_path / "t1.img")
    (finding,) = examine(tmp_path / "t1.img").findings
    assert finding.code == "IN_FORMAT" and "left and right" in finding.mendings[0].when
    type_(finding.mendings[0].command, tmp_path)
    assert read_volume(tmp_path / "t1_mended.nii.gz").data.shape == scans.SHAPE


@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git -C {folder} lfs pull --include=t1.nii.gz"),
        (b"/annex/objects/SHA256E-s1--0.nii.gz\n", "git -C {folder} annex get t1.nii.gz"),
        (b"<html>404", "curl --fail --location --output {folder}/t1.nii.gz URL"),
        (bytes(128) + b"DICM", "codebrain impute {folder} -o OUT"),
        (b"PK\x03\x04" + bytes(99), "unzip {folder}/t1.nii.gz -d {folder}/t1.nii"),
    ],
)
def test_what_is_no_scan_gets_the_tool_that_fetches_it(content, command, tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(content)
    (finding,) = examine(tmp_path / "t1.nii.gz").findings
    assert finding.mendings[0].command == command.format(folder=tmp_path)


def test_commands_of_impute_are_parsed_by_impute(tmp_path, monkeypatch):
    from codebrain.app import cli
    from codebrain.app.commands import impute

    asked = []
    monkeypatch.setattr(impute, "impute_files", lambda request, **_: asked.append(request.reading))
    patients = (
        Patient(tmp_path / "-a b.nii.gz", "IN_NDIM"),
        Patient(tmp_path / "t1.nii.gz", "GEO_NO_ORIENTATION"),
        Patient(tmp_path / "t1.nii.gz", "IN_TOO_BIG", shape=(1000, 1000, 400)),
    )
    for patient in patients:
        (command,) = (m.command for m in mendings(patient) if m.command.startswith("codebrain"))
        words = shlex.split(command.replace("CONTRAST", "T1"))
        assert cli.main(words[1:]) == 0, command
    assert [{k for k, v in r.items() if v is not None and v is not False and v != 2**28} for r in asked] == [
        {"volume_index"}, {"accept_no_orientation"}, {"max_voxels"},
    ]  # fmt: skip


def test_what_no_command_helps(tmp_path):
    assert mendings(Patient(tmp_path / "t1.nii.gz", "IN_NO_SIGNAL")) == ()
    assert mendings(Patient(tmp_path / "t1.nii.gz", "IN_TOO_BIG", shape=(32767, 32767, 32767))) == ()


def test_gzip_checks_what_was_copied_again(tmp_path):
    path = tmp_path / "t1.nii.gz"
    for content, status in ((zipped(WHOLE), 0), (zipped(WHOLE)[:-4], 1), (zipped(WHOLE)[:-8] + bytes(8), 1)):
        path.write_bytes(content)
        command = mendings(Patient(path, "IN_TRUNCATED"))[0].command
        assert (subprocess.run(shlex.split(command), capture_output=True, check=False).returncode != 0) == bool(status)
