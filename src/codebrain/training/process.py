"""A run and the machine: devices and processes, the folder that is ours alone, signals that wait for a step."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from codebrain.errors import missing_extra, refusal
from codebrain.faults import fault
from codebrain.imaging import safe_files
from codebrain.training.config import TrainConfig

_log = logging.getLogger(__name__)


def start_fabric(config: TrainConfig, device: str) -> Any:
    """Lightning Fabric on the device asked for, in as many processes as torchrun started.

    Raises:
        UsageError: ``CONFIG`` for a device that does not exist.
        EnvironmentRefused: ``ENV_EXTRA`` without lightning-fabric, ``ENV_GPU`` without the GPU asked for.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise refusal("CONFIG", "no such device", field="--device", found=device, expected="auto, cpu or cuda[:N]")
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise missing_extra("lightning-fabric", "train", "Training") from error
    wants_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise refusal(
            "ENV_GPU", "no CUDA device is available", field="--device", found=device, hint="Use --device cpu."
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    number = [int(device.partition(":")[2])] if ":" in device else local
    fabric = Fabric(
        accelerator="cuda" if wants_gpu else "cpu",
        devices=number if wants_gpu else local,
        num_nodes=int(os.environ.get("WORLD_SIZE", "1")) // local,
        strategy="ddp" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "auto",
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
    )
    fabric.launch()
    return fabric


@contextmanager
def own_folder(run: Path, fabric: Any, *, resume: bool) -> Iterator[None]:
    """The run's folder, ours alone; the other processes of a distributed run wait for the first."""
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    if resume and not run.is_dir():
        raise refusal("CKPT_NONE", "there is no run to resume", file=run, hint="Leave out --resume to start.")
    if not resume and _occupied(run):
        raise refusal(
            "OUT_EXISTS",
            "there is a run here already",
            file=run,
            hint="Use --resume to go on, or another folder.",
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise safe_files.output_refusal(error, run) from error
    fault("lock.acquire")
    with safe_files.FolderLock(run) as lock:
        for notice in lock.notices:
            _log.warning("%s", notice.message)
        safe_files.sweep_temporaries(run)
        fabric.barrier()
        yield
        fault("lock.release")


def _occupied(run: Path) -> bool:
    """Whether the folder holds anything but a run that died before its first checkpoint."""
    if any((run / "checkpoints").glob("step-*")):
        return True
    visible = {path.name for path in run.iterdir() if not path.name.startswith(".")} if run.is_dir() else set()
    return bool(visible - {"checkpoints"}) and "config.yaml" not in visible


class Stop:
    """SIGTERM and SIGINT wait for the step to end; a second one does not. Those that are ignored stay so."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            heard = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {n: signal.signal(n, self._note) for n in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, _: object) -> None:
        self.number = number
        signal.signal(number, self._before[number])

    def obey(self, number: int) -> None:
        """Hand the signal on, if there was one, now that nothing would be lost."""
        if number:
            _log.info("stopping after this step as asked; --resume goes on from here")
            self.__exit__()
            signal.raise_signal(number)
