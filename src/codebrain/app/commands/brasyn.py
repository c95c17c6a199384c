"""``codebrain brasyn``: the container of the BraTS synthesis challenge: /input to /output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from codebrain.app import _batch
from codebrain.app._common import (
    DebugOption,
    DeviceOption,
    EngineOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    TimeoutOption,
    VerboseOption,
    run,
)
from codebrain.machine import STUDY_TIMEOUT_S


def register(app: typer.Typer) -> None:
    """Add ``codebrain brasyn``."""

    @app.command()
    def brasyn(
        source: Annotated[Path, typer.Argument(metavar="INPUT", help="Cases with three of t1n, t1c, t2w, t2f each.")],
        out: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where <case>-<contrast>.nii.gz goes.")],
        model: _batch.ModelOption = "starter",
        align: _batch.AlignOption = "auto",
        intensity: _batch.IntensityOption = "scanner",
        precision: _batch.PrecisionOption = "auto",
        engine: EngineOption = "auto",
        jobs: _batch.JobsOption = None,
        study_timeout: TimeoutOption = STUDY_TIMEOUT_S,
        overwrite: _batch.OverwriteOption = False,
        keep_records: Annotated[
            bool, typer.Option("--keep-records", help="Leave the records in the hidden folder OUTPUT/.codebrain.")
        ] = False,
        device: DeviceOption = "auto",
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        """Impute the one contrast that each case of the BraTS synthesis challenge (BraSyn) lacks.

        codebrain brasyn /input /output
        """

        def work() -> None:
            from codebrain.batch.brasyn import CONTRASTS, BrasynLayout, find_cases, refuse_existing
            from codebrain.batch.folder import forget

            cases = find_cases(source)
            how = _batch.settings(
                model=model, want=",".join(CONTRASTS), align=align, intensity=intensity, precision=precision,
                engine=engine, device=device, threads=threads,
            )  # fmt: skip
            _batch.work(
                cases, out, BrasynLayout(), settings=how, jobs=jobs, study_timeout=study_timeout,
                overwrite=overwrite, sources=[source],
                prepare=lambda folder: None if overwrite else refuse_existing(folder, cases),
                as_json=as_json, quiet=quiet,
            )  # fmt: skip
            if not keep_records:
                forget(out)

        run(work, as_json=as_json, debug=debug, verbose=verbose, quiet=quiet)
