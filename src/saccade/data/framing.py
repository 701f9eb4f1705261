"""How a DeepFashion picture file and its keypoints come to lie on the network's canvas.

A file shows either the middle 256x176 of the original (at any resolution), or the whole original, which is square
with 40 px borders at 256 ("bordered"), or the middle part stretched to a square ("stretched", GFLA's files). Keypoints
are in the 256x256 or the 256x176 frame. All come to the same place: the middle part fills the canvas as far as it fits,
with its aspect kept; a bordered file shows its own borders beside it, the others one grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from saccade.data.images import (
    Box,
    Side,
    decode_image,
    move_keypoints,
    paint,
    place,
    require_no_enlarging,
    to_tensor,
)
from saccade.data.keypoints import FRAMES, Frame
from saccade.geometry import Size

SquareFiles = Literal["auto", "bordered", "stretched"]
MIDDLE = FRAMES["256x176"]
BORDER = 40
_ASPECT_SLACK = 0.05


@dataclass(frozen=True)
class Framing:
    """The rules by which files become canvases.

    Attributes:
        canvas: rows and columns of the network's pictures.
        frame: the frame of the keypoint file.
        square_files: what square files show; "auto" reads them as bordered if the keypoints are in the 256x256 frame
            and refuses otherwise.
        side: where a picture lies on a wider canvas.
        fill: grey level 0..255 around it.
        upscale: enlarge pictures that are smaller than the canvas instead of refusing them.
    """

    canvas: Size
    frame: Frame
    square_files: SquareFiles = "auto"
    side: Side = "centre"
    fill: int = 255
    upscale: bool = False

    def __post_init__(self) -> None:
        if self.square_files not in ("auto", "bordered", "stretched"):
            raise ValueError(
                f"data.module.square_files={self.square_files} is unknown; valid: auto, bordered, stretched"
            )
        if not 0 <= self.fill <= 255:
            raise ValueError(f"data.module.pad_value={self.fill} must be a grey level from 0 to 255")

    @property
    def content(self) -> Box:
        """Where the middle part of a picture, the 256x176 that PATN's files hold, lies on the canvas."""
        return place(MIDDLE, self.canvas, self.side)

    def read(self, path: Path) -> Tensor:
        """Decode a file onto the canvas: (3, Y, X) uint8.

        Raises:
            ValueError: unreadable, too small, of another shape, or square without anybody having said what that means.
        """
        pixels = decode_image(path)
        size = Size(*pixels.shape[:2])
        box = self._box(path, size)
        require_no_enlarging(path, size, box, self.canvas, self.upscale)
        return to_tensor(paint(pixels, box, self.canvas, self.fill))

    def points(self, keypoints: Tensor) -> Tensor:
        """Keypoints (..., 18, 3) of the annotation's frame in pixels of the canvas."""
        if self.frame == "256x256":
            keypoints = keypoints - keypoints.new_tensor([BORDER, 0, 0]) * (keypoints[..., 2:] > 0)
        return move_keypoints(keypoints, MIDDLE, self.content, self.canvas)

    def _box(self, path: Path, size: Size) -> Box:
        middle = self.content
        aspect = size.cols / size.rows
        if abs(aspect / (MIDDLE.cols / MIDDLE.rows) - 1) <= _ASPECT_SLACK:
            return middle
        if abs(aspect - 1) > _ASPECT_SLACK:
            raise ValueError(
                f"{path}: the picture is {size} (rows x cols); DeepFashion's files are square or have the aspect of "
                f"{MIDDLE}, so its keypoints cannot be placed"
            )
        if self.square_files == "auto" and self.frame == "256x176":
            raise ValueError(
                f"{path}: the picture is square ({size}) but the keypoints are in the 256x176 frame; say what square "
                f"files show: data.module.square_files=bordered (the whole, with borders) or stretched (the middle)"
            )
        if self.square_files == "stretched":
            return middle
        cols = round(middle.cols * size.cols / (size.cols - 2 * BORDER * size.cols / 256))
        return Box(middle.top, middle.left - (cols - middle.cols) // 2, middle.rows, cols)
