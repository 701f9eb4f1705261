from __future__ import annotations

import pytest
import torch

from saccade.data.affine import random_affine, warp, warp_keypoints
from saccade.data.pose import heatmaps
from saccade.geometry import Size

SIZE = Size(64, 48)


def some_points(n: int = 12) -> torch.Tensor:
    points = torch.zeros(n, 18, 3)
    gen = torch.Generator().manual_seed(3)
    points[..., 0] = torch.rand(n, 18, generator=gen) * 30 + 9
    points[..., 1] = torch.rand(n, 18, generator=gen) * 44 + 10
    points[..., 2] = 1
    points[:, 4] = 0
    return points


def test_noise_is_uniform_on_every_entry() -> None:
    theta = random_affine(4000, 0.15, torch.Generator().manual_seed(0)) - torch.eye(2, 3)
    assert theta.abs().max() <= 0.15
    spread = theta.std(0)
    assert torch.allclose(spread, torch.full_like(spread, 0.15 / 3**0.5), atol=0.004)
    assert theta.mean(0).abs().max() < 0.006


def test_same_generator_same_maps_and_linear_only() -> None:
    one = random_affine(3, 0.15, torch.Generator().manual_seed(5))
    two = random_affine(3, 0.15, torch.Generator().manual_seed(5), translate=False)
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert torch.equal(two[:, :, 2], torch.zeros(3, 2))
    assert one[:, :, 2].abs().min() > 0


def test_identity_leaves_pictures_and_points() -> None:
    theta = random_affine(2, 0.0)
    images = torch.randn(2, 3, *SIZE)
    assert torch.allclose(warp(images, theta), images, atol=1e-4)
    points = some_points(2)
    assert torch.allclose(warp_keypoints(points, theta, SIZE), points, atol=1e-4)


def test_heatmap_peaks_follow_the_points() -> None:
    """The same theta moves a heatmap (as a picture) and its keypoint to the same place, within half a pixel."""
    points = some_points()
    theta = random_affine(len(points), 0.15, torch.Generator().manual_seed(1))
    warped = warp(heatmaps(points, SIZE, sigma=3.0), theta, padding="zeros")
    moved = warp_keypoints(points, theta, SIZE)
    margin = 4
    checked = 0
    for b, k in torch.nonzero(moved[..., 2] > 0).tolist():
        x, y = moved[b, k, :2]
        if not (margin < x < SIZE.cols - margin and margin < y < SIZE.rows - margin):
            continue
        mass = warped[b, k].double() ** 4  # the fourth power keeps the tails out of the centroid
        ys, xs = torch.meshgrid(torch.arange(SIZE.rows), torch.arange(SIZE.cols), indexing="ij")
        assert abs((mass * xs).sum() / mass.sum() - x) < 0.5
        assert abs((mass * ys).sum() / mass.sum() - y) < 0.5
        peak = int(warped[b, k].argmax())
        assert abs(peak % SIZE.cols - x) <= 1
        assert abs(peak // SIZE.cols - y) <= 1
        checked += 1
    assert checked > 60
    assert (moved[:, 4] == 0).all()
    assert (warped[:, 4] == 0).all()


def test_points_that_leave_become_missing() -> None:
    theta = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])  # output shows what lies a quarter to the right
    points = torch.tensor([[[2.0, 10.0, 1.0], [40.0, 10.0, 1.0]]])
    moved = warp_keypoints(points, theta, SIZE)
    assert moved[0, 0].tolist() == [0, 0, 0]
    assert moved[0, 1].tolist() == pytest.approx([40 - 12, 10, 1])


def test_padding_modes_differ_only_outside() -> None:
    theta = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
    images = torch.full((1, 1, *SIZE), 0.7)
    assert warp(images, theta, padding="border").min() == pytest.approx(0.7)
    zeros = warp(images, theta, padding="zeros")
    assert zeros[..., :30].min() == pytest.approx(0.7)
    assert zeros[..., -5:].max() == 0


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"magnitude 0\.7"):
        random_affine(1, 0.7)
    with pytest.raises(ValueError, match=r"theta must be \(3, 2, 3\)"):
        warp(torch.zeros(3, 1, 8, 8), torch.zeros(2, 2, 3))
