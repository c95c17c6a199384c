"""What can befall a step or its data, said in words."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from codebrain.data.slices import SliceStore
from codebrain.errors import is_out_of_memory, refusal

_log = logging.getLogger(__name__)


@contextmanager
def naming_the_batch(stage: str, step: int, ids: Callable[[int], Sequence[str]]) -> Iterator[None]:
    """Memory that runs out in the body is said with the place and the batch.

    Args:
        stage, step: the place; steps count from 0.
        ids: ``subject/slice`` of every sample of a step.

    Raises:
        EnvironmentRefused: ``ENV_MEMORY``.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise refusal(
            "ENV_MEMORY",
            f"stage {stage}, step {step + 1}: there was not enough memory. The batch was {', '.join(ids(step))}",
            hint=f"Use a smaller batch_size or crop (--set stages.{stage}.batch_size=N), or free memory; "
            "--resume goes on from the last checkpoint.",
        ) from error  # fmt: skip


def verify_store(store: SliceStore) -> None:
    """Every byte that training will read is what was prepared; the processes of one machine share the work.

    Raises:
        InputRefused: ``DATA_CORRUPT`` naming the file.
    """
    begun = time.monotonic()
    store.verify(part=int(os.environ.get("LOCAL_RANK", "0")), parts=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    _log.info("the hashes of the slice store agree (%.0f s)", time.monotonic() - begun)
