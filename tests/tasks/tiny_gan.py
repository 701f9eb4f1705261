"""The smallest GAN that GenerationTask can train: 8x8 images, three classes, batch statistics if asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saccade.data.batches import ClassBatch
from saccade.layers.batch_norm import BatchNorm
from saccade.layers.spectral import SpectralLinear
from saccade.tasks.generation import GenerationTask
from saccade.tasks.optimisers import adam

SIDE, CLASSES, LATENT = 8, 3, 4


class Mixed(nn.Module):
    """Stands for an attention block: something with a sigma."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.zeros(()))
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * self.linear(x)


class Generator(nn.Module):
    def __init__(self, classes: int | None = CLASSES, norm: bool = True, spectral: bool = True) -> None:
        super().__init__()
        self.latent, self.classes = LATENT, classes
        self.first = (SpectralLinear if spectral else nn.Linear)(LATENT, 16)
        self.norm = BatchNorm(16, classes=classes) if norm else None
        self.block = Mixed()
        self.last = nn.Linear(16, 3 * SIDE * SIDE)

    @property
    def attention_blocks(self) -> dict[str, nn.Module]:
        return {"up.4": self.block}

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        features = self.first(latents)
        if self.norm is not None:
            features = self.norm(features[..., None, None], labels)[..., 0, 0]
        images: Tensor = torch.tanh(self.last(torch.relu(self.block(features))))
        return images.unflatten(1, (3, SIDE, SIDE))


class Discriminator(nn.Module):
    def __init__(self, classes: int | None = CLASSES, spectral: bool = True) -> None:
        super().__init__()
        self.classes = classes
        layer = SpectralLinear if spectral else nn.Linear
        self.first = layer(3 * SIDE * SIDE, 16)
        self.last = layer(16, classes or 1)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.last(torch.relu(self.first(images.flatten(1))))
        return logits[:, 0] if labels is None else logits.gather(1, labels[:, None])[:, 0]


class Proxy:
    """Scores without networks: a distance between mean pixels that is called a Frechet distance."""

    suffix = ""

    def begin(self, data: Any, device: torch.device, *, truncation: float | None = None) -> None:
        self.images: list[Tensor] = []
        self.positions: list[int] = []

    def update(self, images: Tensor, positions: Tensor) -> None:
        self.images.append(images)
        self.positions += positions.tolist()

    def compute(self) -> dict[str, float]:
        mean = torch.cat(self.images).mean(0)
        return {"inception_score": 1.0, f"frechet_proxy_val{self.suffix}": float((mean - 0.5).square().mean())}

    def provenance(self) -> dict[str, Any]:
        return {"network": "none"}


class Data(pl.LightningDataModule):
    """An endless stream of coloured squares, one colour a class, that can start at any image."""

    class_names = ("red", "green", "blue")

    def __init__(self, batch_size: int = 8, *, evaluated: int = 6, side: int = SIDE) -> None:
        super().__init__()
        self.batch_size, self.evaluated, self.side, self.position = batch_size, evaluated, side, 0

    def set_position(self, images_seen: int) -> None:
        self.position = images_seen

    def batch(self, start: int, count: int) -> ClassBatch:
        images, labels = [], []
        for position in range(start, start + count):
            random = torch.Generator().manual_seed(position)
            labels.append(position % CLASSES)
            image = torch.randn(3, self.side, self.side, generator=random) * 0.2 - 0.5
            image[labels[-1]] += 1
            images.append(image)
        keys = [str(position) for position in range(start, start + count)]
        return ClassBatch(torch.stack(images), torch.tensor(labels), keys)

    def preview(self, count: int, split: str = "train", *, labels: object = None) -> ClassBatch:
        return self.batch(1000, count)

    def train_dataloader(self) -> Iterator[ClassBatch]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Stream(self, rank, world)  # type: ignore[return-value]

    def val_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(self.evaluated), batch_size=4)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


class Stream:
    def __init__(self, data: Data, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __iter__(self) -> Iterator[ClassBatch]:
        size, position = self.data.batch_size, self.data.position
        while True:
            yield self.data.batch(position + self.rank * size, size)
            position += size * self.world


def task(
    images: int = 64, *, networks: dict[str, Any] | None = None, lr: float = 1e-2, **options: Any
) -> GenerationTask:
    torch.manual_seed(1)
    networks = networks or {}
    generator = Generator(**networks)
    discriminator = Discriminator(networks.get("classes", CLASSES), networks.get("spectral", True))
    factory = partial(adam, lr=lr, beta1=0.0, beta2=0.9)
    given = {"generator_optimiser": factory, "discriminator_optimiser": factory, "scores": Proxy()}
    return GenerationTask(generator, discriminator, images=images, seed=0, **{**given, **options})


def trainer(folder: Path, callbacks: list[pl.Callback] | None = None, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": -1,
            "logger": False,
            "callbacks": callbacks or [],
            "default_root_dir": str(folder),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "use_distributed_sampler": False,
            **options,
        }
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
