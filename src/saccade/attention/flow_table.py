"""The tables of information flow of Your Local GAN's patterns (arXiv 1911.12287, section 3 and appendix), computed.

The pairs of steps of this library, the Sparse Transformer's fixed pair without its own token, a dense pair, and a star,
whose tokens all pass through one relay: few edges and Full Information, but no two units at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from saccade.attention.flow import Mask, edges, full_information, pair_flow, path_counts
from saccade.ops.ylg.patterns import PATTERNS

#: What each pair of the library is called, and its two steps.
PAIRS: Mapping[str, tuple[str, tuple[str, str]]] = MappingProxyType(
    {
        "ltr": ("Left to right", ("ltr1", "ltr2")),
        "rtl": ("Right to left", ("rtl1", "rtl2")),
        "fixed": ("Fixed", ("fixed1", "fixed2")),
        "strided": ("Strided, two-sided window", ("strided1_two_sided", "strided2")),
        "strided_circular": ("Strided, circular window", ("strided1_circular", "strided2")),
        "strided_released": ("Strided, as released", ("strided1", "strided2")),
        "strided_original": ("Strided, Sparse Transformer", ("strided1", "strided2_causal")),
        "dense": ("Dense", ("dense", "dense")),
    }
)


def pair_masks(steps: Sequence[str], n: int) -> list[Mask]:
    """The masks of named steps at n tokens."""
    return [PATTERNS[step](n).numpy() for step in steps]


def _fixed_without_own(n: int) -> list[Mask]:
    first, second = pair_masks(("fixed1", "fixed2"), n)
    summary = PATTERNS["ltr2"](n).numpy().all(0)  # keys that every query of LTR's second step sees
    return [first, second & summary]


def _star(n: int) -> list[Mask]:
    return [np.ones((1, n), bool), np.ones((n, 1), bool)]


#: Every line of the tables: its name, and its masks at n tokens.
LINES: Mapping[str, Callable[[int], list[Mask]]] = MappingProxyType(
    {
        **{heading: functools.partial(pair_masks, steps) for heading, steps in PAIRS.values()},
        "Fixed, without the own token": _fixed_without_own,
        "Star": _star,
    }
)


def missing_table(sizes: Sequence[int] = (9, 16, 64, 256)) -> str:
    """Pairs of an input and an output without a path, in the order given and with the steps swapped, as Markdown."""
    head = " / ".join(map(str, sizes))
    lines = [f"| pair of steps | Full Information | no path, n = {head} | steps swapped |", "| --- | --- | --- | --- |"]
    for name, make in LINES.items():
        forward, swapped = [], []
        for n in sizes:
            masks = make(n)
            forward.append(full_information(masks).count)
            if masks[0].shape == masks[1].shape:
                swapped.append(full_information(masks[::-1]).count)
        told = "yes" if not any(forward) else "no"
        lines.append(f"| {name} | {told} | {_counts(forward)} | {_counts(swapped)} |")
    return "\n".join(lines)


def paths_table(n: int = 9) -> str:
    """Edges, paths from input to output, and pairs of inputs that reach pairs of outputs at once, as Markdown."""
    lines = [
        f"| pair of steps, n = {n} | edges | paths: fewest, most, mean | two at once |",
        "| --- | --- | --- | --- |",
    ]
    for name, make in LINES.items():
        masks = make(n)
        paths, flow = path_counts(masks), pair_flow(masks)
        spread = f"{paths.least}, {paths.most}, {paths.mean:.3f}"
        lines.append(f"| {name} | {edges(masks)} | {spread} | {flow.carried:,} of {flow.pairs:,} |")
    return "\n".join(lines)


def _counts(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return "0" if not any(values) else " / ".join(f"{value:,}" for value in values)
