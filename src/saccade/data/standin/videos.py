"""The stand-in for DAVIS 2017: photographs under smooth camera motion with a moving foreground, in DAVIS' layout.

    <root>/DAVIS/ImageSets/2017/{train,val,test-dev,test-challenge}.txt
    <root>/DAVIS/JPEGImages/480p/<sequence>/00000.jpg ...

A sequence is a wide picture (a ground in perspective before a wall, or a surface seen from above) over which a camera
pans, zooms and rolls, and a thing cut out of another photograph that moves by itself, sways and casts a shadow. Light
changes slowly and the sensor is noisy, so no patch is found again exactly. Three speeds of the camera alternate: over
ten frames a few hundredths of the frame's width, about a tenth, and about a fifth. train and test-dev are made of other
photographs than val and test-challenge (`saccade.data.standin.photographs`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from saccade.data.standin.backdrops import flat, landscape
from saccade.data.standin.folder import write_whole
from saccade.data.standin.painter import Bytes, Floats
from saccade.data.standin.photographs import FLATS, GROUNDS, THINGS, WALLS, Part, cut_thing, jpeg
from saccade.geometry import Size

VERSION = 1  # raise it whenever the same arguments would give other files
QUALITY = 90
SPEEDS: tuple[tuple[float, float], ...] = ((0.01, 0.035), (0.07, 0.11), (0.16, 0.24))  # of the width in ten frames
VAL = 2  # sequences of the val list: there is always one
_NOISE = 1.5  # levels of 255
_GRAIN = 64  # pixels by which the noise is larger than a frame


@dataclass(frozen=True)
class VideoSummary:
    """What a stand-in folder holds: sequences by list, and for each sequence what it shows and how fast it moves.

    `motion` is the middle of the camera's shift in ten frames, in frame widths, from the middle frame on.
    """

    root: Path
    splits: dict[str, list[str]]
    motion: dict[str, float]
    reused: bool


@dataclass(frozen=True)
class Shot:
    """One sequence before it is drawn: cameras (frames, 2, 3) and things (frames, 2, 3) map to frame pixels.

    A camera matrix maps pixels of the backdrop, a thing's matrix those of its cut-out.
    """

    name: str
    backdrop: Bytes
    cameras: Floats
    thing: Floats
    places: Floats
    light: Floats
    seed: tuple[int, ...]
    size: Size

    def frames(self) -> Iterator[Bytes]:
        """The frames in their order, (rows, cols, 3) uint8 RGB."""
        rng = np.random.default_rng([*self.seed, 1])
        shape = (self.size.cols, self.size.rows)
        shade = _shadow(self.thing)
        drop = np.array([[0, 0, 0.018], [0, 0, 0.03]]) * self.size.rows
        noise = _noise(self.size)
        for camera, place, light in zip(self.cameras, self.places, self.light, strict=True):
            scene = cv2.warpAffine(self.backdrop, camera, shape, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            dark = cv2.warpAffine(shade, place + drop, shape, flags=cv2.INTER_LINEAR)[..., None]
            layer = cv2.warpAffine(self.thing, place, shape, flags=cv2.INTER_LINEAR)
            window = _covered(place, self.thing.shape[0] * 1.1, self.thing.shape[1] * 1.1, self.size)
            behind = scene[window].astype(np.float32) * (1 - 0.45 * dark[window]) * (1 - layer[window][..., 3:])
            scene[window] = np.clip(np.rint(behind + layer[window][..., :3]), 0, 255)
            top, left = (int(start) for start in rng.integers(_GRAIN, size=2))
            grain = noise[top : top + self.size.rows, left : left + self.size.cols]
            yield cv2.add(cv2.convertScaleAbs(scene, alpha=float(light)), grain, dtype=cv2.CV_8U)


def compose_shot(part: Part, number: int, *, frames: int, size: Size, seed: int = 0) -> tuple[Shot, float]:
    """Choose what the number-th sequence of a part shows, and lay it out.

    Returns:
        The shot, and its camera's shift in ten frames from the middle one on, in frame widths.
    """
    key = (seed, ("train", "test").index(part), number)
    rng = np.random.default_rng(key)
    thing = THINGS[part][number % len(THINGS[part])]
    camera, extent = _camera_path(rng, SPEEDS[number % len(SPEEDS)], frames, size)
    if rng.random() < 0.35:
        ground = FLATS[part][int(rng.integers(len(FLATS[part])))]
        backdrop = flat(rng, ground, extent, size)
    else:
        ground = GROUNDS[part][int(rng.integers(len(GROUNDS[part])))]
        walls = [wall for wall in WALLS[part] if wall.name != ground.name]
        backdrop = landscape(rng, ground, walls[int(rng.integers(len(walls)))], extent, size)
    cutout = cut_thing(thing, max(round(thing.height * size.rows * float(rng.uniform(0.8, 1.15))), 8))
    time = np.arange(frames) / 10
    light = 1 + float(rng.uniform(0.02, 0.05)) * np.sin(time * float(rng.uniform(1, 2.5)) + float(rng.uniform(0, 6)))
    name = f"{thing.name}-{ground.name.replace('_', '-')}-{number:03d}"
    places = thing_path(rng, cutout, frames, size)
    shot = Shot(name, backdrop, camera, cutout, places, light.astype(np.float32), key, size)
    return shot, _shift(camera, size)


def write_davis(
    root: Path | str,
    *,
    train: int = 24,
    test: int = 30,
    frames: int = 21,
    size: Sequence[int] = (480, 854),
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VideoSummary:
    """Write the stand-in; a folder that already holds it is reused. Same arguments, same bytes.

    Args:
        root: the folder to make; it appears whole or not at all.
        train: sequences of the train and test-dev lists together, three to one; at least 2.
        test: sequences of test-challenge, at least 1. The val list has two more.
        frames: of each sequence, at least 3; 21 let the middle one have neighbours 10 frames away on both sides.
        size: rows and columns of a frame, at least 32 each.
        seed: decides everything.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).
        progress: called with the sequences done and their total.

    Raises:
        ValueError: numbers out of range, or a folder that holds something else.
        OSError: the folder cannot be written.
    """
    canvas = Size.of(tuple(size))
    if train < 2 or test < 1 or frames < 3 or min(canvas) < 32 or seed < 0:
        raise ValueError(
            f"stand-in videos: 2 or more sequences to train, 1 or more to test, 3 or more frames of 32x32 or more, "
            f"and a seed of 0 or more; got {train}, {test}, {frames}, {canvas}, {seed}"
        )
    arguments = {"version": VERSION, "train": train, "test": test, "frames": frames, "size": list(canvas), "seed": seed}

    def build(folder: Path) -> dict[str, Any]:
        splits = _share_out(train, test)
        names: dict[str, list[str]] = {split: [] for split in splits}
        motion: dict[str, float] = {}
        total = train + test + VAL
        for split, (part, numbers) in splits.items():
            for number in numbers:
                shot, shift = compose_shot(part, number, frames=frames, size=canvas, seed=seed)
                _write_shot(folder / "DAVIS" / "JPEGImages" / "480p" / shot.name, shot)
                names[split].append(shot.name)
                motion[shot.name] = round(shift, 4)
                if progress is not None:
                    progress(len(motion), total)
        lists = folder / "DAVIS" / "ImageSets" / "2017"
        lists.mkdir(parents=True)
        for split, own in names.items():
            names[split] = sorted(own)
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names[split]), encoding="utf-8")
        return {"splits": names, "motion": motion}

    marker = (
        "This is not DAVIS. These are photographs that come with scikit-image (public domain, CC0) under camera motion "
        f"with a moving foreground, in DAVIS' file layout, written by {__name__}, version {VERSION}, seed {seed}; "
        "standin.json has the other arguments, what each sequence shows in its name, and how fast its camera moves.\n"
    )
    root = Path(root).absolute()
    summary, reused = write_whole(root, "stand-in videos", arguments, build, marker, overwrite=overwrite)
    return VideoSummary(root=root, reused=reused, **summary)


def _share_out(train: int, test: int) -> dict[str, tuple[Part, range]]:
    first = max(train * 3 // 4, 1)
    return {
        "train": ("train", range(first)),
        "test-dev": ("train", range(first, train)),
        "test-challenge": ("test", range(test)),
        "val": ("test", range(test, test + VAL)),
    }


def _write_shot(folder: Path, shot: Shot) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(shot.frames()):
        (folder / f"{index:05d}.jpg").write_bytes(jpeg(frame, QUALITY))


def _drift(rng: np.random.Generator, time: Floats, reach: float) -> Floats:
    """A smooth wander round 0: two slow waves, at most `reach` from 0."""
    waves = [np.sin(time * float(rng.uniform(*band)) + float(rng.uniform(0, 6.3))) for band in ((0.6, 1.4), (1.6, 3.2))]
    result: Floats = reach * (0.7 * waves[0] + 0.3 * waves[1])
    return result


def _camera_path(
    rng: np.random.Generator, speed: tuple[float, float], frames: int, size: Size
) -> tuple[Floats, tuple[int, int]]:
    """Matrices (frames, 2, 3) from backdrop to frame pixels, and the (rows, cols) that a backdrop needs for them."""
    time = (np.arange(frames) - frames // 2) / 10
    pace = float(rng.uniform(*speed)) * size.cols
    heading = float(rng.uniform(-0.3, 0.3)) + (np.pi if rng.random() < 0.5 else 0.0)
    along = pace * (time + 0.12 * np.sin(2 * time))
    x = along * np.cos(heading) + _drift(rng, time, 0.006 * size.cols)
    y = 0.6 * along * np.sin(heading) + _drift(rng, time, 0.012 * size.rows)
    zoom = np.exp(float(rng.uniform(-0.04, 0.04)) * time + _drift(rng, time, 0.015))
    roll = _drift(rng, time, 0.03)
    # frame corners, from the frame's middle, in backdrop pixels: p = (x, y) + R(roll) c / zoom
    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * np.array([size.cols, size.rows]) / 2
    cos, sin = np.cos(roll), np.sin(roll)
    turns = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1) / zoom[:, None, None]
    seen = np.stack([x, y], 1)[:, None] + np.einsum("fij,cj->fci", turns, corners)
    low, high = seen.min(axis=(0, 1)) - 2, seen.max(axis=(0, 1)) + 2
    back = np.linalg.inv(turns)
    middle = np.array([size.cols - 1, size.rows - 1]) / 2
    shift = middle - np.einsum("fij,fj->fi", back, np.stack([x, y], 1) - low)
    extent = np.ceil(high - low).astype(int)
    return np.concatenate([back, shift[..., None]], axis=2), (int(extent[1]), int(extent[0]))


def _shift(cameras: Floats, size: Size) -> float:
    """How far the camera shifts the frame's middle in ten frames (or to the last one), in frame widths."""
    middle = len(cameras) // 2
    later = min(middle + 10, len(cameras) - 1)
    point = np.array([size.cols, size.rows]) / 2
    there = np.linalg.solve(cameras[middle][:, :2], point - cameras[middle][:, 2])
    moved = cameras[later][:, :2] @ there + cameras[later][:, 2] - point
    return float(np.hypot(*moved) / size.cols)


def thing_path(rng: np.random.Generator, cutout: Floats, frames: int, size: Size) -> Floats:
    """Matrices (frames, 2, 3) from the cut-out's pixels to the frame's: it crosses the middle, swaying as if it ran."""
    time = (np.arange(frames) - frames // 2) / 10
    rows, cols = cutout.shape[:2]
    side = -1.0 if rng.random() < 0.5 else 1.0
    x = size.cols * (float(rng.uniform(0.4, 0.6)) + side * float(rng.uniform(0.03, 0.15)) * time)
    y = size.rows * (float(rng.uniform(0.5, 0.62)) + float(rng.uniform(-0.04, 0.04)) * time)
    beat = time * float(rng.uniform(5, 9))
    y = y + 0.012 * size.rows * np.sin(2 * beat)
    scale = np.exp(float(rng.uniform(-0.08, 0.08)) * time)
    turn = 0.05 * np.sin(beat + float(rng.uniform(0, 6))) + float(rng.uniform(-0.06, 0.06)) * time
    lean = 0.06 * np.sin(beat)
    zeros = np.zeros_like(time)
    shear = np.stack([np.stack([zeros + 1, lean], 1), np.stack([zeros, zeros + 1], 1)], 1)
    turns = np.stack([np.stack([np.cos(turn), -np.sin(turn)], 1), np.stack([np.sin(turn), np.cos(turn)], 1)], 1)
    linear = scale[:, None, None] * turns @ shear
    shift = np.stack([x, y], 1) - linear @ (np.array([cols, rows]) / 2)
    return np.concatenate([linear, shift[..., None]], axis=2)


@functools.lru_cache(maxsize=2)
def _noise(size: Size) -> npt.NDArray[np.int16]:
    """Sensor noise to cut frames out of, larger than a frame."""
    shape = (size.rows + _GRAIN, size.cols + _GRAIN, 3)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(_NOISE)
    result: npt.NDArray[np.int16] = np.rint(noise).astype(np.int16)
    return result


def _covered(place: Floats, rows: float, cols: float, size: Size) -> tuple[slice, slice]:
    """The part of the frame that a thing and its shadow can touch."""
    corners = np.array([[-0.05, -0.05], [1, -0.05], [-0.05, 1], [1, 1]]) * [cols, rows]
    points = corners @ place[:, :2].T + place[:, 2]
    low = np.floor(points.min(axis=0)).astype(int) - 2
    high = np.ceil(points.max(axis=0)).astype(int) + 3
    top, bottom = np.clip([low[1], high[1]], 0, size.rows)
    left, right = np.clip([low[0], high[0]], 0, size.cols)
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def _shadow(cutout: Floats) -> Floats:
    """What a thing takes of the light behind it, (rows, cols) 0..1, with a soft edge."""
    rows = cutout.shape[0]
    soft: Floats = cv2.GaussianBlur(np.ascontiguousarray(cutout[..., 3]), (0, 0), max(rows / 60, 0.5))
    return soft
