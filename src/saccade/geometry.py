"""The words that every layer of Saccade shares: sizes of maps, shapes of attention calls, slots of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Size(NamedTuple):
    """Rows and columns of a feature map, in feature pixels."""

    rows: int
    cols: int

    @classmethod
    def of(cls, value: int | Sequence[int]) -> Size:
        """Read a size from one number (a square) or a (rows, cols) pair.

        Raises:
            ValueError: the value is neither, or a side is below 1.
        """
        sides = (value, value) if isinstance(value, int) else tuple(value)
        if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(f"a size is one positive integer or (rows, cols) of positive integers; got {value!r}")
        return cls(*sides)

    @property
    def area(self) -> int:
        return self.rows * self.cols

    def divides(self, other: Size) -> bool:
        return other.rows % self.rows == 0 and other.cols % self.cols == 0

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class AttentionShape:
    """One attention call: batch, heads, channels per head, and the two maps."""

    batch: int
    heads: int
    qk_channels: int
    v_channels: int
    q_size: Size
    kv_size: Size


@dataclass(frozen=True)
class SlotSpec:
    """A place in a model that attention can fill. Sizes are those at the training resolution."""

    name: str
    q_channels: int
    kv_channels: int
    out_channels: int
    q_size: Size
    kv_size: Size
    masked: bool = False
