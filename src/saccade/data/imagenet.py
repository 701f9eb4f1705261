"""ImageNet (ILSVRC 2012) as it is downloaded or commonly unpacked; classes are the sorted WordNet ids, as always.

Training pictures: `train/<wnid>/*.JPEG`, or ILSVRC2012_img_train.tar as it is (a tar of one tar a class; nothing is
unpacked). Validation pictures: `val/<wnid>/*.JPEG`; or all in `val/`, or in ILSVRC2012_img_val.tar, and then their
classes come from Kaggle's LOC_val_solution.csv or from the development kit (ILSVRC2012_validation_ground_truth.txt with
meta.mat, unpacked or in ILSVRC2012_devkit_t12.tar.gz). Kaggle's folder ILSVRC/Data/CLS-LOC is found by itself.
Names of classes: LOC_synset_mapping.txt, imagenet_class_index.json, or the development kit.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from saccade.data.class_layout import ClassSplit, Entry, Listing, class_folders, entries_of, pictures_below

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SOLUTION, MAPPING, CLASS_INDEX = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "imagenet_class_index.json"
_KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
_WNID = re.compile(r"n\d{8}")


def find_imagenet(root: Path) -> Listing:
    """List ImageNet's training and validation pictures.

    Raises:
        ValueError: no training pictures, a class without any, validation pictures whose class is not to be found or
            unknown, or a damaged archive; names the file.
    """
    pictures = root / _KAGGLE if (root / _KAGGLE / "train").is_dir() else root
    notes: list[str] = []
    if (pictures / "train").is_dir():
        classes = tuple(class_folders(pictures / "train"))
        if not classes:
            raise ValueError(f"{pictures / 'train'}: no class folders there; expected train/n01440764/*.JPEG")
        train = entries_of(pictures / "train", classes)
        if not all(_WNID.fullmatch(name) for name in classes):
            odd = next(name for name in classes if not _WNID.fullmatch(name))
            notes.append(f"class folders are not all called by WordNet ids (n01440764), e.g. {odd}")
    elif (root / TRAIN_TAR).is_file():
        classes, train = _train_tar(root / TRAIN_TAR)
    else:
        raise ValueError(f"{root}: neither train/<wnid>/*.JPEG nor {TRAIN_TAR} there")
    splits: dict[ClassSplit, Sequence[Entry]] = {"train": train}
    val = _validation(root, pictures / "val", classes)
    if val:
        splits["val"] = val
        absent = len(classes) - len({entry.label for entry in val})
        if absent:
            notes.append(f"{absent:,} of {len(classes):,} classes have no validation picture")
    else:
        notes.append(f"no validation pictures (val/ or {VAL_TAR}): there is no val split")
    return Listing(classes, class_names(root, classes), splits, tuple(notes))


def class_names(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """What the classes are called: from the mapping files or the development kit, else their WordNet ids.

    Raises:
        ValueError: a damaged file.
    """
    named: dict[str, str] = {}
    if (root / MAPPING).is_file():
        rows = (line.partition(" ") for line in (root / MAPPING).read_text(encoding="utf-8").splitlines())
        named = {wnid: words.strip() for wnid, _, words in rows}
    elif (root / CLASS_INDEX).is_file():
        try:
            index = json.loads((root / CLASS_INDEX).read_text(encoding="utf-8"))
            named = {wnid: name.replace("_", " ") for wnid, name in index.values()}
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f'{root / CLASS_INDEX}: expected {{"0": ["n01440764", "tench"], ...}} ({error})'
            ) from error
    elif (meta := _devkit(root, META)) is not None:
        named = dict(_synsets(meta, root).values())
    return tuple(named.get(wnid) or wnid for wnid in classes)


def _validation(root: Path, folder: Path, classes: Sequence[str]) -> list[Entry]:
    if folder.is_dir() and class_folders(folder):
        return entries_of(folder, classes)
    if folder.is_dir() and (names := pictures_below(folder)):
        places = {name: (str(folder / name), 0, None) for name in names}
        labels = _val_labels(root, sorted(places), classes)
        return _by_class([Entry(name, labels[name], *place) for name, place in places.items()])
    if (root / VAL_TAR).is_file():
        with _open_tar(root / VAL_TAR) as archive:
            members = {Path(m.name).name: m for m in archive if m.isfile()}
        labels = _val_labels(root, sorted(members), classes)
        tar = str(root / VAL_TAR)
        return _by_class([Entry(name, labels[name], tar, m.offset_data, m.size) for name, m in members.items()])
    return []


def _by_class(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.label, entry.name))


def _val_labels(root: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The label of each validation picture, by its file name."""
    labels = {wnid: label for label, wnid in enumerate(classes)}
    if (root / SOLUTION).is_file():
        source = root / SOLUTION
        with open(source, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        try:
            truth = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        except (KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{source}: expected columns ImageId, PredictionString ({error!r})") from error
        wnids = {name: truth.get(Path(name).stem) for name in names}
    else:
        source, found = _ground_truth(root, len(names))
        wnids = dict(zip(names, found, strict=True))
    for name, wnid in wnids.items():
        if wnid not in labels:
            why = "has no row for" if wnid is None else f"says {wnid}, which no training folder is called, for"
            raise ValueError(
                f"{source}: {why} {name}; use the list and the {len(classes):,} classes that belong together"
            )
    return {name: labels[wnid] for name, wnid in wnids.items() if wnid is not None}


def _ground_truth(root: Path, count: int) -> tuple[Path, list[str]]:
    truth, meta = _devkit(root, TRUTH), _devkit(root, META)
    if truth is None or meta is None:
        raise ValueError(
            f"{root}: the validation pictures are not in class folders, and their classes are not to be found. Put one "
            f"of these there: {SOLUTION} (Kaggle), {DEVKIT}.tar.gz (image-net.org), or {TRUTH} with {META} out of it"
        )
    lines = truth.decode("ascii").split()
    if len(lines) != count:
        raise ValueError(f"{root}: {TRUTH} has {len(lines):,} lines, but there are {count:,} validation pictures")
    synsets = _synsets(meta, root)
    try:
        return root / TRUTH, [synsets[int(line)][0] for line in lines]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{root}: {TRUTH} holds a number that {META} does not know ({error})") from error


def _devkit(root: Path, name: str) -> bytes | None:
    """A file of the development kit, wherever it lies; None where it is missing."""
    for folder in (root, root / "data", root / DEVKIT / "data", root / "devkit" / "data"):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    archive = root / f"{DEVKIT}.tar.gz"
    if archive.is_file():
        with _open_tar(archive) as kit:
            for member in kit:
                if Path(member.name).name == name and (file := kit.extractfile(member)) is not None:
                    return file.read()
    return None


def _synsets(meta: bytes, root: Path) -> dict[int, tuple[str, str]]:
    """Number in the development kit -> (WordNet id, words), of the synsets that are classes (leaves)."""
    from scipy.io import loadmat

    try:
        rows: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        return {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in rows
            if int(row["num_children"]) == 0
        }
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{root}: {META} is not the development kit's table of synsets ({error})") from error


def _train_tar(path: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """The pictures of the tar of tars, where they lie in it."""
    found: list[tuple[str, str, int, int]] = []
    with _open_tar(path) as outer:
        for member in outer:
            if not member.name.endswith(".tar"):
                continue
            inner_file = outer.extractfile(member)
            if inner_file is None:
                continue
            wnid = Path(member.name).stem
            with _open_tar(path, inner_file) as inner:
                found += [
                    (wnid, Path(m.name).name, member.offset_data + m.offset_data, m.size) for m in inner if m.isfile()
                ]
    classes = tuple(sorted({wnid for wnid, *_ in found}))
    if not classes:
        raise ValueError(f"{path}: holds no tar of a class (n01440764.tar) with pictures in it")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    return classes, [
        Entry(f"{wnid}/{name}", labels[wnid], str(path), offset, size) for wnid, name, offset, size in sorted(found)
    ]


@contextmanager
def _open_tar(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """A tar archive, or one inside of it; one that ends too early shows only while it is gone through."""
    try:
        with tarfile.open(path if file is None else None, fileobj=file) as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read as a tar archive to its end ({error})") from error


def tar_classes(path: Path) -> tuple[str, ...]:
    """The classes in the tar of the training pictures."""
    with _open_tar(path) as archive:
        return tuple(sorted(Path(m.name).stem for m in archive if m.name.endswith(".tar")))
