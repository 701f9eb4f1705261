"""scripts/colorize.py: one's own picture in the colours of another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from editing_runs import check_refused, make_run
from PIL import Image

from saccade.data.edit_files import read_picture, to_pixels
from saccade.run.colorize import fitted, main, transfer
from saccade.run.load import load_task
from saccade.tasks.colorization import grey_of

ROWS, COLS = 30, 44


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("colorize") / "run", "colorization", "attention=psal", gain=3.0)


@pytest.fixture
def own(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "me.png")
    Image.fromarray(colours(26, 20, seed=1)).save(tmp_path / "other.png")
    return tmp_path


def colours(rows: int = ROWS, cols: int = COLS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


def call(folder, own, **changes):
    options = {"run": folder, "image": own / "me.png", "reference": own / "other.png", "progress": "off", **changes}
    return main([f"{key}={value}" for key, value in options.items() if value is not None])


def network_makes(run, own, size):
    """The network's picture, and the grey of the whole one."""
    network = load_task(run)[1].ema.network
    target, reference = (read_picture(own / name).unit() for name in ("me.png", "other.png"))
    torch.manual_seed(0)
    with torch.no_grad():
        widened = F.pad(fitted(grey_of(target), size), (8, 8, 8, 8), mode="reflect")
        made = network(widened, fitted(reference, size))
        return made[..., 8:-8, 8:-8].clamp(0, 1), grey_of(target)


def test_the_working_result_is_what_the_network_makes(run, own, capsys):
    assert call(run, own, size=24, result="working") == 0
    assert "seen at:   16x24, the reference at 24x18" in capsys.readouterr().out
    expected, _ = network_makes(run, own, 24)
    assert np.array_equal(np.asarray(Image.open(own / "me-colorized.png")), to_pixels(expected, 8))
    assert expected.std() > 0.02


def test_the_full_result_has_the_pictures_size_and_lightness(run, own, capsys):
    assert call(run, own, size=24) == 0
    assert "its own lightness" in capsys.readouterr().out
    painted, grey = network_makes(run, own, 24)
    made = np.asarray(Image.open(own / "me-colorized.png"))
    assert np.array_equal(made, to_pixels(transfer(grey, painted), 8))
    assert np.abs(made.mean(2) - colours().mean(2)).max() <= 0.5 + 1e-6
    assert np.ptp(made, axis=2).max() > 2, "there is colour in it"


def test_native_and_small_pictures_are_seen_as_they_are(run, own, capsys):
    for size in ("native", "256"):
        assert call(run, own, size=size, overwrite="true") == 0
        assert "seen at:   30x44, the reference at 26x20" in capsys.readouterr().out


def test_transferring_a_pictures_own_colours_gives_it_back():
    rows, cols = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 56), indexing="ij")
    smooth = torch.stack([rows, cols, 1 - rows * cols])[None]
    texture = torch.randn(1, 1, 40, 56) * 0.05
    picture = (smooth * 0.8 + 0.1 + texture).clamp(0, 1)
    made = transfer(grey_of(picture), fitted(picture, 28))
    assert made.sub(picture).abs().mean() < 0.01
    assert torch.allclose(made.mean(1), picture.mean(1), atol=1e-5)


def test_colours_that_do_not_fit_the_lightness_are_weakened_not_cut():
    grey = torch.tensor([0.02, 0.5, 0.98]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 3)
    made = transfer(grey, red)
    assert torch.allclose(made.mean(1), grey.mean(1), atol=1e-6)
    colour = made - grey_of(made)
    assert torch.allclose(colour[:, 1], -colour[:, 0] / 2, atol=1e-6), "the hue stays"
    assert made.min() >= 0
    assert made.max() <= 1


def test_grey_pictures_of_sixteen_bits_get_colours_of_sixteen_bits(run, own):
    values = np.random.default_rng(1).integers(0, 65536, (ROWS, COLS)).astype(np.uint16)
    Image.fromarray(values).save(own / "deep.png")
    assert call(run, own, image=own / "deep.png") == 0
    made = read_picture(own / "deep-colorized.png")
    assert (made.depth, made.grey) == (16, False)
    assert np.abs(made.pixels.astype(float).mean(2) - values).max() <= 1


def test_transparency_stays_at_either_size(run, own, capsys):
    alpha = np.full((ROWS, COLS), 77, np.uint8)
    Image.fromarray(np.dstack([colours(), alpha])).save(own / "clear.png")
    assert call(run, own, image=own / "clear.png", size=15) == 0
    assert "kept:      transparency" in capsys.readouterr().out
    assert np.asarray(Image.open(own / "clear-colorized.png")).shape == (ROWS, COLS, 4)
    assert call(run, own, image=own / "clear.png", size=22, result="working", out=own / "small.png") == 0
    small = np.asarray(Image.open(own / "small.png"))
    assert small.shape == (15, 22, 4)
    assert (small[..., 3] == 77).all()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 9), (7, 7)])
def test_tiny_pictures(run, own, rows, cols):
    Image.fromarray(colours(rows, cols)).save(own / "tiny.png")
    assert call(run, own, image=own / "tiny.png", reference=own / "tiny.png") == 0
    assert np.asarray(Image.open(own / "tiny-colorized.png")).shape == (rows, cols, 3)


def test_a_reference_without_colours_is_said(run, own, capsys):
    Image.fromarray(colours()[..., 0]).save(own / "grey.png")
    assert call(run, own, reference=own / "grey.png") == 0
    assert "grey.png holds no colours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "gone.png"}, "image=gone.png: no such picture file"),
        ({"reference": "gone.png"}, "reference=gone.png: no such picture file"),
        ({"reference": None}, "missing: reference="),
        ({"size": "big"}, "size=big"),
        ({"size": "0"}, "size=0"),
        ({"result": "large"}, "full or working"),
        ({"attention": "ful"}, "attention=ful is unknown"),
        ({"attention.mixer.matches": "0"}, "matches must be a whole number, 1 or more; got 0"),
        ({"out": "other.png", "overwrite": "true"}, "other.png is read by this command"),
    ],
)
def test_wrong_input_is_one_clear_message_and_nothing_is_written(run, own, capsys, changes, words):
    changes = {key: own / value if key == "out" else value for key, value in changes.items()}
    check_refused(lambda: call(run, own, **changes), words, own, capsys)


def test_runs_of_other_models_are_refused(own, tmp_path, capsys):
    other = make_run(tmp_path / "other-run", "superres", "attention=psal")
    assert call(other, own) == 1
    assert "a run of model=superres; this tool takes those of colorization" in capsys.readouterr().err


def test_broken_weights_are_said(own, tmp_path, capsys):
    broken = make_run(tmp_path / "broken", "colorization", "attention=psal")
    for data in (b"", b"version https://git-lfs.github.com/spec/v1\n"):
        (broken / "checkpoints" / "last.ckpt").write_bytes(data)
        check_refused(lambda: call(broken, own), "last.ckpt cannot be read", own, capsys)


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "reference=" in capsys.readouterr().out
    assert main([]) == 2
