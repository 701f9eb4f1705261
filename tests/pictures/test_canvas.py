import numpy as np
import pytest
import torch
from PIL import Image

from saccade.pictures import canvas


def test_images_map_onto_the_whole_range_and_a_broken_value_cannot_pass_for_black():
    image = torch.tensor([-1.0, 0.0, 1.0, 7.0, float("nan")]).repeat(3, 1, 1)  # (3, 1, 5)
    picture = canvas.to_uint8(image)
    assert picture.shape == (1, 5, 3)
    assert picture[0, :4, 0].tolist() == [0, 128, 255, 255]
    assert picture[0, 4].tolist() == [255, 0, 255]


def test_one_channel_becomes_grey_and_batches_keep_their_axis():
    picture = canvas.to_uint8(torch.zeros(2, 1, 3, 4))
    assert picture.shape == (2, 3, 4, 3)
    assert (picture == 128).all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 2, 4, 4), (1, 1, 3, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        canvas.to_uint8(torch.zeros(shape))


def test_whole_multiples_repeat_pixels_and_other_sizes_keep_the_aspect(rng):
    picture = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(canvas.enlarge(picture, 12)[::3, ::3], picture)
    assert np.array_equal(canvas.enlarge(picture, 12)[1::3, 2::3], picture)
    assert canvas.enlarge(picture, 10).shape == (10, 15, 3)
    assert canvas.enlarge(picture, 2).shape == (2, 3, 3)
    assert canvas.enlarge(picture, 4) is picture


def test_small_images_grow_to_a_whole_multiple():
    assert [canvas.readable_height(rows) for rows in (32, 64, 96, 160, 256)] == [160, 192, 192, 160, 256]


def test_png_holds_the_picture(tmp_path, rng):
    picture = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = canvas.write_png(tmp_path / "new" / "a.png", picture)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), picture)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = canvas.write_png(tmp_path / "a.png", canvas.blank(2, 2))
    before = path.read_bytes()

    def fail(*args, **kwargs):
        args[1].write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        canvas.write_png(path, canvas.blank(3, 3))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        canvas.write_png(tmp_path / "file" / "a.png", canvas.blank(2, 2))


def test_only_pictures_are_written(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        canvas.write_png(tmp_path / "a.png", np.zeros((2, 2, 3)))


def test_text_is_cut_to_its_width():
    long = "a rather long heading for so narrow a column"
    cut = canvas.fit_text(long, 80, 13)
    assert cut.endswith("…")
    assert canvas.text_size(cut, 13)[1] <= 80
    assert canvas.fit_text("ok", 80, 13) == "ok"


def test_text_leaves_ink_only_in_the_copy():
    sheet = canvas.blank(20, 60)
    written = canvas.write_text(sheet, "ink", (2, 2))
    assert (sheet == 255).all()
    assert (written < 128).any()


def test_stack_puts_pictures_under_each_other():
    sheet = canvas.stack([canvas.blank(3, 5, (9, 9, 9)), canvas.blank(2, 7, (5, 5, 5))], gap=4)
    assert sheet.shape == (9, 7, 3)
    assert (sheet[:3, :5] == 9).all()
    assert (sheet[3:7] == 255).all()
    assert (sheet[7:] == 5).all()
    with pytest.raises(ValueError, match="no pictures"):
        canvas.stack([])
