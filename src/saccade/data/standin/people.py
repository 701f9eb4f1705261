"""The stand-in for DeepFashion's in-shop subset: procedural people in the PATN layout, names and lists.

File names, keypoint CSV and pair lists follow the rules of the real files (PATN, "Progressive Pose Attention Transfer",
Zhu et al. 2019), so the loader cannot tell them from the real ones; STANDIN.txt and standin.json tell a person, and
the data module. Garment ids start at 1 (train: 1......., test: 9.......), where the real ones start at 0.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from saccade.data.standin.bodies import View
from saccade.data.standin.figures import Picture, draw, sample_person
from saccade.data.standin.folder import write_whole
from saccade.data.standin.painter import Bytes, Floats
from saccade.data.standin.stage import Person
from saccade.geometry import Size

VERSION = 2  # raise it whenever the same arguments would give other files
FRAME = Size(256, 176)  # the frame of fasion-resize-annotation-*.csv, whatever the size of the pictures
VIEWS: tuple[View, ...] = ("front", "side", "back", "full", "front", "side", "full", "back", "front")
NEEDED = (2, 5, 8, 11)  # shoulders and hips: an image without them enters no pair
DROPPED = 0.015  # share of visible keypoints that the annotation misses, and of rows it misses altogether
QUALITY = 95

Row = tuple[str, list[int], list[int]]  # name, y, x


@dataclass(frozen=True)
class StandinSummary:
    """What a stand-in folder holds."""

    root: Path
    train_images: int
    test_images: int
    train_pairs: int
    test_pairs: int
    reused: bool


@dataclass(frozen=True)
class _Task:
    folder: str
    split: str
    index: int
    poses: int
    size: Size
    seed: int


def render_person(
    identity_seed: int, pose_seed: int, size: Size | Sequence[int] = FRAME, view: View | None = None
) -> tuple[Bytes, Floats]:
    """Paint one person in one pose.

    Args:
        identity_seed: decides body, outfit, face, hair and background.
        pose_seed: decides pose and framing.
        size: (rows, cols) of the picture.
        view: front, side, back or full; by default the pose seed decides.

    Returns:
        The image (rows, cols, 3) uint8 RGB, and the OpenPose-18 keypoints (18, 2) as x, y in its pixels (pixel centres
        at integers), nan where a point is hidden or outside.
    """
    picture = _picture(identity_person(identity_seed), identity_seed, pose_seed, Size.of(size), view)
    return picture.image, picture.keypoints


def identity_person(identity_seed: int) -> Person:
    """The person of an identity seed."""
    return sample_person(np.random.default_rng([identity_seed, 0]))


def _picture(person: Person, identity_seed: int, pose_seed: int, size: Size, view: View | None) -> Picture:
    rng = np.random.default_rng([identity_seed, 1, pose_seed])
    chosen = VIEWS[int(rng.integers(4))]
    return draw(person, rng, view or chosen, size)


def _annotation(keypoints: Floats, size: Size, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Keypoints as the CSV has them: y and x, integers in FRAME, -1 where missing; a few dropped as in the real one."""
    scaled = (keypoints + 0.5) * [FRAME.cols / size.cols, FRAME.rows / size.rows] - 0.5
    missing = np.isnan(scaled).any(axis=1) | (rng.random(18) < DROPPED) | (rng.random() < DROPPED)
    whole = np.rint(np.clip(np.nan_to_num(scaled), 0, [FRAME.cols - 1, FRAME.rows - 1])).astype(int)
    whole[missing] = -1
    return whole[:, 1].tolist(), whole[:, 0].tolist()


def _write_identity(task: _Task) -> list[Row]:
    """Paint an identity's poses into <folder>/<split>; the annotation rows."""
    split = 0 if task.split == "train" else 1
    words = np.random.SeedSequence([task.seed, split, task.index]).generate_state(2, np.uint32)
    identity = int(words[0]) << 32 | int(words[1])
    person = identity_person(identity)
    garment = (1, 9)[split] * 10_000_000 + task.index + 1
    prefix = f"fashion{'WOMEN' if person.female else 'MEN'}{person.outfit.category}id{garment:08d}01"
    rows: list[Row] = []
    for pose in range(task.poses):
        view = VIEWS[pose % len(VIEWS)]
        name = f"{prefix}_{pose + 1}{view}.jpg"
        picture = _picture(person, identity, pose, task.size, view)
        done, encoded = cv2.imencode(".jpg", picture.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        if not done:
            raise RuntimeError(f"stand-in people: OpenCV could not encode {name} ({task.size}) as JPEG")
        (Path(task.folder) / task.split / name).write_bytes(encoded.tobytes())
        rows.append((name, *_annotation(picture.keypoints, task.size, np.random.default_rng([identity, 2, pose]))))
    return rows


def pairs_of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """All ordered pairs of different images of one garment id and look, among images with shoulders and hips."""
    groups: dict[str, list[str]] = {}
    for name, y, x in rows:
        found = re.search(r"id\d{10}", name)
        if found and all(y[i] >= 0 and x[i] >= 0 for i in NEEDED):
            groups.setdefault(found.group(), []).append(name)
    return [(a, b) for names in groups.values() for a in names for b in names if a != b]


def _write_lists(folder: Path, split: str, rows: list[Row]) -> int:
    pairs = pairs_of(rows)
    lines = [f"{name}: {json.dumps(y)}: {json.dumps(x)}" for name, y, x in rows]
    csv = "\n".join(["name:keypoints_y:keypoints_x", *lines, ""])
    (folder / f"fasion-resize-annotation-{split}.csv").write_text(csv, encoding="utf-8", newline="\n")
    csv = "\n".join(["from,to", *(f"{a},{b}" for a, b in pairs), ""])
    (folder / f"fasion-resize-pairs-{split}.csv").write_text(csv, encoding="utf-8", newline="\n")
    names = "\n".join([*(name for name, _, _ in rows), ""])
    (folder / f"{split}.lst").write_text(names, encoding="utf-8", newline="\n")
    return len(pairs)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, ends the workers and cleans up


@contextlib.contextmanager
def _results(tasks: list[_Task], workers: int) -> Iterator[Iterable[list[Row]]]:
    """The rows of every task in order, from this process or from a pool of others."""
    if workers > 0:
        posix = "forkserver" in multiprocessing.get_all_start_methods()  # imports once, not once a worker
        context = multiprocessing.get_context("forkserver" if posix else "spawn")
        if posix:
            multiprocessing.set_forkserver_preload([__name__])
        with context.Pool(workers, initializer=_start_worker) as pool:
            yield pool.imap(_write_identity, tasks, chunksize=4)
    else:
        yield map(_write_identity, tasks)


def _build(
    folder: Path,
    identities: dict[str, int],
    poses: int,
    size: Size,
    seed: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> StandinSummary:
    tasks = [
        _Task(str(folder), split, index, poses, size, seed)
        for split, count in identities.items()
        for index in range(count)
    ]
    for split in identities:
        (folder / split).mkdir()
    done: list[list[Row]] = []
    with _results(tasks, workers) as results:
        for rows in results:
            done.append(rows)
            if progress is not None:
                progress(len(done), len(tasks))
    images, pairs = {}, {}
    for split in identities:
        rows = sorted(row for task, part in zip(tasks, done, strict=True) if task.split == split for row in part)
        images[split], pairs[split] = len(rows), _write_lists(folder, split, rows)
        if not pairs[split]:
            raise ValueError(
                f"stand-in people, {split}: no two images of an identity show both shoulders and hips, so there is no "
                f"pair; got {identities[split]} identities of {poses} poses, seed {seed}. Ask for more of either."
            )
    return StandinSummary(folder, images["train"], images["test"], pairs["train"], pairs["test"], False)


def write_deepfashion(
    root: Path | str,
    *,
    train_identities: int,
    test_identities: int,
    poses_per_identity: int = 5,
    image_size: Size | Sequence[int] = FRAME,
    seed: int = 0,
    workers: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> StandinSummary:
    """Write a stand-in dataset in the PATN layout; a folder that already holds it is reused.

    The folder appears whole or not at all: everything is written to a temporary sibling, which is renamed at the end
    and removed on any error or interruption. Same arguments, same bytes, whatever `workers` is.

    Args:
        root: the folder to make: train/, test/, train.lst, test.lst, fasion-resize-annotation-*.csv,
            fasion-resize-pairs-*.csv, STANDIN.txt, standin.json.
        train_identities: people in train/; at least 1.
        test_identities: other people in test/; at least 1.
        poses_per_identity: 2 to 9 images a person, of the views front, side, back, full, front, ...
        image_size: (rows, cols) of the pictures. The annotation is in the 256x176 frame whatever it is.
        seed: decides everything.
        workers: processes; 0 paints in this one.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).
        progress: called with the identities done and their total.

    Raises:
        ValueError: counts out of range, a folder that holds something else, or no pair at all.
        OSError: the folder cannot be written.
    """
    root, size = Path(root).absolute(), Size.of(image_size)
    arguments: dict[str, Any] = {
        "version": VERSION, "train_identities": train_identities, "test_identities": test_identities,
        "poses_per_identity": poses_per_identity, "image_size": list(size), "seed": seed,
    }  # fmt: skip
    if min(train_identities, test_identities) < 1 or not 2 <= poses_per_identity <= 9 or seed < 0 or workers < 0:
        raise ValueError(
            "stand-in people: needs at least 1 identity in each split, 2 to 9 poses an identity, seed and workers of 0 "
            f"or more; got {train_identities} and {test_identities} identities, {poses_per_identity} poses, "
            f"seed {seed}, {workers} workers"
        )
    counts = {"train": train_identities, "test": test_identities}

    def build(folder: Path) -> dict[str, Any]:
        made = asdict(_build(folder, counts, poses_per_identity, size, seed, workers, progress))
        return {key: value for key, value in made.items() if key not in ("root", "reused")}

    marker = (
        "This is not DeepFashion. These are procedural people in DeepFashion's file layout, painted by "
        f"{__name__}, version {VERSION}, seed {seed}; standin.json has the other arguments.\n"
    )
    note = {"keypoint_frame": list(FRAME)}
    summary, reused = write_whole(root, "stand-in people", arguments, build, marker, note=note, overwrite=overwrite)
    return StandinSummary(root=root, reused=reused, **summary)
