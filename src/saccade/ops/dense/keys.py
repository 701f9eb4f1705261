"""Which pixels of a key map are keys of dense attention: all, every s-th, or those whose patch lies inside the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.options import whole
from saccade.ops.patches import check_patch_size

KeyPlaces = Literal["all", "inside"]
KEY_PLACES: tuple[KeyPlaces, ...] = ("all", "inside")


@dataclass(frozen=True)
class KeyGrid:
    """The kept rows and cols of a key map: first, step and number of each."""

    first: int
    step: int
    size: Size
    kv_size: Size

    @property
    def whole(self) -> bool:
        """Whether every pixel is a key."""
        return self.size == self.kv_size

    def of(self, maps: Tensor) -> Tensor:
        """The keys of a map (..., Y, X), as a view."""
        if self.whole:
            return maps
        rows, cols = (slice(self.first, self.first + (n - 1) * self.step + 1, self.step) for n in self.size)
        return maps[..., rows, cols]

    def pixels(self, device: torch.device) -> Tensor:
        """Flat pixel of each key in its map, ascending: (keys,)."""
        rows, cols = (self.first + self.step * torch.arange(n, device=device) for n in self.size)
        return (rows[:, None] * self.kv_size.cols + cols).flatten()


def check_key_options(op: str, patch_size: int, key_stride: int, keys: str) -> tuple[int, int]:
    """The patch size and the stride, which with `keys` must be valid whatever the map."""
    patch_size, key_stride = check_patch_size(op, patch_size), whole(op, "key_stride", key_stride)
    if keys not in KEY_PLACES:
        raise ValueError(f"{op}: no choice of keys is called {keys!r}. Valid here: {', '.join(KEY_PLACES)}.")
    return patch_size, key_stride


def key_reasons(kv_size: Size, patch_size: int, keys: str) -> list[str]:
    """Why a key map has no keys with these options; empty when it has some."""
    if keys == "inside" and min(kv_size) < patch_size:
        valid = min(kv_size) - 1 + min(kv_size) % 2
        return [
            f"key map {kv_size} holds no whole {patch_size}x{patch_size} patch, which keys='inside' asks for. "
            f"Valid here: patch_size={valid}, or keys='all'."
        ]
    return []


def key_grid(op: str, kv_size: Size, patch_size: int = 1, key_stride: int = 1, keys: str = "all") -> KeyGrid:
    """The keys of a map: centres 0, s, 2s ... along each axis, or p // 2, p // 2 + s ... while the patch is inside.

    Raises:
        ValueError: an option is wrong, or the map holds no such key.
    """
    patch_size, key_stride = check_key_options(op, patch_size, key_stride, keys)
    reasons = key_reasons(kv_size, patch_size, keys)
    if reasons:
        raise ValueError(f"{op}: {' '.join(reasons)}")
    first = patch_size // 2 if keys == "inside" else 0
    rows, cols = ((side - 2 * first - 1) // key_stride + 1 for side in kv_size)
    return KeyGrid(first, key_stride, Size(rows, cols), kv_size)
