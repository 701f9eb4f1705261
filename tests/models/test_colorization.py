"""The colourisation network: parameters to the unit, closed forms, the released script's network, options, costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.attention import (
    AttentionBlock,
    FullAttention,
    LocalAttention,
    NoAttention,
    PatchBasedStochasticAttention,
    SlotPolicy,
)
from saccade.attention.reference_block import ReferenceBlock
from saccade.geometry import Size, SlotSpec
from saccade.models.colorization import ColorizationNet

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))  # the list of all backends

from every_backend import ATTENDING, make

SIDE = 12


def l2_full(spec: Any = None, **options: Any) -> FullAttention:
    return FullAttention(spec, **{"score": "l2", "scale": 1.0, "patch_size": 7, "keys": "inside", **options})


def net(mixer: Any = l2_full, *, size: Any = SIDE, activation: str = "relu", **options: Any) -> ColorizationNet:
    torch.manual_seed(0)

    def block(spec: SlotSpec, made: Any) -> ReferenceBlock:
        return ReferenceBlock(spec, made, activation=activation)  # type: ignore[arg-type]

    return ColorizationNet(image_size=size, attention=SlotPolicy(mixer, exact_up_to=0, block=block), **options)


def pictures(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def released_full(q: Tensor, k: Tensor, v: Tensor, stride: int) -> Tensor:
    """The training script's baseline, its distances pair by pair: zeros around the queries, keys inside."""
    channels = q.shape[1]
    queries = F.unfold(q, 7, padding=3)[0].T  # (Yq Xq, 49 C)
    keys = F.unfold(k, 7, stride=stride)[0].T
    values = F.unfold(v, 7, stride=stride)[0].reshape(channels, 49, -1)[:, 24]  # at the centres
    distance = (queries[:, None] - keys[None]).square().sum(-1)
    return (torch.softmax(-distance, 1) @ values.T).T.reshape(1, channels, *q.shape[2:])


def test_parameters_to_the_unit() -> None:
    assert count(ColorizationNet(image_size=64)) == 1860
    assert count(net(skip="add")) == count(net(skip="none")) == 3 * 448 + 435
    assert count(net(width=8)) == 3 * (8 * 27 + 8) + 3 * (11 * 9) + 3


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_released_script(stride: int) -> None:
    network = net(lambda spec: l2_full(spec, key_stride=stride)).double()
    grey, reference = pictures(1, 1, SIDE, 14), pictures(1, 3, 15, 13, seed=2)
    block = network.attention_blocks["reference"]
    assert isinstance(block, ReferenceBlock)
    three = grey.repeat(1, 3, 1, 1)
    q, k, v = (
        F.relu(layer(maps)) for layer, maps in ((block.query, three), (block.key, reference), (block.value, reference))
    )
    wanted = torch.sigmoid(network.final(torch.cat((three, released_full(q, k, v, stride)), 1)))
    torch.testing.assert_close(network(grey, reference), wanted)
    torch.testing.assert_close(network(three, reference), wanted)


def test_skips_and_outputs_in_closed_form() -> None:
    """With a final convolution of zeros and a bias, what is left is the skip."""
    grey, reference = pictures(2, 1, SIDE, SIDE), pictures(2, 3, SIDE, SIDE, seed=2)
    bias = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    for skip, output, wanted in (
        ("add", "none", grey + bias.view(3, 1, 1)),
        ("add", "sigmoid", torch.sigmoid(grey + bias.view(3, 1, 1))),
        ("none", "none", bias.view(3, 1, 1)),
        ("concat", "sigmoid", torch.sigmoid(bias.view(3, 1, 1))),
    ):
        network = net(skip=skip, output=output).double()
        with torch.no_grad():
            network.final.weight.zero_()
            network.final.bias.copy_(bias)  # type: ignore[union-attr]
        torch.testing.assert_close(network(grey, reference), wanted.expand(2, 3, SIDE, SIDE))


def test_the_paper_copies_colours_from_a_matching_place() -> None:
    """A reference that is the picture itself: weights that find themselves bring back the colours exactly."""
    colours = pictures(1, 3, SIDE, SIDE)
    network = net(
        lambda spec: PatchBasedStochasticAttention(spec, matches=1, search="exact"), skip="none", output="none"
    )
    network = network.double()
    block = network.attention_blocks["reference"]
    with torch.no_grad():
        for layer, rows in ((block.query, 1 / 3), (block.key, 1 / 3)):  # both compare the mean of R, G and B
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, :, 1, 1] = rows
        for layer in (block.value, network.final):
            layer.weight.zero_()
            layer.bias.zero_()
            for channel in range(3):
                layer.weight[channel, channel, 1, 1] = 1.0
    torch.testing.assert_close(network(colours.mean(1, keepdim=True), colours), colours)


def test_activation_is_an_option() -> None:
    grey, reference = pictures(1, 1, SIDE, SIDE), pictures(1, 3, SIDE, SIDE, seed=2)
    with_relu, without = net().double(), net(activation="none").double()
    assert not torch.allclose(with_relu(grey, reference), without(grey, reference))
    block = without.attention_blocks["reference"]
    seen: list[Tensor] = []
    block.mixer.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    without(grey, reference)
    assert all(bool((maps < 0).any()) for maps in seen[:3])


@pytest.mark.parametrize("name", ATTENDING)
def test_every_backend_fills_the_slot(name: str) -> None:
    """The weights outside the mixer are the same whatever the backend, and every one of them learns."""
    network, other = net(lambda spec: make(name, spec=spec), size=16), net(size=16)
    state = network.state_dict()
    for key, value in other.state_dict().items():
        assert torch.equal(state[key], value), key
    out = network(pictures(2, 1, 16, 16, dtype=torch.float32), pictures(2, 3, 16, 16, seed=2, dtype=torch.float32))
    assert out.shape == (2, 3, 16, 16)
    low, high = (float(edge) for edge in out.detach().aminmax())
    assert 0 < low < high < 1
    out.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert bool(torch.isfinite(parameter.grad).all()), key
    with torch.device("meta"):
        assert count(net(lambda spec: make(name, spec=spec), size=16)) == 1860


@pytest.mark.parametrize("name", ["gpa", "psal", "full"])
def test_pictures_of_other_sizes(name: str) -> None:
    """GPA refuses maps that its cells do not divide; the block continues them. What is close to the edge stays real."""
    network = net(lambda spec: make(name, spec=spec), size=16)
    grey, reference = pictures(1, 1, 13, 21, dtype=torch.float32), pictures(1, 3, 18, 11, seed=2, dtype=torch.float32)
    out = network(grey, reference)
    assert out.shape == (1, 3, 13, 21)
    assert bool(torch.isfinite(out).all())


def test_no_attention_leaves_the_grey_picture_alone() -> None:
    network = net(NoAttention)
    assert count(network) == 1860
    assert [key for key, value in network.named_parameters() if value.requires_grad] == ["final.weight", "final.bias"]
    grey = pictures(1, 1, SIDE, SIDE, dtype=torch.float32)
    one, two = (network(grey, pictures(1, 3, SIDE, SIDE, seed=seed, dtype=torch.float32)) for seed in (2, 3))
    assert torch.equal(one, two)


def test_weights_show_where_a_pixel_looks() -> None:
    network = net().double()
    block, grey = network.attention_blocks["reference"], pictures(1, 3, SIDE, SIDE)
    found = block.weights(grey, pictures(1, 3, SIDE, SIDE, seed=2), torch.tensor([[0, 0], [5, 7]]))
    assert found.indices.shape == (1, 1, 2, (SIDE - 6) ** 2)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(1, 1, 2, dtype=torch.float64))


def test_flops_of_table_8() -> None:
    """A distance counts 3 FLOPs for each of 784 numbers, a product 2; the table's Full and Local count 3 for both."""
    with torch.device("meta"):
        n = 256 * 256

        def flops(mixer: Any) -> float:
            block = net(mixer, size=256).attention_blocks["reference"]
            return block.mixer.cost(block.shape()).forward_flops

        for matches, published in ((1, 30), (3, 36)):
            found = flops(lambda spec, k=matches: PatchBasedStochasticAttention(spec, matches=k, iterations=10))
            assert found == n * ((matches + 10 * 24) * 3 * 784 + 2 * matches * 16)
            assert 1.0 < found / 1e9 / published < 1.25  # the table's searches make fewer candidates than the layer
        joint = flops(lambda spec: PatchBasedStochasticAttention(spec, matches=1, iterations=10, readout="aggregate"))
        assert joint / 1e9 == pytest.approx(37, abs=0.5)
        full = flops(lambda spec: l2_full(spec, key_stride=3))
        assert full == 2 * n * 84**2 * (784 + 16)
        assert (full + n * 84**2 * 784) / 1e9 == pytest.approx(1173, rel=0.07)  # 3 FLOPs a number: 1102
        window = flops(lambda spec: LocalAttention(spec, window=50, scale=1.0, patch_size=7))
        assert window < 385.35e9  # the kernel compares single pixels and adds them up


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="skip is one of concat, add, none; got 'sum'"):
        net(skip="sum")
    with pytest.raises(ValueError, match="output is one of sigmoid, none; got 'tanh'"):
        net(output="tanh")
    with pytest.raises(ValueError, match="width is a number of channels"):
        net(width=0)
    with pytest.raises(ValueError, match=r"slot reference: no activation is called 'gelu'\. Valid here: relu, none"):
        net(activation="gelu")
    with pytest.raises(ValueError, match=r"full, slot reference: 16 channels do not split into 3 heads"):
        net(lambda spec: l2_full(spec, heads=3))
    with pytest.raises(ValueError, match="out_channels"):
        ColorizationNet(image_size=16, attention=SlotPolicy(l2_full, exact_up_to=0, block=AttentionBlock))
    with pytest.raises(ValueError, match="slot reference"):
        net(size=Size(5, 20))  # no 7x7 patch lies inside
    network, good = net(), pictures(1, 3, SIDE, SIDE, dtype=torch.float32)
    for grey, reference in ((good[:, :2], good), (good, good[:, :1]), (good, good.repeat(2, 1, 1, 1)), (good[0], good)):
        with pytest.raises(ValueError, match="ColorizationNet: grey must be"):
            network(grey, reference)
