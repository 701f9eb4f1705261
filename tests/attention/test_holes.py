"""Boxes around holes: they hold every hole, overlap nowhere, and are grouped into calls of one size."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.attention.holes import Box, hole_boxes, rounds, stacked


def mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (20, 30)) -> Tensor:
    holes = torch.zeros(size, dtype=torch.bool)
    for top, bottom, left, right in boxes:
        holes[top:bottom, left:right] = True
    return holes


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    rows, cols = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    cells = draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1)), max_size=12))
    holes = torch.zeros(rows, cols, dtype=torch.bool)
    for row, col in cells:
        holes[row, col] = True
    return holes


def test_holes_apart_have_boxes_of_their_own() -> None:
    found = hole_boxes(mask((2, 5, 3, 9), (2, 5, 20, 22), (12, 20, 0, 30)))
    assert found == [Box(2, 5, 3, 9), Box(2, 5, 20, 22), Box(12, 20, 0, 30)]
    assert hole_boxes(mask()) == []


def test_small_gaps_are_kept() -> None:
    apart = mask((2, 5, 3, 9), (2, 5, 12, 14))
    assert len(hole_boxes(apart, gap=3)) == 2
    assert hole_boxes(apart, gap=4) == [Box(2, 5, 3, 14)]


def test_cuts_are_found_inside_cuts() -> None:
    """Three boxes that no one line through the whole mask parts."""
    found = hole_boxes(mask((0, 4, 0, 20), (6, 20, 0, 8), (6, 9, 12, 30)))
    assert found == [Box(0, 4, 0, 20), Box(6, 9, 12, 30), Box(6, 20, 0, 8)]


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(1, 4))
def test_boxes_hold_every_hole_once(holes: Tensor, gap: int) -> None:
    times = torch.zeros(holes.shape, dtype=torch.int)
    for box in hole_boxes(holes, gap):
        box.of(times).add_(1)
        inside = box.of(holes)
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert bool(edge.any())  # no smaller box would do
    assert int(times.max()) <= 1
    assert not bool((holes & (times == 0)).any())


@settings(max_examples=60, deadline=None)
@given(st.lists(masks(), min_size=1, max_size=3), st.integers(0, 3))
def test_rounds_serve_every_hole_with_its_rim(samples: list[Tensor], rim: int) -> None:
    holes = torch.zeros(len(samples), 1, 14, 14, dtype=torch.bool)
    for number, sample in enumerate(samples):
        holes[number, 0, : sample.shape[0], : sample.shape[1]] = sample
    served = torch.zeros_like(holes)
    places = torch.arange(14 * 14).view(1, 1, 14, 14).expand(len(samples), -1, -1, -1)
    for turn in rounds(holes, rim):
        parts = stacked(places, turn)  # of one size, or they would not stack
        for place, (sample, outer, inner) in enumerate(zip(turn.samples, turn.outer, turn.inner, strict=True)):
            assert torch.equal(parts[place, 0], outer.of(places[sample, 0]))
            top, left = outer.top + inner.top, outer.left + inner.left
            bottom, right = outer.top + inner.bottom, outer.left + inner.right
            assert inner.top >= min(rim, top)  # as far as the map goes
            assert inner.left >= min(rim, left)
            assert outer.bottom - bottom >= min(rim, 14 - bottom)
            assert outer.right - right >= min(rim, 14 - right)
            served[sample, 0, top:bottom, left:right] = True
    assert not bool((holes & ~served).any())
