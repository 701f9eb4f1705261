"""What `scripts/invert.py` works on: the request, a run's networks, and the images to invert."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from saccade.inversion import Method, Normaliser, own_samples
from saccade.layers.latents import position_generator
from saccade.run.load import Weights, load_task

SELF = re.compile(r"self:([1-9]\d{0,5})")
_NOISE = 2**60  # a position of the seed's random numbers that no sample and no start takes


@dataclass(frozen=True)
class Request:
    """What was asked for, with defaults filled in; see `saccade.run.invert.USAGE`."""

    checkpoint: Path
    images: str
    label: str | None
    methods: tuple[Method, ...]
    heads_chosen: bool
    normaliser: Normaliser | None
    count: int
    noise: float
    points: tuple[tuple[float, float], ...]
    seed: int
    device: str
    weights: Weights
    out: Path

    @property
    def own(self) -> int | None:
        """How many of the generator's own samples to invert; None for pictures."""
        match = SELF.fullmatch(self.images)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Networks:
    """A run's averaged generator and its discriminator, and what the run says of itself."""

    config: DictConfig
    generator: nn.Module
    discriminator: nn.Module | None
    images_seen: int


@dataclass(frozen=True)
class Targets:
    """Images to invert: (N, 3, Y, X) in [-1, 1], a name for each, labels (N,) or None, and z of own samples.

    `class_names` are those of all classes, where the run's data tells them; `oddities` what was odd about the files.
    """

    images: Tensor
    names: tuple[str, ...]
    labels: Tensor | None
    z: Tensor | None
    class_names: Sequence[str] | None
    oddities: tuple[tuple[str, ...], ...]


def load_networks(request: Request, device: torch.device) -> Networks:
    """Load a GAN.

    Raises:
        ValueError: no run folder, or a run of another kind.
    """
    config, loaded = load_task(request.checkpoint, weights=request.weights)
    task = cast(Any, loaded)  # any task whose averaged network takes (z, labels)
    generator: Any = getattr(getattr(task, "ema", None), "network", None)
    if not hasattr(generator, "latent"):
        raise ValueError(
            f"checkpoint={request.checkpoint}: a {config.model.name} run has no z to find; choose model=sagan"
        )
    discriminator = getattr(task, "discriminator", None)
    if not hasattr(discriminator, "features"):
        discriminator = None
    task.to(device)
    return Networks(config, generator, discriminator, int(task.images_seen))


def find_targets(request: Request, networks: Networks) -> Targets:
    """Read the pictures, or draw the samples.

    Raises:
        ValueError: no such file or folder, an unreadable picture, or labels that do not fit.
    """
    generator = cast(Any, networks.generator)
    names = None if generator.classes is None else _class_names(networks.config, generator.classes)
    labels = _read_labels(request, names, generator.classes)
    if request.own is not None:
        given = None if labels is None else _each(labels, request.own)
        samples = own_samples(generator, request.own, given, seed=request.seed)
        called = tuple(f"sample {index}" for index in range(request.own))
        images = _with_noise(samples.images, request)
        return Targets(images, called, samples.labels, samples.z, names, ((),) * request.own)
    files = picture_files(Path(request.images).expanduser(), request.count)
    if generator.classes is not None and labels is None:
        raise ValueError(
            f"label= is needed: the generator makes images of {generator.classes} classes, and takes the one you name"
        )
    images, oddities = read_pictures(files, generator.image_size.rows)
    chosen = None if labels is None else _each(labels, len(files))
    called = tuple(path.name for path in files)
    return Targets(_with_noise(images, request), called, chosen, None, names, oddities)


def picture_files(place: Path, count: int) -> list[Path]:
    """A picture file, or the first pictures of a folder by name.

    Raises:
        ValueError: there is no such thing, or no picture in the folder.
    """
    from saccade.data.square import SUFFIXES

    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"images={place}: no such file or folder; self:8 inverts the generator's own samples")
    files = sorted(
        path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(f"images={place}: the folder holds no pictures ({', '.join(sorted(SUFFIXES))})")
    if len(files) > count:
        print(f"{count} of the {len(files)} pictures in {place}; more with count=", file=sys.stderr)
    return files[:count]


def read_pictures(files: Sequence[Path], size: int) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """Pictures as the paper prepares them, turned upright: (N, 3, size, size) in [-1, 1]; and what was odd about each.

    Raises:
        ValueError: a file that is not a whole picture; names it.
    """
    from saccade.data.batches import to_float_image
    from saccade.data.images import to_tensor
    from saccade.data.square import read_square

    squares = [read_square(path, size, exif="apply") for path in files]
    images = torch.stack([to_float_image(to_tensor(square.pixels)) for square in squares])
    return images, tuple(square.oddities for square in squares)


def _with_noise(images: Tensor, request: Request) -> Tensor:
    if request.noise == 0.0:
        return images
    noise = torch.randn(images.shape, generator=position_generator(request.seed, _NOISE))
    return images + request.noise * noise.to(images)


def _class_names(config: DictConfig, classes: int) -> Sequence[str] | None:
    from saccade.run.sample import class_names

    return class_names(config, classes)


def _read_labels(request: Request, names: Sequence[str] | None, classes: int | None) -> list[int] | None:
    from saccade.run.sample import read_classes

    try:
        return read_classes(request.label, names, classes)
    except ValueError as error:
        raise ValueError(str(error).replace("classes=", "label=", 1)) from error


def _each(labels: Sequence[int], count: int) -> Tensor:
    """One label for all images, or one each."""
    if len(labels) not in (1, count):
        raise ValueError(f"label= names {len(labels)} classes for {count} images; give one, or one an image")
    return torch.tensor(list(labels) * (count if len(labels) == 1 else 1))
