"""Pairs of frames of one video: a list of them, and an endless stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from saccade.data.editing_batches import FramePairSample
from saccade.data.images import Pixels, decode_image, to_tensor
from saccade.data.kept import Kept
from saccade.data.sampler import index_at, rng_at
from saccade.geometry import Size


class FramePair(NamedTuple):
    """Two frames of a sequence by their numbers."""

    sequence: str
    target: int
    reference: int


class FramePairs(Dataset[FramePairSample]):
    """Pairs of frames in the order of their list.

    Args:
        videos: frames by number, by sequence.
        pairs: which ones.
        read: what reads a frame at the network's size.
    """

    def __init__(self, videos: Mapping[str, Mapping[int, Path]], pairs: Sequence[FramePair], read: Kept) -> None:
        self.videos, self.pairs, self.read = videos, list(pairs), read

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> FramePairSample:
        return read_pair(self.videos, self.pairs[index], self.read)


class FramePairStream(Dataset[FramePairSample]):
    """A data set without end: position p holds a pair that depends on (seed, p) alone, not on workers or history."""

    def __init__(self, videos: Mapping[str, Mapping[int, Path]], read: Kept, seed: int) -> None:
        self.videos, self.read, self.seed = videos, read, seed
        self._names = list(videos)

    def pair_at(self, position: int) -> FramePair:
        """The pair at a position."""
        name = self._names[index_at(self.seed, position, len(self._names))]
        numbers = list(self.videos[name])
        target, reference = rng_at(self.seed, position).choice(len(numbers), 2, replace=False).tolist()
        return FramePair(name, numbers[target], numbers[reference])

    def __getitem__(self, position: int) -> FramePairSample:
        return read_pair(self.videos, self.pair_at(position), self.read)


def read_frame(path: Path, size: Size) -> Tensor:
    """One frame stretched to a size, (3, Y, X) uint8.

    Raises:
        ValueError: not a readable picture; names the file.
    """
    return to_tensor(stretch(decode_image(path), size))


def stretch(pixels: Pixels, size: Size) -> Pixels:
    """A picture (rows, cols, 3) at another size, its aspect ignored, by Pillow's bicubic filter."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    resized = Image.fromarray(pixels).resize((size.cols, size.rows), Image.Resampling.BICUBIC)
    return np.array(resized, dtype=np.uint8)


def read_pair(videos: Mapping[str, Mapping[int, Path]], pair: FramePair, read: Kept) -> FramePairSample:
    """Decode both frames of a pair."""
    frames = videos[pair.sequence]
    target, reference = frames[pair.target], frames[pair.reference]
    return FramePairSample(
        target=read(target),
        reference=read(reference),
        key=f"{pair.sequence}/{target.stem}-{reference.stem}",
        distance=pair.reference - pair.target,
    )
