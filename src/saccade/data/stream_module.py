"""What data modules of pictures share: an endless training stream, and evaluation shared out over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from saccade.data.sampler import StreamSampler

_Sample = TypeVar("_Sample")


class StreamModule(LightningDataModule):
    """A data module whose training stream starts at `set_position(images_seen)`.

    It needs `Trainer(use_distributed_sampler=False)`.

    Args:
        batch_size, eval_batch_size: samples for one device.
        workers: loader processes; never changes what is drawn.
        pin_memory: page-locked batches, for CUDA.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, workers: int, pin_memory: bool) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1 or workers < 0:
            raise ValueError(
                f"data.module: batch_size and eval_batch_size are 1 or more, workers 0 or more; got {batch_size}, "
                f"{eval_batch_size}, {workers}"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.workers, self.pin_memory = workers, pin_memory
        self._position = 0

    def set_position(self, images_seen: int) -> None:
        """Let the next training loader start after this many images, counted over all devices."""
        self._position = images_seen

    def stream_loader(
        self, stream: Dataset[_Sample], collate: Callable[[Sequence[_Sample]], Any]
    ) -> DataLoader[_Sample]:
        """Endless batches of a data set that holds a sample at every position, from the stream's position on."""
        rank, world = self._rank()
        return DataLoader(
            stream,
            batch_sampler=StreamSampler(self.batch_size, rank=rank, world_size=world, position=self._position),
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            persistent_workers=self.workers > 0,
        )

    def ordered_loader(
        self, dataset: Dataset[_Sample], collate: Callable[[Sequence[_Sample]], Any]
    ) -> DataLoader[_Sample]:
        """A data set once, in order, the last batch as short as it comes; each rank has every `world_size`-th sample.

        Raises:
            ValueError: fewer samples than ranks.
        """
        rank, world = self._rank()
        count = len(dataset)  # type: ignore[arg-type]
        if count < world:
            raise ValueError(
                f"data.module: {count} evaluation samples cannot be shared out to {world} devices, one or more for "
                f"each; set budget.eval_samples={world} or more (and data.module.val_samples, if it is set)"
            )
        return DataLoader(
            dataset if world == 1 else Subset(dataset, range(rank, count, world)),
            batch_size=self.eval_batch_size,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def require_samples(**counts: int | None) -> None:
    """Refuse to score nothing.

    Raises:
        ValueError: a number below 1; names it.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"data.module.{name}={count}: choose 1 or more, or null for all")


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers 0 .. total - 1, evenly apart, or all where there are fewer."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
