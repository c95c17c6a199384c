"""Rows F: models and training. A model is data and never code; one that is damaged or not meant for this is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import tarfile
import time
import zipfile

import pytest
from inputs import files_in, flipped_bit, is_refused

import scans


@pytest.fixture
def study(tmp_path):
    return scans.write_study(tmp_path / "in", ("T1", "FLAIR"))


class Canary:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def pickled(canary):
    return pickle.dumps(Canary(canary))


def spoiled(what, code, spoil):
    """``spoil`` gets the model folder and a path that must stay free."""
    return pytest.param(spoil, code, id=what)


SHORT, PERMUTED = ["T1", "T2", "PD", "FLAIR"], ["T2", "T1", "PD", "FLAIR", "T1Gd"]
WIDER = {"width": 3, "depth": 1}
JPEG = b"\xff\xd8\xff\xe0" + bytes(999)


def weights_of(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    weights_of(folder).write_bytes(change(weights_of(folder).read_bytes()))


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def prepare_otherwise(folder):
    text = (folder / "preparation.json").read_text()
    (folder / "preparation.json").write_text(text.replace('"percentile"', '"min_max"'))


@pytest.mark.row("F1", "F2", "F5")
@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        spoiled("F1 cut", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: b[: len(b) // 2])),
        spoiled("F1 bit flipped", "CKPT_CORRUPT", lambda f, c: rewrite(f, flipped_bit)),
        spoiled("F1 empty", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: b"")),
        spoiled("F1 a JPEG", "CKPT_CORRUPT", lambda f, c: rewrite(f, lambda b: JPEG)),
        spoiled("F2 pickle under another name", "CKPT_UNSAFE", lambda f, c: rewrite(f, lambda b: pickled(c))),
        spoiled("F5 other modalities", "CKPT_MISMATCH", lambda f, c: reconfigure(f, modalities=SHORT)),
        spoiled("F5 permuted modalities", "CKPT_MISMATCH", lambda f, c: reconfigure(f, modalities=PERMUTED)),
        spoiled("F5 other normalisation", "CKPT_MISMATCH", lambda f, c: prepare_otherwise(f)),
        spoiled("F5 other sizes", "CKPT_MISMATCH", lambda f, c: reconfigure(f, settings=WIDER)),
    ],
)
def test_spoiled_model_folders(spoil, code, study, tmp_path, tiny_model, impute):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder, tmp_path / "canary")
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    is_refused(answer, code, 5, tmp_path / "out")
    assert not (tmp_path / "canary").exists()


@pytest.mark.row("F2")
@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.pkl", "m.npz", "m.safetensors", "m.bin"])
def test_a_pickle_is_never_loaded(name, study, tmp_path, impute):
    (tmp_path / name).write_bytes(pickled(tmp_path / "canary"))
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", tmp_path / name)
    is_refused(answer, "CKPT_UNSAFE", 5, tmp_path / "out")
    assert not (tmp_path / "canary").exists()


@pytest.mark.row("F5")
def test_permuted_modalities_are_named(study, tmp_path, tiny_model, impute):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    reconfigure(folder, modalities=PERMUTED)
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    assert "modalities" in answer.err and "T2,T1,PD" in answer.err


def safetensors(header, data=bytes(64)):
    return len(header).to_bytes(8, "little") + header + data


def tensor(begin, end, shape=(4,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


# A mapping gets the metadata of the model that it replaces, so that only its offsets lie.
LYING = {
    "length 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "length beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "header over 100 MB": safetensors(b"{" + b" " * (100 * 2**20 + 1) + b"}"),
    "overlap": {"a": tensor(0, 16), "b": tensor(8, 24)},
    "hole": {"a": tensor(0, 16), "b": tensor(32, 48)},
    "negative offset": {"a": tensor(-16, 0)},
    "offset beyond the data": {"a": tensor(0, 2**40)},
    "not JSON": safetensors(b"\x00" * 64),
    "a list": safetensors(b"[1, 2, 3]"),
}


@pytest.mark.row("F3")
@pytest.mark.parametrize("what", LYING)
def test_weights_that_lie_about_themselves(what, study, tmp_path, tiny_model, impute):
    """Also where config.json has been made to agree with them."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    lie = LYING[what]
    if isinstance(lie, dict):
        honest = weights_of(folder).read_bytes()
        header = json.loads(honest[8 : 8 + int.from_bytes(honest[:8], "little")])
        lie = safetensors(json.dumps(lie | {"__metadata__": header["__metadata__"]}).encode())
    weights_of(folder).write_bytes(lie)
    reconfigure(folder, weights_sha256=hashlib.sha256(lie).hexdigest())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    assert answer.code in ("CKPT_CORRUPT", "CKPT_MISMATCH") and answer.status == 5, answer.err
    assert "Traceback" not in answer.err and files_in(tmp_path / "out") == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


@pytest.mark.row("F3")
def test_a_million_tensors_are_refused_from_the_length_of_their_header(study, tmp_path, tiny_model, impute):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    header = b"{" + b"".join(entry % i for i in range(10**6))[:-1] + b"}"
    lie = safetensors(header, b"")
    weights_of(folder).write_bytes(lie)
    reconfigure(folder, weights_sha256=hashlib.sha256(lie).hexdigest())
    begun = time.monotonic()
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", folder)
    assert (answer.code, answer.status) == ("CKPT_CORRUPT", 5), answer.err
    assert time.monotonic() - begun < 5


def zip_with(name, content=b"x"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tar_with(kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("config.json")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    return buffer.getvalue()


ARCHIVES = {
    "zip with ../": zip_with("../escaped"),
    "zip with an absolute path": zip_with("/tmp/escaped-absolute"),
    "zip bomb": zip_with("model.safetensors", bytes(50_000_000)),
    "tar with a symlink": tar_with(tarfile.SYMTYPE),
    "tar with a hard link": tar_with(tarfile.LNKTYPE),
    "tar with a device": tar_with(tarfile.CHRTYPE),
}


@pytest.mark.row("F4")
@pytest.mark.parametrize("what", ARCHIVES)
def test_archives_are_never_unpacked(what, study, tmp_path, impute):
    """A model is a folder; an archive is refused as a file, whatever is in it, and nothing is written."""
    place = tmp_path / "models"
    place.mkdir()
    model = place / ("model.zip" if "zip" in what else "model.tar.gz")
    model.write_bytes(ARCHIVES[what])
    answer = impute("--t1", study["T1"], "-o", tmp_path / "out", "--model", model)
    assert answer.code in ("CKPT_UNSAFE", "CKPT_CORRUPT") and answer.status == 5, answer.err
    assert files_in(place) == [model.relative_to(place)] and files_in(tmp_path / "out") == []
    assert not (tmp_path / "escaped").exists()
