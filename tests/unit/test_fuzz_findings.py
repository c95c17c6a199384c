"""Inputs that fuzzing, full disks and reading the code with their eyes have found: each was a traceback or worse."""

from __future__ import annotations

import gzip
import json
import resource
import time
from pathlib import Path

import pytest

import scans
from codebrain import output
from codebrain.batch.folder import StudyRecord
from codebrain.benchmark.suite import load_suite
from codebrain.data.manifest import Manifest
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.imaging.volume import read_volume
from codebrain.models import build_model, load_model, save_model
from codebrain.report.page import write_report
from codebrain.training.config import load_config
from codebrain.vocabulary import ModalitySet, Preparation
from fabricated import fabricate_store

DEEP = b"[" * 100_000
MODALITIES = ModalitySet.parse("T1,T2,FLAIR")


def refused(work, *arguments) -> str:
    """The code of the refusal, which comes soon."""
    begun = time.process_time()
    with pytest.raises(CodeBrainError) as caught:
        work(*arguments)
    assert time.process_time() - begun < 5
    return caught.value.code


# --- YAML ---

LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]" for n in range(9))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "model: &a [*a]",
        "model: mean\nseed: 2024-99-99",
        "model: !!timestamp soon",
        "model: mean\nseed: " + "9" * 5000,
        "model: mean\n? [1]\n: 2",
        "model: mean\nsettings: !!set {a}",
        "model: mean\nsettings: {at: 2024-01-01}",
        "model: " + "[" * 3000,
        "".join(f"k{n}: 1\n" for n in range(150_000)),
        "model: mean\nextra: 1\n? {a: 1}\n: 2",
    ],
    ids=["laughs", "itself", "date", "tag", "digits", "list as key", "set", "time", "deep", "long", "map as key"],
)
def test_yaml(text, tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    assert refused(load_config, path) == "CONFIG"
    assert refused(load_suite, path) == "CONFIG"


def test_changes_of_a_suite_that_json_cannot_hold(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text("title: x\nmethods: {a: {recipe: mm_gan_small, changes: {seed: !!set {a}}}}")
    assert refused(load_suite, path) == "CONFIG"


# --- model folders ---


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    save_model(build_model("codebrain", MODALITIES, {"width": 1, "depth": 1, "critic_width": 1}), folder,
               preparation=Preparation(MODALITIES))  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def model_with(tmp_path: Path, whole: dict[str, bytes], file: str, change) -> Path:
    """A model folder in which one JSON document is changed; the hash in the configuration always fits."""
    folder = tmp_path / "model"
    folder.mkdir()
    files = dict(whole)
    weights = files["model.safetensors"]
    size = int.from_bytes(weights[:8], "little")
    documents = {**files, "header": weights[8 : 8 + size]}
    document = json.loads(documents[file])
    changed = change(document)
    documents[file] = changed if isinstance(changed, bytes) else json.dumps(changed or document).encode()
    weights = len(documents["header"]).to_bytes(8, "little") + documents.pop("header") + weights[8 + size :]
    config = documents["config.json"]
    if file != "config.json":
        import hashlib

        config = json.dumps({**json.loads(config), "weights_sha256": hashlib.sha256(weights).hexdigest()}).encode()
    for name, content in {**documents, "model.safetensors": weights, "config.json": config}.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda c: DEEP),
        ("config.json", lambda c: [1]),
        ("config.json", lambda c: c.update(architecture=["codebrain"])),
        ("config.json", lambda c: c.update(settings=[])),
        ("config.json", lambda c: c.update(modalities="T1")),
        ("config.json", lambda c: c["settings"].update(width=-1)),
        ("config.json", lambda c: c["settings"].update(width=10**7)),
        ("config.json", lambda c: c["settings"].update(depth=10**9)),
        ("config.json", lambda c: c["settings"].update(critic_width=10**5)),
        ("config.json", lambda c: c["settings"].update(levels=[])),
        ("config.json", lambda c: b" " * (2 << 20)),
        ("preparation.json", lambda c: DEEP),
        ("preparation.json", lambda c: c.update(normalisation="z")),
        ("preparation.json", lambda c: c.update(percentiles=["a", "b"])),
        ("preparation.json", lambda c: c.update(percentiles=[99, 1])),
        ("preparation.json", lambda c: c.update(pixel_spacing_mm=1e-300)),
        ("preparation.json", lambda c: c.update(multiple=0)),
        ("preparation.json", lambda c: c.update(intensity_scale=["T1"])),
        ("header", lambda c: DEEP),
        ("header", lambda c: [1]),
        ("header", lambda c: c.update(__metadata__="text")),
        ("header", lambda c: next(v for k, v in c.items() if k != "__metadata__").update(data_offsets=[0, 2**62])),
        ("header", lambda c: next(v for k, v in c.items() if k != "__metadata__").update(shape=[-1])),
    ],
)
def test_model_folders(file, change, tmp_path, whole_model):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = refused(load_model, model_with(tmp_path, whole_model, file, change))
    assert code.startswith("CKPT_") or code == "CONFIG"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 1 << 20, "more than 1 GiB was asked for"


def test_a_folder_with_nothing_changed_is_a_model(tmp_path, whole_model):
    assert load_model(model_with(tmp_path, whole_model, "config.json", lambda c: None)).architecture == "codebrain"


# --- slice stores ---


@pytest.fixture
def store(tmp_path) -> Path:
    fabricate_store(tmp_path / "store", 3, shape=(3, 16, 16), val=["s00"], test=["s01"])
    return tmp_path / "store"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.update(splits=[1, 2]),
        lambda raw: raw.update(splits=7),
        lambda raw: raw.update(protocol="synra"),
        lambda raw: raw.update(subjects=[]),
        lambda raw: raw["records"].append(raw["records"][0]),
        lambda raw: raw["records"][0].update(subject="../../outside"),
        lambda raw: raw["records"][0].update(subject="a\0b"),
        lambda raw: raw["records"][0].update(shape=[3, 3, "16", 16]),
        lambda raw: raw["records"][0].update(foreground_pixels=[1e308, {}, 0]),
        lambda raw: raw["records"][0].update(available=[True]),
        lambda raw: raw["records"][0].update(slices_bytes=None),
        lambda raw: raw["preparation"].update(multiple="8"),
    ],
)
def test_manifests(change, store):
    raw = json.loads((store / "manifest.json").read_bytes())
    change(raw)
    assert refused(Manifest.from_dict, raw) in {"DATA_CORRUPT", "CKPT_CORRUPT"}


def test_a_manifest_that_is_nested_too_deeply(store):
    (store / "manifest.json").write_bytes(DEEP)
    assert refused(SliceStore.open, store) == "DATA_CORRUPT"


# --- runs and batches ---


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"outputs": [{"file": "a\\u0000b"}]}',
        b'{"outputs": [{"file": ""}, {"file": "."}]}',
        b'{"outputs": [{"file": 7}]}',
        b"\xff\xfe",
    ],
)
def test_an_older_record_of_a_run_cannot_keep_a_new_one_from_its_place(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with output.RunFolder(tmp_path, overwrite=True) as folder, folder.staged() as stage:
        (stage / "run.json").write_text("{}")
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_report_of_a_run_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "run.json").write_bytes(DEEP)
    assert refused(write_report, tmp_path) == "IN_FORMAT"


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": [{}]},
        {"outputs": [{"file": "/etc/passwd", "sha256": ""}]},
        {"outputs": [{"file": "../x", "sha256": ""}]},
        {"outputs": 5},
        {"facts": {"seconds": "x"}},
        {"facts": {"imputed": 1}},
        {"status": "perhaps"},
        {"inputs": []},
    ],
)
def test_records_of_a_batch(change):
    good = StudyRecord("a", "done", outputs=({"file": "a/x", "sha256": "0", "bytes": 1},), facts={"seconds": 1.5})
    assert StudyRecord.from_dict(json.loads(json.dumps(good.as_dict()))) is not None
    assert StudyRecord.from_dict(json.loads(json.dumps({**good.as_dict(), **change}))) is None


# --- scans ---


def test_a_gzip_stream_that_could_never_hold_its_voxels_costs_no_memory(tmp_path):
    content = scans.nifti(scans.head())
    for axis in (1, 2, 3):
        content = scans.patch(content, scans.DIM, 600, axis)
    for axis in (0, 1, 2):
        content = scans.patch(content, scans.SROW, 0.5, 4 * axis + axis)
        content = scans.patch(content, scans.PIXDIM, 0.5, axis + 1)
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(content, 1))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(read_volume, path) == "IN_TRUNCATED"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 << 10


def test_a_million_header_extensions(tmp_path):
    content = scans.nifti(scans.head())
    count = 1_000_000
    header = scans.patch(content[:348], scans.VOX_OFFSET, 352.0 + 16 * count)
    path = tmp_path / "x.nii.gz"
    extension = (16).to_bytes(4, "little") + (6).to_bytes(4, "little") + bytes(8)
    path.write_bytes(gzip.compress(header + b"\1\0\0\0" + extension * count + content[352:], 1))
    begun = time.process_time()
    read_volume(path)
    assert time.process_time() - begun < 5
