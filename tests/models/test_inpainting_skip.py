"""The inpainting generator's skip="mean": predictions are differences from the mean colour of what is known."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saccade.attention.contextual import ContextualBlock
from saccade.attention.full import FullAttention
from saccade.attention.slots import SlotPolicy
from saccade.metrics.inpainting import mean_fill
from saccade.models.inpainting import InpaintingGenerator


def network(skip: Any = "mean") -> InpaintingGenerator:
    torch.manual_seed(0)
    policy = SlotPolicy(
        partial(FullAttention, score="l2", scale=1.0),
        exact_up_to=0,
        block=partial(ContextualBlock, rate=1, everywhere=False, known_window=1),
    )
    return InpaintingGenerator(image_size=16, width=4, attention=policy, skip=skip).double()


def case(rows: int = 16, cols: int = 16) -> tuple[Tensor, Tensor]:
    images, masks = torch.rand(2, 3, rows, cols, dtype=torch.float64) - 0.5, torch.zeros(2, 1, rows, cols).double()
    masks[0, :, 4:12, 5:11] = 1
    masks[1, :, 2:6, 0:9] = 1
    return images, masks


def lively(net: InpaintingGenerator) -> InpaintingGenerator:
    """With last layers that say something."""
    for last in (net.coarse_generator.conv17, net.fine_generator.allconv17):
        for weight in last.parameters():
            nn.init.normal_(weight, std=0.02)
    return net


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_it_begins_as_mean_fill(size: tuple[int, int]) -> None:
    images, masks = case(*size)
    output = network()(images, masks)
    torch.testing.assert_close(output.completed, mean_fill(images, masks))
    colours = mean_fill(images, masks)[0, :, 5, 6]
    torch.testing.assert_close(output.coarse[0], colours[:, None, None].expand_as(output.coarse[0]))


@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_a_change_of_colour_goes_through(size: tuple[int, int]) -> None:
    images, masks = case(*size)
    net = lively(network())
    shift = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64).view(1, 3, 1, 1)
    one, other = net(images, masks), net(images + shift, masks)
    assert float((one.fine - one.fine.mean((2, 3), keepdim=True)).abs().max()) > 1e-3
    for name in ("coarse", "fine", "completed"):
        torch.testing.assert_close(getattr(one, name) + shift, getattr(other, name), rtol=0, atol=1e-10)
    plain = lively(network("none"))
    assert float((plain(images + shift, masks).fine - plain(images, masks).fine - shift).abs().max()) > 1e-2


def test_the_whole_range_can_be_predicted() -> None:
    images, masks = torch.full((1, 3, 16, 16), -1.0).double(), case()[1][:1]
    net = network()
    nn.init.constant_(net.fine_generator.allconv17.conv.bias, 5.0)
    output = net(images, masks)
    assert set(output.fine.unique().tolist()) == {1.0}
    assert float(output.coarse.max()) == -1.0


def test_what_a_hole_hides_does_not_colour_it() -> None:
    images, masks = case()
    net = lively(network())
    hidden = torch.where(masks > 0.5, torch.rand_like(images), images)
    assert torch.equal(net(images, masks).fine, net(hidden, masks).fine)


def test_all_other_weights_begin_as_without_it() -> None:
    plain, skipping = network("none").state_dict(), network().state_dict()
    assert plain.keys() == skipping.keys()
    changed = {name for name in plain if not torch.equal(plain[name], skipping[name])}
    assert {name.rsplit(".", 2)[0] for name in changed} == {"coarse_generator.conv17", "fine_generator.allconv17"}
    assert all(not skipping[name].any() for name in changed)


def test_it_learns_from_the_first_step_on() -> None:
    images, masks = case()
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        output = net(images, masks)
        ((output.fine - images).abs().mean() + (output.coarse - images).abs().mean()).backward()
        optimiser.step()
    silent = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_an_unknown_skip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"skip=grey is unknown\. Valid here: none, mean"):
        network("grey")
