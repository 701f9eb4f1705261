"""scripts/upscale.py: one's own picture, larger."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from editing_runs import check_refused, make_run
from PIL import Image

from saccade.data.edit_files import read_picture, to_pixels
from saccade.geometry import Size
from saccade.layers.tiling import upscale as run_network
from saccade.run.load import load_task
from saccade.run.upscale import chosen_chop, main, parse

ROWS, COLS = 18, 23


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    options = ("attention=full", "model.net.channels=4", "model.net.skip=none")
    return make_run(tmp_path_factory.mktemp("upscale") / "run", "superres", *options, gain=1.5)


@pytest.fixture
def own(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "me.png")
    return tmp_path


def colours(rows: int = ROWS, cols: int = COLS) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


def call(folder, own, **changes):
    options = {"run": folder, "image": own / "me.png", "progress": "off", **changes}
    return main([f"{key}={value}" for key, value in options.items() if value is not None])


def network_makes(run, own, **options):
    network = load_task(run)[1].ema.network
    with torch.no_grad():
        return to_pixels(run_network(network, read_picture(own / "me.png").unit(), 2, **options), 8)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"chop": "none"}),
        ({"chop": "released"}, {"chop": "released"}),
        ({"chop": "none", "self_ensemble": "true"}, {"chop": "none", "self_ensemble": True}),
    ],
)
def test_the_picture_is_what_the_network_makes(run, own, capsys, changes, options):
    assert call(run, own, scale=2, **changes) == 0
    told = capsys.readouterr().out
    assert "from 18x23 to 36x46" in told
    made = np.asarray(Image.open(own / "me-x2.png"))
    assert np.array_equal(made, network_makes(run, own, **options))
    assert made.std() > 2


def test_the_scale_is_that_of_the_run_unless_another_is_asked_for(own, tmp_path, capsys):
    three = make_run(tmp_path / "three", "superres", "attention=full", "model.scale=3", "model.patch=12")
    assert call(three, own) == 0
    assert Image.open(own / "me-x3.png").size == (3 * COLS, 3 * ROWS)
    assert call(three, own, scale=2) == 1
    assert "enlarges by 3, and scale=2 was asked for" in capsys.readouterr().err
    assert not (own / "me-x2.png").exists()


def test_grey_of_sixteen_bits_stays_so(run, own, capsys):
    values = np.random.default_rng(1).integers(0, 65536, (ROWS, COLS)).astype(np.uint16)
    Image.fromarray(values).save(own / "deep.png")
    assert call(run, own, image=own / "deep.png") == 0
    assert "so is the result" in capsys.readouterr().out
    made = read_picture(own / "deep-x2.png")
    assert (made.depth, made.grey, made.size) == (16, True, Size(36, 46))


def test_transparency_is_enlarged_along(run, own):
    alpha = np.zeros((ROWS, COLS), np.uint8)
    alpha[:, :12] = 255
    Image.fromarray(np.dstack([colours(), alpha])).save(own / "clear.png")
    assert call(run, own, image=own / "clear.png") == 0
    made = np.asarray(Image.open(own / "clear-x2.png"))
    assert made.shape == (36, 46, 4)
    assert (made[:, :20, 3] == 255).all()
    assert (made[:, 28:, 3] == 0).all()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 5)])
def test_tiny_pictures(run, own, rows, cols):
    Image.fromarray(colours(rows, cols)).save(own / "tiny.png")
    for chop, attention in (("auto", "psal"), ("released", "full")):
        assert call(run, own, image=own / "tiny.png", chop=chop, attention=attention, overwrite="true") == 0
        assert np.asarray(Image.open(own / "tiny-x2.png")).shape == (2 * rows, 2 * cols, 3)


def test_auto_takes_the_whole_picture_where_that_is_not_dearer_by_far(run, own, monkeypatch):
    from saccade.run import upscale as tool
    from saccade.run.tools import load_network

    request = parse([f"run={run}", f"image={own / 'me.png'}"])
    loaded = load_network(request.shared, "superres")
    assert chosen_chop(loaded, Size(60, 60), request, request.shared) == "none"
    assert chosen_chop(loaded, Size(600, 600), request, request.shared) == "released"  # in-scale attention is quadratic
    monkeypatch.setattr(tool, "free_bytes", lambda device: 2**20)
    assert chosen_chop(loaded, Size(60, 60), request, request.shared) == "released"
    monkeypatch.setattr(tool, "free_bytes", lambda device: None)
    assert chosen_chop(loaded, Size(60, 60), request, request.shared) == "none"


def test_progress_counts_every_step(run, own, capsys):
    for changes in ({"chop": "released"}, {"chop": "released", "self_ensemble": "true"}, {"chop": "none"}):
        assert call(run, own, progress="lines", overwrite="true", **changes) == 0
        steps = capsys.readouterr().err.strip().splitlines()[-1].partition(":")[2].split()
        assert steps[0] == steps[2], changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "gone.png"}, "image=gone.png: no such picture file"),
        ({"image": None}, "missing: image="),
        ({"scale": "5"}, "scale=5: choose 2, 3 or 4"),
        ({"chop": "some"}, "auto, released or none"),
        ({"self_ensemble": "8"}, "false or true"),
        ({"run": "nowhere"}, "nowhere is no run folder"),
        ({"attention": "ful"}, "attention=ful is unknown"),
    ],
)
def test_wrong_input_is_one_clear_message_and_nothing_is_written(run, own, capsys, changes, words):
    check_refused(lambda: call(run, own, **changes), words, own, capsys)


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "self_ensemble=" in capsys.readouterr().out
    assert main([]) == 2
