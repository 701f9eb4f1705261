"""Which images a sampling makes, and how: rows of latent vectors and classes, and the generator's pictures of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from saccade.layers.batch_norm import BatchNorm
from saccade.layers.latents import latents_at, point_between
from saccade.run.load import Weights

Mode = Literal["grid", "interpolate", "files"]
Way = Literal["linear", "spherical", "classes"]

GRID_ROWS = 10  # classes of a grid if none were named
WIDTH = 8  # images of a row of a network without classes
BATCH = 32  # images at a time


@dataclass(frozen=True)
class Request:
    """What was asked for, with defaults filled in; see `saccade.run.sample.USAGE`."""

    run: Path
    mode: Mode
    classes: str | None
    count: int
    truncation: float | None
    seed: int
    path: Way
    steps: int
    weights: Weights
    out: Path
    overwrite: bool


@dataclass(frozen=True)
class Planned:
    """An image to make: where its latent vector comes from, and its class.

    Args:
        label: of the class; None without classes.
        position: of the latent vector under the run's seed.
        towards: position of the vector, or number of the class, at the other end of a path.
        share: of the way to it.
    """

    label: int | None
    position: int
    towards: int | None = None
    share: float = 0.0


def plan(request: Request, labels: Sequence[int] | None, classes: int | None) -> list[list[Planned]]:
    """Rows of images to make.

    Raises:
        ValueError: a path between classes for a network without any, or between fewer than two.
    """
    if classes is None and request.path == "classes":
        raise ValueError("path=classes: this run is unconditional, it has no classes to lead between")
    if request.mode == "interpolate" and request.path == "classes":
        return _between_classes(request, list(range(min(2, classes or 0))) if labels is None else labels)
    chosen: Sequence[int | None] = [None] if classes is None else _default_labels(request.mode, classes)
    chosen = chosen if labels is None else labels
    if request.mode == "interpolate":
        shares = torch.linspace(0, 1, request.steps).tolist()
        pairs = [(label, 2 * row) for label in chosen for row in range(request.count)]
        return [[Planned(label, first, first + 1, share) for share in shares] for label, first in pairs]
    if request.mode == "grid" and classes is None:
        starts = range(0, request.count, WIDTH)
        return [[Planned(None, at) for at in range(start, min(start + WIDTH, request.count))] for start in starts]
    if request.mode == "grid":
        return [[Planned(label, column) for column in range(request.count)] for label in chosen]
    every = classes or 1  # each image has a vector of its own, whichever classes and however many are asked for
    return [[Planned(label, image * every + (label or 0)) for image in range(request.count)] for label in chosen]


def _default_labels(mode: Mode, classes: int) -> list[int]:
    if mode == "files":
        return list(range(classes))
    rows = min(GRID_ROWS if mode == "grid" else 1, classes)
    return [row * classes // rows for row in range(rows)]


def _between_classes(request: Request, labels: Sequence[int]) -> list[list[Planned]]:
    if len(labels) < 2:
        raise ValueError(f"path=classes leads from class to class, so classes= names two or more; got {len(labels)}")
    shares = torch.linspace(0, 1, request.steps).tolist()
    legs = list(pairwise(labels))
    way = [(a, b, share) for leg, (a, b) in enumerate(legs) for share in shares[bool(leg) :]]
    return [[Planned(a, row, b, share) for a, b, share in way] for row in range(request.count)]


def blended(generator: nn.Module, first: int, second: int, shares: Sequence[float]) -> nn.Module:
    """A copy of a generator whose classes lie between two of it: gains and offsets of its batch norms, at each share.

    Raises:
        ValueError: the generator tells classes apart by something else than `saccade.layers.batch_norm.BatchNorm`.
    """
    generator = copy.deepcopy(generator)
    weight = torch.tensor(shares, dtype=torch.float32).unsqueeze(1)
    conditional = [part for part in generator.modules() if getattr(part, "classes", None) is not None]
    norms = [part for part in conditional if isinstance(part, BatchNorm)]
    containers = [part for part in conditional if any(part is not norm and norm in part.modules() for norm in norms)]
    if not norms or len(norms) + len(containers) != len(conditional):
        raise ValueError("path=classes: this generator is not class-conditional by batch norm alone")
    for norm in norms:
        for name in ("weight", "bias"):
            table = getattr(norm, name).detach()
            share = weight.to(table)
            setattr(norm, name, nn.Parameter(torch.lerp(table[first], table[second], share), requires_grad=False))
    for part in conditional:
        part.classes = len(shares)  # type: ignore[assignment]
    return generator


def draw(
    generator: nn.Module, request: Request, rows: Sequence[Sequence[Planned]], device: torch.device
) -> Iterator[tuple[Planned, Tensor]]:
    """Every planned image in order, (3, Y, X) float32 in [-1, 1] on the CPU."""
    generator = generator.to(device).eval()
    flat = [image for row in rows for image in row]
    if request.path == "classes":
        for (first, second), leg in groupby(flat, key=lambda image: (image.label or 0, image.towards or 0)):
            images = list(leg)
            network = blended(generator, first, second, [image.share for image in images])
            z = latents_at(
                request.seed, [i.position for i in images], _latent(generator), truncation=request.truncation
            )
            yield from zip(images, _generate(network, z, torch.arange(len(images)), device), strict=True)
        return
    for start in range(0, len(flat), BATCH):
        images = flat[start : start + BATCH]
        labels = [image.label for image in images if image.label is not None]
        made = _generate(generator, _latents(images, request, _latent(generator)), torch.tensor(labels), device)
        yield from zip(images, made, strict=True)


def _latents(images: Sequence[Planned], request: Request, size: int) -> Tensor:
    """(N, size): the vector of each image's position, or one on the way to another."""
    z = latents_at(request.seed, [image.position for image in images], size, truncation=request.truncation)
    if request.mode != "interpolate" or request.path == "classes":
        return z
    ends = [image.position if image.towards is None else image.towards for image in images]
    other = latents_at(request.seed, ends, size, truncation=request.truncation)
    share = torch.tensor([image.share for image in images], dtype=z.dtype)
    return point_between(z, other, share, spherical=request.path == "spherical")


def _latent(generator: nn.Module) -> int:
    return int(generator.latent)  # type: ignore[arg-type]


@torch.no_grad()
def _generate(network: nn.Module, z: Tensor, labels: Tensor, device: torch.device) -> list[Tensor]:
    parts = []
    for start in range(0, len(z), BATCH):
        given = labels[start : start + BATCH].to(device, torch.long) if len(labels) else None
        parts.append(network(z[start : start + BATCH].to(device), given).float().clamp(-1, 1).cpu())
    return list(torch.cat(parts))
