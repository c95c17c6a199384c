"""``python -m codebrain``, also the entry point for ``torchrun -m codebrain``."""

from __future__ import annotations

import sys

from codebrain.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
