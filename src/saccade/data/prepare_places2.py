"""Lists of pictures that lie elsewhere: nothing is copied, and no folder of millions is searched at every start."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.data.places2_layout import (
    FOLDERS,
    PlacesFiles,
    PlacesSplit,
    find_places,
    pictures_below,
    write_list,
)
from saccade.data.standin.folder import require_no_standin

Advance = Callable[[int, int], None]  # pictures done, pictures in all
NAMES: dict[PlacesSplit, str] = {"train": "train.flist", "val": "val.flist"}
_SEED = 0  # ours: one folder is always divided in the same way


def list_pictures(
    source: Path, out: Path, *, held_out: float = 0.02, verify: bool = False, workers: int = 0,
    advance: Advance | None = None,
) -> tuple[dict[PlacesSplit, int], list[str]]:  # fmt: skip
    """Write `train.flist` and `val.flist` of the pictures below a folder into `out`.

    Args:
        source: a folder with training and validation folders as Places365 has them, or of pictures of any kind.
        out: the data folder.
        held_out: share of the pictures that is validated with, where the source has no validation folder.
        verify: decode every picture, and leave those out that cannot be.
        workers: processes that decode; 0: this one.
        advance: called with the pictures decoded and their total.

    Returns:
        Pictures in each list, and what was left out, with the reason.

    Raises:
        ValueError: no pictures, or too few to divide; `out` holds a stand-in.
    """
    require_no_standin(out)
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder")
    if not 0 < held_out < 1:
        raise ValueError(f"--held-out {held_out} is a share between 0 and 1")
    pictures: dict[PlacesSplit, list[Path]]
    folders = {split: next((source / f for f in FOLDERS[split] if (source / f).is_dir()), None) for split in FOLDERS}
    train, val = folders["train"], folders["val"]
    if train is not None and val is not None:
        pictures = {"train": pictures_below(train), "val": pictures_below(val)}
    else:
        found = pictures_below(source)
        aside = set(np.random.default_rng(_SEED).permutation(len(found))[: round(held_out * len(found))].tolist())
        pictures = {
            "train": [path for i, path in enumerate(found) if i not in aside],
            "val": [path for i, path in enumerate(found) if i in aside],
        }
    if not all(pictures.values()):
        empty = next(split for split, paths in pictures.items() if not paths)
        raise ValueError(f"{source}: no pictures for {empty} (a larger --held-out, or more pictures, would give some)")
    left_out: list[str] = []
    if verify:
        total = sum(len(paths) for paths in pictures.values())
        bad = dict(unreadable([*pictures["train"], *pictures["val"]], workers, advance, total))
        left_out = [f"{path}: {why}" for path, why in bad.items()]
        pictures = {split: [path for path in paths if path not in bad] for split, paths in pictures.items()}
    for split, paths in pictures.items():
        write_list(out / NAMES[split], [path.absolute() for path in paths])
    return {split: len(paths) for split, paths in pictures.items()}, left_out


def check(
    root: Path, workers: int = 0, advance: Advance | None = None
) -> tuple[PlacesFiles, dict[PlacesSplit, int], list[str]]:
    """Decode every picture that training and validation would read.

    Returns:
        Where they come from, how many there are, and those that cannot be decoded, with the reason.

    Raises:
        ValueError: nothing is there to be read.
    """
    files = find_places(root)
    lists = {split: files.pictures(split) for split in files.sources}
    total = sum(len(pictures) for pictures in lists.values())
    paths = (pictures[i] for pictures in lists.values() for i in range(len(pictures)))
    bad = [f"{path}: {why}" for path, why in unreadable(paths, workers, advance, total)]
    return files, {split: len(pictures) for split, pictures in lists.items()}, bad


def unreadable(paths: Iterable[Path], workers: int, advance: Advance | None, total: int) -> Sequence[tuple[Path, str]]:
    """The pictures that cannot be decoded, each with the reason."""
    bad: list[tuple[Path, str]] = []

    def look(results: Iterable[tuple[Path, str | None]]) -> None:
        for done, (path, why) in enumerate(results, start=1):
            if why is not None:
                bad.append((path, why))
            if advance is not None:
                advance(done, total)

    if workers:
        with ProcessPoolExecutor(min(workers, os.cpu_count() or 1)) as pool:
            look(pool.map(_decoded, paths, chunksize=64))
    else:
        look(map(_decoded, paths))
    return bad


def _decoded(path: Path) -> tuple[Path, str | None]:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return path, str(error)
    return path, None
