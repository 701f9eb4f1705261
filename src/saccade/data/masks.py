"""Holes for inpainting: boxes, rectangles, free-form strokes and masks that a user drew.

Boxes and shrunk rectangles are those of generative inpainting with contextual attention (Yu et al., arXiv 1801.07892,
and the PyTorch port that the PSAL paper trained with): a 128x128 box anywhere in 256x256, one for the whole batch, each
side of the hole moved in by 0 to 16 pixels. Strokes follow the free-form masks of gated convolution (arXiv 1806.03589,
appendix), with lengths and widths as shares of the box, so that they scale with it.

Which hole a picture gets is a function of (seed, position): a run that resumes, or shares its batch out to other ranks,
draws the same ones. Everywhere 1 is hole and 0 is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from saccade.data.images import Box
from saccade.data.mask_files import find_masks, read_mask
from saccade.data.sampler import rng_at
from saccade.geometry import Size

_BOX, _SHAPE = 101, 102  # purposes of random numbers: where a box lies, and what the hole in it looks like
_TRIES = 100


@dataclass(frozen=True)
class Holes:
    """What is missing in a batch of pictures.

    Attributes:
        masks: (B, 1, Y, X) float32, 1 in the hole.
        boxes: (B, 4) int64 on the CPU: top, left, rows, cols of a box around each hole, all of one size. Losses and
            scores "of the box" look at it.
    """

    masks: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def to(self, device: torch.device | str | int) -> Holes:
        """The same with its masks on `device`."""
        return Holes(self.masks.to(device), self.boxes)

    def crops(self, maps: Tensor) -> Tensor:
        """What lies in the boxes: (B, C, Y, X) -> (B, C, rows, cols)."""
        boxes = self.boxes.tolist()
        return torch.stack(
            [m[:, t : t + rows, x : x + cols] for m, (t, x, rows, cols) in zip(maps, boxes, strict=True)]
        )

    def paste(self, inside: Tensor, outside: Tensor) -> Tensor:
        """`inside` in the holes and `outside` elsewhere, bit for bit."""
        return torch.where(self.masks > 0.5, inside, outside)


class HoleSource(Protocol):
    """Draws holes."""

    def draw(self, size: Size, positions: Sequence[int], *, seed: int, batch: int | None = None) -> Holes:
        """One hole a position, for pictures of `size`.

        Args:
            positions: with the seed, they decide.
            batch: number of the batch that the positions are part of, for what a whole batch shares; None shares none.

        Raises:
            ValueError: the holes do not fit pictures of this size.
        """
        ...


class CentredHole:
    """The centred box, the usual hole of an evaluation (128x128 of 256x256). Nothing is random.

    Args:
        hole: rows and columns, or one number for both.
    """

    def __init__(self, hole: int | Sequence[int]) -> None:
        self.hole = Size.of(hole)

    def draw(self, size: Size, positions: Sequence[int], *, seed: int, batch: int | None = None) -> Holes:
        check_fit("CentredHole", size, self.hole)
        box = centred_box(size, self.hole)
        return _of_boxes(size, [box] * len(positions), [box] * len(positions))


class RectangularHoles:
    """A rectangle in a box that lies anywhere.

    Args:
        hole: rows and columns of the box.
        shrink: the hole is smaller than its box by up to so many rows and columns, in whole pixels on each side (32:
            each pair of sides moves in by 0 to 16).
        margin: pixels between box and border of the picture, at least.
        shared: one place for the whole batch, as the port trains ("mask_batch_same"); else one for each picture. What
            the box is shrunk by is drawn for each picture either way.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        hole: int | Sequence[int],
        *,
        shrink: int | Sequence[int] = (32, 32),
        margin: int = 0,
        shared: bool = True,
    ) -> None:
        self.hole, self.margin, self.shared = Size.of(hole), margin, shared
        self.shrink = tuple(shrink) if isinstance(shrink, Sequence) else (shrink, shrink)
        fits = len(self.shrink) == 2 and all(0 <= s < h for s, h in zip(self.shrink, self.hole, strict=False))
        if not fits:
            raise ValueError(
                f"RectangularHoles: shrink is one or two numbers, 0 or more and less than the hole's {self.hole}; "
                f"got {shrink}"
            )
        if margin < 0:
            raise ValueError(f"RectangularHoles: margin is 0 or more pixels; got {margin}")

    def draw(self, size: Size, positions: Sequence[int], *, seed: int, batch: int | None = None) -> Holes:
        check_fit("RectangularHoles", size, self.hole, self.margin)
        boxes = _boxes(size, self.hole, positions, seed, batch if self.shared else None, self.margin)
        holes = []
        for box, position in zip(boxes, positions, strict=True):
            rng = rng_at(seed, position, _SHAPE)
            rows, cols = (int(rng.integers(0, most // 2 + 1)) for most in self.shrink)
            holes.append(Box(box.top + rows, box.left + cols, box.rows - 2 * rows, box.cols - 2 * cols))
        return _of_boxes(size, holes, boxes)


class FreeFormHoles:
    """Brush strokes: connected segments that turn to and fro, with round joints, in a box that lies anywhere.

    Args:
        hole: rows and columns of the box that holds the strokes; None is the whole picture.
        strokes: fewest and most strokes.
        vertices: fewest and most segments of a stroke.
        width: of the brush, thinnest and widest, as shares of the box's smaller side.
        length: mean length of a segment, as a share of the box's diagonal.
        area: smallest and largest share of the box that a mask may cover; others are drawn again.
        shared: one box for the whole batch.

    Raises:
        ValueError: an option out of its range.
    """

    turn, turn_range = (
        2 * math.pi / 5,
        2 * math.pi / 15,
    )  # arXiv 1806.03589, appendix: mean turning angle and its spread

    def __init__(
        self,
        hole: int | Sequence[int] | None = None,
        *,
        strokes: Sequence[int] = (1, 4),
        vertices: Sequence[int] = (4, 12),
        width: Sequence[float] = (0.05, 0.16),
        length: float = 0.125,
        area: Sequence[float] = (0.02, 0.6),
        shared: bool = False,
    ) -> None:
        self.hole = None if hole is None else Size.of(hole)
        ranges: dict[str, Sequence[float]] = {"strokes": strokes, "vertices": vertices, "width": width, "area": area}
        for name, pair in ranges.items():
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"FreeFormHoles: {name} is (smallest, largest), both above 0; got {list(pair)}")
        if area[1] > 1 or length <= 0:
            raise ValueError(f"FreeFormHoles: area is at most 1 and length above 0; got {list(area)} and {length}")
        self.strokes, self.vertices, self.shared = tuple(strokes), tuple(vertices), shared
        self.width, self.length, self.area = tuple(width), length, tuple(area)

    def draw(self, size: Size, positions: Sequence[int], *, seed: int, batch: int | None = None) -> Holes:
        hole = size if self.hole is None else self.hole
        check_fit("FreeFormHoles", size, hole, whole=True)
        boxes = _boxes(size, hole, positions, seed, batch if self.shared else None)
        masks = torch.zeros(len(positions), 1, *size)
        for mask, box, position in zip(masks, boxes, positions, strict=True):
            inside = self._painted(hole, rng_at(seed, position, _SHAPE))
            mask[0, box.top : box.top + box.rows, box.left : box.left + box.cols] = torch.from_numpy(inside)
        return Holes(masks, torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4))

    def _painted(self, hole: Size, rng: np.random.Generator) -> NDArray[np.float32]:
        for _ in range(_TRIES):
            canvas = Image.new("L", (hole.cols, hole.rows))
            for _ in range(int(rng.integers(self.strokes[0], self.strokes[1] + 1))):
                self._stroke(ImageDraw.Draw(canvas), hole, rng)
            painted = (np.asarray(canvas) > 0).astype(np.float32)
            if self.area[0] <= painted.mean() <= self.area[1]:
                return painted
        raise ValueError(
            f"FreeFormHoles: none of {_TRIES} drawings in {hole} covers a share within area={list(self.area)}; "
            f"widen area, or change strokes, vertices, width or length"
        )

    def _stroke(self, brush: ImageDraw.ImageDraw, hole: Size, rng: np.random.Generator) -> None:
        width = max(1, round(float(rng.uniform(self.width[0], self.width[1])) * min(hole)))
        mean = self.length * math.hypot(*hole)
        turn = rng.uniform(self.turn - self.turn_range, self.turn + self.turn_range)
        x, y, angle = rng.uniform(0, hole.cols - 1), rng.uniform(0, hole.rows - 1), rng.uniform(0, 2 * math.pi)
        for step in range(int(rng.integers(self.vertices[0], self.vertices[1] + 1))):
            angle += (math.pi - turn) * (1 if step % 2 else -1) + rng.uniform(-self.turn_range, self.turn_range)
            reach = min(max(rng.normal(mean, mean / 2), 0), 2 * mean)
            to_x = min(max(x + reach * math.cos(angle), 0), hole.cols - 1)
            to_y = min(max(y + reach * math.sin(angle), 0), hole.rows - 1)
            brush.line((x, y, to_x, to_y), fill=255, width=width)
            for at_x, at_y in ((x, y), (to_x, to_y)):
                brush.ellipse((at_x - width / 2, at_y - width / 2, at_x + width / 2, at_y + width / 2), fill=255)
            x, y = to_x, to_y


class MaskFiles:
    """Masks from picture files, such as a user's own or a published set; white is hole. The box is the whole picture.

    Args:
        folder: of the files, searched with its sub-folders in the order of their names.
        resize: scale masks of other sizes to the pictures (nearest pixel); else they are refused by name.

    Raises:
        ValueError: no picture in the folder.
    """

    def __init__(self, folder: Path | str, *, resize: bool = False) -> None:
        self.files, self.resize = find_masks(Path(folder).expanduser()), resize

    def draw(self, size: Size, positions: Sequence[int], *, seed: int, batch: int | None = None) -> Holes:
        chosen = [self.files[int(rng_at(seed, position, _SHAPE).integers(len(self.files)))] for position in positions]
        masks = [read_mask(file, size, resize=self.resize) for file in chosen]
        whole = torch.tensor([(0, 0, *size)] * len(masks), dtype=torch.int64).reshape(-1, 4)
        return Holes(torch.cat(masks) if masks else torch.zeros(0, 1, *size), whole)


def centred_box(size: Size, hole: Size) -> Box:
    """The box in the middle of a picture."""
    return Box((size.rows - hole.rows) // 2, (size.cols - hole.cols) // 2, hole.rows, hole.cols)


def hole_boxes(mask: Tensor) -> list[Box]:
    """The smallest box around each hole of one mask (1, Y, X) or (Y, X); pixels that touch at a corner are one hole."""
    found, _, places, _ = cv2.connectedComponentsWithStats((mask.squeeze() > 0.5).to(torch.uint8).cpu().numpy())
    columns = (cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT, cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH)
    return sorted(Box(*(int(places[index, column]) for column in columns)) for index in range(1, found))


def check_fit(who: str, size: Size, hole: Size, margin: int = 0, *, whole: bool = False) -> None:
    """Refuse a hole that does not fit the picture, or leaves nothing of it known; `whole` allows its box to.

    Raises:
        ValueError: with the largest hole that fits.
    """
    if hole == size and not whole:
        raise ValueError(f"{who}: a hole of {hole} leaves nothing known of pictures of {size}; make a side smaller")
    room = [side - 2 * margin for side in size]
    if hole.rows > room[0] or hole.cols > room[1]:
        within = f" within a margin of {margin}" if margin else ""
        most = f"at most {room[0]}x{room[1]}" if min(room) > 0 else "none fits"
        raise ValueError(f"{who}: a hole of {hole} does not fit pictures of {size}{within}; {most}")


def _boxes(
    size: Size, hole: Size, positions: Sequence[int], seed: int, batch: int | None, margin: int = 0
) -> list[Box]:
    def place(number: int, purpose: int) -> Box:
        rng = rng_at(seed, number, purpose)
        # the last place is left out as in both released codes, except where it is the only one
        top, left = (
            margin + int(rng.integers(max(1, side - 2 * margin - inner)))
            for side, inner in zip(size, hole, strict=True)
        )
        return Box(top, left, *hole)

    if batch is not None:
        return [place(batch, _BOX)] * len(positions)
    return [place(position, _BOX) for position in positions]


def _of_boxes(size: Size, holes: Sequence[Box], boxes: Sequence[Box]) -> Holes:
    masks = torch.zeros(len(holes), 1, *size)
    for mask, hole in zip(masks, holes, strict=True):
        mask[:, hole.top : hole.top + hole.rows, hole.left : hole.left + hole.cols] = 1.0
    return Holes(masks, torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4))
