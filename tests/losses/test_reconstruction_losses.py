"""L1 terms."""

import pytest
import torch

from saccade.losses import l1, masked_l1


def test_l1():
    a, b = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    b[0, 0, 0, 0] = -6.0
    assert l1(a, b)["l1"].item() == pytest.approx(0.5)
    assert l1(a.half(), b.half())["l1"].dtype == torch.float32


def test_masked_l1_sees_the_mask_only():
    torch.manual_seed(0)
    generated, target = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 1, 2] = mask[1, 0, 3, 4] = mask[1, 0, 0, 0] = True
    picked = [(0, 1, 2), (1, 3, 4), (1, 0, 0)]
    wanted = sum((generated[b, :, y, x] - target[b, :, y, x]).abs().sum() for b, y, x in picked) / 9
    assert torch.allclose(masked_l1(generated, target, mask)["l1_masked"], wanted)
    everywhere = torch.ones(2, 1, 4, 5)
    assert torch.allclose(masked_l1(generated, target, everywhere)["l1_masked"], l1(generated, target)["l1"])


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    generated = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = masked_l1(generated, torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool))["l1_masked"]
    loss.backward()
    assert loss.item() == 0
    assert generated.grad.abs().max() == 0


def test_shapes():
    with pytest.raises(ValueError, match="one shape"):
        l1(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"mask must be \(1, 1, 4, 4\)"):
        masked_l1(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
