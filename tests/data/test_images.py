from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_people import PICTURE, a_pose

from saccade.data.images import Box, crop, decode_image, move_keypoints, paint, place, require_no_enlarging
from saccade.data.own_pictures import load_picture, load_pose
from saccade.geometry import Size


def dot(size: Size, y: int, x: int, radius: int = 4) -> np.ndarray:
    rows, cols = np.mgrid[: size.rows, : size.cols]
    inside = (rows - y) ** 2 + (cols - x) ** 2 <= radius**2
    return np.repeat(np.where(inside, 0, 255)[..., None], 3, axis=2).astype(np.uint8)


def darkest(pixels: np.ndarray) -> tuple[float, float]:
    """Centre of mass (x, y) of what is dark."""
    weight = 255.0 - pixels[..., 0].astype(float)
    rows, cols = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return (weight * cols).sum() / weight.sum(), (weight * rows).sum() / weight.sum()


def test_decodes_modes_and_orientation(tmp_path: Path) -> None:
    pixels = dot(Size(20, 30), 5, 9)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    assert np.array_equal(decode_image(tmp_path / "rgb.png"), pixels)
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    assert np.array_equal(decode_image(tmp_path / "grey.png"), pixels)
    rgba = np.dstack([np.zeros((20, 30, 3), np.uint8), np.where(pixels[..., 0] == 0, 255, 0).astype(np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert np.array_equal(decode_image(tmp_path / "rgba.png"), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    Image.fromarray(dot(Size(64, 64), 9, 9)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("cut.jpg", "text.jpg", "empty.jpg"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable picture"):
            decode_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.jpg: no such picture file"):
        decode_image(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("picture", "canvas", "side", "box"),
    [
        (Size(256, 176), Size(256, 256), "centre", Box(0, 40, 256, 176)),
        (Size(256, 176), Size(256, 256), "left", Box(0, 0, 256, 176)),
        (Size(256, 176), Size(256, 256), "right", Box(0, 80, 256, 176)),
        (Size(256, 176), Size(32, 32), "centre", Box(0, 5, 32, 22)),
        (Size(1101, 750), Size(512, 512), "centre", Box(0, 81, 512, 349)),
        (Size(256, 176), Size(256, 176), "centre", Box(0, 0, 256, 176)),
        (Size(100, 200), Size(64, 64), "left", Box(16, 0, 32, 64)),
    ],
)
def test_place(picture: Size, canvas: Size, side: str, box: Box) -> None:
    assert place(picture, canvas, side) == box  # type: ignore[arg-type]


def test_unknown_side_is_named() -> None:
    with pytest.raises(ValueError, match="'middle' is unknown; valid: centre, left, right"):
        place(Size(2, 2), Size(2, 2), "middle")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("picture", "canvas"),
    [
        (Size(256, 176), Size(256, 256)),
        (Size(256, 176), Size(64, 64)),
        (Size(256, 176), Size(96, 66)),
        (Size(300, 200), Size(128, 128)),
        (Size(120, 300), Size(64, 128)),
        (Size(64, 44), Size(128, 128)),
    ],
)
@pytest.mark.parametrize("side", ["centre", "left", "right"])
def test_points_move_with_the_picture(picture: Size, canvas: Size, side: str) -> None:
    """A dot in the picture and its keypoint arrive at the same place, to a fifth of a pixel."""
    y, x = round(picture.rows * 0.7), round(picture.cols * 0.3)
    radius = max(3, picture.rows // 20)
    box = place(picture, canvas, side)  # type: ignore[arg-type]
    painted = paint(dot(picture, y, x, radius), box, canvas)
    assert painted.shape == (*canvas, 3)
    moved = move_keypoints(torch.tensor([[float(x), float(y), 1.0], [0.0, 0.0, 0.0]]), picture, box, canvas)
    assert darkest(painted) == pytest.approx(moved[0, :2].tolist(), abs=0.2)
    assert moved[1].tolist() == [0, 0, 0]
    outside = np.ones(canvas, bool)
    outside[box.top : box.top + box.rows, box.left : box.left + box.cols] = False
    assert (painted[outside] == 255).all()


def test_painting_at_the_same_size_changes_nothing_and_crop_undoes_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*PICTURE, 3), dtype=np.uint8)
    box = place(PICTURE, Size(256, 256))
    painted = paint(pixels, box, Size(256, 256), fill=128)
    assert np.array_equal(crop(painted, box), pixels)
    assert (painted[:, :40] == 128).all()
    assert torch.equal(crop(torch.from_numpy(painted).permute(2, 0, 1), box), torch.from_numpy(pixels).permute(2, 0, 1))


def test_a_box_beyond_the_canvas_crops() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(paint(pixels, Box(0, -40, 256, 256), PICTURE), pixels[:, 40:-40])
    moved = move_keypoints(
        torch.tensor([[39.0, 5.0, 1.0], [41.0, 5.0, 1.0]]), Size(256, 256), Box(0, -40, 256, 256), PICTURE
    )
    assert moved.tolist() == [[0, 0, 0], [1, 5, 1]]


def test_strong_shrinking_averages_areas() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    small = paint(pixels, Box(0, 0, 16, 16), Size(16, 16))
    mean = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 1


def test_small_pictures_are_refused_by_name() -> None:
    picture, canvas = Size(128, 88), Size(256, 256)
    box = place(picture, canvas)
    with pytest.raises(
        ValueError, match=r"small\.jpg: the picture is 128x88 .*smaller than the network's 256x256.*upscale"
    ):
        require_no_enlarging("small.jpg", picture, box, canvas, upscale=False)
    require_no_enlarging("small.jpg", picture, box, canvas, upscale=True)
    require_no_enlarging("same.jpg", PICTURE, place(PICTURE, canvas), canvas, upscale=False)


def test_own_picture_and_pose(tmp_path: Path) -> None:
    size = Size(300, 400)
    pose = a_pose(size)
    nose = pose[0, :2].long().tolist()
    Image.fromarray(dot(size, nose[1], nose[0], 8)).save(tmp_path / "me.png")
    (tmp_path / "me.json").write_text(json.dumps({"keypoints": pose.flatten().tolist()}))
    own = load_picture(tmp_path / "me.png", tmp_path / "me.json", Size(128, 128))
    assert own.image.shape == (1, 3, 128, 128)
    assert own.keypoints.shape == (1, 18, 3)
    assert own.size == size
    pixels = ((own.image[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    assert darkest(pixels) == pytest.approx(own.keypoints[0, 0, :2].tolist(), abs=0.2)
    with pytest.raises(ValueError, match=r"me\.png: the picture is 300x400.*smaller than the network's 512x512"):
        load_picture(tmp_path / "me.png", tmp_path / "me.json", Size(512, 512))
    with pytest.raises(ValueError, match=r"me\.json: .* of 18 points lie outside the picture of 60x60"):
        load_pose(tmp_path / "me.json", Size(60, 60), Size(32, 32))
