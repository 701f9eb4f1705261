"""Decoded pictures kept in memory as far as they fit, so that small sets are decoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor


class Kept:
    """Reads pictures by `read` and keeps the first ones, until they take `mib` of this process' memory.

    Raises:
        ValueError: mib below 0.
    """

    def __init__(self, read: Callable[[Path], Tensor], mib: float) -> None:
        if mib < 0:
            raise ValueError(f"data.module.keep_mib={mib}: 0 (keep none) or more")
        self._read = read
        self._room = mib * 2**20
        self._pictures: dict[Path, Tensor] = {}

    def __call__(self, path: Path) -> Tensor:
        """One picture, (3, Y, X) uint8; not to be changed in place."""
        picture = self._pictures.get(path)
        if picture is None:
            picture = self._read(path)
            size = picture.numel() * picture.element_size()
            if size <= self._room:
                self._room -= size
                self._pictures[path] = picture
        return picture
