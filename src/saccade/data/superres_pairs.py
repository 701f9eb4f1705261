"""Pictures at two resolutions: whole ones to score on, and an endless stream of patches to train on.

Training as EDSR and its successors do it, CSNLN (arXiv 2006.01424) among them: a patch of the low resolution at a
random place with the part of the picture that it shows, mirrored left to right, top to bottom, and transposed, each
with probability one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from saccade.data.bicubic import degrade
from saccade.data.editing_batches import ResolutionSample
from saccade.data.images import Box, Pixels, crop, decode_image, to_tensor
from saccade.data.sampler import index_at, rng_at
from saccade.data.superres_layout import DECODED, PairFiles
from saccade.geometry import Size

_MARGIN = 4  # low-resolution pixels: more than the widened kernel reaches


class ResolutionPairs(Dataset[ResolutionSample]):
    """Whole pictures with their low resolutions, in order.

    Args:
        files: of the pictures.
        scale: the factor. A picture is cut at the bottom and right to as many times its low resolution.
        root: the set's folder; arrays in its folder `decoded` are read in place of the pictures they were made from.
        load_in_memory: keep decoded pictures (3 bytes a pixel).
    """

    def __init__(
        self, files: Sequence[PairFiles], scale: int, *, root: Path | None = None, load_in_memory: bool = False
    ) -> None:
        self.files, self.scale, self.root, self.load_in_memory = tuple(files), scale, root, load_in_memory
        self._kept: dict[Path, Pixels] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ResolutionSample:
        files = self.files[index]
        low, high = self.pair(files)
        return ResolutionSample(to_tensor(np.array(low)), to_tensor(np.array(high)), files.key)

    def pair(self, files: PairFiles) -> tuple[Pixels, Pixels]:
        """The low resolution (Y, X, 3) and the picture (sY, sX, 3), uint8.

        Raises:
            ValueError: an unreadable file, or a low resolution of another size than the picture's; names both.
        """
        high = self._read(files.high)
        if files.low is None:
            low = degrade(high, self.scale)
        else:
            low = self._read(files.low)
            self._check(files, low, high)
        return low, high[: low.shape[0] * self.scale, : low.shape[1] * self.scale]

    def patch(self, files: PairFiles, side: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        """A square of `side` low-resolution pixels at a random place, and the part of the picture that it shows.

        Raises:
            ValueError: the picture is too small; names it and the largest patch.
        """
        high = self._read(files.high)
        rows, cols = high.shape[0] // self.scale, high.shape[1] // self.scale
        if min(rows, cols) < side:
            raise ValueError(
                f"{files.high}: at a scale of {self.scale} the picture has {rows}x{cols} pixels, fewer than a patch of "
                f"{side}x{side} (data.module.patch); the largest patch here is {min(rows, cols)}"
            )
        top, left = int(rng.integers(rows - side + 1)), int(rng.integers(cols - side + 1))
        s = self.scale
        part = crop(high, Box(s * top, s * left, s * side, s * side))
        if files.low is not None:
            low = self._read(files.low)
            self._check(files, low, high)
            return crop(low, Box(top, left, side, side)), part
        above, before = min(top, _MARGIN), min(left, _MARGIN)
        below, after = min(rows - top - side, _MARGIN), min(cols - left - side, _MARGIN)
        round_ = Box(
            s * (top - above), s * (left - before), s * (above + side + below), s * (before + side + after)
        )  # as far as the shrinking looks, so that the patch is what shrinking the whole picture gives
        low = degrade(crop(high, round_), s)
        return crop(low, Box(above, before, side, side)), part

    def size(self, index: int) -> Size:
        """The size of a picture's low resolution."""
        high = self._read(self.files[index].high)
        return Size(high.shape[0] // self.scale, high.shape[1] // self.scale)

    def _check(self, files: PairFiles, low: Pixels, high: Pixels) -> None:
        whole = Size(*high.shape[:2])
        shrunk = Size(whole.rows // self.scale, whole.cols // self.scale)
        if shrunk != low.shape[:2]:
            raise ValueError(
                f"{files.low}: is {Size(*low.shape[:2])}, and {files.high} is {whole}, which at a scale of "
                f"{self.scale} makes {shrunk}; put pictures there that belong together, or set data.module.low=made"
            )

    def _read(self, path: Path) -> Pixels:
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        decoded = None if self.root is None else decoded_path(self.root, path)
        ready = decoded is not None and decoded.is_file()
        pixels: Pixels = np.load(decoded, mmap_mode="r") if decoded is not None and ready else decode_image(path)
        if self.load_in_memory:
            self._kept[path] = pixels
        return pixels


def decoded_path(root: Path, picture: Path) -> Path:
    """Where the array of a picture below `root` lies."""
    return (root / DECODED / picture.relative_to(root)).with_suffix(".npy")


class PatchStream(Dataset[ResolutionSample]):
    """A data set without end: position p holds a patch that depends on (seed, p) alone, not on workers or history.

    Args:
        pairs: the pictures.
        seed: of order, places and mirroring.
        patch: side of the low-resolution patches.
        augment: mirror and transpose.
    """

    def __init__(self, pairs: ResolutionPairs, seed: int, patch: int, augment: bool = True) -> None:
        self.pairs, self.seed, self.patch, self.augment = pairs, seed, patch, augment

    def __getitem__(self, position: int) -> ResolutionSample:
        files = self.pairs.files[index_at(self.seed, position, len(self.pairs))]
        rng = rng_at(self.seed, position)
        both = self.pairs.patch(files, self.patch, rng)
        if self.augment:
            mirror, flip, transpose = (rng.random(3) < 0.5).tolist()
            both = tuple(_turned(pixels, mirror, flip, transpose) for pixels in both)  # type: ignore[assignment]
        low, high = (to_tensor(np.array(pixels)) for pixels in both)
        return ResolutionSample(low, high, files.key)


def _turned(pixels: Pixels, mirror: bool, flip: bool, transpose: bool) -> Pixels:
    pixels = pixels[:, ::-1] if mirror else pixels
    pixels = pixels[::-1] if flip else pixels
    return pixels.swapaxes(0, 1) if transpose else pixels
