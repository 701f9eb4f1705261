"""Where Places2's files lie on disk (Zhou et al., TPAMI 2018): folders of class folders, or list files.

Folders, searched to any depth (as the PyTorch port of DeepFill reads them):

    <root>/data_large/a/airfield/00000001.jpg    also data_256, train        <root>/val_large/*.jpg    also val_256, val

Lists, one picture a line, its label behind it or not: those of Places365 (places365_train_standard.txt and
places365_val.txt), of its easy format (train.txt, val.txt), or of DeepFill (train_shuffled.flist and
validation_static_view.flist). A line is an absolute path, or relative to the root, to the lists' folder, or to a
picture folder (`/a/airfield/00000001.jpg`); all lines of a list as its first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from saccade.data.layout import Source
from saccade.data.square import SUFFIXES
from saccade.files import replacing

Layout = Literal["auto", "folders", "lists"]
PlacesSplit = Literal["train", "val"]
SPLITS: tuple[PlacesSplit, ...] = ("train", "val")
FOLDERS: dict[PlacesSplit, tuple[str, ...]] = {
    "train": (
        "data_large", "data_large_standard", "data_large_challenge", "data_256", "data_256_standard",
        "data_256_challenge", "train",
    ),
    "val": ("val_large", "val_256", "val", "validation"),
}  # fmt: skip
LISTS: dict[PlacesSplit, tuple[str, ...]] = {
    "train": (
        "train_shuffled.flist", "train.flist", "places365_train_standard.txt", "places365_train_challenge.txt",
        "train.txt",
    ),
    "val": ("validation_static_view.flist", "val.flist", "validation.flist", "places365_val.txt", "val.txt"),
}  # fmt: skip
_LIST_FOLDERS = ("", "data_flist", "filelist_places365-standard", "filelist_places365-challenge")


@dataclass(frozen=True)
class PlacesFiles:
    """Where the pictures of each split come from: a folder, or a list file."""

    root: Path
    sources: dict[PlacesSplit, Path]

    def pictures(self, split: PlacesSplit) -> PictureList:
        """The pictures of a split, sorted, or in the list's order.

        Raises:
            ValueError: no pictures, or the first line of a list names none that is there.
        """
        source = self.sources[split]
        if source.is_dir():
            names = sorted(_names_below(source))
            base = source
        else:
            names, base = _read_list(source, self.root, split)
        if not names:
            raise ValueError(f"{source}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
        return PictureList(base, names)


class PictureList(Sequence[Path]):
    """Paths below one folder, kept in one block of bytes: processes of a loader share it, however many there are."""

    def __init__(self, base: Path, names: Sequence[str]) -> None:
        self.base = base
        coded = [os.fsencode(name) for name in names]
        self._ends: npt.NDArray[np.int64] = np.cumsum([len(name) for name in coded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(coded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """The path below the base."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]  # no slices
        return self.base / self.name(index)


def find_places(
    root: Path | str, layout: Layout = "auto", train_list: str | None = None, val_list: str | None = None
) -> PlacesFiles:
    """Find what each split is read from, by looking at names only.

    Args:
        root: the data set's folder.
        layout: "folders", "lists", or "auto": lists where there are both, else folders.
        train_list, val_list: list files to read, relative to the root or absolute; they imply "lists".

    Raises:
        ValueError: unknown layout, or one that is not there for both splits; shows the layouts and how to get them.
    """
    root = Path(root)
    if layout not in ("auto", "folders", "lists"):
        raise ValueError(f"data.module.layout={layout} is unknown; valid: auto, folders, lists")
    named: dict[PlacesSplit, str | None] = {"train": train_list, "val": val_list}
    if layout == "folders" and any(named.values()):
        raise ValueError("data.module: train_list and val_list go with layout=lists (or auto), not with folders")
    lists = {split: _list_of(root, split, named[split]) for split in SPLITS}
    folders = {split: next((root / f for f in FOLDERS[split] if (root / f).is_dir()), None) for split in SPLITS}
    take = folders if layout == "folders" or (layout == "auto" and None in lists.values()) else lists
    if any(named.values()) and take is folders:
        take = lists
    found = {split: path for split, path in take.items() if path is not None}
    if len(found) < len(SPLITS):
        lost = [split for split in SPLITS if split not in found]
        what = "list file" if take is lists else "folder or list file"
        there = f" (found for {', '.join(found)}: {', '.join(str(p) for p in found.values())})" if found else ""
        raise ValueError(f"Places2: no {what} for {' and '.join(lost)} in {root}{there}\n{how_to_get(root)}")
    return PlacesFiles(root, found)


def resolve_source(
    root: Path | str,
    source: Source = "auto",
    layout: Layout = "auto",
    train_list: str | None = None,
    val_list: str | None = None,
) -> Literal["files", "standin"]:
    """Decide whether real files or the stand-in will be read, by looking at names only.

    `auto` takes the files if they are there and the stand-in if there are none; a half of a data set is an error.

    Raises:
        ValueError: unknown source; files demanded or begun but not complete.
    """
    if source not in ("auto", "files", "standin"):
        raise ValueError(f"data.source={source} is unknown; valid: auto, files, standin")
    if source == "standin":
        return "standin"
    root = Path(root)
    names = [name for split in SPLITS for name in FOLDERS[split]]
    begun = any((root / name).is_dir() for name in names) or any(_list_of(root, s, None) for s in SPLITS)
    if source == "auto" and not begun and train_list is None and val_list is None:
        return "standin"
    find_places(root, layout, train_list, val_list)
    return "files"


def write_list(path: Path, pictures: Sequence[Path]) -> None:
    """Write a list of absolute paths, whole or not at all."""
    with replacing(path) as file:
        file.writelines(os.fsencode(picture) + b"\n" for picture in pictures)


def how_to_get(root: Path | str) -> str:
    """The expected layouts, and the commands that would make them."""
    return f"""\
Expected layouts (see data/README.md):
  {root}/data_large/<letter>/<class>/*.jpg  (or data_256, train)   {root}/val_large/*.jpg  (or val_256, val)
  or lists there: places365_train_standard.txt and places365_val.txt; train_shuffled.flist and
  validation_static_view.flist; any others by data.module.train_list and data.module.val_list
To list pictures that lie elsewhere (any folder of pictures, searched to any depth; nothing is copied):
  python scripts/prepare_data.py places2 --from /datasets/places365_standard --out {root}
To go without: data.source=standin (or auto) makes stand-in pictures, and
  python scripts/prepare_data.py places2 --standin --out {root}
writes them there in the same layout."""


def _list_of(root: Path, split: PlacesSplit, named: str | None) -> Path | None:
    if named is not None:
        path = root / named
        if not path.is_file():
            raise ValueError(f"data.module.{split}_list={named}: no such list file in {root}\n{how_to_get(root)}")
        return path
    places = (root / folder / name for folder in _LIST_FOLDERS for name in LISTS[split])
    return next((path for path in places if path.is_file()), None)


def pictures_below(folder: Path) -> list[Path]:
    """The picture files below a folder, at any depth, sorted."""
    return [folder / name for name in sorted(_names_below(folder))]


def _names_below(folder: Path) -> Iterator[str]:
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stem = os.path.relpath(where, folder)
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield name if stem == "." else f"{stem}/{name}"


def _read_list(path: Path, root: Path, split: PlacesSplit) -> tuple[list[str], Path]:
    """The names in a list and the folder that they lie in, which its first line tells."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: cannot read the list ({error})") from error
    names = [_name_of(line) for line in lines if line]
    if not names:
        return [], root
    first = names[0]
    if os.path.isabs(first) and Path(first).is_file():
        odd = next((name for name in names if not os.path.isabs(name)), None)
        if odd is not None:
            raise ValueError(f"{path}: its first line is an absolute path, and {odd} is not; use one kind")
        above = os.path.dirname(os.path.commonpath([min(names), max(names)]))
        return [os.path.relpath(name, above) for name in names], Path(above)
    bases = [root, path.parent, *(root / folder for folder in FOLDERS[split])]
    for base in bases:
        if (base / first.lstrip("/")).is_file():
            return [name.lstrip("/") for name in names], base
    tried = ", ".join(str(base / first.lstrip("/")) for base in bases if base.is_dir())
    raise ValueError(f"{path}:1: no picture {first}; tried {tried or root}. Unpack the pictures that the list names")


def _name_of(line: str) -> str:
    """A line without the label that may stand behind the name."""
    parts = line.rsplit(None, 1)
    return parts[0] if len(parts) == 2 and parts[1].isdecimal() else line
