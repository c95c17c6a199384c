"""``codebrain demo``: the whole way on a study that the package makes itself."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    progress,
    run,
    say,
)
from codebrain.app.commands.impute import report_result
from codebrain.vocabulary import Modality

if TYPE_CHECKING:
    from codebrain.results import Imputation

GIVEN = (Modality.T1, Modality.FLAIR)
SPACING_MM = 1.5
"""Coarser than a scan, so that the demo takes well under a minute on two cores."""


def register(app: typer.Typer) -> None:
    """Add ``codebrain demo``."""

    @app.command()
    def demo(
        out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT")] = Path("codebrain-demo"),
        model: Annotated[str, typer.Option(help="A bundled model or a model folder.")] = "starter",
        seed: Annotated[int, typer.Option(min=0, help="Which simulated patient.")] = 7,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in OUT.")] = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """Simulate a study, hide all but T1 and FLAIR, impute them again, and score the result."""

        def work() -> None:
            from codebrain import output

            with output.RunFolder(out, overwrite=overwrite, need_bytes=2**25) as folder:
                result = _demo(model, seed, device=device, threads=threads, quiet=quiet)
                result.write(folder, command=["codebrain", *sys.argv[1:]])
            report_result(result, out, as_json=as_json, quiet=quiet)

        run(work, as_json=as_json, debug=debug, quiet=quiet)


def _demo(model: str, seed: int, *, device: str, threads: int | None, quiet: bool) -> Imputation:
    from codebrain.data.phantom import simulate_study
    from codebrain.impute import Imputer

    imputer = Imputer.from_pretrained(model, device=device, threads=threads)
    if not quiet:
        say("codebrain: simulating a study with a lesion")
    phantom = simulate_study(seed, lesion="ms", spacing_mm=SPACING_MM)
    images = {m: image for m, image in phantom.images.items() if m in imputer.modalities}
    hidden = [m for m in imputer.modalities if m not in GIVEN]
    with progress("imputing", quiet=quiet) as advance:
        result = imputer(images, hidden, name="phantom", evaluate=True, advance=advance)
    return replace(result, focus=_largest_lesion(phantom.lesion_labels))


def _largest_lesion(labels: Any) -> tuple[int, int, int] | None:
    """The voxel deepest inside the lesions, for the pictures; None without a lesion."""
    import numpy as np
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.asarray(labels.dataobj) > 0)
    i, j, k = (int(at) for at in np.unravel_index(int(depth.argmax()), depth.shape))
    return (i, j, k) if depth.max() > 0 else None
