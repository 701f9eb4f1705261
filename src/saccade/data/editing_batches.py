"""Typed batches of the editing tasks: pictures, pairs of video frames, pictures at two resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from saccade.data.batches import to_float_image


@dataclass
class TensorBatch:
    """Tensors of one length, named after `keys`."""

    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory (needs CUDA); the data loader calls this."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass
class ImageSample:
    """One picture before batching, (3, Y, X) uint8 RGB, and the name of its file below its data set's folder."""

    image: Tensor
    key: str


@dataclass
class ImageBatch(TensorBatch):
    """Pictures: (B, 3, Y, X) float32 in [-1, 1]."""

    images: Tensor


@dataclass
class FramePairSample:
    """Two frames of one video before batching.

    Attributes:
        target, reference: (3, Y, X) uint8 RGB.
        key: `<sequence>/<target frame>-<reference frame>`.
        distance: number of the reference frame minus that of the target.
    """

    target: Tensor
    reference: Tensor
    key: str
    distance: int


@dataclass
class FramePairBatch(TensorBatch):
    """Pairs of video frames.

    Attributes:
        target, reference: (B, 3, Y, X) float32 in [-1, 1].
        distances: (B,) int64, number of the reference frame minus that of the target.
    """

    target: Tensor
    reference: Tensor
    distances: Tensor


@dataclass
class ResolutionSample:
    """One picture at two resolutions before batching: (3, Y, X) and (3, sY, sX) uint8 RGB."""

    low: Tensor
    high: Tensor
    key: str


@dataclass
class ResolutionBatch(TensorBatch):
    """Pictures at two resolutions: (B, 3, Y, X) and (B, 3, sY, sX) float32 in [-1, 1]."""

    low: Tensor
    high: Tensor


def collate_images(samples: Sequence[ImageSample]) -> ImageBatch:
    """Stack samples into a batch.

    Raises:
        ValueError: no samples.
    """
    _require_any("an image batch", samples)
    return ImageBatch([s.key for s in samples], to_float_image(torch.stack([s.image for s in samples])))


def collate_frame_pairs(samples: Sequence[FramePairSample]) -> FramePairBatch:
    """Stack samples into a batch.

    Raises:
        ValueError: no samples.
    """
    _require_any("a batch of frame pairs", samples)
    return FramePairBatch(
        [s.key for s in samples],
        to_float_image(torch.stack([s.target for s in samples])),
        to_float_image(torch.stack([s.reference for s in samples])),
        torch.tensor([s.distance for s in samples], dtype=torch.int64),
    )


def collate_resolutions(samples: Sequence[ResolutionSample]) -> ResolutionBatch:
    """Stack samples of one size into a batch.

    Raises:
        ValueError: no samples, or of different sizes.
    """
    _require_any("a batch of two resolutions", samples)
    sizes = {(tuple(s.low.shape), tuple(s.high.shape)) for s in samples}
    if len(sizes) > 1:
        raise ValueError(f"a batch of two resolutions takes pictures of one size; got {sorted(sizes)}")
    return ResolutionBatch(
        [s.key for s in samples],
        to_float_image(torch.stack([s.low for s in samples])),
        to_float_image(torch.stack([s.high for s in samples])),
    )


def _require_any(what: str, samples: Sequence[object]) -> None:
    if not samples:
        raise ValueError(f"{what} takes one or more samples; got none")
