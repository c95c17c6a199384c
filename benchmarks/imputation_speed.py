"""Seconds per slice of imputation: the released code, float32, bfloat16, 8-bit integers, the same weights, one run.

::

    python benchmarks/imputation_speed.py STUDY [--model MODEL] [--released CHECKOUT/CodeBrain/code] > speed.tsv
    python benchmarks/imputation_speed.py STUDY --released CHECKOUT/CodeBrain/code --device cuda --slices 32 > gpu.tsv

STUDY is a folder that ``codebrain impute`` takes (FLAIR and T1 are given, the others imputed). Slices are 240 x 240,
as the released code gets them; with ``--frame head`` the box of the head, as ``codebrain impute`` cuts them. Without
``--model`` the network has the published size and random weights, whose residual scales are not zero. The released
code is not part of this project: ``--released`` names a checkout of github.com/ycwu1997/CodeBrain; without it the first
line is the plain float32 model.

Every method computes all slices, then the next; rounds of all methods follow each other, so that a busy machine
disturbs all. Printed are the median over rounds and the range, the ratio to the first method within a round, and the
PSNR to the first method on the imputed contrasts inside the head.
"""

from __future__ import annotations

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from codebrain.engines import choose_engine, precisions
from codebrain.imaging.prepared import prepare_study
from codebrain.imaging.study import Study
from codebrain.machine import set_threads
from codebrain.models import build_model, load_model
from codebrain.models._contract import ImputationModel
from codebrain.models._released import released_names
from codebrain.vocabulary import ModalitySet, Preparation

GIVEN = ("T1", "FLAIR")
BRATS = ModalitySet.parse(["FLAIR", "T1", "T2", "T1Gd"])
FULL = 240

Method = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--released", type=Path)
    parser.add_argument("--frame", choices=("full", "head"), default="full")
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    asked = parser.parse_args()
    set_threads(None)
    model = load_model(asked.model) if asked.model else published_size()
    images, present, head = slices(asked, model)
    targets = [k for k, m in enumerate(model.modalities) if m not in GIVEN]
    table(methods(asked, model), images, present, head[:, None].expand(-1, len(targets), -1, -1), targets, asked.rounds)


def published_size() -> ImputationModel:
    """Random weights in which every block matters: a new one is the identity."""
    torch.manual_seed(0)
    model = build_model("codebrain", BRATS, {}).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith(("scale1", "scale2")):
            weight.uniform_(0.1, 0.3)
    return model


def slices(asked: Namespace, model: ImputationModel) -> tuple[Tensor, Tensor, Tensor]:
    """Evenly spaced slices of the study, the pattern, and where the head is."""
    files = {name: next(asked.study.glob(f"{name}.nii*")) for name in GIVEN}
    prepared = prepare_study(Study.read(files, name="study"), Preparation(model.modalities))
    head = torch.from_numpy(prepared.frame.apply(prepared.foreground.astype("float32")) > 0.5)
    images = torch.from_numpy(prepared.slices)
    chosen = torch.linspace(0, len(images) - 1, asked.slices + 2).round().long()[1:-1]
    images, head = images[chosen], head[chosen]
    if asked.frame == "full":
        images, head = framed(images), framed(head)
    return images, torch.tensor(model.modalities.pattern(GIVEN)).expand(len(images), -1), head


def framed(stack: Tensor) -> Tensor:
    """In the middle of full slices."""
    height, width = stack.shape[-2:]
    top, left = ((FULL - size) // 16 * 8 for size in (height, width))
    whole = stack.new_zeros(*stack.shape[:-2], FULL, FULL)
    whole[..., top : top + height, left : left + width] = stack
    return whole


def methods(asked: Namespace, model: ImputationModel) -> dict[str, Method]:
    """What is compared, the reference first."""
    found: dict[str, Method] = {}
    if asked.released is not None:
        found["released code, fp32"] = released(asked.released, model, asked.device)
    faster = precisions(model, "torch", asked.device) if asked.device.type == "cpu" else ("bf16",)
    for precision in ("fp32", *reversed(faster)):
        engine = choose_engine(model, "torch", device=asked.device, precision=precision)
        found[f"codebrain, {precision}"] = lambda images, present, engine=engine: engine(images, present)[0].cpu()
    return found


def released(code: Path, model: ImputationModel, device: torch.device) -> Method:
    """The released networks with the model's weights, one slice at a time, decoded as its evaluation does."""
    sys.path.insert(0, str(code))
    from lib.codebrain import CodeBrain, CodeBrain_Grader  # type: ignore[import-not-found]

    settings: Any = model.settings
    sizes = Namespace(INPUT_C=len(model.modalities), OUTPUT_C=len(model.modalities))
    names = Namespace(fsq_levels=list(settings.levels), naf_dim=settings.width, naf_depth=settings.depth)
    parts = {"rec_model": CodeBrain(names, sizes).eval(), "grad_model": CodeBrain_Grader(names, sizes).eval()}
    ours = {name: value.cpu() for name, value in model.state_dict().items()}
    for part, network in parts.items():
        theirs = network.state_dict()
        mine = released_names({f"{part}.{name}": value for name, value in theirs.items()}, depth=settings.depth)
        network.load_state_dict({k: ours[mine[f"{part}.{k}"]].reshape(v.shape) if f"{part}.{k}" in mine else v
                                 for k, v in theirs.items()})  # fmt: skip
    reconstructor, grader = (network.to(device) for network in parts.values())
    half = torch.tensor([n // 2 for n in settings.levels], device=device)[:, None, None]

    @torch.no_grad()
    def one(incomplete: Tensor) -> Tensor:
        level = torch.stack([(bits.sigmoid() > 0.5).sum(1) for bits in grader(incomplete)], 1)
        decoded: Tensor = reconstructor.decoder((level - half).float() / half, reconstructor.prior_encoder(incomplete))
        return decoded.clamp(0, 1)

    return lambda images, present: torch.cat(
        [one(part.to(device)).cpu() for part in (images * present[..., None, None]).split(1)]
    )


def table(
    compared: dict[str, Method], images: Tensor, present: Tensor, head: Tensor, targets: list[int], rounds: int
) -> None:
    """Time and print."""
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    answers = {name: method(images, present)[:, targets].float() for name, method in compared.items()}  # warm
    for _ in range(rounds):
        for name, method in compared.items():
            begun = time.perf_counter()
            method(images, present)
            seconds[name].append((time.perf_counter() - begun) / len(images))
    first = next(iter(compared))
    print(f"# {len(images)} slices of {images.shape[-2]} x {images.shape[-1]}, {torch.get_num_threads()} threads")
    print("method", "s per slice", "range", "times faster", "range", "dB to the first", sep="\t")
    for name, spent in seconds.items():
        ratio = [slow / fast for slow, fast in zip(seconds[first], spent, strict=True)]
        error = float((answers[name] - answers[first]).square()[head].mean())
        decibels = "" if name == first else f"{-10 * torch.tensor(max(error, 1e-12)).log10():.1f}"
        spread = [f"{min(values):.3g}-{max(values):.3g}" for values in (spent, ratio)]
        print(name, f"{median(spent):.3f}", spread[0], f"{median(ratio):.2f}", spread[1], decibels, sep="\t")


if __name__ == "__main__":
    main()
