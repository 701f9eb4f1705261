"""The colours of where attention looks."""

from __future__ import annotations

import pytest
import torch

from saccade.geometry import Size
from saccade.pictures.offsets import CORNERS, STEPS, colour_wheel, offsets_picture


def test_the_wheel_passes_its_corners() -> None:
    wheel = colour_wheel()
    assert wheel.shape == (55, 3)
    starts = [sum(STEPS[:number]) for number in range(6)]
    assert wheel[starts].tolist() == [list(map(float, corner)) for corner in CORNERS]
    assert wheel[3].tolist() == pytest.approx([1, 3 / 15, 0])
    turn = (wheel.roll(-1, 0) - wheel).abs().sum(1)
    assert turn.max() == pytest.approx(1 / 4)  # the shortest way between two corners has four steps


def test_directions_have_colours_and_distances_strength() -> None:
    offsets = torch.zeros(1, 2, 1, 5, dtype=torch.long)
    offsets[0, :, 0] = torch.tensor(
        [[0, 0], [0, 8], [8, 0], [0, -8], [0, 4]]
    ).t()  # stay, right, down, left, half right
    picture = offsets_picture(offsets, Size(1, 5)) / 2 + 0.5
    stay, right, down, left, half = picture[0, :, 0].t()
    assert stay.tolist() == [1, 1, 1]
    assert right.tolist() == [1, 0, 0]
    wheel = colour_wheel()
    torch.testing.assert_close(left, wheel[27])  # half of 54 steps
    torch.testing.assert_close(down, (wheel[13] + wheel[14]) / 2)
    assert half.tolist() == [1, 0.5, 0.5]


def test_size_and_scale() -> None:
    offsets = torch.tensor([[[[3]], [[4]]]])
    assert offsets_picture(offsets, Size(6, 8)).shape == (1, 3, 6, 8)
    full, faint = (offsets_picture(offsets, Size(1, 1), longest=longest) for longest in (5.0, 50.0))
    torch.testing.assert_close(1 - faint, (1 - full) / 10)
    torch.testing.assert_close(offsets_picture(offsets, Size(1, 1), longest=1.0), full)  # no further than full


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"must be \(batch, 2, rows, cols\)"):
        offsets_picture(torch.zeros(1, 3, 2, 2), Size(2, 2))
    with pytest.raises(ValueError, match="longest must be above 0"):
        offsets_picture(torch.zeros(1, 2, 2, 2), Size(2, 2), longest=0.0)
