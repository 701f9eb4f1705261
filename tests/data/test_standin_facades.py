"""Drawn facades: exact filtering of what repeats, the same bytes from the same seed, detail that bicubic loses."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from saccade.data.bicubic import degrade, matlab_resize
from saccade.data.standin.facades import render_facade
from saccade.data.standin.folder import MARKER
from saccade.data.standin.superres import write_benchmark, write_div2k
from saccade.data.standin.walls import band, pulse
from saccade.geometry import Size


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("width", [0.01, 0.3, 0.9, 2.6])
def test_a_pulse_is_the_mean_over_its_box_at_every_width(width: float) -> None:
    x = np.linspace(-3, 3, 41).astype(np.float32)
    found = pulse(x, 0.8, 0.2, 0.5, np.full_like(x, width))
    fine = x[:, None] + (np.arange(4000) + 0.5) / 4000 * width - width / 2
    inside = (np.mod(fine, 0.8) >= 0.2) & (np.mod(fine, 0.8) < 0.5)
    assert found == pytest.approx(inside.mean(1), abs=2e-3)
    once = band(x, 0.2, 0.5, np.full_like(x, width))
    assert once == pytest.approx(((fine >= 0.2) & (fine < 0.5)).mean(1), abs=2e-3)


@pytest.mark.parametrize("seed", range(6))
def test_pictures_have_detail_that_bicubic_loses_and_no_two_are_alike(seed: int) -> None:
    picture = render_facade(np.random.default_rng([seed, 0]), Size(96, 120))
    assert (picture.shape, picture.dtype) == ((96, 120, 3), np.uint8)
    assert picture.std() > 15
    assert (picture == render_facade(np.random.default_rng([seed, 0]), Size(96, 120))).all()
    assert (picture != render_facade(np.random.default_rng([seed, 1]), Size(96, 120))).mean() > 0.5
    error = np.mean((matlab_resize(degrade(picture, 2), 2).astype(float) - picture) ** 2)
    assert 15 < 10 * np.log10(255**2 / error) < 40


def test_walls_repeat_at_several_scales() -> None:
    """A patch of a wall finds a better match in the picture at half its size, elsewhere, than it would by chance."""
    ratios = []
    for seed in range(4):
        picture = render_facade(np.random.default_rng([3, seed]), Size(96, 128)).astype(float).mean(2)
        half = picture.reshape(48, 2, 64, 2).mean((1, 3))
        rng = np.random.default_rng(seed)

        def patches(image: np.ndarray) -> np.ndarray:
            found = np.lib.stride_tricks.sliding_window_view(image, (7, 7))[::2, ::2].reshape(-1, 49)
            return found - found.mean(1, keepdims=True)

        queries, keys = patches(picture), patches(half)
        queries = queries[queries.std(1) > 12]
        queries = queries[rng.permutation(len(queries))[:60]]
        noise = keys[:, rng.permutation(49)]  # the same values, the picture's structure lost
        best = [((queries[:, None] - k[None]) ** 2).sum(-1).min(1).mean() for k in (keys, noise)]
        ratios.append(best[0] / best[1])
    assert np.mean(ratios) < 0.6, ratios


def test_same_seed_same_bytes_in_every_layout(tmp_path: Path) -> None:
    small = {"size": (48, 60)}
    summary, reused = write_div2k(tmp_path / "a", train=3, valid=3, seed=4, **small)
    assert (summary, reused) == ({"train": 3, "valid": 3}, False)
    assert write_div2k(tmp_path / "a", train=3, valid=3, seed=4, **small)[1]
    write_div2k(tmp_path / "b", train=3, valid=3, seed=4, **small)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    pictures = [digest for name, digest in first.items() if name.endswith("png")]
    assert len(set(pictures)) == len(pictures) == 6 * 4
    with pytest.raises(ValueError, match=r"made with other arguments \(seed 4 there, 5 asked for\)"):
        write_div2k(tmp_path / "a", train=3, valid=3, seed=5, **small)
    write_benchmark(tmp_path / "u", "urban100", count=2, **small)
    assert sorted(name for name in digests(tmp_path / "u") if "002" in name) == [
        f"image_SRF_{factor}/img_002_SRF_{factor}_{kind}.png" for factor in (2, 4) for kind in ("HR", "LR")
    ]
    write_benchmark(tmp_path / "s", "set5", count=1, **small)
    assert {"HR/img_001.png", "LR_bicubic/X3/img_001x3.png"} < set(digests(tmp_path / "s"))
    assert "not Set5" not in (tmp_path / "u" / MARKER).read_text()
    assert "not set5" in (tmp_path / "s" / MARKER).read_text()
    assert not set(digests(tmp_path / "u").values()) & set(pictures)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"valid": 0}, {"size": (40, 60)}, {"seed": -1}, {"train": 801}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"1 picture or more|at most 800"):
        write_div2k(tmp_path / "a", **{"train": 1, "valid": 1, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="valid: urban100, set5, set14, b100"):
        write_benchmark(tmp_path / "a", "div2k", count=1)
    with pytest.raises(ValueError, match="sides are 16 or more"):
        render_facade(np.random.default_rng(0), Size(8, 20))
