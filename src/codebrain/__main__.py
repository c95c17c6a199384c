"""``python -m codebrain``, also the entry point for ``torchrun -m codebrain``."""

from __future__ import annotations

from codebrain.app.cli import entry

if __name__ == "__main__":
    entry()
