"""The smallest networks and pictures that InpaintingTask can train."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from tiny_gan import Stream
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saccade.data.editing_batches import ImageBatch
from saccade.data.masks import CentredHole, RectangularHoles
from saccade.tasks.inpainting import InpaintingTask

SIDE, HOLE = 12, 6


class Output(NamedTuple):
    coarse: Tensor
    fine: Tensor
    completed: Tensor


class Generator(nn.Module):
    """Two convolutions for two stages. `seen` is what it was given last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 3, 5, padding=2) for _ in range(2))
        self.seen: Tensor | None = None

    def forward(self, images: Tensor, masks: Tensor) -> Output:
        self.seen = images
        coarse = self.first(torch.cat([images, masks], 1))
        pasted = torch.where(masks > 0.5, coarse, images)
        fine = self.second(torch.cat([pasted, masks], 1))
        return Output(coarse, fine, torch.where(masks > 0.5, fine, images))


class Fixed(nn.Module):
    """Paints the same picture into every hole, one value a pixel of a picture that it can learn."""

    def __init__(self, coarse: float = 0.0, fine: float = 0.0) -> None:
        super().__init__()
        self.coarse = nn.Parameter(torch.full((3, SIDE, SIDE), coarse))
        self.fine = nn.Parameter(torch.full((3, SIDE, SIDE), fine))

    def forward(self, images: Tensor, masks: Tensor) -> Output:
        coarse, fine = (part.expand_as(images) for part in (self.coarse, self.fine))
        return Output(coarse, fine, torch.where(masks > 0.5, fine, images))


class Linear(nn.Module):
    """A critic whose gradient is its weight everywhere."""

    def __init__(self, side: int, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, side, side), value))

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).sum((1, 2, 3))[:, None]


class Curved(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.last = nn.Linear(4 * ((side + 1) // 2) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        value: Tensor = self.last(torch.nn.functional.leaky_relu(self.first(images), 0.2).flatten(1))
        return value


class Critics(nn.Module):
    def __init__(self, local: nn.Module | None = None, whole: nn.Module | None = None) -> None:
        super().__init__()
        self.local, self.whole = local or Curved(HOLE), whole or Curved(SIDE)


class Data(pl.LightningDataModule):
    """An endless stream of pictures that can start anywhere; all alike if asked for."""

    def __init__(self, batch_size: int = 4, *, alike: bool = False, eval_batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size, self.alike, self.position = batch_size, eval_batch_size, alike, 0

    def set_position(self, images_seen: int) -> None:
        self.position = images_seen

    def batch(self, start: int, count: int) -> ImageBatch:
        places = range(start, start + count)
        generators = [torch.Generator().manual_seed(0 if self.alike else place) for place in places]
        pictures = [torch.rand(3, SIDE, SIDE, generator=generator) * 1.6 - 0.8 for generator in generators]
        return ImageBatch([f"{place}.png" for place in places], torch.stack(pictures))

    def preview(self, count: int) -> ImageBatch:
        return self.batch(0, count)

    def train_dataloader(self) -> Iterator[ImageBatch]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Stream(self, rank, world)  # type: ignore[arg-type,return-value]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            range(1000, 1006),  # type: ignore[arg-type]
            batch_size=self.eval_batch_size,
            collate_fn=lambda places: self.batch(places[0], len(places)),
        )

    test_dataloader = val_dataloader


def sgd(parameters: Any, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr)


def inpainting_task(
    generator: nn.Module | None = None,
    critics: nn.Module | type[Critics] | None = None,
    *,
    images: int = 40,
    **options: Any,
) -> InpaintingTask:
    given: dict[str, Any] = {
        "generator_optimiser": sgd,
        "discriminator_optimiser": partial(sgd, lr=0.01),
        "holes": RectangularHoles(HOLE, shrink=2),
        "test_holes": CentredHole(HOLE),
        "seed": 0,
        **options,
    }
    torch.manual_seed(7)
    generator, critics = generator or Generator(), critics() if isinstance(critics, type) else critics
    return InpaintingTask(generator, critics, images=images, **given)
