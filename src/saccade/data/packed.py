"""Reading packs: pictures by their number, straight from a memory-mapped file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from saccade.data.batches import ClassSample
from saccade.data.class_layout import PACKED, ClassSplit
from saccade.data.pack import FORMAT, HEADER, MANIFEST, Advance, sha256


def pack_folder(root: Path, size: int) -> Path:
    """Where the pack of a data set at a size lies."""
    return root / f"{PACKED}{size}"


def packed_sizes(root: Path) -> list[int]:
    """The sizes that a data set is packed at."""
    found = [path.parent.name.removeprefix(PACKED) for path in root.glob(f"{PACKED}*/{MANIFEST}")]
    return sorted(int(size) for size in found if size.isdecimal())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished pack.

    Raises:
        ValueError: there is none, or it is of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no finished pack there ({error})") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: a pack of format {manifest.get('format')}, this version reads {FORMAT}; delete it, pack anew"
        )
    return manifest


class PackedImages(Dataset[ClassSample]):
    """The pictures of one split of a pack.

    Opening reads labels and names; pixels are read where and when they are asked for. A pickled copy, as worker
    processes get it, opens the file again.

    Args:
        folder: the pack.
        split: "train" or "val".

    Raises:
        ValueError: no finished pack, no such split, or files that are not as the manifest says.
    """

    def __init__(self, folder: Path, split: ClassSplit) -> None:
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise ValueError(f"{folder}: the pack has no {split} split; it has {', '.join(manifest['splits'])}")
        entry = manifest["splits"][split]
        self.path, self.split = folder / f"{split}.npy", split
        self.count, self.size = int(entry["count"]), int(manifest["options"]["size"])
        self.sha256 = str(entry["sha256"][self.path.name])
        whole = HEADER + self.count * 3 * self.size**2
        there = self.path.stat().st_size if self.path.is_file() else 0
        if there != whole:
            raise ValueError(
                f"{self.path}: has {there:,} bytes, and the manifest says {whole:,}; delete {folder}, pack anew"
            )
        self.labels: npt.NDArray[np.int64] = np.load(folder / f"{split}_labels.npy")
        # fixed-width bytes: workers share them, where a list of strings would be copied by counting references
        text = (folder / f"{split}_names.txt").read_bytes()
        self._names = np.array(text.split(b"\n")[:-1], dtype=bytes)
        if not len(self.labels) == len(self._names) == self.count:
            raise ValueError(f"{folder}: labels and names of {split} are not as many as its pictures; pack anew")
        self._pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ClassSample:
        return ClassSample(self.picture(index), int(self.labels[index]), self.name(index))

    def picture(self, index: int) -> Tensor:
        """One picture, (3, Y, X) uint8."""
        return torch.from_numpy(np.array(self.pixels[index]))

    def name(self, index: int) -> str:
        """The file that a picture came from, below the data set's folder."""
        return bytes(self._names[index]).decode("utf-8", "surrogateescape")

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """All pictures, (N, 3, Y, X), memory-mapped and read-only."""
        if self._pixels is None:
            self._pixels = np.load(self.path, mmap_mode="r")
        return self._pixels

    def batches(self, size: int = 256) -> Iterator[Tensor]:
        """All pictures in order, as batches (B, 3, Y, X) uint8."""
        for start in range(0, self.count, size):
            yield torch.from_numpy(np.array(self.pixels[start : start + size]))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}


def check_pack(folder: Path, advance: Advance | None = None) -> dict[str, Any]:
    """Compare every file of a pack with the hashes in its manifest.

    Returns:
        The manifest.

    Raises:
        ValueError: no finished pack, or a file that differs; names it.
    """
    manifest = read_manifest(folder)
    files = [(name, digest) for entry in manifest["splits"].values() for name, digest in entry["sha256"].items()]
    for done, (name, digest) in enumerate(files, 1):
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"{folder / name}: missing or not as it was packed; delete {folder} and pack anew")
        if advance is not None:
            advance(done, len(files))
    for split in manifest["splits"]:
        PackedImages(folder, split)
    return manifest
