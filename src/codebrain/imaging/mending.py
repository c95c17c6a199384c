"""What to type to mend a scan: for each code of a refusal or warning, commands with the file's own name in them.

Only tools that codebrain brings along (nibabel's ``nib-*`` and Python itself, dcm2niix with the extra ``dicom``) or
that every machine with such files has (``mv``, ``gzip``, git); nothing is ever changed in place, a mended copy lies
beside the scan. An empty answer means that no command helps, and the sentence of the refusal says what does.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codebrain.errors import CodeBrainError
from codebrain.imaging._container import pair_of, right_name


@dataclass(frozen=True)
class Mending:
    """One command and when to use it.

    Attributes:
        command: for a POSIX shell; words in capitals are to be filled in.
        when: the condition under which it is right; empty where it always is.
    """

    command: str
    when: str = ""

    def as_dict(self) -> dict[str, str]:
        """JSON form."""
        return {"command": self.command, "when": self.when}


@dataclass(frozen=True)
class Patient:
    """A scan and what is wrong with it.

    Attributes:
        path: as typed.
        code: of the refusal or warning.
        message: its sentence.
        field: the header field that it names.
        shape: of the grid, where it is known.
        spacing: voxel edges in millimetres, where they are known.
        qform: whether the header has a qform that can be used alone.
    """

    path: Path
    code: str
    message: str = ""
    field: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    qform: bool = False


def mendings(patient: Patient) -> tuple[Mending, ...]:
    """The commands for one finding, the likeliest first."""
    return tuple(_MENDINGS[patient.code](patient)) if patient.code in _MENDINGS else ()


def _quoted(path: Path | str) -> str:
    """For a shell, and never to be taken for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _mended(path: Path) -> Path:
    """Where a mended copy goes: beside the scan, zipped."""
    stem = path.name
    for end in (".gz", ".nii", ".mgz", ".mgh", ".img", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".mnc"):
        stem = stem[: -len(end)] if stem.lower().endswith(end) else stem
    return path.with_name(f"{stem}_mended.nii.gz")


def _line(*words: str, path: Path) -> str:
    return " ".join((*words, _quoted(path)))


def _python(path: Path, change: str, modules: str = "nibabel as nib") -> str:
    """A program that loads the scan as ``i``, does ``change`` and saves ``i`` beside it."""
    code = f"import {modules}; i = nib.load({_string(path)}); {change}; nib.save(i, {_string(_mended(path))})"
    return f"python -c {shlex.quote(code)}"


def _string(path: Path) -> str:
    """A path as Python text in double quotes, which need no escape inside a shell's single ones."""
    return json.dumps(os.fspath(path), ensure_ascii=False)


def _again(patient: Patient) -> list[Mending]:
    """Damaged on the way: only the source has the scan."""
    test = _line("gzip", "--test", path=patient.path)
    zipped = patient.path.name.lower().endswith((".gz", ".mgz"))
    return [Mending(test, "to check the file after copying or downloading it again")] if zipped else []


def _from_dicom(_: Patient) -> list[Mending]:
    return [Mending("dcm2niix -z y -o OUT DICOM_FOLDER", "the DICOM series is at hand")]


def _trailing(patient: Patient) -> list[Mending]:
    clean = f"gzip -dc {_quoted(patient.path)} | gzip -n > {_quoted(_mended(patient.path))}"
    return [Mending(clean, "the extra bytes are of no use; gzip will say that it ignores them")]


def _format(patient: Patient) -> list[Mending]:
    """Another format, or a right file under a wrong name."""
    path, message = patient.path, patient.message.lower()
    name, folder = _quoted(path.name), _quoted(path.parent)
    for word, command in (
        ("lfs", f"git -C {folder} lfs pull --include={name}"),
        ("annex", f"git -C {folder} annex get {name}"),
        ("html", f"curl --fail --location --output {_quoted(path)} URL"),
        ("xml", f"curl --fail --location --output {_quoted(path)} URL"),
        ("gzip-compressed but", f"mv -n {_quoted(path)} {_quoted(path.with_name(right_name(path.name)))}"),
        ("dicom", f"codebrain impute {folder} -o OUT"),
        ("zip archive", f"unzip {_quoted(path)} -d {_quoted(path.with_suffix(''))}"),
        ("zstd", f"zstd --decompress --keep {_quoted(path)}"),
        ("bzip2", f"bunzip2 --keep {_quoted(path)}"),
        ("minc", f"nib-convert {_quoted(path)} {_quoted(_mended(path))}"),
        ("analyze", f"nib-convert {_quoted(path)} {_quoted(_mended(path))}"),
        ("single-file", f"mv -n {_quoted(path)} {_quoted(path.with_suffix('.nii'))}"),
        ("pair", f"mv -n {_quoted(path)} {_quoted(path.with_suffix('.hdr'))}"),
    ):
        if word in message:
            caution = "left and right are as the header says, which Analyze cannot tell" if word == "analyze" else ""
            return [Mending(command, caution)]
    return _convert(path)


def _convert(path: Path) -> list[Mending]:
    """Formats that ITK reads."""
    if not path.name.lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return [Mending(_line("file", path=path), "to see what kind of file it is")]
    code = f"import SimpleITK as s; s.WriteImage(s.ReadImage({_string(path)}), {_string(_mended(path))})"
    return [Mending(f"python -c {shlex.quote(code)}", "SimpleITK is installed: pip install 'codebrain-mri[align]'")]


def _permission(patient: Patient) -> list[Mending]:
    return [Mending(_line("chmod", "u+r", path=patient.path), "the file is yours; else ask its owner")]


def _dtype(patient: Patient) -> list[Mending]:
    if "complex" not in patient.message:
        return []
    change = 'i = nib.Nifti1Image(abs(np.asanyarray(i.dataobj)).astype("f4"), i.affine)'
    return [Mending(_python(patient.path, change, "nibabel as nib, numpy as np"), "the magnitude is wanted")]


def _volumes(patient: Patient) -> list[Mending]:
    path = patient.path
    if len(patient.shape) > 4:
        return [Mending(_python(path, "i = i.slicer[..., 0, 0]"), "the first of all volumes is the scan")]
    one = f"nib-roi -t 0:1 {_quoted(path)} {_quoted(_mended(path))}"
    return [
        Mending(f"codebrain impute --volume 0 --input CONTRAST={_quoted(path)} -o OUT", "the first volume is the scan"),
        Mending(one, "to cut the first volume out"),
    ]


def _too_big(patient: Patient) -> list[Mending]:
    if "stream" in patient.message:
        return _again(patient)
    count = 1
    for size in patient.shape:
        count *= size
    flag = f"codebrain impute --max-voxels {count} --input CONTRAST={_quoted(patient.path)} -o OUT"
    return [Mending(flag, "the scan really is this large")] if 0 < count < 2**31 else []


def _nonfinite(patient: Patient) -> list[Mending]:
    values = 'np.nan_to_num(i.get_fdata(dtype="f4"), posinf=0, neginf=0)'
    change = f"i = nib.Nifti1Image({values}, i.affine)"
    command = _python(patient.path, change, "nibabel as nib, numpy as np")
    return [Mending(command, "you know why the values are missing and 0 will do")]


def _no_orientation(patient: Patient) -> list[Mending]:
    flag = f"codebrain impute --accept-no-orientation --input CONTRAST={_quoted(patient.path)} -o OUT"
    return [*_from_dicom(patient), Mending(flag, "every contrast lies in the order left, anterior, superior")]


def _synthetic(patient: Patient) -> list[Mending]:
    flag = f"codebrain impute --accept-synthetic --input CONTRAST={_quoted(patient.path)} -o OUT"
    return [Mending(flag, "an image made from a computed image is wanted, and will say so")]


def _affine(patient: Patient) -> list[Mending]:
    path = patient.path
    if "right angles" in patient.message and len(patient.spacing) == 3:
        edges = ", ".join(f"{mm:.6g}" for mm in patient.spacing)
        command = _python(path, f"i = p.resample_to_output(i, ({edges}))", "nibabel as nib, nibabel.processing as p")
        return [Mending(command, "to resample the scan onto a grid with right angles")]
    if patient.field == "sform" and patient.qform:
        return [Mending(_python(path, "i.set_sform(None)"), "the qform is right"), *_from_dicom(patient)]
    return _from_dicom(patient)


def _forms(patient: Patient) -> list[Mending]:
    sform = 'i.set_qform(i.get_sform(), int(i.header["sform_code"]))'
    qform = 'i.set_sform(i.get_qform(), int(i.header["qform_code"]))'
    right = [Mending(_python(patient.path, sform), "the sform is right, which impute assumes")]
    if "impossible" in patient.message:
        return right
    return [*right, Mending(_python(patient.path, qform), "the qform is right")]


def _zoom(patient: Patient) -> list[Mending]:
    if "sform" not in patient.message:
        return _from_dicom(patient)
    return _forms(Patient(patient.path, "GEO_FORMS", "impossible"))


def _units(patient: Patient) -> list[Mending]:
    if "no unit" not in patient.message:
        return []
    return [Mending(_python(patient.path, 'i.header.set_xyzt_units("mm")'), "to say millimetres in the header")]


def _view(patient: Patient) -> list[Mending]:
    return [
        *_from_dicom(patient),
        Mending(
            f"mri_convert --in_i_size MM --in_j_size MM --in_k_size MM {_quoted(patient.path)}"
            f" {_quoted(_mended(patient.path))}",
            "the true voxel size is known and FreeSurfer is installed",
        ),
    ]


def _missing(patient: Patient) -> list[Mending]:
    """A pair that is not complete can be searched for; another missing file cannot."""
    try:
        pair_of(patient.path)
    except CodeBrainError:
        return [Mending(_line("ls", path=patient.path.parent), "to see which files are there")]
    return []


def _rewrite(patient: Patient) -> list[Mending]:
    command = f"nib-convert {_quoted(patient.path)} {_quoted(_mended(patient.path))}"
    return [Mending(command, "to write the header anew")]


_MENDINGS: dict[str, Callable[[Patient], list[Mending]]] = {
    "IN_TRUNCATED": _again,
    "IN_CHECKSUM": _again,
    "IN_EMPTY": _again,
    "IN_TRAILING": _trailing,
    "IN_FORMAT": _format,
    "IN_PERMISSION": _permission,
    "IN_NOT_A_FILE": _missing,
    "IN_HEADER": _from_dicom,
    "IN_HEADER_SIZE": _rewrite,
    "IN_BITPIX": _rewrite,
    "IN_DTYPE": _dtype,
    "IN_NDIM": _volumes,
    "IN_TOO_BIG": _too_big,
    "IN_NONFINITE": _nonfinite,
    "IN_SYNTHETIC": _synthetic,
    "GEO_NO_ORIENTATION": _no_orientation,
    "GEO_AFFINE": _affine,
    "GEO_FORMS": _forms,
    "GEO_ZOOM": _zoom,
    "GEO_UNITS": _units,
    "GEO_FOV": _view,
}
