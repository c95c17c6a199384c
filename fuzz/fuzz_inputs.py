"""Coverage-guided fuzzing of everything that codebrain reads and did not write itself.

::

    pip install -e '.[fuzz]'
    python fuzz/fuzz_inputs.py nifti -runs=100000
    python fuzz/fuzz_inputs.py model -max_total_time=600 -rss_limit_mb=2048 -timeout=5

The first word is a target, the others are libFuzzer's options. Blind bytes would die at the first magic number, so
every target has a mutator that knows its format: it patches header fields, or values of a JSON or YAML document, with
numbers and words at the edges of what programs expect.

Oracle: a reader gives its result or raises a :class:`~codebrain.errors.CodeBrainError` whose sentence is one line and
whose facts are JSON, within five seconds of CPU time and within ``MEMORY`` bytes. Anything else ends the run with the
input in a file ``crash-...``; with ``--collect FOLDER`` each different failure is kept there once and the run goes on.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import atheris

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SECONDS = 5.0
MEMORY = 6 << 30
"""Of address space, which torch alone takes three of."""

EDGE_WORDS = (
    "",
    " ",
    "x" * 300,
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "é",
    "nan",
    "T1",
    "T1,T1",
    "None",
)
NOT_FINITE = (float("nan"), float("inf"))
EDGE_NUMBERS = (0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63), 10**30, 1.5, -0.0, 1e308, 5e-324, *NOT_FINITE)
EDGE_VALUES: tuple[Any, ...] = (
    *EDGE_WORDS, *EDGE_NUMBERS, None, True, False, [], {}, [[]], [None], {"": None}, [0] * 5, [1e308, -1e308], ["T1"],
)  # fmt: skip


class Target:
    """One reader: seeds, a mutator that knows the format, and the call.

    Args:
        folder: a place of its own for files.
    """

    name: ClassVar[str]
    seeds: list[bytes]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """A neighbour of ``data``."""
        return bytes(data)

    def read(self, data: bytes) -> None:
        """Hand ``data`` to codebrain."""
        raise NotImplementedError


# --- scans ---


class Nifti(Target):
    """Plain ``.nii`` files."""

    name = "nifti"
    suffix = ".nii"
    FLOATS = (0.0, -0.0, 1.0, -1.0, 12.0, 352.0, 544.0, 100.0, 1e9, -400.0, 1e38, -1e38, 1e-45, *NOT_FINITE)
    INTS = (0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 32, 64, 128, 200, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 32767)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import nibabel as nib
        import numpy as np

        from codebrain.imaging import volume

        self.read_volume = volume.read_volume
        self.path = folder / f"scan{self.suffix}"
        data = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
        affine = np.diag([12.0, 12.0, 12.0, 1.0])
        self.seeds = []
        for cls in (nib.Nifti1Image, nib.Nifti2Image):
            image = cls(data, affine)
            image.header.set_xyzt_units("mm")
            self.seeds.append(self.pack(image.to_bytes()))
        four = nib.Nifti1Image(np.stack([data, data + 1], axis=-1), affine)
        self.seeds.append(self.pack(four.to_bytes()))
        swapped = nib.Nifti1Header(endianness=">")
        swapped.set_data_shape((8, 8, 8))
        swapped.set_data_dtype(np.float32)
        swapped.set_sform(affine, 1)
        swapped["magic"], swapped["vox_offset"] = b"n+1", 352
        self.seeds.append(self.pack(swapped.binaryblock + bytes(4) + data.astype(">f4").tobytes()))

    def pack(self, plain: bytes) -> bytes:
        return plain

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        content = bytearray(data)
        if len(content) < 352:
            return bytes(content)
        second = content[4:8] == b"n+2\0"
        fields = _nifti_fields(second)
        for _ in range(chance.randint(1, 3)):
            place, code, count = chance.choice(fields)
            size = struct.calcsize(code)
            place += size * chance.randrange(count)
            if place + size > len(content):
                continue
            values = self.FLOATS if code in "fd" else self.INTS
            value = chance.choice(values)
            if code == "b":
                value = max(-128, min(127, int(value)))
            order = chance.choice("<<<<>")
            struct.pack_into(order + code, content, place, value)
        if chance.random() < 0.1:
            del content[chance.randrange(len(content)) :]
        return bytes(content)

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        index = None if len(data) % 3 else 0
        self.read_volume(self.path, volume_index=index, accept_no_orientation=len(data) % 2 == 0)


def _nifti_fields(second: bool) -> list[tuple[int, str, int]]:
    """Offset, struct code and count of every numeric header field."""
    import nibabel as nib

    dtype = (nib.Nifti2Header if second else nib.Nifti1Header).template_dtype
    fields = []
    for name in dtype.names:
        kind, place = dtype.fields[name][:2]
        base, shape = kind.subdtype or (kind, (1,))
        code = {"i2": "h", "i4": "i", "i8": "q", "f4": "f", "f8": "d", "u1": "b", "i1": "b"}.get(base.str[1:])
        if code:
            fields.append((place, code, shape[0]))
    end = 540 if second else 348
    return [*fields, (end, "b", 4), (end + 4, "i", 2)]  # the extension flag, and the first extension


class NiftiGz(Nifti):
    """``.nii.gz`` files: the payload is compressed here, then a few bytes of the result are changed.

    Input: a count, as many (place, place, xor) triples, the payload.
    """

    name = "nifti_gz"
    suffix = ".nii.gz"

    def pack(self, plain: bytes) -> bytes:
        return b"\0" + plain

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        count = data[0] % 4 if data else 0
        patches, plain = data[1 : 1 + 3 * count], data[1 + 3 * count :]
        if chance.random() < 0.5:
            count = chance.randint(0, 3)
            patches = bytes(chance.randrange(256) for _ in range(3 * count))
        return bytes([count]) + patches + super().mutate(plain, chance)

    def read(self, data: bytes) -> None:
        count = data[0] % 4 if data else 0
        packed = bytearray(gzip.compress(data[1 + 3 * count :], 1, mtime=0))
        for start in range(1, 1 + 3 * count, 3):
            patch = data[start : start + 3]
            if len(patch) == 3:
                packed[int.from_bytes(patch[:2], "little") % len(packed)] ^= patch[2]
        super().read(bytes(packed))


# --- JSON documents ---


class Document(Target):
    """A JSON document; the mutator changes values, names and structure."""

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return chance.choice(self.seeds)
        for _ in range(chance.randint(1, 3)):
            document = _changed(document, chance)
        if chance.random() < 0.02:
            return b'{"a":' * 2000 + json.dumps(document).encode() + b"}" * 2000
        return json.dumps(document).encode()


def _changed(document: Any, chance: random.Random) -> Any:
    """``document`` with one value, name or element changed."""
    places = [(None, None), *_places(document)]
    holder, key = chance.choice(places)
    if holder is None:
        return _edge(chance) if chance.random() < 0.1 else document
    action = chance.random()
    if action < 0.7:
        holder[key] = _edge(chance)
    elif action < 0.8:
        del holder[key]
    elif action < 0.9:
        other, name = chance.choice(places[1:])
        holder[key] = json.loads(json.dumps(other[name]))
    elif isinstance(holder, list):
        holder.insert(key, _edge(chance))
    else:
        holder[chance.choice(EDGE_WORDS)] = holder.pop(key)
    return document


def _edge(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(EDGE_VALUES))


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of a document, at most 2,000."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(found) < 2000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


class _EqualsAll(str):
    """A fingerprint that every manifest agrees with, so that what lies behind the check is reached."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Store(Document):
    """``manifest.json`` of a slice store and the records in it."""

    name = "store"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import numpy as np

        from codebrain.data import manifest, slices
        from fabricated import fabricate_store

        self.manifest, self.slices, self.np = manifest, slices, np
        fabricate_store(folder / "store", 3, shape=(3, 16, 16), val=["s00"], test=["s01"])
        self.path = folder / "store" / "manifest.json"
        whole = json.loads(self.path.read_bytes())
        self.seeds = [json.dumps(whole).encode(), json.dumps({**whole, "records": whole["records"][:1]}).encode()]

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        refusals: list[Exception] = []
        _expect(lambda: self.slices.SliceStore.open(self.path.parent), refusals)
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError):
            raw = None
        if isinstance(raw, dict):
            raw["fingerprint"] = _EqualsAll()
            self._use(self.slices.SliceStore(self.path.parent, self.manifest.Manifest.from_dict(raw)))
        if refusals:
            raise refusals[0]

    def _use(self, store: Any) -> None:
        store.verify()
        store.counts()
        for split in ("train", "val", "test"):
            for name in store.subjects(split):
                store.stack(name), store.brain(name)
            picks = store.index(split, least_foreground=0.0)
            store.batch(picks[:2], crop=16, generator=self.np.random.default_rng(0))


class Run(Document):
    """``run.json`` of a finished run: the report's page, and a run that replaces it."""

    name = "run"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from codebrain import output
        from codebrain.report import page

        self.page, self.output = page, output
        self.out = folder / "out"
        record = _finished_run(self.out, folder)
        self.path = self.out / "run.json"
        self.seeds = [json.dumps(record).encode()]

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        refusals: list[Exception] = []
        _expect(lambda: self.page.write_report(self.out), refusals)
        self.output._outputs(self.out)
        if refusals:
            raise refusals[0]


def _finished_run(out: Path, folder: Path) -> dict[str, Any]:
    import torch

    from codebrain.impute import Imputer
    from codebrain.models import build_model
    from codebrain.vocabulary import ModalitySet
    from scans import write_study

    torch.manual_seed(0)
    model = build_model("mean", ModalitySet.parse("T1,T2,FLAIR"))
    result = Imputer(model)(write_study(folder / "study"))
    result.save(out)
    return dict(json.loads((out / "run.json").read_bytes()))


class Model(Document):
    """A model folder: ``config.json``, ``preparation.json`` and the header of ``model.safetensors``.

    Input: an object with the three documents, the number of bytes of weights, and whether the hash in the
    configuration is made to fit, so that what lies behind that check is reached.
    """

    name = "model"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import nibabel as nib
        import torch

        from codebrain.imaging.prepared import prepare_study
        from codebrain.imaging.study import Study
        from codebrain.models import build_model, load_model, save_model
        from codebrain.vocabulary import ModalitySet, Preparation
        from scans import affine_of, head

        self.load_model, self.prepare_study = load_model, prepare_study
        self.study = Study.read({m: nib.Nifti1Image(head(m), affine_of()) for m in ("T1", "FLAIR")})
        torch.manual_seed(0)
        modalities = ModalitySet.parse("T1,T2,FLAIR")
        self.weights: dict[str, bytes] = {}
        self.seeds = []
        small = {"codebrain": {"width": 1, "depth": 1, "critic_width": 1}, "mean": {}, "zeros": {}}
        for name, settings in small.items():
            save_model(build_model(name, modalities, settings), folder / name, preparation=Preparation(modalities))
            weights = (folder / name / "model.safetensors").read_bytes()
            size = int.from_bytes(weights[:8], "little")
            self.weights[name] = weights[8 + size :]
            documents = {
                "config": json.loads((folder / name / "config.json").read_bytes()),
                "preparation": json.loads((folder / name / "preparation.json").read_bytes()),
                "header": json.loads(weights[8 : 8 + size]),
                "weights": name, "bytes": len(self.weights[name]), "fits": True,
            }  # fmt: skip
            self.seeds += [json.dumps(documents).encode()] * (1 if name == "codebrain" else 2)
        self.place = folder / "fuzzed"
        self.place.mkdir()

    def read(self, data: bytes) -> None:
        import hashlib

        try:
            parts = json.loads(data)
            config, preparation, header = (parts[name] for name in ("config", "preparation", "header"))
            content = self.weights.get(str(parts["weights"]), b"")[: int(parts["bytes"])]
        except (ValueError, RecursionError, KeyError, TypeError, OverflowError):
            # No such input: the three files get the bytes themselves.
            for name in ("config.json", "preparation.json", "model.safetensors"):
                (self.place / name).write_bytes(data)
            self.load_model(self.place)
            return
        text = json.dumps(header).encode()
        weights = len(text).to_bytes(8, "little") + text + content
        if parts.get("fits") is True and isinstance(config, dict):
            config["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        (self.place / "model.safetensors").write_bytes(weights)
        (self.place / "config.json").write_text(json.dumps(config))
        (self.place / "preparation.json").write_text(json.dumps(preparation))
        self.prepare_study(self.study, self.load_model(self.place).preparation)


class Bids(Document):
    """A BIDS data set: ``dataset_description.json``, ``participants.tsv`` and the sidecar of a scan.

    All three are the same bytes; each has its own reader.
    """

    name = "bids"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import datasets
        from codebrain.imaging import bids_dataset

        self.reader = bids_dataset
        root = datasets.dataset(folder / "bids", subjects=("01",), sessions=("1",))
        scan = next(root.rglob("*_T1w.nii.gz"))
        self.root = root
        self.paths = [
            root / "dataset_description.json", root / "participants.tsv",
            scan.with_name(scan.name.partition(".")[0] + ".json"),
        ]  # fmt: skip
        facts = {"MagneticFieldStrength": 3, "Modality": "MR", "EchoTime": 0.003, "RepetitionTime": 2.3}
        self.seeds = [json.dumps(datasets.DESCRIPTION).encode(), json.dumps(facts).encode()]
        self.seeds += [
            json.dumps({**datasets.DESCRIPTION, "GeneratedBy": [{"Name": "x"}], "SyntheticImage": False}).encode(),
            b"participant_id\tage\nsub-01\t40\n",
        ]

    def read(self, data: bytes) -> None:
        for path in self.paths:
            path.write_bytes(data)
        refusals: list[Exception] = []
        for validate in (True, False):
            _expect(lambda validate=validate: self._read(validate), refusals)
        if refusals:
            raise refusals[-1]

    def _read(self, validate: bool) -> None:
        dataset = self.reader.read_dataset(self.root, validate=validate)
        for study in dataset.studies:
            self.reader.check_sidecars(study)


class Records(Document):
    """The record of a study in a batch's folder, in its place and waiting for it."""

    name = "records"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from codebrain.batch import engine, layouts
        from codebrain.batch import folder as places
        from codebrain.vocabulary import Modality
        from scans import write_study

        self.engine, self.places = engine, places
        files = write_study(folder / "study")
        given = {Modality(contrast): path for contrast, path in files.items()}
        study = layouts.BatchStudy("a", given, {contrast: path.name for contrast, path in given.items()})
        self.study, self.out = study, folder / "out"
        _make_mean(folder / "model")
        settings = engine.BatchSettings(str(folder / "model"), device="cpu", threads=1)
        engine.run_batch([study], self.out, settings=settings, layout=layouts.FolderLayout(), jobs=0)
        self.record = self.out / ".codebrain" / "records" / "a.json"
        self.ready = self.out / ".codebrain" / "ready" / "a"
        self.settings = json.loads((self.out / ".codebrain" / "batch.json").read_bytes())["settings"]
        self.seeds = [self.record.read_bytes()]

    def read(self, data: bytes) -> None:
        self.record.write_bytes(data)
        if len(data) % 4 == 0:
            self.ready.mkdir(exist_ok=True)
            (self.ready / "record.json").write_bytes(data)
        with self.places.BatchFolder(self.out, settings=self.settings) as folder:
            folder.finished("a", {str(m): path for m, path in self.study.files.items()})
            self.engine.table(folder.records.values())


def _make_mean(folder: Path) -> None:
    from codebrain.models import build_model, save_model
    from codebrain.vocabulary import ModalitySet, Preparation

    modalities = ModalitySet.parse("T1,T2,FLAIR")
    save_model(build_model("mean", modalities), folder, preparation=Preparation(modalities, pixel_spacing_mm=None))


# --- YAML ---


class Yaml(Target):
    """Recipes and suites."""

    name = "yaml"
    PIECES = (
        "&a [*a]", "*a", "&a {x: 1}", "<<: *a", "!!python/object/apply:os.getcwd []", "!!binary x", "!!int x",
        "!!float x", "!!timestamp 1", "2024-99-99", "2024-01-01T99:99:99Z", "? [1]: 2", "? {a: 1}", "1e999", ".nan",
        "-.inf", "0o9", "0x", "1_000", "190:20:30", "~", "[", "]", "{", "}", ":", "- ", "---", "...", "|", ">",
        "%YAML 9.9", "\t", "\u2028", "'", "[" * 300, "a: {" * 300, "9" * 5000, "0b1", "!!set {a}", "!!omap [a: 1]",
        "!!merge x", "=", "@", "`", "x" * 3000, "true", "null", "-1", "0", "1.5", "[1, 2]", "{a: 1}", "T1", "\ud7ff",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from codebrain.benchmark import suite
        from codebrain.training import config

        self.load_config, self.load_suite = config.load_config, suite.load_suite
        self.path = folder / "given.yaml"
        recipes = [config.RECIPES / f"{name}.yaml" for name in ("codebrain_small", "mm_gan_small")]
        suites = [suite.SUITES / "methods_small.yaml", suite.SUITES / "table2_ixi.yaml"]
        self.seeds = [path.read_bytes() for path in (*recipes, *suites)]
        laughs = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else '1'}]" for n in range(9))
        self.seeds.append(laughs.encode())

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        lines = data.decode(errors="replace").splitlines() or [""]
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(lines))
            piece, action = chance.choice(self.PIECES), chance.random()
            if action < 0.5:
                key, colon, _ = lines[place].partition(":")
                lines[place] = f"{key}: {piece}" if colon else piece
            elif action < 0.7:
                lines.insert(place, " " * chance.choice((0, 2, 4)) + piece)
            elif action < 0.8:
                lines[place] = lines[place] + " " + piece
            elif action < 0.9 and len(lines) > 1:
                del lines[place]
            else:
                lines.insert(chance.randrange(len(lines)), lines[place])
        return "\n".join(lines).encode(errors="replace")

    def read(self, data: bytes) -> None:
        self.path.write_bytes(data)
        refusals: list[Exception] = []
        _expect(lambda: self.load_config(self.path), refusals)
        _expect(lambda: self.load_suite(self.path), refusals)
        if refusals:
            raise refusals[-1]


TARGETS: dict[str, type[Target]] = {cls.name: cls for cls in (Nifti, NiftiGz, Bids, Store, Run, Records, Model, Yaml)}


# --- the oracle ---


def _expect(call: Callable[[], object], refusals: list[Exception]) -> None:
    """Make a call; a refusal is kept and what follows is still tried."""
    from codebrain.errors import CodeBrainError

    try:
        call()
    except CodeBrainError as error:
        refusals.append(error)


def judge(target: Target, data: bytes) -> str:
    """Read one input; the code that it was refused with, empty when it was accepted.

    Raises:
        Exception: whatever is not a refusal as promised.
    """
    from codebrain.errors import CodeBrainError, error_class

    begun, code = time.process_time(), ""
    try:
        target.read(data)
    except CodeBrainError as error:
        code = error.code
        assert type(error) is error_class(code), f"{code} is a {type(error).__name__}"
        assert "\n" not in str(error), "the sentence has two lines"
        json.dumps(error.as_dict(), allow_nan=False)
    took = time.process_time() - begun
    assert took < SECONDS, f"it took {took:.1f} s"
    return code


class Collector:
    """Keeps one input of each kind of failure, by its exception and where it arose."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, target: Target, data: bytes, error: BaseException) -> None:
        """Write the input and its traceback, once per kind."""
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "codebrain" in f.filename] or [None]
        last = frames[-1]
        kind = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}" if last else type(error).__name__
        if kind in self.seen:
            return
        self.seen.add(kind)
        stem = self.folder / f"{target.name}-{kind}"
        stem.with_suffix(".bin").write_bytes(data)
        stem.with_suffix(".txt").write_text("".join(traceback.format_exception(error)))
        print(f"FOUND {kind}: {error}"[:300], file=sys.stderr)


def fuzz(target: Target, options: list[str], collect: Path | None) -> None:
    """Hand the target to libFuzzer."""
    collector = None if collect is None else Collector(collect)

    def one_input(data: bytes) -> None:
        try:
            judge(target, data)
        except Exception as error:
            if collector is None:
                raise
            collector.keep(target, data, error)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.2:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(bytes(data), chance)[:max_size]

    corpus = target.folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    words = [sys.argv[0], str(corpus), "-max_len=65536", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([*words, *options], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] not in TARGETS:
        raise SystemExit(f"usage: fuzz_inputs.py {'|'.join(TARGETS)} [--collect FOLDER] [libFuzzer options]")
    collect = None
    if "--collect" in words:
        place = words.index("--collect")
        collect = Path(words[place + 1])
        del words[place : place + 2]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with atheris.instrument_imports(include=["codebrain"]):
        target = TARGETS[words[0]](folder)
    fuzz(target, words[1:], collect)


if __name__ == "__main__":
    main()
