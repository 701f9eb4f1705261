"""Your Local GAN's sparse patterns as data: which key a query may attend, on a line of tokens and on grids.

Source: Daras, Odena, Zhang, Dimakis, "Your Local GAN", arXiv 1911.12287, sections 3 and 4. The masks equal the
released ones bit for bit where the number of keys is a square. Different here:
- a number of keys n that l = floor(sqrt(n)) does not divide leaves a shorter last block, whose last token is a summary
  token too (LTR; the first one for RTL), and a circular window wraps onto the whole first block: without that, some
  tokens would have no path to others (Full Information);
- queries find their row of the mask in one of three ways (`MAPPINGS`), and grids that fit none are refused, where the
  released code leaves queries without a key.

A mask is M[q, k], rows are queries: True = may be attended. A pattern is given in enumeration order, and a grid's cells
are enumerated by one of `ORDERS`; "esa" is the paper's enumeration by Manhattan distance from the corner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from saccade.geometry import Size

Order = Literal["esa", "hilbert", "row"]
QueryMapping = Literal["released", "tile", "nearest"]
Form = Literal[
    "block",
    "summary_last",
    "summary_first",
    "stride",
    "causal_window",
    "two_sided_window",
    "circular_window",
    "dense",
]
ORDERS: tuple[Order, ...] = get_args(Order)
MAPPINGS: tuple[QueryMapping, ...] = get_args(QueryMapping)

# Tokens of queries and of keys (broadcast), their number n, the stride l: which pairs are allowed.
Rule = Callable[[Tensor, Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Pattern:
    """A named sparse pattern: `pattern(n)` is its (n, n) bool mask in enumeration order, rows are queries.

    To add one, give a name and a function from n to such a mask; the attention op then reads lists of allowed keys.

    Args:
        name: for messages and records.
        function: n -> (n, n) bool.
        rule: the same pair by pair, which the structured computation asks for; None for patterns without a `form`.
        form: how the structured computation reads the pattern; None where it cannot. It is taken at its word: pairs
            that the rule allows and the form does not reach would be lost.

    Raises:
        ValueError: a form without a rule.
    """

    name: str
    function: Callable[[int], Tensor]
    rule: Rule | None = None
    form: Form | None = None

    def __post_init__(self) -> None:
        if self.form is not None and self.rule is None:
            raise ValueError(
                f"ylg: pattern {self.name!r} has the form {self.form!r}, so it needs its rule too. Valid: form=None."
            )

    def __call__(self, n: int) -> Tensor:
        """The (n, n) bool mask on the CPU.

        Raises:
            ValueError: the function returns something else, or a mask that leaves a query no key.
        """
        with torch.inference_mode(False), torch.device("cpu"):
            mask = torch.as_tensor(self.function(n))
        if mask.dtype != torch.bool or mask.shape != (n, n):
            raise ValueError(
                f"ylg: pattern {self.name!r} must give a bool mask of shape {(n, n)} for n={n}, rows are queries; got "
                f"{mask.dtype} of shape {tuple(mask.shape)}."
            )
        empty = ~mask.any(1)
        if bool(empty.any()):
            raise ValueError(
                f"ylg: pattern {self.name!r} leaves token {int(empty.nonzero()[0])} of {n} no key; each row of a mask "
                "must allow at least one, for instance the token itself."
            )
        return mask.cpu()


def stride_of(n: int) -> int:
    """l = floor(sqrt(n)): the length of a block of tokens, and the distance of summary tokens."""
    return math.isqrt(n)


def _same_block(q: Tensor, k: Tensor, stride: int) -> Tensor:
    return torch.div(q, stride, rounding_mode="floor") == torch.div(k, stride, rounding_mode="floor")


def _ltr1(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (k <= q) & _same_block(q, k, stride)


def _rtl1(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (k >= q) & _same_block(q, k, stride)


def _ltr2(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (k == q) | (k % stride == stride - 1) | (k == n - 1)


def _rtl2(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (k == q) | (k % stride == 0)


def _fixed2(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return _ltr2(q, k, n, stride) & (k <= q)


def _causal_window(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (k <= q) & (q - k < stride)


def _two_sided_window(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (q - k).abs() < stride


def _circular_window(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    near = (q - k) % n < stride
    return near if n % stride == 0 else near | ((q < stride) & (k > n - stride))


def _stride(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return (q - k) % stride == 0


def _causal_stride(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return _stride(q, k, n, stride) & (k <= q)


def _dense(q: Tensor, k: Tensor, n: int, stride: int) -> Tensor:
    return torch.ones_like(q == k)


def _mask_of(rule: Rule, n: int) -> Tensor:
    tokens = torch.arange(n)
    return rule(tokens.unsqueeze(1), tokens.unsqueeze(0), n, stride_of(n))


def _ruled(name: str, rule: Rule, form: Form) -> Pattern:
    return Pattern(name, functools.partial(_mask_of, rule), rule, form)  # a partial can be pickled, a closure cannot


#: Every pattern by name. The two steps of a pair carry 1 and 2; "strided1" and "strided2" are those of the released
#: mask module, which lack some paths; with "strided1_two_sided" or "strided1_circular" in place of the first none lack.
PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {
        pattern.name: pattern
        for pattern in (
            _ruled("ltr1", _ltr1, "block"),
            _ruled("ltr2", _ltr2, "summary_last"),
            _ruled("rtl1", _rtl1, "block"),
            _ruled("rtl2", _rtl2, "summary_first"),
            _ruled("fixed1", _ltr1, "block"),
            _ruled("fixed2", _fixed2, "summary_last"),
            _ruled("strided1", _causal_window, "causal_window"),
            _ruled("strided1_two_sided", _two_sided_window, "two_sided_window"),
            _ruled("strided1_circular", _circular_window, "circular_window"),
            _ruled("strided2", _stride, "stride"),
            _ruled("strided2_causal", _causal_stride, "stride"),
            _ruled("dense", _dense, "dense"),
        )
    }
)

#: Lists of eight heads by name. "ylg" is the released order of heads; the paper's "strided" runs its pair four times,
#: and does not print its extension of the window: two-sided is our reading.
HEADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ylg": ("rtl1", "rtl2", "rtl1", "rtl2", "ltr1", "ltr2", "ltr1", "ltr2"),
        "ltr": ("ltr1", "ltr2") * 4,
        "rtl": ("rtl1", "rtl2") * 4,
        "fixed": ("fixed1", "fixed2") * 4,
        "strided": ("strided1_two_sided", "strided2") * 4,
        "strided_circular": ("strided1_circular", "strided2") * 4,
        "strided_released": ("strided1", "strided2") * 4,
        "dense": ("dense",) * 8,
    }
)

PatternLike = str | Pattern | Callable[[int], Tensor]


def read_pattern(entry: PatternLike) -> Pattern:
    """A pattern from its name, from itself, or from a function n -> (n, n) bool, whose name it takes.

    Raises:
        ValueError: no pattern has that name, or the entry is something else.
    """
    if isinstance(entry, Pattern):
        return entry
    if isinstance(entry, str) and entry in PATTERNS:
        return PATTERNS[entry]
    if callable(entry):
        return Pattern(getattr(entry, "__name__", type(entry).__name__), entry)
    raise ValueError(
        f"ylg: no pattern is called {entry!r}. Valid here: {', '.join(PATTERNS)}, a Pattern, or a function from the "
        "number of keys n to an (n, n) bool mask."
    )


def read_patterns(entries: str | Sequence[PatternLike]) -> tuple[Pattern, ...]:
    """The pattern of each head: from a list of patterns, or the name of a list in `HEADS`.

    Raises:
        ValueError: an unknown name, or no entry.
    """
    if isinstance(entries, str):
        if entries not in HEADS:
            raise ValueError(f"ylg: no list of heads is called {entries!r}. Valid here: {', '.join(HEADS)}.")
        entries = HEADS[entries]
    if not isinstance(entries, Iterable):
        raise ValueError(
            f"ylg: patterns must be a list with an entry for each head, or the name of one; got {entries!r}. Valid "
            f"here: {', '.join(HEADS)}, or a list of names, Patterns or functions."
        )
    patterns = tuple(read_pattern(entry) for entry in entries)
    if not patterns:
        raise ValueError(f"ylg: patterns must name at least one head. Valid here: {', '.join(PATTERNS)}.")
    return patterns


def check_order(order: str) -> None:
    """Raise ValueError, listing the valid names, unless `order` enumerates the cells of a grid."""
    if order not in ORDERS:
        raise ValueError(f"ylg: no order is called {order!r}. Valid here: {', '.join(ORDERS)}.")


def check_mapping(mapping: str) -> None:
    """Raise ValueError, listing the valid names, unless `mapping` brings queries to key cells."""
    if mapping not in MAPPINGS:
        raise ValueError(f"ylg: no mapping is called {mapping!r}. Valid here: {', '.join(MAPPINGS)}.")


def order_of(size: Size, order: Order = "esa") -> Tensor:
    """The cells of a grid in enumeration order: (n,) long of row-major cell numbers, on the CPU.

    "esa": by Manhattan distance from the corner cell (row + col), ties by the smaller row. "hilbert": along the Hilbert
    curve, turned as in the released experiment for squares of 2^m; other grids are walked along the curve around
    them, whose cells outside are left out. "row": row by row, which is a pattern without ESA.
    """
    check_order(order)
    with torch.inference_mode(False), torch.device("cpu"):
        flat = torch.arange(size.area)
        rows, cols = flat // size.cols, flat % size.cols
        if order == "esa":
            return torch.argsort((rows + cols) * size.rows + rows)
        if order == "hilbert":
            return torch.argsort(_hilbert_distance(rows, cols, size))
        return flat


def _hilbert_distance(rows: Tensor, cols: Tensor, size: Size) -> Tensor:
    """How far along the curve a cell lies; the curve's side is the power of two around the grid."""
    levels = (max(size) - 1).bit_length()
    # The released walk starts on the corner of a curve with as many levels as rows; each further level turns it.
    x, y = (cols, rows) if (size.rows - levels) % 2 else (rows, cols)
    distance = torch.zeros_like(x)
    for level in reversed(range(levels)):
        side = 1 << level
        right, up = (x & side) > 0, (y & side) > 0
        distance += side * side * ((3 * right.long()) ^ up.long())
        x, y = x & (side - 1), y & (side - 1)
        flip, turn = right & ~up, ~up
        x, y = torch.where(flip, side - 1 - x, x), torch.where(flip, side - 1 - y, y)
        x, y = torch.where(turn, y, x), torch.where(turn, x, y)
    return distance


def grid_mask(pattern: PatternLike, size: Size, order: Order = "esa") -> Tensor:
    """A pattern on a grid: (n, n) bool with G[order[a], order[b]] = M[a, b], on the CPU."""
    cells = order_of(size, order)
    rank = torch.argsort(cells)
    return read_pattern(pattern)(size.area)[rank][:, rank]


def key_cells(q_size: Size, kv_size: Size, mapping: QueryMapping = "released") -> Tensor:
    """The key cell whose row of the grid mask each query takes: (n_q,) long, row-major on both sides, on the CPU.

    "released": the query's number modulo the number of keys, as in the released code. "tile": row and column modulo
    those of the key map, the paper's text (section 4). "nearest": the cell under the query.

    Raises:
        ValueError: the sizes do not fit the mapping, with those that would.
    """
    reasons = mapping_reasons(q_size, kv_size, mapping)
    if reasons:
        raise ValueError(f"ylg: {' '.join(reasons)}")
    with torch.inference_mode(False), torch.device("cpu"):
        flat = torch.arange(q_size.area)
        if mapping == "released":
            return flat % kv_size.area
        rows, cols = flat // q_size.cols, flat % q_size.cols
        if mapping == "tile":
            return (rows % kv_size.rows) * kv_size.cols + cols % kv_size.cols
        return (rows * kv_size.rows // q_size.rows) * kv_size.cols + cols * kv_size.cols // q_size.cols


def mapping_reasons(q_size: Size, kv_size: Size, mapping: QueryMapping) -> list[str]:
    """Why queries of one size cannot take the mask rows of keys of another; empty if they can."""
    check_mapping(mapping)
    if _fits(q_size, kv_size, mapping):
        return []
    if mapping == "released":
        return [
            f"query map {q_size} ({q_size.area} pixels) is not a whole multiple of key map {kv_size} ({kv_size.area} "
            f"pixels), which mapping='released' needs. Valid here: {_valid(q_size, kv_size, 'released')}."
        ]
    return [
        f"query map {q_size} is not tiled by key map {kv_size}, which mapping='tile' needs. "
        f"Valid here: {_valid(q_size, kv_size, 'tile')}."
    ]


def _fits(q_size: Size, kv_size: Size, mapping: QueryMapping) -> bool:
    if mapping == "released":
        return q_size.area % kv_size.area == 0
    return mapping == "nearest" or kv_size.divides(q_size)


def _valid(q_size: Size, kv_size: Size, mapping: QueryMapping) -> str:
    """What else would fit: another mapping for these sizes, or the nearest query maps for this one."""
    others = [other for other in MAPPINGS if _fits(q_size, kv_size, other)]
    steps = [(side // of, -(-side // of)) for side, of in zip(q_size, kv_size, strict=True)]
    sizes = {Size(max(1, a) * kv_size.rows, max(1, b) * kv_size.cols) for a in steps[0] for b in steps[1]}
    nearest = min(sizes, key=lambda size: (abs(size.rows - q_size.rows) + abs(size.cols - q_size.cols), size))
    return ", ".join([f"mapping={other!r}" for other in others] + [f"query map {nearest}"])


def ylg_mask(
    pattern: PatternLike,
    q_size: Size | Sequence[int],
    kv_size: Size | Sequence[int],
    order: Order = "esa",
    mapping: QueryMapping = "released",
) -> Tensor:
    """The mask that one head applies: (n_q, n_k) bool on the CPU, pixels row-major, True = may be attended.

    Raises:
        ValueError: an unknown name, a pattern function that gives no mask, or sizes that do not fit the mapping.
    """
    q_size, kv_size = Size.of(tuple(q_size)), Size.of(tuple(kv_size))
    return grid_mask(pattern, kv_size, order)[key_cells(q_size, kv_size, mapping)]
