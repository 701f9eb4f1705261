"""The centred square against torch's own resize, and every kind of picture file that ImageNet has."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.square import centre_square, read_square

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(rows: int, cols: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :cols]
    return np.stack([255 * y / rows, 255 * x / cols, 128 + 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize(("rows", "cols"), [(37, 52), (52, 37), (64, 64), (9, 30), (33, 34), (34, 33)])
@pytest.mark.parametrize("size", [8, 16, 33])
def test_the_square_is_what_torch_makes_of_it(rows: int, cols: int, size: int) -> None:
    pixels = RNG.integers(0, 256, (rows, cols, 3), dtype=np.uint8)
    side = min(rows, cols)
    top, left = int(np.ceil((rows - side) / 2)), int(np.ceil((cols - side) / 2))  # as improved-gan rounds
    square = torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1)[None].double()
    wanted = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", align_corners=True, antialias=False)
    made = torch.from_numpy(centre_square(pixels, size)).permute(2, 0, 1).double()
    assert made.shape == (3, size, size)
    assert (made - wanted[0]).abs().max() <= 0.5 + 1e-4


def test_a_square_of_the_right_size_is_left_alone() -> None:
    pixels = RNG.integers(0, 256, (16, 21, 3), dtype=np.uint8)
    assert np.array_equal(centre_square(pixels, 16), pixels[:, 3:19])  # 5 spare columns: 3 to the left


def test_a_square_has_two_pixels_or_more() -> None:
    with pytest.raises(ValueError, match="2 pixels a side or more; got 1"):
        centre_square(gradient(5, 5), 1)


@pytest.mark.parametrize(
    ("data", "name", "oddities"),
    [
        (encoded(Image.fromarray(gradient(8, 8)), "JPEG"), "a.JPEG", ()),
        (encoded(Image.fromarray(gradient(8, 8))), "a.png", ()),
        (encoded(Image.fromarray(gradient(8, 8)).convert("L"), "JPEG"), "a.JPEG", ("grey",)),
        (encoded(Image.fromarray(gradient(8, 8)).convert("CMYK"), "JPEG"), "a.JPEG", ("cmyk",)),
        (encoded(Image.fromarray(gradient(8, 8)).convert("RGBA")), "a.png", ("alpha",)),
        (encoded(Image.fromarray(gradient(8, 8)).convert("LA")), "a.png", ("grey", "alpha")),
        (encoded(Image.fromarray(gradient(8, 8)).convert("P")), "a.png", ("palette",)),
        (encoded(Image.fromarray(gradient(8, 8)).convert("1")), "a.png", ("grey",)),
        (encoded(Image.fromarray(gradient(8, 8))), "a.JPEG", ("other_format_than_suffix",)),
        (encoded(Image.fromarray(gradient(4, 9)), "JPEG"), "a.jpg", ("smaller_than_size",)),
        (encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), "a.png", ("grey", "16-bit")),
    ],
    ids=["plain", "png", "grey", "cmyk", "alpha", "grey alpha", "palette", "1 bit", "misnamed", "small", "16 bit"],
)
def test_kinds_of_files_are_read_and_named(data: bytes, name: str, oddities: tuple[str, ...]) -> None:
    square = read_square(name, 6, data=data)
    assert square.pixels.shape == (6, 6, 3)
    assert square.pixels.dtype == np.uint8
    assert square.oddities == oddities


def test_values_survive_their_conversion() -> None:
    deep = encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16)))
    assert (read_square("a.png", 8, data=deep).pixels == 40_000 >> 8).all()
    clear = np.dstack([gradient(8, 8), np.full((8, 8), 0, np.uint8)])
    assert (read_square("a.png", 8, data=encoded(Image.fromarray(clear))).pixels == 255).all()  # on white
    inks = encoded(Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(read_square("a.jpg", 8, data=inks).pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_the_exif_tag_turns_a_picture_if_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255  # white above
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, "JPEG", exif=exif, quality=100)
    assert read_square("a.jpg", 8, data=data).oddities == ("exif_rotated",)
    ignored = read_square("a.jpg", 8, data=data).pixels.astype(int)
    applied = read_square("a.jpg", 8, data=data, exif="apply").pixels.astype(int)
    assert np.abs(applied - upright).max() < 8
    assert np.abs(ignored - np.asarray(stored)).max() < 8


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(ValueError, match=r"cut\.JPEG: not a readable picture"):
        read_square("cut.JPEG", 8, data=whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"text\.JPEG: not a readable picture"):
        read_square("text.JPEG", 8, data=b"no picture")
    with pytest.raises(ValueError, match=r"gone\.JPEG: no such picture file"):
        read_square(tmp_path / "gone.JPEG", 8)
