"""How fast CodeBrain trains at the published size, beside the released training step.

::

    git clone https://github.com/ycwu1997/CodeBrain RELEASED
    python benchmarks/training_throughput.py --released RELEASED/CodeBrain/code                      # this CPU
    python benchmarks/training_throughput.py --released RELEASED/CodeBrain/code --device cuda --batches 8 16 48 \
        --steps 10 --ways "ours bf16" "ours bf16 compiled" --profile profile.txt                     # a GPU, all of it

Stage I is a step of critic and generator, stage II one of the grader, on slices of 256 x 256 with three contrasts, the
adversarial loss on. The released step is theirs: their modules and losses, their order of updates, AdamW as they set it
up, the numbers they read back for their log, and in stage II the images that they decode for it. Each side runs in a
process of its own, so that neither inherits the other's allocator; the processes take turns, and every turn gives one
ratio of the fastest of its steps. On a GPU the step is timed with the device idle before and after. MFU is the share of
the GPU's bfloat16 peak that the arithmetic of the convolutions and products alone would need. Memory is the most that
the process, or on a GPU its tensors, took so far; a side that does not fit has a row that says so.

The last table is what the paper's IXI recipe would take at the measured rates.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

SIZE, CONTRASTS, LEVELS = 256, 3, [8, 8, 8, 5, 5, 5]
PAPER = {"slices": 44_934, "epochs": 300, "batch": 48, "days": 2.38, "cards": 8}
"""Wu et al., CVPR 2026, section 4: IXI, 300 epochs a stage, 8 RTX 4090."""
STEPS = {"I": "reconstruction", "II": "grading"}
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bfloat16 Tflop/s from the makers' data sheets, by a part of the GPU's name."""
OURS = {"ours fp32": ("fp32", False), "ours bf16": ("bf16", False), "ours bf16 compiled": ("bf16", True)}


# --- the two sides; each yields steps that can be timed ---


def released_step(folder: Path, stage: str, batch: int, device: str) -> Callable[[], object]:
    """Their step (train_rec.py, lib/reconstructor.py; train_grad.py, lib/grader.py), with their modules."""
    sys.path.insert(0, str(folder))
    from lib.codebrain import CodeBrain, CodeBrain_Grader  # type: ignore[import-not-found]
    from lib.discriminator import Discriminator  # type: ignore[import-not-found]

    sizes = SimpleNamespace(fsq_levels=LEVELS, naf_dim=32, naf_depth=6)
    contrasts = SimpleNamespace(INPUT_C=CONTRASTS, OUTPUT_C=CONTRASTS)
    images = torch.rand(batch, CONTRASTS, SIZE, SIZE, device=device)
    given = torch.tensor([0.0, 1.0, 1.0], device=device)
    mask = given[None, :, None, None]
    model = CodeBrain(sizes, contrasts).to(device)
    square = nn.MSELoss()

    def adamw(module: nn.Module, lr: float, first: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=(first, 0.9), weight_decay=0.0)

    if stage == "II":
        grader = CodeBrain_Grader(sizes, contrasts).to(device)
        descent = adamw(grader, 5e-4, 0.9)
        model.eval()
        return lambda: _released_grading(model, grader, descent, images, images * mask)
    critic = Discriminator(in_channels=CONTRASTS, out_channels=CONTRASTS).to(device)
    descents = (adamw(model, 5e-4, 0.9), adamw(critic, 5e-5, 0.5))

    def step() -> list[float]:
        candidate, _ = model(images * mask, images)
        copied = candidate * (1 - mask) + images * mask
        critic.requires_grad_(True)
        real = critic(images, images)
        fake = critic(copied.detach(), images)
        wrong = 0.5 * (square(real, torch.ones_like(real)) + square(fake, torch.ones_like(fake) * mask))
        descents[1].zero_grad(set_to_none=True)
        wrong.backward()
        descents[1].step()
        critic.requires_grad_(False)
        decibel = 4.342944819 * ((candidate - images) ** 2).mean(dim=(0, 2, 3)).add(1e-8).log()
        shown, hidden = (decibel * given).sum() / given.sum(), (decibel * (1 - given)).sum() / (1 - given).sum()
        fooled = critic(copied, images)
        adversarial = square(fooled, torch.ones_like(fooled))
        total = 5 * shown + 20 * hidden + 0.1 * adversarial
        descents[0].zero_grad(set_to_none=True)
        total.backward()
        descents[0].step()
        return [value.item() for value in (total, hidden, shown, hidden, adversarial, shown, wrong)]

    return step


def _released_grading(
    model: nn.Module, grader: nn.Module, descent: torch.optim.Optimizer, images: Tensor, incomplete: Tensor
) -> float:
    with torch.no_grad():
        code, _ = model.codebook(model.posterior_encoder(images))  # type: ignore[operator]
    losses, decided = [], []
    for channel, (logits, count) in enumerate(zip(grader(incomplete), LEVELS, strict=True)):
        width = count // 2 * 2
        level = (code[:, channel] + 1) * 0.5 * width
        bits = (level[:, None] > torch.arange(count - 1, device=code.device)[None, :, None, None]).float()
        losses.append(nn.functional.binary_cross_entropy_with_logits(logits, bits))
        decided.append((logits.sigmoid() > 0.5).sum(1) / width * 2 - 1)
    loss = torch.stack(losses).mean()
    descent.zero_grad(set_to_none=True)
    loss.backward()
    descent.step()
    with torch.no_grad():  # for the PSNR in their log, every step
        decoded = model.decoder(torch.stack(decided, 1), model.prior_encoder(incomplete))  # type: ignore[operator]
        score = (decoded.clamp(0, 1) - images).square().mean()
    return loss.item() + score.item()


def our_step(way: str, stage: str, batch: int, device: str) -> Callable[[], object]:
    """The step of the training loop, without a store."""
    from codebrain.machine import keep_freed_memory
    from codebrain.models import build_model
    from codebrain.nn.batch import Batch
    from codebrain.training.config import OptimiserConfig, StageConfig, TrainConfig
    from codebrain.training.optimisers import make_optimiser
    from codebrain.training.process import start_fabric
    from codebrain.training.step import Place, compile_blocks, take_step
    from codebrain.vocabulary import ModalitySet

    precision, compiled = OURS[way]
    keep_freed_memory()
    fabric = start_fabric(TrainConfig(model="codebrain", precision=precision), device)  # type: ignore[arg-type]
    model = build_model("codebrain", ModalitySet.parse("T1,T2,PD"), {"levels": LEVELS}).to(fabric.device).train()
    if compiled:
        compile_blocks(model)
    name, config = STEPS[stage], OptimiserConfig(lr=5e-4)
    players = model.players(name)
    descents = {
        player: make_optimiser([p for p in module.parameters() if p.requires_grad], config)
        for player, module in players.items()
    }
    everything = torch.ones(batch, CONTRASTS, dtype=torch.bool, device=fabric.device)
    given = torch.tensor([[False, True, True]], device=fabric.device).expand(batch, -1)
    data = Batch(torch.rand(batch, CONTRASTS, SIZE, SIZE, device=fabric.device), everything, given)
    place = Place(name, StageConfig(batch_size=batch), step=50, steps=100)
    return lambda: take_step(model, data, descents, place, fabric=fabric)


# --- measuring ---


def work(options: argparse.Namespace) -> None:
    """One side in this process: a line of JSON per order read from stdin."""
    torch.manual_seed(0)
    if options.side == "released":
        step = released_step(options.released, options.stage, options.batch, options.device)
    else:
        step = our_step(options.side, options.stage, options.batch, options.device)
    wait = torch.cuda.synchronize if options.device.startswith("cuda") else lambda: None
    flops = arithmetic(step)  # which warms up
    if OURS.get(options.side, ("", False))[1]:
        step()  # what is compiled was not, for counting
    print(json.dumps({"flops": flops}), flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(options.steps):
            wait()
            begun = time.perf_counter()
            step(), wait()
            times.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": min(times), "bytes": peak_bytes(options.device)}), flush=True)


def peak_bytes(device: str) -> int:
    """The most memory that this process took: of tensors on a GPU, of everything on a CPU."""
    from codebrain.machine import peak_memory

    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak_memory()


def arithmetic(step: Callable[[], object]) -> int:
    """Floating-point operations of the products and convolutions of a step, which is done once."""
    from torch.utils.flop_counter import FlopCounterMode

    def backward(grad: list[int], _images: list[int], weight: list[int], *rest: object, **_: object) -> int:
        # PyTorch's own count takes a depthwise convolution's backward pass for a dense one.
        wanted = rest[-1]
        assert isinstance(wanted, list)
        places = grad[0] * math.prod(grad[2:])
        return 2 * places * math.prod(weight) * sum(bool(w) for w in wanted[:2])

    def linear(rows: list[int], *_: object, out_shape: list[int], **__: object) -> int:
        return 2 * math.prod(out_shape) * rows[-1]

    own = {torch.ops.aten.convolution_backward: backward}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        own[torch.ops.mkldnn._linear_pointwise] = linear
    # Eager, because what is compiled does not show its operations; the arithmetic is the same.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=own) as counter:
        step()
    return counter.get_total_flops()


class Side:
    """A process that does steps of one side when asked."""

    def __init__(self, side: str, options: argparse.Namespace, stage: str, batch: int) -> None:
        arguments = ["--side", side, "--stage", stage, "--batch", str(batch), "--device", options.device]
        arguments += ["--steps", str(options.steps)]
        arguments += ["--released", str(options.released)] if options.released else []
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.gigabytes = math.nan
        try:
            self.flops = int(self._answer()["flops"])
        except RuntimeError:
            self.end()
            raise

    def seconds(self) -> float:
        """The fastest of a few steps."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n"), self.process.stdin.flush()
        answer = self._answer()
        self.gigabytes = answer["bytes"] / 1e9
        return float(answer["seconds"])

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"a side ended: exit status {self.process.wait()}; out of memory? Try a smaller batch")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """No more steps."""
        self.process.kill(), self.process.wait()


Row = tuple[str, list[float], Side]


def measure(options: argparse.Namespace, stage: str, batch: int, way: str) -> Iterator[Row]:
    """Seconds of a step, turn by turn, of the released code and of one of our ways; two sides fit into memory."""
    names = [*(["released"] if options.released else []), way]
    sides: dict[str, Side] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    try:
        for turn, name in product(range(options.turns + 1), names):
            try:
                if turn == 0:
                    sides[name] = Side(name, options, stage, batch)
                elif name in sides:
                    seconds[name].append(sides[name].seconds())
            except RuntimeError as error:  # the other side is measured all the same
                sides.pop(name, None)
                print(f"{stage:5}  {batch:5}  {name:20}  {error}", flush=True)
    finally:
        for side in sides.values():
            side.end()
    for name, side in sides.items():
        yield name, seconds[name], side


def main() -> None:
    """Measure and print."""
    options = arguments()
    if options.side:
        work(options)
        return
    peak = options.peak_tflops or known_peak(options.device)
    print(
        "stage  batch  side                  s per step  slices/s   ratio to released (range)   memory   "
        "arithmetic, MFU"
    )
    rates: dict[str, dict[str, float]] = {}
    for stage, batch, way in product(options.stages, options.batches, options.ways):
        theirs: list[float] = []
        for name, seconds, side in measure(options, stage, batch, way):
            theirs = seconds if name == "released" else theirs
            ratios = [a / b for a, b in zip(theirs, seconds, strict=bool(theirs))] or [math.nan]
            middle = statistics.median(seconds)
            rates.setdefault(name, {})[stage] = batch / middle
            used = side.flops / middle / 1e12
            share = f", {used / peak:.0%}" if peak else ""
            print(
                f"{stage:5}  {batch:5}  {name:20}  {middle:10.3f}  {batch / middle:8.3f}   "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})         "
                f"{side.gigabytes:5.1f} GB   {used:.2f} Tflop/s{share}", flush=True,
            )  # fmt: skip
    expected(rates)
    if options.profile:
        profile(options)


def known_peak(device: str) -> float | None:
    """Dense bfloat16 Tflop/s of the GPU, if it is one of :data:`PEAKS`."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def expected(rates: dict[str, dict[str, float]]) -> None:
    """What the paper's IXI recipe takes at these rates, both stages, one device, validation left out."""
    slices = PAPER["slices"] * PAPER["epochs"]
    print(f"\nIXI as in the paper: {PAPER['slices']:,.0f} slices, {PAPER['epochs']} epochs a stage "
          f"(the paper: {PAPER['days']} days on {PAPER['cards']} RTX 4090)")  # fmt: skip
    for name, by_stage in rates.items():
        if set(by_stage) == set(STEPS):
            days = [slices / by_stage[stage] / 86400 for stage in STEPS]
            print(f"{name:20}  stage I {days[0]:9.1f} days, stage II {days[1]:9.1f} days, both {sum(days):9.1f} days")


def profile(options: argparse.Namespace) -> None:
    """Where the time of a step of the last of our ways goes, at the last batch, in each stage."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    gpu = options.device.startswith("cuda")
    by = "self_device_time_total" if gpu else "self_cpu_time_total"
    tables = []
    for stage in options.stages:
        step = our_step(options.ways[-1], stage, options.batches[-1], options.device)
        step(), step()
        with recording(
            activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU], record_shapes=True
        ) as record:
            step()
        found = record.key_averages(), record.key_averages(group_by_input_shape=True)
        tables += [f"stage {stage}", *(part.table(sort_by=by, row_limit=40) for part in found)]
    options.profile.write_text("\n".join(tables))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--released", type=Path, help="the folder CodeBrain/code of a clone of the released code")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--stages", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--batches", nargs="+", type=int, default=[2], help="8 16 48 where memory allows")
    parser.add_argument("--ways", nargs="+", choices=list(OURS), default=["ours fp32", "ours bf16"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="steps per turn, of which the fastest counts")
    parser.add_argument(
        "--peak-tflops", type=float, help="the GPU's dense bfloat16 peak, for the MFU, where its name is not known here"
    )
    parser.add_argument("--profile", type=Path, help="write where the time of our last way goes, at the last batch")
    for name, kind in (("--side", str), ("--stage", str), ("--batch", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
