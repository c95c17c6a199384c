"""How long a user waits before anything happens: the help, the facts, the first slice, a whole study.

::

    python benchmarks/start_up.py T1.nii.gz FLAIR.nii.gz 5 > start_up.tsv

Every command in a process of its own, in turns; seconds from start to exit, median, least and most, and the ratio to a
process that imports torch and nothing else, round by round. ``first slice`` is ``impute`` up to the moment at which
the network would be given its first slice; ``study`` is the whole command, T2 and T1Gd from two scans. Importing torch
and the first slice end without Python's clearing up, as the program ``codebrain`` does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FIRST_SLICE = """
import importlib.abc, importlib.util, os, sys

class Watch(importlib.abc.MetaPathFinder):
    # The command itself decides when to import the flow, and with it torch.
    def find_spec(self, name, path, target=None):
        if name != "codebrain.impute":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.Imputer.complete = lambda self, prepared, plan, advance=None: os._exit(0)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Watch())
from codebrain.app.cli import main
sys.exit(main(sys.argv[1:]))
"""


def commands(t1: str, flair: str, out: Path) -> dict[str, list[str]]:
    """What is typed, by name."""
    study = ["impute", "--t1", t1, "--flair", flair, "--want", "T2,T1Gd", "--overwrite", "-q", "-o", str(out)]
    return {
        "import torch": ["-c", "import os, torch; os._exit(0)"],
        "help": ["-m", "codebrain", "--help"],
        "info": ["-m", "codebrain", "info"],
        "first slice": ["-c", FIRST_SLICE, *study],
        "study": ["-m", "codebrain", *study],
    }


def main(t1: str, flair: str, rounds: int) -> None:
    """Print a row for each command."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        todo = commands(t1, flair, Path(folder) / "out")
        for _ in range(rounds + 1):
            for name, words in todo.items():
                begun = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, capture_output=True)
                seconds.setdefault(name, []).append(time.perf_counter() - begun)
    print("command\tseconds\tleast\tmost\tratio_to_import_torch")
    bare = np.array(seconds["import torch"][1:])  # the first round fills the caches of the disk
    for name, values in seconds.items():
        own = np.array(values[1:])
        print(f"{name}\t{np.median(own):.2f}\t{own.min():.2f}\t{own.max():.2f}\t{np.median(own / bare):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 5)
