"""A walk through the package's syntax trees: files are touched only where that is made safe.

One checked read of scans, one atomic write, one reader of weights; nothing pickled, nothing unpacked. A
change that goes round them fails here and not on a patient's disk.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import codebrain

PACKAGE = Path(codebrain.__file__).parent
SAFE_FILES = "imaging/safe_files.py"
WEIGHTS = {"models/_folder.py", "training/checkpoint.py"}

# What may be called where; an empty set is nowhere at all.
ONLY_IN: dict[str, set[str]] = {
    "nibabel.load": set(),
    "nibabel.save": set(),
    "nibabel.loadsave.load": set(),
    "nibabel.loadsave.save": set(),
    "SimpleITK.ReadImage": set(),
    "SimpleITK.WriteImage": set(),
    "ants.image_read": {"imaging/synra.py"},  # the deformation that ANTs has just written into a temporary folder
    "ants.image_write": set(),
    "pydicom.dcmread": {"imaging/dicom/header.py"},
    "pydicom.dcmwrite": {"imaging/dicom/derived.py"},  # into memory
    "pydicom.filereader.read_partial": set(),
    "zipfile.ZipFile": {"imaging/dicom/store.py", "models/_released.py"},
    "subprocess.call": set(),
    "subprocess.check_call": set(),
    "torch.load": set(),
    "torch.save": set(),
    "torch.hub.load_state_dict_from_url": set(),
    "torch.jit.load": {"engines/exporting.py"},  # what it has just written, to compare it with the model
    "safetensors.torch.save_file": set(),
    "safetensors.numpy.save_file": set(),
    "safetensors.torch.load": WEIGHTS,
    "safetensors.torch.load_file": {"models/_released.py"},  # what its own worker process has just written
    "safetensors.safe_open": set(),
    "numpy.save": set(),
    "numpy.savez": set(),
    "numpy.savez_compressed": set(),
    "numpy.savetxt": set(),
    "pickle.load": set(),
    "pickle.loads": {"data/beside.py"},  # what a fork of this process has just answered through memory of both
    "pickle.dump": set(),
    "pickle.dumps": {"data/beside.py"},
    "marshal.loads": set(),
    "shelve.open": set(),
    "yaml.load": {"training/config.py"},  # with a loader derived from the safe one
    "yaml.unsafe_load": set(),
    "yaml.full_load": set(),
    "gzip.open": set(),
    "os.open": {SAFE_FILES, "app/_common.py"},  # there: /dev/null, when the reader of a pipe has gone
    "os.replace": set(),
    "os.truncate": {"faults.py", "training/log.py"},  # torn lines, on purpose and as resuming needs
    "os.ftruncate": {SAFE_FILES, "data/beside.py"},  # there: memory, not a file
    "os.write": set(),
    "os.pwrite": {SAFE_FILES},
    "os.system": set(),
    "os.popen": set(),
    "tempfile.mktemp": set(),
    "shutil.unpack_archive": set(),
    "eval": set(),
    "exec": set(),
}
METHODS = {"write_text", "write_bytes", "to_filename", "to_file_map", "tofile", "extract", "extractall", "save_as"}
THROUGH_SAFE_FILES = ("codebrain.imaging.safe_files.",)
WRITING = set("wax+")


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """``np.save`` -> ``numpy.save``; ``None`` for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return None if owner is None else f"{owner}.{node.attr}"
    return None


def mode_of(call: ast.Call, place: int) -> str:
    """The mode that a call opens with; ``?`` when it is computed."""
    found = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    node = found[0] if found else call.args[place] if len(call.args) > place else None
    if node is None:
        return "r"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "?"


def opens_for_writing(call: ast.Call, name: str | None) -> bool:
    if name in {"open", "io.open"}:
        return bool(WRITING & set(mode_of(call, 1).replace("?", "w")))
    if name in {"numpy.memmap", "numpy.lib.format.open_memmap"}:
        return not mode_of(call, 2 if name == "numpy.memmap" else 1).startswith("r")
    if isinstance(call.func, ast.Attribute) and call.func.attr == "open" and name not in ONLY_IN:
        if (full_name(call.func.value, {}) or "p")[0].isupper():
            return False  # a class, not a path: Image.open, SliceStore.open
        return bool(WRITING & set(mode_of(call, 0).replace("?", "w")))
    return False


def full_names(tree: ast.Module) -> set[str | None]:
    names = imported(tree)
    return {full_name(node.func, names) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def offences(source: str, place: str) -> Iterator[str]:
    """What ``source``, lying at ``place`` in the package, does that only others may."""
    tree = ast.parse(source)
    names = imported(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = full_name(node.func, names)
        if name and name.startswith(THROUGH_SAFE_FILES):
            continue
        if name in ONLY_IN and place not in ONLY_IN[name]:
            yield f"{place}:{node.lineno}: {name}"
        elif opens_for_writing(node, name) and place != SAFE_FILES:
            yield f"{place}:{node.lineno}: opens for writing"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            yield f"{place}:{node.lineno}: .{node.func.attr}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_are_touched_only_where_that_is_safe(path):
    assert list(offences(path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import nibabel as nib; nib.load('x')",
        "from nibabel import save; save(image, 'x')",
        "import torch; torch.load('x', weights_only=True)",
        "import torch as t; t.save({}, 'x')",
        "open('x', 'w')",
        "open('x', mode='ab')",
        "open('x', chosen)",
        "path.open('wb')",
        "path.open(mode=chosen)",
        "(folder / 'x').write_text('')",
        "Path('x').write_bytes(b'')",
        "import numpy as np; np.save('x', a)",
        "import numpy as np; np.memmap('x', np.uint8, 'w+')",
        "from numpy.lib.format import open_memmap; open_memmap('x', 'w+')",
        "array.tofile('x')",
        "archive.extractall('x')",
        "archive.extract('x')",
        "from pydicom import dcmread; dcmread('x', force=True)",
        "ds.save_as('x')",
        "import pickle; pickle.loads(b)",
        "import yaml; yaml.load(text)",
        "import os; os.open('x', os.O_CREAT)",
        "from os import replace; replace('a', 'b')",
        "import gzip; gzip.open('x', 'wb')",
        "eval('1')",
    ],
)
def test_the_walk_sees(line):
    assert len(list(offences(line, "somewhere.py"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "open('x')",
        "open('x', 'rb')",
        "path.open()",
        "path.open('rb')",
        "from codebrain.imaging import safe_files; safe_files.write_text('x', '')",
        "from codebrain.imaging.safe_files import write_bytes; write_bytes('x', b'')",
        "import numpy as np; np.memmap('x', np.uint8, 'r')",
        "import yaml; yaml.safe_load(text)",
        "model.load('x')",
        "text.replace('a', 'b')",
    ],
)
def test_the_walk_lets_pass(line):
    assert list(offences(line, "somewhere.py")) == []


@pytest.mark.parametrize(("name", "place"), [(n, p) for n, places in ONLY_IN.items() for p in sorted(places)])
def test_the_exceptions_are_needed(name, place):
    """An exception that is no longer used would hide the next mistake."""
    tree = ast.parse((PACKAGE / place).read_text(encoding="utf-8"))
    assert name in full_names(tree)
