"""L1, masked L1, PSNR and quantisation."""

import math

import pytest
import torch

from saccade.metrics.pixels import l1_per_image, masked_l1_per_image, psnr_per_image, to_uint8


def test_quantisation_is_that_of_saving():
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, 1 - 1.1 / 255]).view(1, 1, 1, 6)
    assert to_uint8(values).flatten().tolist() == [0, 0, 128, 255, 255, 254]
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)


def test_l1_is_one_value_per_image():
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[1] = 0.25
    assert l1_per_image(a, b).tolist() == [0.0, 0.25]


def test_masked_l1():
    a, b = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    b[0, :, 0, 0] = torch.tensor([0.3, 0.6, 0.9])
    b[0, :, 1, 1] = 5.0
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    values = masked_l1_per_image(a, b, mask)
    assert values[0].item() == pytest.approx(0.3)
    assert math.isnan(values[1])


def test_psnr():
    a = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[0] = 5
    values = psnr_per_image(a, b)
    assert values[0].item() == pytest.approx(20 * math.log10(255 / 5))
    # equal images: as one level wrong in one of 48 values
    assert values[1].item() == pytest.approx(10 * math.log10(255**2 * 48))
    b[1, 0, 0, 0] = 1
    assert psnr_per_image(a, b)[1].item() == values[1].item()
    with pytest.raises(ValueError, match="uint8"):
        psnr_per_image(a.float(), b.float())
