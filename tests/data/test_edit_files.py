"""A person's picture files: everything that comes in comes back."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from saccade.data.edit_files import PictureFile, read_picture, to_pixels, write_picture
from saccade.geometry import Size


def colours(rows: int = 9, cols: int = 12, channels: int = 3, deep: bool = False) -> np.ndarray:
    top, kind = (65536, np.uint16) if deep else (256, np.uint8)
    return np.random.default_rng(3).integers(0, top, (rows, cols, channels)).astype(kind)


def deep_file(path: Path, values: np.ndarray) -> Path:
    """A PNG or TIFF of 16 bits, by another library than the one that writes ours."""
    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 else slice(None)
    assert cv2.imwrite(str(path), np.ascontiguousarray(values[..., order]))
    return path


def test_eight_bit_colours_come_and_go(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert (picture.size, picture.depth, picture.grey, picture.alpha) == (Size(9, 12), 8, False, None)
    assert picture.notes == ()
    assert np.array_equal(picture.pixels, colours())
    assert picture.unit().shape == (1, 3, 9, 12)
    assert np.array_equal(to_pixels(picture.unit(), 8), colours())
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == "RGB"
        assert np.array_equal(np.asarray(written), colours())


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_sixteen_bits_come_and_go(tmp_path, suffix, channels):
    values = colours(channels=channels or 1, deep=True)
    values = values if channels else values[..., 0]
    picture = read_picture(deep_file(tmp_path / f"a{suffix}", values))
    assert (picture.depth, picture.grey) == (16, channels == 0)
    rgb = np.repeat(values[..., None], 3, axis=2) if channels == 0 else values[..., :3]
    assert np.array_equal(picture.pixels, rgb)
    assert np.array_equal(to_pixels(torch.from_numpy(rgb / 65535.0).permute(2, 0, 1), 16), rgb)
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    again = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_UNCHANGED)
    assert again.dtype == np.uint16
    expected = values if channels == 0 else values[..., [2, 1, 0, 3][:channels]]
    assert np.array_equal(again, expected)
    if channels == 4:
        assert np.array_equal(picture.alpha, values[..., 3])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_every_orientation_is_turned_upright_once(tmp_path, orientation, deep):
    values, exif = colours(deep=deep), Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = "Somebody"
    if deep:
        write_picture(tmp_path / "a.png", values, PictureFile(tmp_path, values, exif=exif.tobytes()))
    else:
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    places = Image.fromarray(np.arange(9 * 12, dtype=np.uint8).reshape(9, 12))
    places.getexif().update(exif)
    moved = np.asarray(ImageOps.exif_transpose(places))
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, values.reshape(-1, 3)[moved])
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as written:
        assert written.getexif().get(0x0112, 1) == 1
        assert written.getexif()[0x013B] == "Somebody"
        assert written.size == picture.pixels.shape[1::-1]


def test_camera_data_are_kept_and_stale_ones_left(tmp_path):
    exif = Image.Exif()
    exif[0x0110] = "Box"
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 12, 0xA003: 9}
    Image.fromarray(colours()).save(tmp_path / "a.jpg", exif=exif)
    picture = read_picture(tmp_path / "a.jpg")
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as written:
        assert written.getexif()[0x0110] == "Box"
        assert dict(written.getexif().get_ifd(0x8769)) == {0x9003: "2020:01:02 03:04:05"}


def test_of_a_tiff_only_what_is_not_its_storage_is_kept(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.tif", compression="tiff_lzw", description="a street")
    picture = read_picture(tmp_path / "a.tif")
    assert np.array_equal(picture.pixels, colours())
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as written:
        assert dict(written.getexif()) == {0x010E: "a street"}


@pytest.mark.parametrize("exif", [b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x99\x00" * 4, b"MM\0*", b"nonsense"])
@pytest.mark.filterwarnings("error")
def test_broken_exif_stops_nothing(tmp_path, exif):
    write_picture(tmp_path / "a.png", colours(deep=True), PictureFile(tmp_path, colours(deep=True), exif=exif))
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, colours(deep=True))
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    assert read_picture(tmp_path / "b.png").exif is None


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_comes_back_grey(tmp_path, mode):
    grey = colours()[..., 0]
    image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey
    assert (picture.alpha is not None) == (mode == "LA")
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    with Image.open(tmp_path / "b.png") as written:
        assert written.mode == ("LA" if mode == "LA" else "L")
        assert np.array_equal(np.asarray(written.convert("L")), np.asarray(image.convert("L")))
    write_picture(tmp_path / "c.png", colours(), picture, grey=False)
    with Image.open(tmp_path / "c.png") as written:
        assert written.mode == ("RGBA" if mode == "LA" else "RGB")


def test_grey_of_colours_is_their_lightness(tmp_path):
    Image.fromarray(colours()[..., 0]).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", colours(), picture)
    wanted = np.asarray(Image.fromarray(colours()).convert("L"), dtype=int)
    with Image.open(tmp_path / "b.png") as written:
        assert np.abs(np.asarray(written, dtype=int) - wanted).max() <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    values = np.zeros((4, 4, 3), np.uint8)
    values[:, 2:] = (200, 10, 30)
    image = Image.fromarray(values).quantize(4)
    image.save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, values)
    assert (picture.alpha, picture.grey) == (None, False)
    dark = image.getpixel((0, 0))
    image.save(tmp_path / "b.png", transparency=dark)
    picture = read_picture(tmp_path / "b.png")
    assert np.array_equal(picture.alpha, np.where(np.arange(4) < 2, 0, 255)[None].repeat(4, 0))
    # what cannot be seen has the colour of its visible neighbour, or networks would see the black behind it
    assert torch.allclose(picture.unit()[0, :, 0, 0] * 255, torch.tensor([200.0, 10.0, 30.0]))
    assert np.array_equal(picture.pixels, values)


def test_transparency_comes_back_also_enlarged(tmp_path):
    values = colours(channels=4)
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    larger = picture.pixels.repeat(2, 0).repeat(2, 1)
    write_picture(tmp_path / "b.png", larger, picture, alpha=picture.alpha.repeat(2, 0).repeat(2, 1))
    with Image.open(tmp_path / "b.png") as written:
        assert np.array_equal(np.asarray(written), values.repeat(2, 0).repeat(2, 1))
    write_picture(tmp_path / "c.png", larger, picture)  # of another size and without its own: none fits
    with Image.open(tmp_path / "c.png") as written:
        assert written.mode == "RGB"


def test_colour_profiles_stay_with_their_colours(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    write_picture(tmp_path / "b.png", picture.pixels, picture)
    write_picture(tmp_path / "deep.png", colours(deep=True), picture)
    write_picture(tmp_path / "grey.png", picture.pixels, picture, grey=True)
    with Image.open(tmp_path / "b.png") as written:
        assert written.info["icc_profile"] == profile
    with Image.open(tmp_path / "deep.png") as written:
        assert written.info["icc_profile"] == profile
        written.load()
    with Image.open(tmp_path / "grey.png") as written:
        assert "icc_profile" not in written.info


def test_printed_colours_become_rgb_and_it_says_so(tmp_path):
    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.notes == ("its CMYK colours became RGB",)
    assert np.abs(picture.pixels.astype(int) - np.array([255, 0, 0])).max() <= 3


def test_of_an_animation_the_first_frame_is_taken_and_it_says_so(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = read_picture(tmp_path / "a.gif")
    assert picture.notes == ("the first of its 2 frames",)
    assert tuple(picture.pixels[0, 0]) == (255, 0, 0)


def test_one_pixel_is_a_picture(tmp_path):
    Image.new("RGBA", (1, 1), (1, 2, 3, 0)).save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.size == Size(1, 1)
    assert to_pixels(picture.unit(), 8).tolist() == [[[1, 2, 3]]]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "note.png").write_text("no picture")
    buffer = io.BytesIO()
    Image.fromarray(colours(64, 64)).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((3, 3), 70000, np.int32)).save(tmp_path / "wide.tif")
    for name, words in (
        ("gone.png", "no such picture file"),
        ("note.png", "not a picture of any kind"),
        ("half.png", "not a readable picture"),
        ("float.tif", "8 or 16 bits"),
        ("wide.tif", "8 or 16 bits"),
        (".", "not a readable picture"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read_picture(tmp_path / name, "reference")
        assert str(error.value).startswith(f"reference={tmp_path / name}")
        assert "BytesIO" not in str(error.value)


def test_a_picture_of_too_many_pixels_is_refused_by_name(tmp_path, monkeypatch):
    Image.fromarray(colours(40, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(ValueError, match=r"a\.png: pictures of up to .* megapixels"):
        read_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1100)  # Pillow only warns here, and nobody needs to see it
    assert read_picture(tmp_path / "a.png").size == Size(40, 50)


def test_values_are_rounded_cut_and_refused(tmp_path):
    values = torch.tensor([-0.2, 0.49 / 255, 0.51 / 255, 1.7]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_pixels(values, 8)[..., 0].tolist() == [[0, 0], [1, 255]]
    assert to_pixels(values, 16)[..., 0].tolist() == [[0, round(0.49 * 257)], [round(0.51 * 257), 65535]]
    broken = values.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        to_pixels(broken, 8)
