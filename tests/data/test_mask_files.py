"""Masks that users bring: every mode of picture, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.mask_files import find_masks, read_mask
from saccade.geometry import Size

HOLE = np.zeros((6, 9), bool)
HOLE[2:4, 3:8] = True
WANTED = torch.from_numpy(HOLE.astype(np.float32))[None, None]


def picture(mode: str) -> Image.Image:
    levels = Image.fromarray(np.where(HOLE, 255, 0).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.where(HOLE, 65535, 20).astype(np.uint16))
    if mode == "I":
        return Image.fromarray(np.where(HOLE, 65535, 20).astype(np.int32))
    if mode == "F":
        return Image.fromarray(np.where(HOLE, 1.0, 0.0).astype(np.float32))
    if mode == "RGBA":  # white on transparent, as editors save a layer
        white = np.full((*HOLE.shape, 4), 255, np.uint8)
        white[..., 3] = np.where(HOLE, 255, 0)
        return Image.fromarray(white)
    return levels.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "P", "I;16", "I", "F", "CMYK"])
def test_white_is_the_hole_in_every_mode(mode: str, tmp_path: Path) -> None:
    suffix = "tif" if mode in ("I", "F", "CMYK") else "png"
    path = tmp_path / f"mask.{suffix}"
    picture(mode).save(path)
    mask = read_mask(path)
    assert (mask.dtype, tuple(mask.shape)) == (torch.float32, (1, 1, 6, 9))
    assert torch.equal(mask, WANTED)
    assert torch.equal(read_mask(path, invert=True), 1 - WANTED)


def test_threshold_and_soft_edges(tmp_path: Path) -> None:
    levels = np.full((4, 4), 0, np.uint8)
    levels[0] = [0, 100, 127, 128]
    Image.fromarray(levels).save(tmp_path / "soft.png")
    assert read_mask(tmp_path / "soft.png")[0, 0, 0].tolist() == [0, 0, 0, 1]
    assert read_mask(tmp_path / "soft.png", threshold=0.3)[0, 0, 0].tolist() == [0, 1, 1, 1]


def test_a_photographed_mask_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise
    picture("L").save(tmp_path / "turned.png", exif=exif)
    turned = read_mask(tmp_path / "turned.png", Size(9, 6))
    assert torch.equal(turned[0, 0], torch.rot90(WANTED[0, 0], -1))


def test_another_size_is_refused_by_name_or_scaled(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    picture("L").save(path)
    with pytest.raises(ValueError, match=r"mask\.png: the mask is 6x9 \(rows x cols\), the picture 12x18; a mask has"):
        read_mask(path, Size(12, 18))
    assert torch.equal(read_mask(path, Size(6, 9)), WANTED)
    doubled = read_mask(path, Size(12, 18), resize=True)
    assert torch.equal(doubled, torch.nn.functional.interpolate(WANTED, scale_factor=2))


@pytest.mark.parametrize(("level", "message"), [(0, "without a hole"), (255, "all hole")])
def test_masks_with_nothing_to_do_are_refused(level: int, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (4, 4), level).save(path)
    with pytest.raises(ValueError, match=rf"mask\.png: the mask is {message}.*white is the hole"):
        read_mask(path)
    with pytest.raises(ValueError, match="black is the hole"):
        read_mask(path, invert=True)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(ValueError, match=r"broken\.png: not a readable mask"):
        read_mask(tmp_path / "broken.png")
    with pytest.raises(ValueError, match=r"gone\.png: no such mask file"):
        read_mask(tmp_path / "gone.png")
    assert [file.name for file in find_masks(tmp_path)] == ["broken.png"]
