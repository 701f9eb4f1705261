"""The generator's own samples as targets: their z is known, so an inversion can be held against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saccade.layers.latents import latents_at

# Positions of the latents: samples count from 0, the starts of image i from (i + 1) * STARTS.
STARTS = 2**20


class Samples(NamedTuple):
    """Samples of a generator: images (N, 3, Y, X), the z (N, latent) they come from, labels (N,) or None."""

    images: Tensor
    z: Tensor
    labels: Tensor | None


@contextmanager
def _held(network: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in network.modules()}
    learning = {parameter: parameter.requires_grad for parameter in network.parameters()}
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for parameter, asked in learning.items():
            parameter.requires_grad_(asked)


@contextmanager
def held(*networks: nn.Module | None) -> Iterator[None]:
    """Networks in evaluation mode and without gradients for their parameters, inside; as they were, after."""
    with ExitStack() as stack:
        for network in networks:
            if network is not None:
                stack.enter_context(_held(network))
        yield


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are."""
    return next(network.parameters()).device


@torch.no_grad()
def own_samples(
    generator: nn.Module, count: int, labels: Tensor | None = None, *, seed: int = 0, truncation: float | None = None
) -> Samples:
    """Draw targets for self-inversion: z from N(0, I) as released, never one of the starts of the same seed.

    Args:
        generator: takes (z, labels), has `.latent` and `.classes`.
        count: number of samples N.
        labels: (N,) long; None gives the classes in turn, and no labels to a generator without classes.
        truncation: limit of z in sigma; None is none.

    Raises:
        ValueError: a wrong count or labels.
    """
    if not 1 <= count <= STARTS:
        raise ValueError(f"own samples: the count is 1 or more (at most {STARTS}); got {count}")
    device, classes = device_of(generator), getattr(generator, "classes", None)
    if labels is None and classes is not None:
        labels = torch.arange(count) % int(classes)
    labels = check_labels(generator, labels, count)
    z = latents_at(seed, range(count), latent_of(generator), truncation=truncation)
    z = z.to(device=device, dtype=next(generator.parameters()).dtype)
    with held(generator):
        return Samples(generator(z, labels), z, labels)


def latent_of(generator: nn.Module) -> int:
    """The size of a generator's z."""
    latent = getattr(generator, "latent", None)
    if not isinstance(latent, int):
        raise ValueError(f"inversion: a {type(generator).__name__} names no size of z (attribute latent)")
    return latent


def check_labels(generator: nn.Module, labels: Tensor | None, count: int) -> Tensor | None:
    """Labels that fit the generator and the number of images, on its device.

    Raises:
        ValueError: labels are missing, of another number, or outside the classes; or given to one without classes.
    """
    classes = getattr(generator, "classes", None)
    if classes is None:
        if labels is not None:
            raise ValueError("inversion: the generator knows no classes, so it takes no labels")
        return None
    if labels is None:
        raise ValueError(f"inversion: the generator has {classes} classes; name one for each image (labels)")
    if labels.shape != (count,) or labels.dtype != torch.long:
        raise ValueError(
            f"inversion: labels are ({count},) long, one an image; got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if bool(((labels < 0) | (labels >= int(classes))).any()):
        raise ValueError(f"inversion: labels are 0 to {int(classes) - 1}; got {labels.tolist()}")
    return labels.to(device_of(generator))
