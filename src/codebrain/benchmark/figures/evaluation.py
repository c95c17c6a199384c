"""The two figures of the `evaluate` command, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from codebrain.benchmark.figures.chosen import box_around
from codebrain.benchmark.figures.drawing import LARGEST_ERROR, figure_class, look_of
from codebrain.benchmark.rows import Row
from codebrain.benchmark.scoring import Subject, Wiring, completions
from codebrain.benchmark.summary import models_of, patterns_of, summarise
from codebrain.data.slices import SliceStore
from codebrain.data.splits import Split
from codebrain.marks import ENHANCEMENT_UNKNOWN, RESEARCH_USE_ONLY, SYNTHETIC
from codebrain.metrics import PRINTED_SCALE
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Modality, Pattern, pattern_name, strict_subsets


def _figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches."""
    return figure_class()(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def scores_figure(rows: Sequence[Row], *, region: str = "slice") -> bytes:
    """Bars per pattern and model, one panel per metric; whiskers are the spread over patients.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
    """
    chosen = [row for row in rows if row.region == region and row.task == "imputation"]
    names = [*patterns_of(chosen), "mean"]
    figure = _figure(max(7.0, 1.5 + 0.7 * len(names)), 8.5)
    panels = figure.subplots(3, 1, sharex=True)
    for panel, metric, unit in zip(panels, PRINTED_SCALE, ("dB", "%", "x1000"), strict=True):
        _bars(panel, chosen, names, metric, region)
        panel.set_ylabel(f"{metric} ({unit})")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", linewidth=0.4)
        panel.set_axisbelow(True)
    panels[-1].set_xticks(range(len(names)), [name.replace("+", "\n") for name in names], fontsize=8)
    panels[-1].set_xlabel("present contrasts")
    where = {"slice": "whole slices", "brain": "inside the foreground", "volume": "whole volumes"}[region]
    panels[0].set_title(f"Imputation, {where}; mean over absent contrasts")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, fontsize=8)
    return _png(figure)


def _bars(panel: Any, rows: Sequence[Row], names: Sequence[str], metric: str, region: str) -> None:
    """One panel; the axis starts below the lowest bar where 0 would hide the differences."""
    models = models_of(rows)
    width = 0.8 / len(models)
    lowest = math.inf
    for m, model in enumerate(models):
        colour, hatch = look_of(m)
        mine = [row for row in rows if row.model == model]
        for i, name in enumerate(names):
            score = summarise(mine, metric=metric, region=region, pattern=None if name == "mean" else name)
            if score is None:
                continue
            height, scale = score.mean * PRINTED_SCALE[metric], PRINTED_SCALE[metric]
            lowest = min(lowest, height)
            panel.bar(
                i + (m - (len(models) - 1) / 2) * width, height, width * 0.95,
                color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=model if i == 0 else None,
                yerr=None if score.spread is None else score.spread * scale, error_kw={"linewidth": 0.7},
            )  # fmt: skip
    panel.set_xlim(-0.6, len(names) - 0.4)
    if metric != "MAE":
        panel.set_ylim(bottom=max(0, 5 * math.floor((lowest - 2) / 5)))


@dataclass(frozen=True)
class Example:
    """One row of pictures: a slice of a subject with a pattern, imputed.

    Attributes:
        title: patient and present contrasts.
        modalities: the absent contrasts.
        truth, imputed: ``(a, h, w)`` in [0, 1].
    """

    title: str
    modalities: tuple[Modality, ...]
    truth: Float[Tensor, "a h w"]
    imputed: Float[Tensor, "a h w"]


@torch.inference_mode()
def examples_of(
    model: ImputationModel,
    store: SliceStore,
    *,
    split: Split = "test",
    device: torch.device | str = "cpu",
    patients: int = 2,
) -> list[Example]:
    """The middle slice of the first patients of a split, from one, about half and all but one contrast."""
    wiring = Wiring.of(model, store.preparation)
    model = model.to(device).eval()
    first = {store.patient(name): name for name in reversed(store.subjects(split))}
    found = []
    for name in list(reversed(first.values()))[:patients]:
        subject = Subject.read(store, name, wiring, device=device, middle=1)
        for pattern in _few(subject.available):
            _, completed = next(completions(model, subject, pattern))
            places = subject.absent(pattern)
            box = box_around(subject.brain[0])
            found.append(
                Example(
                    f"{subject.record.patient}\nfrom {pattern_name(wiring.shared, pattern)}",
                    tuple(wiring.shared.members[place] for place in places),
                    subject.truth[0, places][:, *box].cpu(),
                    completed[0, places][:, *box].cpu(),
                )
            )
    return found


def _few(available: Pattern) -> list[Pattern]:
    """The first pattern of one contrast, of half of them, and of all but one."""
    every = strict_subsets(available)
    sizes = sorted({1, sum(available) // 2, sum(available) - 1} - {0})
    return [next(pattern for pattern in every if sum(pattern) == size) for size in sizes if every]


def examples_figure(examples: Sequence[Example], model: str) -> bytes:
    """Truth, imputed image and absolute error of every absent contrast; one row per patient and pattern.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` when matplotlib is not installed.
    """
    most = max(len(example.modalities) for example in examples)
    tallest = max(example.truth.shape[-2] / example.truth.shape[-1] for example in examples)
    figure = _figure(1.8 + 1.3 * 3 * most, 0.7 + (1.3 * tallest + 0.2) * len(examples))
    axes = figure.subplots(len(examples), 3 * most, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    shown = None
    for line, example in zip(axes, examples, strict=True):
        shown = _example_line(line, example)
        line[0].text(-0.08, 0.5, example.title, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    bar = figure.colorbar(shown, ax=axes[:, -1].tolist(), fraction=0.08, extend="max")
    bar.set_label("absolute error (data range 1)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    warned = any(Modality.T1GD in example.modalities for example in examples)
    figure.suptitle(f"{model}: middle slices; imputed images are {SYNTHETIC}. {RESEARCH_USE_ONLY}.", fontsize=9)
    figure.supxlabel(ENHANCEMENT_UNKNOWN if warned else "", fontsize=7, wrap=True)
    return _png(figure)


def _example_line(line: Sequence[Any], example: Example) -> Any:
    """Fill one row of axes; returns the last error map, for the colour bar."""
    shown = None
    for i, modality in enumerate(example.modalities):
        truth, imputed = example.truth[i].numpy(), example.imputed[i].numpy()
        real, made, error = line[3 * i : 3 * i + 3]
        for axis, image, name in ((real, truth, f"{modality} truth"), (made, imputed, f"{modality} imputed")):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(name, fontsize=7, pad=2)
        made.text(
            0.5, 0.04, SYNTHETIC, transform=made.transAxes, ha="center", color="#FFD000", fontsize=7,
            bbox={"facecolor": "black", "alpha": 0.6, "pad": 1, "linewidth": 0},
        )  # fmt: skip
        shown = error.imshow(abs(imputed - truth), cmap="magma", vmin=0, vmax=LARGEST_ERROR)
        error.set_title("error", fontsize=7, pad=2)
    return shown
