"""What inversion minimises: one loss a start, and their sum, so that starts do not touch each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from saccade.attention.block import SlotBlock
from saccade.geometry import Size
from saccade.inversion.method import Method
from saccade.inversion.saliency_maps import choose_heads, project, require_attending, saliency


class Discriminator(Protocol):
    """What inversion asks of a discriminator."""

    attention_blocks: Any

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, Y, X) -> the map that enters the first attention block, (B, C, Y, X)."""
        ...


@dataclass(frozen=True)
class Target:
    """An image, or several, and what is computed of them once.

    Attributes:
        images: (N, 3, Y, X).
        compared: what generated images are compared with: D0(x) (N, C, Y, X), or the images.
        weights: squared weights of the comparison: (N, 1, Y, X), or one a head (N, H, Y, X) where norms are not
            squared; None for 1.
        keys: saliency over the key map, (N, G, Yk, Xk) of all heads; None where it is not used.
    """

    images: Tensor
    compared: Tensor
    weights: Tensor | None
    keys: Tensor | None

    def of(self, rows: Tensor) -> Target:
        """The same for some images, or for one several times."""
        return Target(
            self.images[rows],
            self.compared[rows],
            None if self.weights is None else self.weights[rows],
            None if self.keys is None else self.keys[rows],
        )


def first_block(discriminator: Discriminator) -> SlotBlock:
    """The discriminator's first attention block.

    Raises:
        RuntimeError: it has none, or one that attends nowhere.
    """
    blocks: list[SlotBlock] = list(discriminator.attention_blocks.values())
    if not blocks:
        raise RuntimeError(
            "inversion: the discriminator has no attention, so it weighs nothing. Choose method pixel, or a network "
            "with attention."
        )
    require_attending(blocks[0])
    return blocks[0]


@torch.no_grad()
def make_target(images: Tensor, discriminator: Discriminator | None, method: Method) -> Target:
    """Compute D0(x) and the saliency of x, once.

    Raises:
        ValueError: heads that the discriminator's layer does not have.
        RuntimeError: the method needs a discriminator that attends, and there is none.
    """
    if not method.needs_features:
        return Target(images, images, None, None)
    if discriminator is None:
        raise RuntimeError(f"inversion, method {method.name}: needs the discriminator; method pixel does not")
    block = first_block(discriminator)
    features = discriminator.features(images)
    compared = features if method.space == "features" else images
    if not method.weighted:
        return Target(images, compared, None, None)
    keys = saliency(block, features, normaliser=method.normaliser)
    heads = choose_heads(keys.shape[1], method.heads, f"inversion, method {method.name}")
    weights = project(keys[:, heads], Size(*compared.shape[-2:])).square()  # (N, H, Y, X)
    if method.squared:
        weights = weights.sum(1, keepdim=True)  # a sum of squares over heads is one square with summed weights
    return Target(images, compared, weights, keys)


def errors(generated: Tensor, target: Target) -> Tensor:
    """Weighted squared errors of each sample, by head where the weights are: (B, H) from (B, C, Y, X)."""
    squares = (generated - target.compared).square().sum(1, keepdim=True)
    return (squares if target.weights is None else squares * target.weights).sum((2, 3))


def losses(squares: Tensor, method: Method) -> Tensor:
    """The loss of each start, (B,), from the `errors` (B, H): their sum, or the sum of their roots."""
    return (squares if method.squared else _root(squares)).sum(1)


def objective(squares: Tensor, method: Method, seeds: int) -> Tensor:
    """The scalar to minimise over all starts, (images * seeds, H) errors: the sum of the losses; if the method is
    coupled, each head's norm over all starts of an image (released)."""
    if not method.coupled:
        return losses(squares, method).sum()
    return _root(squares.view(-1, seeds, squares.shape[1]).sum(1)).sum()


def _root(squares: Tensor) -> Tensor:
    """The square root, with gradient 0 where the error is 0 (a generated image that equals its target)."""
    positive = squares > 0
    return torch.where(positive, squares, 1.0).sqrt() * positive
