"""``codebrain export``: a model as a network that runs without codebrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from codebrain.app._common import DebugOption, JsonOption, OutOption, QuietOption, ThreadsOption, emit, emit_json, run
from codebrain.errors import refusal
from codebrain.marks import RESEARCH_USE_ONLY


def register(app: typer.Typer) -> None:
    """Add ``codebrain export``."""

    @app.command()
    def export(
        model: Annotated[str, typer.Argument(help="A bundled model or a model folder.")],
        out: OutOption,
        kind: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torchscript", help="Of the network.")],
        precision: Annotated[
            str, typer.Option(metavar="fp32|fp16", help="How weights are stored; fp16 for openvino only.")
        ] = "fp32",
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in OUT.")] = False,
        threads: ThreadsOption = None,
        as_json: JsonOption = False,
        debug: DebugOption = False,
        quiet: QuietOption = False,
    ) -> None:
        """Write a model as ONNX, OpenVINO or TorchScript, checked against the model itself.

        codebrain export starter --format onnx -o starter-onnx
        """
        run(
            lambda: _export(model, out, kind, precision, overwrite, threads, as_json=as_json, quiet=quiet),
            as_json=as_json, debug=debug, quiet=quiet,
        )  # fmt: skip


def _export(
    model: str, out: Path, kind: str, precision: str, overwrite: bool, threads: int | None, *, as_json: bool,
    quiet: bool,
) -> None:  # fmt: skip
    from codebrain import output
    from codebrain.engines.exporting import FACTS, export_model
    from codebrain.imaging import safe_files
    from codebrain.machine import set_threads
    from codebrain.models import load_model

    if (out / FACTS).exists() and not overwrite:
        raise refusal("OUT_EXISTS", "a network is there already", file=out, hint="Use --overwrite to replace it.")
    free: Any = {"kind": kind, "precision": precision}
    set_threads(threads)
    loaded = load_model(model)
    new = output.make_folder(out)
    try:
        safe_files.sweep_temporaries(out)
        facts = export_model(loaded, out, **free)
    except BaseException:
        if new:
            output.remove_empty(out)
        raise
    if as_json:
        emit_json({"folder": str(out), **facts})
    elif not quiet:
        _show(facts, out)


def _show(facts: dict[str, Any], out: Path) -> None:
    for name in (*facts["files"], "network.json"):
        emit(str(out / name))
    for row in facts["parity"]:
        rows, columns = row["size"]
        emit(
            f"  from {', '.join(row['given']):<24} {rows} x {columns}: {row['psnr_db']:.1f} dB from torch in float32,"
            f" largest error {row['largest_error']:.1e}"
        )
    emit(f"Takes {facts['size']}. What it computes is synthetic. {RESEARCH_USE_ONLY}")
