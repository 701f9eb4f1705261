"""Pictures sorted into classes, as lists of files: any folder of class folders.

    <root>/train/<class>/*.jpg   <root>/val/<class>/*.jpg       or one level, of which a seeded share is held out:
    <root>/<class>/*.jpg

Classes are numbered in the order of their sorted folder names, as torchvision does it. ImageNet's own layouts are in
`saccade.data.imagenet`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from saccade.data.square import SUFFIXES

ClassSplit = Literal["train", "val"]
CLASS_SPLITS: tuple[ClassSplit, ...] = ("train", "val")
PACKED = "packed-"  # folders so named hold packs, never pictures of a class
_HELD_OUT_SEED = 0  # ours: one folder is always divided in the same way


class Entry(NamedTuple):
    """One picture: where its bytes are, what it is called in the pack, and its class.

    `length` is None for a file of its own, else the bytes from `offset` on are meant (a member of a tar archive).
    """

    name: str
    label: int
    file: str
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        """The bytes of the picture file."""
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.length is None else self.length)


@dataclass(frozen=True)
class Listing:
    """A data set of pictures with classes.

    Attributes:
        classes: what a class is called on disk (folder name, WordNet id), in the order of labels.
        names: what a person calls it.
        splits: the pictures; a split that the data set lacks has no key.
        notes: what a reader of the manifest should know.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    splits: Mapping[ClassSplit, Sequence[Entry]]
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 over classes, names of pictures and labels: two equal ones are the same work to do."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split, entries in self.splits.items():
            digest.update(f"\n{split}\n".encode())
            for entry in entries:
                digest.update(f"{entry.name}\0{entry.label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder, hidden ones and packs left out."""
    with os.scandir(folder) as found:
        return sorted(f.name for f in found if f.is_dir() and not f.name.startswith((".", PACKED)))


def pictures_below(folder: Path) -> list[str]:
    """Names of the picture files in a folder and the folders in it, relative to it, sorted."""
    found: list[str] = []
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        stem = Path(here).relative_to(folder).as_posix()
        start = "" if stem == "." else f"{stem}/"
        found += [
            start + name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def entries_of(folder: Path, classes: Sequence[str]) -> list[Entry]:
    """The pictures of class folders.

    Raises:
        ValueError: a class folder has no picture, or a folder is no class.
    """
    labels = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    for name in class_folders(folder):
        if name not in labels:
            raise ValueError(
                f"{folder / name}: no class of the training pictures has that name; they have "
                f"{len(classes):,}: {_few(classes)}. Rename or remove the folder"
            )
        files = pictures_below(folder / name)
        if not files:
            raise ValueError(
                f"{folder / name}: this class folder holds no picture ({', '.join(sorted(SUFFIXES))}); put some there, "
                f"or remove the folder to go without the class"
            )
        entries += [Entry(f"{name}/{file}", labels[name], str(folder / name / file)) for file in files]
    return entries


def find_folders(root: Path, held_out: float = 0.1) -> Listing:
    """List a folder of class folders, with train/ and val/ or one level.

    Args:
        root: the folder.
        held_out: share of each class's pictures that becomes `val` where there are no train/ and val/; of a class with
            two pictures or more at least one, and never all. 0 leaves `val` out.

    Raises:
        ValueError: no such layout, a class without pictures, or nothing that could be held out; names the folder.
    """
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is a share of the pictures, from 0 to below 1; got {held_out}")
    names = class_folders(root) if root.is_dir() else []
    if "train" in names and (root / "train").is_dir():
        return _two_levels(root)
    if not names:
        if not root.is_dir():
            raise ValueError(f"{root}: no folders of classes there, as there is no such folder")
        raise ValueError(
            f"{root}: no folders of classes there; put the pictures of each class into a folder of its own, "
            f"{root}/<class>/ (one such folder if there is only one class)"
        )
    classes = tuple(names)
    entries = entries_of(root, classes)
    if held_out == 0:
        return Listing(classes, classes, {"train": entries}, ("nothing is held out: there is no val split",))
    val = _held_out(entries, held_out)
    if not val:
        raise ValueError(
            f"{root}: no class has two pictures, so none can be held out to score against; add pictures, make train/ "
            f"and val/ folders, or hold nothing out (--held-out 0, data.module.held_out=0)"
        )
    splits: dict[ClassSplit, list[Entry]] = {
        "train": [entry for i, entry in enumerate(entries) if i not in val],
        "val": [entry for i, entry in enumerate(entries) if i in val],
    }
    note = f"val is a seeded share of {held_out:g} of each class"
    return Listing(classes, classes, splits, (note,))


def _two_levels(root: Path) -> Listing:
    classes = tuple(class_folders(root / "train"))
    if not classes:
        raise ValueError(
            f"{root / 'train'}: no class folders there; expected {root}/train/<class>/*.jpg (a class of its own cannot "
            f"be called train)"
        )
    splits: dict[ClassSplit, list[Entry]] = {"train": entries_of(root / "train", classes)}
    notes: tuple[str, ...] = ()
    if (root / "val").is_dir():
        splits["val"] = entries_of(root / "val", classes)
    else:
        notes = ("there is no val folder: there is no val split",)
    return Listing(classes, classes, splits, notes)


def _held_out(entries: Sequence[Entry], share: float) -> set[int]:
    of_class: dict[int, list[int]] = {}
    for i, entry in enumerate(entries):
        of_class.setdefault(entry.label, []).append(i)
    chosen: set[int] = set()
    for label, own in of_class.items():
        if len(own) > 1:
            count = min(max(1, round(share * len(own))), len(own) - 1)
            order = np.random.default_rng([_HELD_OUT_SEED, label]).permutation(len(own))
            chosen.update(own[i] for i in order[:count])
    return chosen


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
