"""The tokens of Reformer attention: query pixels, then key pixels, read as patch vectors from one table of pixels.

Vectors are gathered where they are needed, never unfolded for a whole map: in a table of pixels with channels last, a
patch of p x p pixels is p runs of p * D neighbouring numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.inputs import at_least_float32


@dataclass(frozen=True)
class Tokens:
    """How many tokens there are, in which order: the query pixels of a map, its key pixels, one for padding.

    A token's number over all maps is `map * (count + 1) + token`; token `count` is the padding. With `shared` the
    query pixels are the keys as well.
    """

    maps: int
    q_size: Size
    kv_size: Size
    shared: bool

    @property
    def count(self) -> int:
        return self.q_size.area + (0 if self.shared else self.kv_size.area)

    @property
    def first_key(self) -> int:
        return 0 if self.shared else self.q_size.area

    def of_queries(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Spread what queries have, (maps, queries, ...), over all tokens (maps * (count + 1), ...)."""
        return self._spread(rows, 0, fill)

    def of_keys(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Spread what keys have, (maps, keys, ...), over all tokens (maps * (count + 1), ...)."""
        return self._spread(rows, self.first_key, fill)

    def queries(self, rows: Tensor) -> Tensor:
        """The queries' part, (maps, queries, ...), of what all tokens have."""
        return torch.unflatten(rows, 0, (self.maps, self.count + 1))[:, : self.q_size.area]

    def keys(self, rows: Tensor) -> Tensor:
        """The keys' part, (maps, keys, ...), of what all tokens have."""
        return torch.unflatten(rows, 0, (self.maps, self.count + 1))[:, self.first_key : self.count]

    def _spread(self, rows: Tensor, first: int, fill: float) -> Tensor:
        spread = rows.new_full((self.maps, self.count + 1, *rows.shape[2:]), fill)
        spread[:, first : first + rows.shape[1]] = rows
        return spread.flatten(0, 1)


class PatchTable:
    """Patch vectors of tokens: read from the maps, and gradients of the vectors added back to the maps.

    A vector holds its patch row by row, channels innermost: (p, p, D).
    """

    def __init__(self, q: Tensor, k: Tensor, tokens: Tokens, patch_size: int) -> None:
        self.tokens, self.patch_size = tokens, patch_size
        self.width = q.shape[2] * patch_size**2
        maps = [q] if tokens.shared else [q, k]
        pad = patch_size // 2
        padded = [F.pad(at_least_float32(x).flatten(0, 1), (pad,) * 4).permute(0, 2, 3, 1) for x in maps]  # (m,Y,X,D)
        self._sizes = [Size(*x.shape[1:3]) for x in padded]
        self._pixels = torch.cat([x.reshape(-1, x.shape[3]) for x in padded])  # (pixels, D)
        self.device, self.dtype = q.device, self._pixels.dtype
        self._starts, self._pitch = self._first_pixels()
        self._grad: Tensor | None = None

    def _first_pixels(self) -> tuple[Tensor, Tensor]:
        """Of every token, the table's row of its patch's first pixel, and the rows from one patch row to the next."""
        tokens, device, base = self.tokens, self.device, 0
        starts, pitches = [], []
        sizes = (tokens.q_size,) if tokens.shared else (tokens.q_size, tokens.kv_size)
        for size, padded in zip(sizes, self._sizes, strict=True):
            pixel = torch.arange(size.area, device=device)
            inside = pixel // size.cols * padded.cols + pixel % size.cols
            firsts = base + padded.area * torch.arange(tokens.maps, device=device)
            starts.append(firsts[:, None] + inside)
            pitches.append(torch.full_like(starts[-1], padded.cols))
            base += tokens.maps * padded.area
        padding = torch.zeros(tokens.maps, 1, dtype=torch.long, device=device)
        return torch.cat([*starts, padding], 1).flatten(), torch.cat([*pitches, padding], 1).flatten()

    def vectors(self, tokens: Tensor) -> Tensor:
        """Read the vectors of tokens (...) -> (..., p * p * D)."""
        side, channels = self.patch_size, self._pixels.shape[1]
        count = self._pixels.shape[0] - side + 1
        runs = self._pixels.as_strided((count, side * channels), (channels, 1))
        return runs.index_select(0, self._runs(tokens)).view(*tokens.shape, self.width)

    def add(self, tokens: Tensor, grads: Tensor) -> None:
        """Add the gradients (..., p * p * D) of the vectors of tokens (...) to that of the table."""
        side, channels = self.patch_size, self._pixels.shape[1]
        blocks = -(-self._pixels.shape[0] // side)
        if self._grad is None:
            # A run of p pixels from pixel s on lies in plane s mod p as block s // p: blocks of a plane do not overlap.
            self._grad = self._pixels.new_zeros(side * blocks, side * channels)
        runs = self._runs(tokens)
        target = runs if side == 1 else runs % side * blocks + runs // side
        self._grad.index_add_(0, target, grads.reshape(-1, side * channels))

    def gradients(self) -> list[Tensor]:
        """What was added, as gradients of the maps: (m, D, Y, X) each, one of them if queries and keys are shared."""
        side, channels, count = self.patch_size, self._pixels.shape[1], self._pixels.shape[0]
        if self._grad is None:
            raise RuntimeError("reformer: no gradient was added to the table of patches.")
        planes = self._grad.view(side, -1, channels)  # (p, blocks * p, D)
        total = planes[0, :count].clone() if side > 1 else planes[0]
        for shift in range(1, side):
            total[shift:] += planes[shift, : count - shift]
        parts = torch.split(total, [self.tokens.maps * size.area for size in self._sizes])
        pad = self.patch_size // 2
        grads = []
        for part, size in zip(parts, self._sizes, strict=True):
            maps = part.view(self.tokens.maps, *size, channels).permute(0, 3, 1, 2)
            grads.append(maps[:, :, pad : size.rows - pad, pad : size.cols - pad])
        return grads

    def _runs(self, tokens: Tensor) -> Tensor:
        """The table's rows at which the p runs of each patch start: (...) -> (tokens * p)."""
        flat = tokens.reshape(-1)
        starts = self._starts[flat]
        if self.patch_size == 1:
            return starts
        steps = torch.arange(self.patch_size, device=tokens.device)
        return (starts[:, None] + self._pitch[flat][:, None] * steps).view(-1)
