"""Scores of completed pictures: closed forms on the hole, its box and the whole picture, and the baseline beside."""

from __future__ import annotations

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from saccade.metrics.inpainting import inpainting_rows, mean_fill
from saccade.metrics.pixels import to_uint8
from saccade.metrics.rows import column_means

LEVEL = 2 / 255  # one of 8 bits in [-1, 1]


def case(size: int = 16, hole: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """A picture of noise on whole levels, its centred mask and box."""
    start = (size - hole) // 2
    target = torch.randint(60, 200, (1, 3, size, size)) * LEVEL - 1
    mask = torch.zeros(1, 1, size, size)
    mask[..., start : start + hole, start : start + hole] = 1
    return target, mask, torch.tensor([[start, start, hole, hole]])


def test_mean_fill_takes_the_colour_of_known_pixels() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 1], images[0, 2, :, :2], images[1] = 0.5, 1.0, -1.0
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, 0, :, 0] = 1
    images[0, :, :, 0] = 77.0  # what the hole hides does not count
    filled = mean_fill(images, masks)
    assert filled[0, :, 2, 0].tolist() == pytest.approx([0.0, 0.5, 1 / 3])
    assert torch.equal(filled[0, :, :, 1:], images[0, :, :, 1:])
    assert torch.equal(filled[1], images[1])


def test_a_uniform_error_in_the_hole() -> None:
    target, mask, box = case()
    (row,) = inpainting_rows(target + 51 * LEVEL * mask, target, mask, box, ["a"]).values()
    # 51 levels are a fifth of the range
    for region, share in (("hole", 1.0), ("box", 1.0), ("image", 0.25)):
        assert row[f"l1_{region}_percent"] == pytest.approx(20 * share)
        assert row[f"l2_{region}_percent"] == pytest.approx(4 * share)
        assert row[f"psnr_{region}"] == pytest.approx(-10 * math.log10(0.04 * share))


def test_the_hole_is_its_pixels_and_the_box_more() -> None:
    target, mask, box = case()
    mask[..., 4:8, :] = 0  # half of the box
    (row,) = inpainting_rows(target + 51 * LEVEL * mask, target, mask, box, ["a"]).values()
    assert row["l2_hole_percent"] == pytest.approx(4)
    assert row["l2_box_percent"] == pytest.approx(2)
    assert row["l2_image_percent"] == pytest.approx(0.5)


def test_scores_are_those_of_independent_code() -> None:
    target, mask, box = case(40, 20)
    made = torch.where(mask > 0.5, torch.rand_like(target) * 2 - 1, target)
    (row,) = inpainting_rows(made, target, mask, box, ["a"]).values()
    wanted, found = (to_uint8(part)[0].permute(1, 2, 0).numpy() for part in (target, made))
    inner = slice(10, 30), slice(10, 30)
    for region, part in (("image", (slice(None), slice(None))), ("box", inner)):
        one, other = wanted[part], found[part]
        size = "x".join(str(side) for side in one.shape[:2])
        assert row[f"psnr_{region}"] == pytest.approx(peak_signal_noise_ratio(one, other, data_range=255), rel=1e-9)
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        similarity = structural_similarity(one, other, channel_axis=2, data_range=255, **gaussian)
        assert row[f"ssim_gaussian_range255_{region}_{size}"] == pytest.approx(similarity, rel=1e-9)
        similarity = structural_similarity(one, other, channel_axis=2, data_range=255)
        assert row[f"ssim_default_{region}_{size}"] == pytest.approx(similarity, rel=1e-9)
    assert row["psnr_hole"] == row["psnr_box"]


def test_total_variation() -> None:
    ramp = (torch.arange(16) * 5).repeat(1, 3, 16, 1) * LEVEL - 1  # 5 levels a column
    _, mask, box = case()
    (row,) = inpainting_rows(torch.where(mask > 0.5, -torch.ones(()), ramp), ramp, mask, box, ["a"]).values()
    assert row["tv_image_percent_target"] == row["tv_box_percent_target"] == pytest.approx(100 * 5 / 255)
    assert row["tv_box_percent"] == 0
    assert row["tv_image_percent"] > row["tv_image_percent_target"]  # the hole has an edge


def test_the_baseline_stands_beside_every_score_of_hole_and_box() -> None:
    target, mask, box = case()
    target[:, :, :, :8], target[:, :, :, 8:] = -1.0, 1.0
    rows = inpainting_rows(target, target, mask, box, ["a"])
    row = rows["a"]
    own = {name for name in row if not name.endswith(("_mean_fill", "_target"))}
    assert {name for name in own if f"{name}_mean_fill" in row} == {name for name in own if "image" not in name}
    # the mean of black and white is half the range from either, up to rounding to a level
    assert row["l2_hole_percent_mean_fill"] == pytest.approx(25, rel=1e-2)
    assert row["psnr_hole_mean_fill"] == pytest.approx(6.02, abs=0.05)
    # equal pictures count as one level wrong in one value
    assert row["psnr_hole"] == pytest.approx(10 * math.log10(255**2 * 3 * 64))
    assert row["psnr_image"] == pytest.approx(10 * math.log10(255**2 * 3 * 256))
    assert row["ssim_default_box_8x8"] == pytest.approx(1)
    assert not any(name.startswith("ssim_gaussian_range255_box") for name in row)  # its window is larger than the box


def test_means_are_of_pictures_and_every_picture_counts_once() -> None:
    target, mask, box = case()
    batch = target.repeat(2, 1, 1, 1)
    made = batch + torch.tensor([51.0, 0.0]).view(2, 1, 1, 1) * LEVEL * mask
    rows = inpainting_rows(made, batch, mask.repeat(2, 1, 1, 1), box.repeat(2, 1), ["a", "b"])
    means = column_means(rows.values())
    assert means["l2_hole_percent"] == pytest.approx(2)
    assert means["psnr_hole"] == pytest.approx((rows["a"]["psnr_hole"] + rows["b"]["psnr_hole"]) / 2)
    assert rows["a"]["psnr_hole"] < rows["b"]["psnr_hole"]


def test_values_are_clamped_and_rounded_as_saved() -> None:
    target, mask, box = case()
    near = inpainting_rows(target + 0.4 * LEVEL * mask, target, mask, box, ["a"])["a"]
    assert near["l2_image_percent"] == 0
    beyond, clamped = (inpainting_rows(target + 5 * s * mask, target, mask, box, ["a"])["a"] for s in (1.0, 2.0))
    assert beyond == clamped


def test_wrong_inputs_are_refused() -> None:
    target, mask, box = case()
    with pytest.raises(ValueError, match="1 pictures need 1 different keys"):
        inpainting_rows(target, target, mask, box, ["a", "b"])
    with pytest.raises(ValueError, match=r"boxes \(B, 4\); got"):
        inpainting_rows(target, target, mask, box[0], ["a"])
    with pytest.raises(ValueError, match=r"masks \(B, 1, Y, X\)"):
        inpainting_rows(target, target, mask[..., 1:], box, ["a"])
    broken = target.clone()
    broken[0, 0, 8, 8] = torch.nan
    with pytest.raises(ValueError, match="a was made with values that are not finite"):
        inpainting_rows(broken, target, mask, box, ["a"])
