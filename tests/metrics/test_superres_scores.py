"""Scores of super-resolution against closed forms and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from saccade.metrics.superres import luma, psnr, scores, ssim


def picture(seed: int, rows: int = 40, cols: int = 33) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, rows, cols), generator=random, dtype=torch.uint8)


def blurred_noise(seed: int) -> Tensor:
    coarse = torch.nn.functional.interpolate(picture(seed, 10, 9).float(), (40, 33), mode="bilinear")
    return coarse.round().to(torch.uint8)


def test_luma_of_black_white_and_primaries() -> None:
    colours = torch.tensor(
        [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]], dtype=torch.uint8
    )
    found = luma(colours.view(6, 3, 1, 1)).flatten()
    assert found.tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966, 16 + 219 * 100 / 255])
    assert found.dtype == torch.float64


def test_psnr_of_one_level_of_one_colour() -> None:
    target = torch.full((1, 3, 20, 20), 90, dtype=torch.uint8)
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        changed = target.clone()
        changed[:, channel] += 3
        found = scores(changed, target, 2)
        assert float(found["psnr_y_shave2"]) == pytest.approx(20 * math.log10(255 * 255 / (3 * weight)), abs=1e-9)
        assert float(found["psnr_rgb_shave8"]) == pytest.approx(10 * math.log10(3 * 255**2 / 9), abs=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_border_does_not_count_and_the_next_pixel_does(scale: int) -> None:
    target, changed = picture(0), picture(0)
    changed[..., :scale, :] ^= 255
    changed[..., -scale:] ^= 255
    best = 10 * math.log10(255**2 * (40 - 2 * scale) * (33 - 2 * scale))
    assert scores(changed, target, scale)[f"psnr_y_shave{scale}"].tolist() == pytest.approx([best] * 2)
    assert scores(changed, target, scale)[f"ssim_y_shave{scale}"].tolist() == pytest.approx([1, 1])
    changed[:, :, scale, scale] ^= 255
    assert bool((scores(changed, target, scale)[f"psnr_y_shave{scale}"] < best - 1).all())


@pytest.mark.parametrize("scale", [2, 4])
def test_ssim_is_scikit_images_on_whole_windows(scale: int) -> None:
    target = blurred_noise(1)
    noise = torch.randint(-20, 21, target.shape, generator=torch.Generator().manual_seed(2))
    changed = (target.int() + noise).clamp(0, 255).to(torch.uint8)
    found = scores(changed, target, scale)
    for i in range(2):
        a, b = (luma(images)[i, 0, scale:-scale, scale:-scale].numpy() for images in (changed, target))
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        _, full = structural_similarity(a, b, full=True, **gaussian)
        assert float(found[f"ssim_y_shave{scale}"][i]) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-12)
        error = np.mean((a - b) ** 2)
        assert float(found[f"psnr_y_shave{scale}"][i]) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-10)


def test_ssim_of_two_flat_pictures() -> None:
    a, b = torch.full((1, 1, 20, 20), 50.0), torch.full((1, 1, 20, 20), 80.0)
    c1 = (0.01 * 255) ** 2
    assert float(ssim(a, b, 0)) == pytest.approx((2 * 50 * 80 + c1) / (50**2 + 80**2 + c1))


def test_what_is_too_small_for_a_window_is_not_a_number_and_for_its_border_is_refused() -> None:
    small = picture(3, 13, 30)
    found = scores(small, small, 2)
    assert bool(found["ssim_y_shave2"].isnan().all())
    assert bool(found["psnr_rgb_shave8"].isnan().all())
    assert bool(found["psnr_y_shave2"].isfinite().all())
    with pytest.raises(ValueError, match="a border of 2 pixels leaves nothing of 4x30"):
        scores(picture(3, 4, 30), picture(4, 4, 30), 2)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="images are uint8"):
        luma(torch.zeros(1, 3, 4, 4))
    for judge in (psnr, ssim):
        with pytest.raises(ValueError, match="of one shape"):
            judge(picture(0), picture(0, 41), 2)
    with pytest.raises(ValueError, match="of one shape"):
        scores(picture(0), picture(0, 41), 2)
