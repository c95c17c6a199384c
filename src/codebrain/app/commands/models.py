"""``codebrain models``: which models there are, what is in a folder, and released checkpoints brought in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from codebrain.app._common import DebugOption, JsonOption, emit, emit_json, run
from codebrain.errors import refusal
from codebrain.parsing import parse_json_object


def register(app: typer.Typer) -> None:
    """Add the group; without a sub-command it lists."""
    group = typer.Typer(help="List, show, verify or import models.", invoke_without_command=True)

    @group.callback()
    def models(context: typer.Context, as_json: JsonOption = False, debug: DebugOption = False) -> None:
        """List, show, verify or import models."""
        if context.invoked_subcommand is None:
            run(lambda: _list(as_json), as_json=as_json, debug=debug)

    @group.command("list")
    def list_models(as_json: JsonOption = False, debug: DebugOption = False) -> None:
        """Bundled models, their contrasts, and the architectures that can be trained."""
        run(lambda: _list(as_json), as_json=as_json, debug=debug)

    @group.command("show")
    def show(
        model: Annotated[str, typer.Argument(help="A bundled name or a model folder.")],
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """The card, settings and scores of one model."""
        run(lambda: _show(model, as_json), as_json=as_json, debug=debug)

    @group.command("verify")
    def verify(
        model: Annotated[str, typer.Argument(help="A bundled name or a model folder.")],
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Load a model and check hashes, shapes and values."""
        run(lambda: _verify(model, as_json), as_json=as_json, debug=debug)

    @group.command("import")
    def import_released(
        file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="Checkpoint of the released code.")],
        modalities: Annotated[str, typer.Option("--modalities", help="Its channel order, e.g. T1,T2,PD.")],
        out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The model folder to write.")],
        levels: Annotated[str, typer.Option("--levels", help="Of the code channels.")] = "8,8,8,5,5,5",
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in DIR.")] = False,
        as_json: JsonOption = False,
        debug: DebugOption = False,
    ) -> None:
        """Turn a checkpoint of the released CodeBrain code into a model folder."""
        run(lambda: _import(file, modalities, out, levels, overwrite, as_json), as_json=as_json, debug=debug)

    app.add_typer(group, name="models")


def _list(as_json: bool) -> None:
    from codebrain.models import bundled_models, model_names, model_summaries

    bundled = [{"name": name, **_summary(folder)} for name, folder in bundled_models().items()]
    if as_json:
        emit_json({"bundled": bundled, "architectures": model_names(), "summaries": model_summaries()})
        return
    for entry in bundled:
        emit(f"{entry['name']:<12} {entry['architecture']:<12} {', '.join(entry['modalities'])}")
    emit("\ntrainable:")
    for name, summary in model_summaries().items():
        emit(f"{name:<18} {summary}")


def _summary(folder: Path) -> dict[str, Any]:
    try:
        config = parse_json_object((folder / "config.json").read_bytes())
        return {key: config[key] for key in ("architecture", "modalities", "settings", "weights_sha256")}
    except (OSError, ValueError, KeyError) as error:
        raise refusal("CKPT_CORRUPT", "no readable config.json", file=folder) from error


def _show(model: str, as_json: bool) -> None:
    from codebrain.models import bundled_models
    from codebrain.output import read_json

    folder = bundled_models().get(model, Path(model))
    summary = _summary(folder)
    card = folder / "MODEL_CARD.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    metrics = read_json(folder / "metrics.json")
    if as_json:
        emit_json({"name": folder.name, **summary, "metrics": metrics, "card": text})
    else:
        emit(text or json.dumps(summary, indent=2))


def _verify(model: str, as_json: bool) -> None:
    from codebrain.models import load_model

    loaded = load_model(model)
    count = sum(parameter.numel() for parameter in loaded.parameters())
    if as_json:
        emit_json({"name": loaded.name, "sha256": loaded.sha256, "parameters": count, "ok": True})
    else:
        emit(f"{loaded.name}: {count:,} parameters, contrasts {loaded.modalities}, SHA-256 {loaded.sha256[:12]}: good")


def _import(file: Path, modalities: str, out: Path, levels: str, overwrite: bool, as_json: bool) -> None:
    from codebrain.models import save_model
    from codebrain.models._released import read_released
    from codebrain.vocabulary import ModalitySet, Preparation

    if (out / "config.json").exists() and not overwrite:
        raise refusal("OUT_EXISTS", "a model is there already", file=out, hint="Use --overwrite to replace it.")
    try:
        counts = tuple(int(part) for part in levels.split(","))
    except ValueError as error:
        raise refusal("CONFIG", "levels are whole numbers", field="--levels", found=levels) from error
    channels = ModalitySet.parse(modalities)
    model = read_released(file, channels, counts)
    # The released data are min-max scaled on their own grid, without resampling.
    preparation = Preparation(channels, normalisation="min_max", pixel_spacing_mm=None)
    digest = save_model(model, out, preparation=preparation, card=_card(channels))
    if as_json:
        emit_json({"model": str(out), "modalities": list(channels), "sha256": digest})
    else:
        emit(f"{out}: contrasts {channels}, SHA-256 {digest[:12]}")


def _card(channels: Any) -> str:
    return (
        "# CodeBrain, imported from a checkpoint of the released code\n\n"
        f"Contrasts: {channels}. Min-max intensities on the data's own grid, as the released code prepares them.\n"
        "Source: Wu et al., CVPR 2026, arXiv 2501.18328.\n\n"
        "Research use only; not a medical device. Output images are SYNTHETIC.\n"
    )
