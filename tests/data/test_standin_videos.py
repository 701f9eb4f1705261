"""Stand-in videos: same seed, same bytes; smooth motion of the size that is told; other photographs in the tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from saccade.data.davis_layout import find_davis
from saccade.data.standin.folder import MANIFEST, MARKER
from saccade.data.standin.photographs import (
    CLOSE_UPS,
    FLATS,
    GROUNDS,
    PARTS,
    THINGS,
    WALLS,
    Surface,
    cut_thing,
    laid_out,
    tinted,
    whole_photograph,
)
from saccade.data.standin.videos import SPEEDS, compose_shot, write_davis
from saccade.geometry import Size

SMALL = {"train": 4, "test": 2, "frames": 3, "size": (32, 56)}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_a_folder_is_reused(tmp_path: Path) -> None:
    made = write_davis(tmp_path / "a", seed=3, **SMALL)  # type: ignore[arg-type]
    assert not made.reused
    again = write_davis(tmp_path / "a", seed=3, **SMALL)  # type: ignore[arg-type]
    assert again.reused
    assert (again.splits, again.motion) == (made.splits, made.motion)
    write_davis(tmp_path / "b", seed=3, **SMALL)  # type: ignore[arg-type]
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    frames = [digest for name, digest in first.items() if name.endswith(".jpg")]
    assert len(set(frames)) == len(frames) == (4 + 2 + 2) * 3
    with pytest.raises(ValueError, match=r"made with other arguments \(seed 3 there, 4 asked for\)"):
        write_davis(tmp_path / "a", seed=4, **SMALL)  # type: ignore[arg-type]


def test_it_is_laid_out_as_davis(tmp_path: Path) -> None:
    made = write_davis(tmp_path / "a", **SMALL)  # type: ignore[arg-type]
    files = find_davis(tmp_path / "a")
    assert {split: list(names) for split, names in files.lists.items()} == made.splits
    assert {split: len(names) for split, names in made.splits.items()} == {
        "train": 3,
        "test-dev": 1,
        "test-challenge": 2,
        "val": 2,
    }
    assert set(made.motion) == set(files.folders)
    assert json.loads((tmp_path / "a" / MANIFEST).read_text())["summary"]["motion"] == made.motion
    assert "not DAVIS" in (tmp_path / "a" / MARKER).read_text()


def test_cameras_have_three_speeds_that_leave_a_local_window() -> None:
    """A window of 50 pixels reaches 25: slow pans stay within it at 512 columns, the others leave it."""
    size, shifts = Size(48, 86), []
    for number in range(12):
        _, shift = compose_shot("test", number, frames=21, size=size)
        low, high = SPEEDS[number % 3]
        assert 0.5 * low < shift < high + 0.03
        shifts.append(shift)
    assert all(512 * shift < 25 for shift in shifts[::3])
    assert all(512 * shift > 25 for shift in shifts[1::3] + shifts[2::3])


def test_the_backdrop_moves_as_the_summary_says_and_smoothly() -> None:
    """Shifted by what the cameras say, the top of a later frame, where no thing is, fits an earlier one."""
    size = Size(64, 112)
    shot, told = compose_shot("test", 1, frames=21, size=size)
    still = shot.cameras[10:11], shot.cameras[20:21]
    assert max(np.abs(np.diff(shot.cameras[:, :, 2], 2, axis=0)).max(axis=0)) < 0.06 * size.cols
    moved = still[1][0, :, 2] - still[0][0, :, 2]
    assert np.hypot(*moved) / size.cols == pytest.approx(told, abs=0.05)
    frames = [frame.astype(float).mean(-1) for frame in shot.frames()]
    step = round(float((shot.cameras[12] - shot.cameras[10])[0, 2]))
    top = slice(0, 12)
    a, b = frames[10][top], frames[12][top]
    cut = slice(abs(step), size.cols - abs(step))
    shifted = np.roll(b, -step, axis=1)
    assert abs(step) >= 2
    assert np.abs(a - shifted)[:, cut].mean() < 0.8 * np.abs(a - b)[:, cut].mean()


def test_frames_cover_the_backdrop_and_carry_noise() -> None:
    size = Size(48, 86)
    shot, _ = compose_shot("train", 2, frames=5, size=size)
    rows, cols = shot.backdrop.shape[:2]
    corners = np.array([[0, 0], [size.cols - 1, 0], [0, size.rows - 1], [size.cols - 1, size.rows - 1]], float)
    for camera in shot.cameras:
        seen = np.linalg.solve(camera[:, :2], (corners - camera[:, 2]).T).T
        assert seen.min() >= 0
        assert (seen <= [cols, rows]).all()
    first, again = list(shot.frames()), list(shot.frames())
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(frame.shape == (*size, 3) and frame.std() > 10 for frame in first)


def test_things_are_there_and_move(tmp_path: Path) -> None:
    shot, _ = compose_shot("test", 0, frames=11, size=Size(96, 170))
    cover = cut_thing.__wrapped__(next(t for t in THINGS["test"] if t.name == "cat"), 40)[..., 3]
    assert 0.4 < cover.mean() < 0.95
    middles = shot.places @ np.array([shot.thing.shape[1] / 2, shot.thing.shape[0] / 2, 1])
    assert (np.ptp(middles, axis=0) > 1).any()
    assert ((middles > 0) & (middles < [170, 96])).all()


def test_train_and_test_show_other_photographs_or_other_halves() -> None:
    def windows(part: str) -> list[Surface]:
        surfaces = [*GROUNDS[part], *WALLS[part], *FLATS[part], *CLOSE_UPS[part]]  # type: ignore[index]
        return surfaces + [Surface(thing.photograph) for thing in THINGS[part]]  # type: ignore[index]

    for a in windows("train"):
        for b in windows("test"):
            (top, bottom, left, right), (top_, bottom_, left_, right_) = a.window, b.window
            apart = right <= left_ or right_ <= left or bottom <= top_ or bottom_ <= top
            assert a.name != b.name or apart, (a, b)


@pytest.mark.parametrize("part", PARTS)
def test_every_outline_lies_in_its_photograph(part: str) -> None:
    for thing in THINGS[part]:  # type: ignore[index]
        rows, cols = whole_photograph(thing.photograph).shape[:2]
        x, y = np.array(thing.outline).T
        assert x.min() >= 0
        assert y.min() >= 0
        assert x.max() < cols
        assert y.max() < rows


def test_grey_photographs_are_printed_in_two_colours() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    printed = tinted(ramp, ((10, 20, 30), (110, 220, 250)))
    assert printed[0, 0].tolist() == [10, 20, 30]
    assert printed[0, -1].tolist() == [110, 220, 250]
    moon = laid_out(Surface("moon", shades=(((0, 0, 0), (255, 200, 100)),)))
    assert moon[..., 0].mean() > moon[..., 2].mean()


@pytest.mark.parametrize("wrong", [{"train": 1}, {"test": 0}, {"frames": 2}, {"size": (16, 56)}, {"seed": -1}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="stand-in videos: 2 or more sequences"):
        write_davis(tmp_path / "a", **{**SMALL, **wrong})  # type: ignore[arg-type]
