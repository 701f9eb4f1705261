"""The discounted l1 of a box against its released values."""

from __future__ import annotations

import pytest
import torch

from saccade.geometry import Size
from saccade.losses.discounted import discount_weights, discounted_l1


def test_weights_are_the_released_ones() -> None:
    # statistics of the released function at 128 and gamma 0.9, float32
    weights = discount_weights(Size(128, 128), 0.9)
    assert tuple(weights.shape) == (1, 1, 128, 128)
    assert float(weights.mean()) == pytest.approx(0.2529205, rel=1e-6)
    assert float(weights.square().mean().sqrt()) == pytest.approx(0.371257, rel=1e-5)
    assert [float(weights[0, 0, y, x]) for y, x in ((0, 0), (10, 20), (64, 64), (127, 127))] == pytest.approx(
        [1.0, 0.348678, 0.00117902, 0.9], rel=1e-5
    )
    assert weights[0, 0, 64, :4].tolist() == pytest.approx([1, 0.9, 0.81, 0.729], rel=1e-6)


def test_every_pixel_of_a_box_that_is_no_square() -> None:
    found = discount_weights(Size(5, 4), 0.5)[0, 0]
    for row in range(5):
        for col in range(4):
            assert float(found[row, col]) == max(0.5 ** min(row, 5 - row), 0.5 ** min(col, 4 - col))


def test_loss_is_the_mean_of_weighted_differences() -> None:
    target = torch.zeros(2, 3, 4, 4)
    generated = target.clone()
    generated[1, 2, 2, 2] = -0.5  # at depth 2 of both axes
    assert discounted_l1(generated, target, 0.9)["l1_discounted"].item() == pytest.approx(
        0.5 * 0.81 / generated.numel(), rel=1e-6
    )
    assert discounted_l1(generated, target, 1.0)["l1_discounted"].item() == pytest.approx(
        0.5 / generated.numel(), rel=1e-6
    )
    assert discounted_l1(generated.half(), target)["l1_discounted"].dtype == torch.float32


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        discounted_l1(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    for gamma in (0.0, 1.1):
        with pytest.raises(ValueError, match="gamma is above 0 and at most 1"):
            discount_weights(Size(4, 4), gamma)
