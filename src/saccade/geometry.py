"""The words that every layer of Saccade shares: sizes of maps, shapes of attention calls, slots of a model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


def whole_number(value: Any) -> int | None:
    """The whole number that a value is, of NumPy's kinds too; None where it is none, as a bool is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return None


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
        side = whole_number(value)
        given = (side, side) if side is not None else value if isinstance(value, Iterable) else ()
        sides = [number for number in map(whole_number, given) if number is not None and number >= 1]
        if len(sides) != 2 or len(tuple(given)) != 2:
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
