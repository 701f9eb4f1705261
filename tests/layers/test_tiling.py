"""Parts of a picture: they cover it once, are the released ones, and the eight mirrorings are turned back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.geometry import Size
from saccade.layers.tiling import AREA, tiles, upscale


def sees_its_part(scale: int) -> Callable[[Tensor], Tensor]:
    """A network whose result depends on all that it is shown: pixels plus the mean and the place in the part."""

    def network(low: Tensor) -> Tensor:
        high = low.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        places = torch.arange(high.shape[-1], dtype=low.dtype) / 10
        return high + low.mean((-2, -1), keepdim=True) + places

    return network


def released(network: Callable[[Tensor], Tensor], low: Tensor, scale: int) -> Tensor:
    """The released division, restated: four corners, each a half and 10 pixels and up to the next multiple."""
    rows, cols = low.shape[-2:]
    sides = [n // 2 + 10 for n in (rows, cols)]
    sides = [n + scale - n % scale for n in sides]
    out = torch.zeros(*low.shape[:2], rows * scale, cols * scale, dtype=low.dtype)
    for bottom in (False, True):
        for right in (False, True):
            top, left = (rows - sides[0] if bottom else 0), (cols - sides[1] if right else 0)
            corner = low[..., top : top + sides[0], left : left + sides[1]]
            small = sides[0] * sides[1] < AREA
            high = network(corner) if small else released(network, corner, scale)
            own_rows = range(rows // 2, rows) if bottom else range(rows // 2)
            own_cols = range(cols // 2, cols) if right else range(cols // 2)
            for own, place in ((own_rows, "rows"), (own_cols, "cols")):
                assert len(own), place
            to = (slice(scale * own_rows[0], scale * own_rows[-1] + scale),
                  slice(scale * own_cols[0], scale * own_cols[-1] + scale))  # fmt: skip
            out[..., to[0], to[1]] = high[..., to[0].start - scale * top : to[0].stop - scale * top,
                                          to[1].start - scale * left : to[1].stop - scale * left]  # fmt: skip
    return out


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(40, 50), (64, 64), (96, 131), (61, 233)])
def test_the_released_division_is_met_exactly(scale: int, size: tuple[int, int]) -> None:
    low = torch.rand(1, 3, *size, dtype=torch.float64)
    network = sees_its_part(scale)
    found = upscale(network, low, scale)
    assert torch.equal(found, released(network, low, scale))
    assert not torch.allclose(found, upscale(network, low, scale, chop="none"))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 300), cols=st.integers(1, 300), scale=st.sampled_from([2, 3, 4]))
def test_parts_cover_the_picture_once_and_are_small(rows: int, cols: int, scale: int) -> None:
    count = torch.zeros(rows, cols, dtype=torch.int64)
    found = tiles(Size(rows, cols), scale)
    for (seen_rows, seen_cols), (own_rows, own_cols) in found:
        count[own_rows.start : own_rows.stop, own_cols.start : own_cols.stop] += 1
        for seen, own, side in ((seen_rows, own_rows, rows), (seen_cols, own_cols, cols)):
            assert 0 <= seen.start <= own.start < own.stop <= seen.stop <= side
        lengths = (seen_rows.stop - seen_rows.start, seen_cols.stop - seen_cols.start)
        assert lengths[0] * lengths[1] < AREA or len(found) == 1
        assert all(length % scale == 0 or length == side for length, side in zip(lengths, (rows, cols), strict=True))
    assert bool((count == 1).all())


def test_a_picture_of_any_size_gets_its_own_result_where_nothing_depends_on_the_part() -> None:
    def nearest(low: Tensor) -> Tensor:
        return F.interpolate(low, scale_factor=3, mode="nearest")

    for size in ((1, 1), (5, 200), (23, 24), (130, 70)):
        low = torch.rand(2, 3, *size)
        for ensemble in (False, True):
            torch.testing.assert_close(upscale(nearest, low, 3, self_ensemble=ensemble), nearest(low))


def test_the_ensemble_is_the_mean_over_the_eight_turns() -> None:
    """A ramp from left to right cancels to its mean; a point off the diagonal comes to eight places."""

    def ramp(low: Tensor) -> Tensor:
        return low.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0 + torch.arange(2.0 * low.shape[-1])

    found = upscale(ramp, torch.rand(1, 3, 4, 6), 2, chop="none", self_ensemble=True)
    # four turns keep the columns (mean of 0..11), four have the rows in their place (mean of 0..7)
    torch.testing.assert_close(found, torch.full((1, 3, 8, 12), (5.5 + 3.5) / 2))

    def corner(low: Tensor) -> Tensor:
        out = torch.zeros_like(low)
        out[..., 0, 1] = 8
        return out

    found = upscale(corner, torch.rand(1, 1, 4, 4), 1, chop="none", self_ensemble=True)
    wanted = torch.zeros(4, 4)
    for place in ((0, 1), (0, 2), (3, 1), (3, 2), (1, 0), (2, 0), (1, 3), (2, 3)):
        wanted[place] = 1
    assert torch.equal(found[0, 0], wanted)


def test_progress_counts_all_parts_of_all_turns() -> None:
    told: list[tuple[int, int]] = []
    low = torch.rand(1, 1, 64, 130)
    upscale(sees_its_part(2), low, 2, self_ensemble=True, progress=lambda done, total: told.append((done, total)))
    count = 4 * (len(tiles(Size(64, 130), 2)) + len(tiles(Size(130, 64), 2)))
    assert told == [(done, count) for done in range(1, count + 1)]


def test_wrong_input_is_refused() -> None:
    low = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="chop=auto is unknown; valid: released, none"):
        upscale(sees_its_part(2), low, 2, chop="auto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"made \(16, 16\) of \(8, 8\), which is not 3 times"):
        upscale(sees_its_part(2), low, 3)
    with pytest.raises(ValueError, match=r"takes \(B, C, Y, X\)"):
        upscale(sees_its_part(2), low[0], 2)
