"""Typed batches: what a data loader hands to a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class PoseSample:
    """One pair before batching: pictures still in 8 bits, so that worker processes send a quarter of the bytes.

    Attributes:
        source_image, target_image: (3, Y, X) uint8 RGB.
        source_keypoints, target_keypoints: (18, 3) float32, see `PoseBatch`.
        key: name of the pair, usable as a file stem.
        paired: False where the target pose belongs to somebody else and no true target picture exists.
    """

    source_image: Tensor
    source_keypoints: Tensor
    target_image: Tensor
    target_keypoints: Tensor
    key: str
    paired: bool = True


@dataclass
class PoseBatch:
    """Pairs of pictures of one person in two poses.

    Attributes:
        source_image, target_image: (B, 3, Y, X) float32 in [-1, 1].
        source_keypoints, target_keypoints: (B, 18, 3) float32 of x, y, v: pixels of the picture tensor with pixel
            centres at integers; v is 1 for a point that is there, 0 for a missing one, which then has x = y = 0. The
            order is `saccade.data.pose.KEYPOINT_NAMES`.
        keys: names of the pairs, usable as file stems.
        paired: False for unpaired training: the target pose is a random other picture's and `target_image` merely
            repeats the source, so no loss or metric may compare with it.
    """

    source_image: Tensor
    source_keypoints: Tensor
    target_image: Tensor
    target_keypoints: Tensor
    keys: list[str]
    paired: bool = True

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> PoseBatch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            source_image=self.source_image.to(device, non_blocking=non_blocking),
            source_keypoints=self.source_keypoints.to(device, non_blocking=non_blocking),
            target_image=self.target_image.to(device, non_blocking=non_blocking),
            target_keypoints=self.target_keypoints.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> PoseBatch:
        """The same batch in page-locked memory (needs CUDA); the data loader calls this."""
        return replace(
            self,
            source_image=self.source_image.pin_memory(),
            source_keypoints=self.source_keypoints.pin_memory(),
            target_image=self.target_image.pin_memory(),
            target_keypoints=self.target_keypoints.pin_memory(),
        )


def to_float_image(image: Tensor) -> Tensor:
    """uint8 pictures 0..255 as float32 in [-1, 1], any shape."""
    return image.to(torch.float32).mul_(2 / 255).sub_(1)


def collate_pose(samples: Sequence[PoseSample]) -> PoseBatch:
    """Stack samples into a batch.

    Raises:
        ValueError: no samples, or paired and unpaired ones together.
    """
    if not samples or len({sample.paired for sample in samples}) != 1:
        raise ValueError(
            f"a pose batch takes one or more samples, all paired or all unpaired; got {[s.paired for s in samples]}"
        )
    return PoseBatch(
        source_image=to_float_image(torch.stack([s.source_image for s in samples])),
        source_keypoints=torch.stack([s.source_keypoints for s in samples]),
        target_image=to_float_image(torch.stack([s.target_image for s in samples])),
        target_keypoints=torch.stack([s.target_keypoints for s in samples]),
        keys=[s.key for s in samples],
        paired=samples[0].paired,
    )


@dataclass
class ClassSample:
    """One picture of a class before batching, still in 8 bits.

    Attributes:
        image: (3, Y, X) uint8 RGB.
        label: number of the class, from 0.
        key: the file's name below its data set's folder.
    """

    image: Tensor
    label: int
    key: str


@dataclass
class ClassBatch:
    """Pictures with their classes.

    Attributes:
        images: (B, 3, Y, X) float32 in [-1, 1].
        labels: (B,) int64.
        keys: names of the files.
    """

    images: Tensor
    labels: Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> ClassBatch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> ClassBatch:
        """The same batch in page-locked memory (needs CUDA); the data loader calls this."""
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def collate_class(samples: Sequence[ClassSample]) -> ClassBatch:
    """Stack samples into a batch.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("a class batch takes one or more samples; got none")
    return ClassBatch(
        images=to_float_image(torch.stack([s.image for s in samples])),
        labels=torch.tensor([s.label for s in samples], dtype=torch.int64),
        keys=[s.key for s in samples],
    )
