"""An endless, seeded stream of sample positions that can be resumed at any image.

What is at a position is a pure function of (seed, position). The stream knows nothing of workers or prefetching, so the
place to resume from is the number of images that training has consumed, and only training knows that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler


def rng_at(seed: int, position: int, purpose: int = 0) -> np.random.Generator:
    """The random numbers that belong to one position of one seed's stream; purposes draw independently."""
    return np.random.default_rng([seed, position, purpose])


@lru_cache(maxsize=4)
def _order(seed: int, size: int, lap: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return rng_at(seed, lap, purpose=1).permutation(size)


def index_at(seed: int, position: int, size: int) -> int:
    """Which of `size` items is at a position: every lap of `size` positions is a fresh shuffle of them all."""
    lap, place = divmod(position, size)
    return int(_order(seed, size, lap)[place])


class StreamSampler(Sampler[list[int]]):
    """Batches of consecutive positions, for `DataLoader(batch_sampler=...)`.

    With several ranks, each takes its own part of every global batch of `batch_size * world_size` positions, so the
    global batches do not depend on how they are shared out. Lightning must be told not to replace it
    (`use_distributed_sampler=False`).

    Args:
        batch_size: positions in a batch of one rank.
        rank, world_size: this process among those that train together.
        position: images seen by all ranks together before the first batch.
        epoch_images: end the iterator after this many images (rounded up to whole global batches), the next iterator
            going on from there; None never ends.

    Raises:
        ValueError: a number out of range, or a position that is not at the start of a global batch.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        position: int = 0,
        epoch_images: int | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"sampler: batch_size >= 1 and 0 <= rank < world_size; got {batch_size}, rank {rank} of {world_size}"
            )
        if epoch_images is not None and epoch_images < 1:
            raise ValueError(f"sampler: epoch_images is at least 1 or None (endless); got {epoch_images}")
        self.batch_size = batch_size
        self.rank = rank
        self.global_batch = batch_size * world_size
        self.epoch = None if epoch_images is None else -(-epoch_images // self.global_batch) * self.global_batch
        self.position = 0
        self.set_position(position)

    def set_position(self, images_seen: int) -> None:
        """Make the next iterator start after this many images, counted over all ranks.

        Raises:
            ValueError: not a whole number of global batches.
        """
        if images_seen < 0 or images_seen % self.global_batch:
            raise ValueError(
                f"sampler: position {images_seen} is no whole number of global batches ({self.global_batch} images); "
                f"resume with the batch size and number of devices that the run had"
            )
        self.position = images_seen

    def __iter__(self) -> Iterator[list[int]]:
        start = self.position
        end = None if self.epoch is None else (start // self.epoch + 1) * self.epoch
        while end is None or start < end:
            first = start + self.rank * self.batch_size
            yield list(range(first, first + self.batch_size))
            start += self.global_batch
        self.position = start

    def state_dict(self) -> dict[str, int]:
        """Where the next iterator starts. It does not move while an iterator runs: see `set_position`."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.set_position(state["position"])


class EpochSampler(StreamSampler):
    """A stream with an end to every epoch, which therefore has a length: batches in a whole epoch of one rank."""

    def __len__(self) -> int:
        if self.epoch is None:
            raise TypeError("sampler: an endless stream has no length; give epoch_images")
        return self.epoch // self.global_batch
