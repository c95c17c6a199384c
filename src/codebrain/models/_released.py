"""Checkpoints of the released CodeBrain code (github ycwu1997/CodeBrain) to model folders.

The file is a pickle, so it is handled as hostile: its opcodes are read without running them and anything
but tensors and dictionaries is refused; then torch reads it in a process of its own that hands back
safetensors. Sizes (contrasts, width, depth) are read off the tensors.
"""

from __future__ import annotations

import pickletools
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from codebrain.errors import refusal
from codebrain.models import build_model
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import ModalitySet

PAPER_LEVELS = (8, 8, 8, 5, 5, 5)
_HARMLESS = re.compile(
    r"collections OrderedDict|torch (Float|Half|BFloat16|Double|Long|Int|Bool)Storage"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)|torch (float32|float16|bfloat16|int64)"
)
_SECONDS = 300
_WORKER = """
import sys, torch
from safetensors.torch import save_file
content = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
flat = {f"{part}.{name}": tensor.float().contiguous().clone()
        for part in ("rec_model", "grad_model") if part in content
        for name, tensor in content[part].items() if isinstance(tensor, torch.Tensor)}
save_file(flat, sys.argv[2])
"""


def read_released(file: Path, modalities: ModalitySet, levels: Sequence[int] = PAPER_LEVELS) -> ImputationModel:
    """The CodeBrain model in a released checkpoint ``{'rec_model': ..., 'grad_model': ...}``.

    Args:
        file: the ``.pth`` that ``train_grad.py`` of the released code wrote.
        modalities: its channel order (released settings: IXI ``T1,T2,PD``, BraTS ``FLAIR,T1,T2,T1Gd``).
        levels: of the code channels; tensors do not tell them apart.

    Raises:
        ModelRefused: ``CKPT_NONE``, ``CKPT_CORRUPT``, ``CKPT_UNSAFE`` (more than tensors inside) or
            ``CKPT_MISMATCH`` (not a checkpoint of this architecture, or not of these contrasts or levels).
    """
    _refuse_unsafe(file)
    tensors = {_plain(name): value for name, value in _unpickle_elsewhere(file).items()}
    renamed = dict(_rename(tensors, depth=_depth(file, tensors)))
    width, contrasts = tensors["rec_model.posterior_encoder.down0.0.weight"].shape[:2]
    _check_sizes(file, renamed, contrasts=contrasts, modalities=modalities, levels=levels)
    settings = {"width": int(width), "depth": _depth(file, tensors), "levels": tuple(levels)}
    model = build_model("codebrain", modalities, settings)
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith("critic.")}
    if wanted.keys() != renamed.keys():
        stray = sorted(wanted.keys() ^ renamed.keys())
        raise _mismatch(
            file, "tensors do not fit the architecture", found=f"{len(stray)} differences, first {stray[0]}"
        )
    shaped = {name: value.reshape(wanted[name].shape) for name, value in renamed.items()}
    model.load_state_dict(shaped, strict=False)
    return model.eval().requires_grad_(False)


def _refuse_unsafe(file: Path) -> None:
    if not file.is_file():
        raise refusal("CKPT_NONE", "no such file", file=file, expected="a .pth of the released code")
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith(".pkl")]
            imported = [name for pickle in pickles for name in _imports(archive.read(pickle))]
    except zipfile.BadZipFile as error:
        head = file.read_bytes()[:2]
        code = "CKPT_UNSAFE" if head[:1] == b"\x80" else "CKPT_CORRUPT"
        raise refusal(code, "this is not an archive that torch.save wrote", file=file) from error
    strange = [name for name in imported if not _HARMLESS.fullmatch(name)]
    if strange or len(pickles) != 1:
        raise refusal(
            "CKPT_UNSAFE",
            "this checkpoint holds more than tensors and would run code when loaded",
            file=file,
            found=", ".join(strange[:3]) or f"{len(pickles)} pickles",
        )


def _imports(pickle: bytes) -> Iterator[str]:
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument)
            elif opcode.name == "STACK_GLOBAL":
                yield " ".join(strings[-2:])
            elif opcode.name.startswith("EXT"):
                yield "an extension code"
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError, UnicodeDecodeError):
        yield "a damaged pickle"


def _unpickle_elsewhere(file: Path) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory(prefix="codebrain-import-") as folder:
        target = Path(folder) / "tensors.safetensors"
        command = [sys.executable, "-I", "-c", _WORKER, str(file.resolve()), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode or not target.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise refusal("CKPT_CORRUPT", f"torch cannot read this checkpoint: {reason}", file=file)
        tensors: dict[str, Tensor] = load_file(target)
        return tensors


def _plain(name: str) -> str:
    return name.replace(".module.", ".", 1)  # left behind by distributed training


def _depth(file: Path, tensors: dict[str, Tensor]) -> int:
    found = [re.fullmatch(r"rec_model\.posterior_encoder\.down3\.(\d+)\.beta", name) for name in tensors]
    blocks = [int(match[1]) for match in found if match]
    if not blocks or not any(name.startswith("grad_model.") for name in tensors):
        raise _mismatch(
            file,
            "this is not a checkpoint of both stages",
            found="no rec_model or no grad_model",
            hint="Give the file that the released train_grad.py wrote.",
        )
    return max(blocks)


def _check_sizes(
    file: Path, tensors: dict[str, Tensor], *, contrasts: int, modalities: ModalitySet, levels: Sequence[int]
) -> None:
    if contrasts != len(modalities):
        raise _mismatch(
            file,
            "the checkpoint has another number of contrasts",
            found=contrasts,
            expected=f"{len(modalities)} ({modalities})",
        )
    last = max((n for n in tensors if n.startswith("prior_encoder.") and n.endswith("bias")), key=_stage_number)
    bits = tensors[last].numel()
    if bits != sum(levels) - len(levels):
        raise _mismatch(
            file,
            "the grading head has other levels",
            found=f"{bits} bits",
            expected=f"{sum(levels) - len(levels)} for levels {tuple(levels)}",
            hint="Name them with --levels.",
        )


def _stage_number(name: str) -> int:
    return int(name.split(".")[2])


_BLOCK = {
    "conv1": "expand1",
    "conv2": "depthwise",
    "conv3": "project1",
    "sca.1": "attention",
    "conv4": "expand2",
    "conv5": "project2",
    "norm1": "norm1",
    "norm2": "norm2",
    "beta": "scale1",
    "gamma": "scale2",
}


def released_names(tensors: Iterable[str], *, depth: int) -> dict[str, str]:
    """Our names by those of the released code."""
    return dict(_named(tensors, depth=depth))


def _rename(tensors: dict[str, Tensor], *, depth: int) -> Iterator[tuple[str, Tensor]]:
    return ((ours, tensors[theirs]) for theirs, ours in _named(tensors, depth=depth))


def _named(tensors: Iterable[str], *, depth: int) -> Iterator[tuple[str, str]]:
    encoder = {
        "down0.0": 0,
        "down0.1": 1,
        "down1.0": 2,
        "down1.1": 3,
        "down2.0": 4,
        "down2.1": 5,
        "output_proj": 7 + depth,
    }
    encoder |= {f"down3.{i}": 6 + i for i in range(depth + 1)}
    decoder = {f"up32.{i}": i for i in range(depth + 1)}
    for step, part in enumerate(("up64", "up128", "up256")):
        decoder |= {f"{part}.0": depth + 2 + 3 * step, f"{part}.1": depth + 3 + 3 * step}
    parts = [
        ("rec_model.posterior_encoder.", "posterior_encoder", encoder),
        ("rec_model.prior_encoder.", "common_encoder", encoder),
        ("rec_model.decoder.", "decoder", decoder),
        ("grad_model.grader.", "prior_encoder", encoder),
    ]
    fixed = {
        "rec_model.decoder.proj_fusing.conv.": "decoder.fuse.",
        "grad_model.head.": f"prior_encoder.stages.{7 + depth}.",
    }
    for name in tensors:
        prefix = next((p for p in fixed if name.startswith(p)), None)
        if prefix:
            yield name, fixed[prefix] + name.removeprefix(prefix)
            continue
        for old, new, stages in parts:
            if name.startswith(old):
                yield name, f"{new}.{_stage(name.removeprefix(old), stages)}"


def _stage(name: str, stages: dict[str, int]) -> str:
    start = next((s for s in sorted(stages, key=len, reverse=True) if name.startswith(f"{s}.")), None)
    if start is None:
        return f"unknown.{name}"
    rest = name.removeprefix(f"{start}.")
    for old, new in _BLOCK.items():
        if rest == old or rest.startswith(f"{old}."):
            rest = new + rest.removeprefix(old)
            break
    return f"stages.{stages[start]}.{rest}"


def _mismatch(
    file: Path, message: str, *, found: object = None, expected: object = None, hint: str | None = None
) -> Exception:
    return refusal("CKPT_MISMATCH", message, file=file, found=found, expected=expected, hint=hint)
