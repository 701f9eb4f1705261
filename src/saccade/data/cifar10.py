"""CIFAR-10 from its pickled batches, read by torchvision, which checks them against their published sums."""

from __future__ import annotations

import tarfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from saccade.data.class_layout import CLASS_SPLITS, ClassSplit, Entry, Listing
from saccade.data.images import Pixels
from saccade.data.square import Square, centre_square

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"


def find_cifar10(root: Path) -> Listing:
    """List the pictures of CIFAR-10; `val` is its test set. An entry's `offset` is the number of its picture.

    Raises:
        ValueError: the batches are not there, or differ from the published ones.
    """
    entries: dict[ClassSplit, list[Entry]] = {}
    for split in CLASS_SPLITS:
        labels = _batches(str(root), split)[1]
        named = [Entry(f"{CLASSES[label]}/{split}_{i:05d}", label, str(root), i) for i, label in enumerate(labels)]
        entries[split] = sorted(named, key=lambda entry: (entry.label, entry.offset))
    return Listing(CLASSES, CLASSES, entries, ("val is the test set",))


def read_cifar10(entry: Entry, size: int) -> Square:
    """One picture at a size."""
    split: ClassSplit = "val" if "/val_" in entry.name else "train"
    pixels = _batches(entry.file, split)[0][entry.offset]
    return Square(centre_square(pixels, size), ("smaller_than_size",) if size > len(pixels) else ())


def download_cifar10(root: Path) -> None:
    """Fetch and unpack the archive (163 MiB) from the authors' server, unless it is there.

    Raises:
        ValueError: it could not be fetched.
    """
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{root}: {ARCHIVE} could not be fetched ({error}); put it there yourself, from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html"
        ) from error


@lru_cache(maxsize=4)
def _batches(root: str, split: ClassSplit) -> tuple[Pixels, list[int]]:
    """Pictures (N, 32, 32, 3) uint8 and labels of a split."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import extract_archive

    try:
        if not (Path(root) / FOLDER).is_dir() and (Path(root) / ARCHIVE).is_file():
            extract_archive(str(Path(root) / ARCHIVE), root)
        found = CIFAR10(root, train=split == "train")
    except (RuntimeError, OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{Path(root) / FOLDER}: not there, not whole, or not the published files ({error}); remove what is "
            f"there of it and put {ARCHIVE} beside, or let `python scripts/prepare_data.py cifar10 --download` fetch it"
        ) from error
    return np.asarray(found.data, dtype=np.uint8), [int(label) for label in found.targets]
