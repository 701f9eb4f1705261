"""Where DAVIS 2017's files lie on disk (Pont-Tuset et al. 2017), as its four packages unpack.

    DAVIS/ImageSets/2017/{train,val,test-dev,test-challenge}.txt      one name of a sequence a line
    DAVIS/JPEGImages/480p/<sequence>/00000.jpg ...                    (or Full-Resolution)

The packages (trainval, test-dev, test-challenge) may be unpacked over one another, or each into a folder of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saccade.data.layout import Source

AUTO = "auto"
_LISTS = Path("ImageSets") / "2017"
_FRAMES = "JPEGImages"
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class DavisFiles:
    """Lists by name, each the names of its sequences in the list's order, and the folder of each sequence found."""

    root: Path
    lists: dict[str, tuple[str, ...]]
    folders: dict[str, Path]

    def missing(self, split: str) -> list[str]:
        """The sequences of a list that have no folder."""
        return [name for name in self.lists[split] if name not in self.folders]

    def sequences(self, split: str) -> list[str]:
        """The sequences of a list, or of several joined by +.

        Raises:
            ValueError: no such list, an empty one, or sequences without frames; names them and what there is.
        """
        found: list[str] = []
        for part in split.split("+"):
            if part not in self.lists:
                raise ValueError(
                    f"{self.root}: no list {_LISTS}/{part}.txt; there is {', '.join(sorted(self.lists)) or 'none'}\n"
                    f"{how_to_get(self.root)}"
                )
            lost = self.missing(part)
            if lost:
                raise ValueError(
                    f"{self.root}: {len(lost)} of {len(self.lists[part])} sequences of {part} have no frames there, "
                    f"e.g. {lost[0]}; unpack the package that holds {part}\n{how_to_get(self.root)}"
                )
            if not self.lists[part]:
                raise ValueError(f"{self.root}: the list {part} names no sequence")
            found += [name for name in self.lists[part] if name not in found]
        return found


def find_davis(root: Path | str, resolution: str = "480p") -> DavisFiles:
    """Find lists and frame folders; nothing is opened but the lists.

    Raises:
        ValueError: no lists or no frames, or two different lists of one name; shows the layout and how to get it.
    """
    root = Path(root)
    lists: dict[str, tuple[str, ...]] = {}
    folders: dict[str, Path] = {}
    others: set[str] = set()
    for base in _bases(root):
        for path in sorted((base / _LISTS).glob("*.txt")):
            names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
            if lists.setdefault(path.stem, names) != names:
                raise ValueError(f"{path}: another list of that name below {root} says otherwise; keep one of them")
        frames = base / _FRAMES / resolution
        if frames.is_dir():
            with os.scandir(frames) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if entry.is_dir() and not entry.name.startswith("."):
                        folders.setdefault(entry.name, Path(entry.path))
        elif (base / _FRAMES).is_dir():
            others |= {path.name for path in (base / _FRAMES).iterdir() if path.is_dir()}
    if not lists or not folders:
        lost = f"{_LISTS}/*.txt" if not lists else f"{_FRAMES}/{resolution}/<sequence>/*.jpg"
        near = f" (there is {', '.join(sorted(others))}: set data.module.resolution)" if not folders and others else ""
        raise ValueError(f"DAVIS 2017 is not complete in {root}: no {lost}{near}\n{how_to_get(root)}")
    return DavisFiles(root, lists, folders)


def resolve_source(root: Path | str, source: Source = "auto", resolution: str = "480p") -> Literal["files", "standin"]:
    """Decide whether real files or the stand-in will be read.

    `auto` takes the files if they are there and the stand-in if there are none; lists without frames are an error.

    Raises:
        ValueError: unknown source; files demanded or begun but not complete.
    """
    if source not in ("auto", "files", "standin"):
        raise ValueError(f"data.source={source} is unknown; valid: auto, files, standin")
    if source == "standin":
        return "standin"
    begun = any((base / part).exists() for base in _bases(Path(root)) for part in (_FRAMES, _LISTS))
    if source == "auto" and not begun:
        return "standin"
    find_davis(root, resolution)
    return "files"


def resolve_splits(files: DavisFiles, train: str, test: str) -> tuple[str, str, list[str]]:
    """What `auto` becomes: train+test-dev and test-challenge (PSAL, section 4.2), or else train and val, said aloud.

    Returns:
        The training lists, the test list, and notices.

    Raises:
        ValueError: no such list, sequences without frames, or one sequence in training and test.
    """
    notices: list[str] = []
    chosen: list[str] = []
    for asked, paper, plain, what in (
        (train, "train+test-dev", "train", "training"),
        (test, "test-challenge", "val", "test"),
    ):
        take = asked
        if asked == AUTO:
            package = paper.split("+")[-1]
            there = package in files.lists and len(files.missing(package)) < len(files.lists[package])
            take = paper if there else plain
            if not there:
                notices.append(
                    f"DAVIS: {what} on {plain}, not on {paper} as the paper, because {package} has no frames in "
                    f"{files.root}"
                )
        files.sequences(take)
        chosen.append(take)
    shared = sorted(set(files.sequences(chosen[0])) & set(files.sequences(chosen[1])))
    if shared:
        raise ValueError(
            f"data.module: train_split={chosen[0]} and test_split={chosen[1]} share {len(shared)} sequences, e.g. "
            f"{shared[0]}; choose lists that share none, e.g. train and val"
        )
    return chosen[0], chosen[1], notices


def frames_of(folder: Path) -> dict[int, Path]:
    """The frames of a sequence by their numbers, in their order.

    Raises:
        ValueError: no frames, a picture whose name is not a number, or two of one number.
    """
    found: dict[int, Path] = {}
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(_SUFFIXES) and not e.name.startswith("."))
    for name in names:
        stem = Path(name).stem
        if not stem.isdecimal():
            raise ValueError(f"{folder / name}: frames are called by their numbers, as 00000.jpg; rename or remove it")
        if int(stem) in found:
            raise ValueError(f"{folder}: {found[int(stem)].name} and {name} are both frame {int(stem)}; keep one")
        found[int(stem)] = folder / name
    if not found:
        raise ValueError(f"{folder}: no frames in it (00000.jpg ...)")
    return dict(sorted(found.items()))


def middle_frame(numbers: Sequence[int]) -> int:
    """The middle one of the sorted numbers; of an even count the later, as PSAL's evaluation takes it."""
    return sorted(numbers)[len(numbers) // 2]


def how_to_get(root: Path | str) -> str:
    """The expected layout, and the commands that would make it."""
    return f"""\
Expected layout (as the packages of davischallenge.org unpack; see data/README.md):
  {root}/DAVIS/ImageSets/2017/{{train,val,test-dev,test-challenge}}.txt
  {root}/DAVIS/JPEGImages/480p/<sequence>/00000.jpg ...
To make it from the downloads:
  python scripts/prepare_data.py davis --zip DAVIS-2017-*-480p.zip --out {root}
To go without: data.source=standin (or auto) makes stand-in videos, and
  python scripts/prepare_data.py davis --standin --out {root}
writes them there in the same layout."""


def _bases(root: Path) -> list[Path]:
    """The folders that a package may have been unpacked to."""
    if not root.is_dir():
        return []
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [path for path in (root, *below, *(path / "DAVIS" for path in below)) if path.is_dir()]
