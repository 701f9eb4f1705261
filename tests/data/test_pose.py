from __future__ import annotations

import math

import pytest
import torch
from tiny_people import a_pose

from saccade.data.pose import FLIP_PAIRS, KEYPOINT_NAMES, LIMBS, figure_mask, flip_keypoints, heatmaps
from saccade.geometry import Size

SIZE = Size(256, 176)


def test_names_limbs_and_flips_agree() -> None:
    assert len(KEYPOINT_NAMES) == len(set(KEYPOINT_NAMES)) == 18
    assert {KEYPOINT_NAMES[0], KEYPOINT_NAMES[1]}.isdisjoint({KEYPOINT_NAMES[i] for pair in FLIP_PAIRS for i in pair})
    assert len({i for pair in FLIP_PAIRS for i in pair}) == 16
    for a, b in FLIP_PAIRS:
        assert KEYPOINT_NAMES[a].replace("right", "left") == KEYPOINT_NAMES[b]
    assert {i for limb in LIMBS for i in limb} == set(range(18))


def test_heatmap_is_the_formula() -> None:
    points = torch.tensor([[[10.25, 20.0, 1.0], [0.0, 0.0, 0.0], [3.0, 2.0, 1.0]]], dtype=torch.float64)
    maps = heatmaps(points, Size(32, 24), sigma=2.0)
    assert maps.shape == (1, 3, 32, 24)
    for k in (0, 2):
        for y, x in ((0, 0), (20, 10), (2, 3), (31, 23), (18, 13)):
            r2 = (x - points[0, k, 0]) ** 2 + (y - points[0, k, 1]) ** 2
            assert maps[0, k, y, x] == pytest.approx(math.exp(-r2 / 8), abs=1e-12)
    assert maps[0, 2, 2, 3] == 1
    assert (maps[0, 1] == 0).all()


@pytest.mark.parametrize(("rows", "sigma"), [(256, 6.0), (512, 12.0), (32, 0.75)])
def test_default_sigma_is_six_pixels_at_256(rows: int, sigma: float) -> None:
    points = torch.tensor([[[rows / 2, rows / 2, 1.0]]])
    assert torch.equal(heatmaps(points, Size(rows, rows)), heatmaps(points, Size(rows, rows), sigma=sigma))


def test_flip_mirrors_heatmaps_with_left_and_right_exchanged() -> None:
    points = a_pose()[None]
    points[0, 4] = 0
    flipped = flip_keypoints(points, SIZE)
    order = list(range(18))
    for a, b in FLIP_PAIRS:
        order[a], order[b] = b, a
    assert torch.allclose(heatmaps(flipped, SIZE), heatmaps(points, SIZE).flip(-1)[:, order], atol=1e-5)
    assert flipped[0, 7].tolist() == [0, 0, 0]
    assert torch.equal(flip_keypoints(flipped, SIZE), points)


def test_mask_covers_the_skeleton_and_not_the_corners() -> None:
    points = a_pose()[None]
    mask = figure_mask(points, SIZE)
    assert mask.shape == (1, 1, *SIZE)
    assert mask.dtype == torch.bool
    for a, b in LIMBS:
        for t in (0.0, 0.3, 0.5, 1.0):
            x, y = (points[0, a, :2] * (1 - t) + points[0, b, :2] * t).round().long().tolist()
            assert mask[0, 0, y, x], (a, b, t)
    assert mask[0, 0, 90, 88]  # the chest, between the limbs
    for y, x in ((0, 0), (0, 175), (255, 0), (255, 175), (160, 10)):
        assert not mask[0, 0, y, x]
    assert 0.2 < mask.float().mean() < 0.45


def test_mask_is_the_same_in_a_batch_and_at_other_sizes() -> None:
    far = a_pose(shift=20.0)
    far[[9, 10]] = 0
    both = torch.stack([a_pose(), far])
    together = figure_mask(both, SIZE)
    assert torch.equal(together[1:], figure_mask(both[1:], SIZE))
    assert not torch.equal(together[0], together[1])
    half = torch.cat([(both[..., :2] + 0.5) / 2 - 0.5, both[..., 2:]], -1) * both[..., 2:]
    small = figure_mask(half, Size(128, 88))
    coarse = torch.nn.functional.avg_pool2d(together.float(), 2) > 0.5
    assert (small == coarse).float().mean() > 0.99


def test_missing_points_leave_out_their_limbs_only() -> None:
    whole, cut = a_pose(), a_pose()
    cut[[9, 10]] = 0  # right knee and ankle
    masks = figure_mask(torch.stack([whole, cut, torch.zeros(18, 3)]), SIZE)[:, 0]
    assert not (masks[1] & ~masks[0]).any()
    knee = whole[9, :2].long()
    assert masks[0, knee[1], knee[0]]
    assert not masks[1, knee[1], knee[0]]
    assert not masks[2].any()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"figure_mask: keypoints must be \(B, 18, 3\).*\(1, 17, 3\)"):
        figure_mask(torch.zeros(1, 17, 3), SIZE)
    with pytest.raises(ValueError, match="heatmaps: keypoints"):
        heatmaps(torch.zeros(18, 3), SIZE)
    with pytest.raises(ValueError, match="sigma must be positive"):
        heatmaps(torch.zeros(1, 18, 3), SIZE, sigma=0.0)
