"""scripts/inpaint.py: one's own picture with its holes filled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from editing_runs import check_refused, listing, make_run
from PIL import Image

from saccade.data.edit_files import read_picture, to_pixels
from saccade.run.inpaint import main
from saccade.run.load import load_task

ROWS, COLS = 37, 50


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("inpaint") / "run", "inpainting", "attention=psal", gain=2.0)


@pytest.fixture
def own(tmp_path):
    """A picture and a mask with two holes."""
    Image.fromarray(colours()).save(tmp_path / "me.png")
    Image.fromarray(holes().astype(np.uint8) * 255).save(tmp_path / "mask.png")
    return tmp_path


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (ROWS, COLS, 3), dtype=np.uint8)


def holes() -> np.ndarray:
    mask = np.zeros((ROWS, COLS), bool)
    mask[3:9, 5:12] = mask[20:31, 30:50] = True
    return mask


def call(folder, own, **changes):
    options = {"run": folder, "image": own / "me.png", "mask": own / "mask.png", "progress": "off", **changes}
    return main([f"{key}={value}" for key, value in options.items() if value is not None])


def test_only_the_holes_change_and_hold_what_the_network_makes(run, own, capsys):
    assert call(run, own) == 0
    told = capsys.readouterr().out
    assert "me-inpainted.png" in told
    assert "holes:     2, 262 of 1,850 pixels" in told
    assert "stand-in data" in told
    made = np.asarray(Image.open(own / "me-inpainted.png"))
    assert np.array_equal(made[~holes()], colours()[~holes()])
    network = load_task(run)[1].ema.network
    torch.manual_seed(0)
    with torch.no_grad():
        images = read_picture(own / "me.png").unit() * 2 - 1
        fine = network(images, torch.from_numpy(holes()).float()[None, None]).fine
    assert np.array_equal(made[holes()], to_pixels((fine + 1) / 2, 8)[holes()])


def test_what_lies_in_the_holes_does_not_matter(run, own):
    assert call(run, own, out=own / "a.png") == 0
    other = colours()
    other[holes()] = 255 - other[holes()]
    Image.fromarray(other).save(own / "me.png")
    assert call(run, own, out=own / "b.png") == 0
    assert (own / "a.png").read_bytes() == (own / "b.png").read_bytes()


def test_black_can_mark_the_holes(run, own):
    Image.fromarray((~holes()).astype(np.uint8) * 255).save(own / "black.png")
    assert call(run, own) == 0
    assert call(run, own, mask=own / "black.png", invert="true", out=own / "b.png") == 0
    assert (own / "me-inpainted.png").read_bytes() == (own / "b.png").read_bytes()


def test_grey_of_sixteen_bits_stays_so(run, own):
    values = np.random.default_rng(1).integers(0, 65536, (ROWS, COLS)).astype(np.uint16)
    Image.fromarray(values).save(own / "deep.png")
    assert call(run, own, image=own / "deep.png") == 0
    made = read_picture(own / "deep-inpainted.png")
    assert (made.depth, made.grey) == (16, True)
    assert np.array_equal(made.pixels[~holes()][:, 0], values[~holes()])
    assert not np.array_equal(made.pixels[holes()][:, 0], values[holes()])


def test_transparency_stays_and_what_is_filled_can_be_seen(run, own, capsys):
    alpha = np.random.default_rng(2).integers(0, 255, (ROWS, COLS), dtype=np.uint8)
    Image.fromarray(np.dstack([colours(), alpha])).save(own / "clear.png")
    assert call(run, own, image=own / "clear.png") == 0
    assert "kept:      transparency" in capsys.readouterr().out
    made = np.asarray(Image.open(own / "clear-inpainted.png"))
    assert np.array_equal(made[~holes()], np.dstack([colours(), alpha])[~holes()])
    assert (made[holes()][:, 3] == 255).all()


def test_a_picture_that_is_turned_by_its_exif_tag_fits_an_upright_mask(run, own, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(colours())).save(own / "phone.png", exif=exif)  # rot90 undoes the quarter turn of tag 6
    assert call(run, own, image=own / "phone.png") == 0
    made = np.asarray(Image.open(own / "phone-inpainted.png"))
    assert np.array_equal(made[~holes()], colours()[~holes()])


def test_one_known_pixel_is_enough(run, own):
    alone = np.full((ROWS, COLS), 255, np.uint8)
    alone[8, 12] = 0
    Image.fromarray(alone).save(own / "alone.png")
    assert call(run, own, mask=own / "alone.png") == 0
    assert np.array_equal(np.asarray(Image.open(own / "me-inpainted.png"))[8, 12], colours()[8, 12])


@pytest.mark.parametrize(("rows", "cols"), [(1, 2), (3, 40), (8, 8)])
def test_tiny_pictures(run, own, rows, cols):
    Image.fromarray(colours()[:rows, :cols]).save(own / "tiny.png")
    mask = np.zeros((rows, cols), np.uint8)
    mask[-1, -1] = 255
    Image.fromarray(mask).save(own / "mask.png")
    assert call(run, own, image=own / "tiny.png") == 0
    made = np.asarray(Image.open(own / "tiny-inpainted.png"))
    assert made.shape == (rows, cols, 3)
    assert np.array_equal(made[mask == 0], colours()[:rows, :cols][mask == 0])


def test_another_attention_and_its_options(run, own, capsys):
    assert call(run, own, attention="full", out=own / "full.png") == 0
    assert "full attention, trained with psal" in capsys.readouterr().out
    assert call(run, own, **{"attention.mixer.iterations": 1, "out": own / "short.png"}) == 0
    assert call(run, own) == 0
    made = {name: (own / name).read_bytes() for name in ("full.png", "short.png", "me-inpainted.png")}
    assert len(set(made.values())) == 3


def test_what_attention_cannot_hold_is_refused_with_the_memory_it_needs(run, own, capsys):
    large = {"image": own / "large.png", "mask": own / "large-mask.png"}
    Image.new("RGB", (400, 400)).save(large["image"])
    mask = Image.new("L", (400, 400))
    mask.paste(255, (100, 100, 140, 140))
    mask.save(large["mask"])
    assert call(run, own, **large, attention="full", **{"attention.mixer.memory_mib": 16}) == 1
    told = capsys.readouterr().err
    assert "400x400" in told
    assert "MiB" in told
    assert "psal" in told
    assert "large-inpainted.png" not in listing(own)


@pytest.mark.slow
def test_offsets_are_drawn_beside(run, own):
    assert call(run, own, offsets="true") == 0
    made = np.asarray(Image.open(own / "me-inpainted-offsets.png"))
    assert made.shape == (ROWS, COLS, 3)
    assert (made[24:28, 4:20] == 255).all(), "what is known stays where it is"
    assert len(np.unique(made[holes()], axis=0)) > 3
    assert call(run, own, offsets="true", out=own / "other.png") == 0
    (own / "me-inpainted.png").unlink()
    assert call(run, own, offsets="true") == 1, "the offsets are there already"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "gone.png"}, "image=gone.png: no such picture file"),
        ({"mask": "gone.png"}, "gone.png"),
        ({"mask": None}, "missing: mask="),
        ({"run": "nowhere"}, "nowhere is no run folder"),
        ({"attention": "psall"}, "attention=psall is unknown"),
        ({"attention.mixer.iterationz": 3}, "attention.mixer.iterationz is not in the run's configuration"),
        ({"invert": "yes"}, "false or true"),
        ({"seed": "-1"}, "seed=-1"),
        ({"maks": "x"}, "did you mean mask=?"),
        ({"progress": "fast"}, "progress=fast"),
        ({"out": "a.jpg"}, "ends in .png"),
    ],
)
def test_wrong_input_is_one_clear_message_and_nothing_is_written(run, own, capsys, changes, words):
    check_refused(lambda: call(run, own, **changes), words, own, capsys)


def test_a_mask_of_another_size_is_refused_by_name(run, own, capsys):
    Image.fromarray(holes()[:, :-1].astype(np.uint8) * 255).save(own / "narrow.png")
    assert call(run, own, mask=own / "narrow.png") == 1
    told = capsys.readouterr().err
    assert str(own / "narrow.png") in told
    assert "37x49" in told
    assert "37x50" in told


def test_nothing_is_overwritten_unasked(run, own, capsys):
    (own / "me-inpainted.png").write_text("mine")
    assert call(run, own) == 1
    assert "overwrite=true" in capsys.readouterr().err
    assert (own / "me-inpainted.png").read_text() == "mine"
    assert call(run, own, out=own / "me.png", overwrite="true") == 1
    assert "is the picture itself" in capsys.readouterr().err
    assert call(run, own, overwrite="true") == 0
    assert Image.open(own / "me-inpainted.png").size == (COLS, ROWS)


def test_progress_counts_every_step(run, own, capsys):
    assert call(run, own, progress="lines") == 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    steps = last.partition(":")[2].split()
    assert steps[0] == steps[2], "all steps that were announced were taken, and no more"
    assert int(steps[0]) > 40
    assert "(100%)" in last


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "mask=" in capsys.readouterr().out
    assert main([]) == 2
