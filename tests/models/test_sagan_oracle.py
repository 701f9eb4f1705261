"""Attention in both SAGAN networks against a masked dense product in NHWC, in float64, for every ablation of YLG.

Expected masks come from `oracles.ylg_loops`, cell by cell; projections, pooling, softmax and spectral norm are written
here once more. Sigma is never 0: there the layer would be the identity, whatever it does.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles.sagan_released import pool_max
from oracles.ylg_loops import esa_cells, hilbert_cells, key_cell, token_mask
from saccade.attention.block import SlotBlock
from saccade.layers.spectral import SpectralConv2d
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention

TOLERANCE = 1e-12  # relative to the largest entry of the expected tensor, or absolute where that is below 1
YLG = ("rtl1", "rtl2", "rtl1", "rtl2", "ltr1", "ltr2", "ltr1", "ltr2")
WIDE = (1, 1, 1, 1, 3, 3, 3, 3)


@dataclass(frozen=True)
class Ablation:
    """What `attention=` is told, and what it must then do: a pattern a head, and the heads' shares of the channels."""

    backend: str
    options: dict[str, Any]
    patterns: tuple[str, ...]
    order: str = "esa"
    mapping: str = "released"
    shares: tuple[int, ...] = field(default=(1,) * 8)


def _pairs(first: str, second: str) -> tuple[str, ...]:
    return (first, second) * 4


SPARSE_AND_DENSE = ("rtl1", "rtl2", "ltr1", "ltr2", "dense", "dense", "dense", "dense")
ABLATIONS = {
    "sagan 1 head": Ablation("full", {"heads": 1}, ("dense",), shares=(1,)),
    "sagan 8 heads": Ablation("full", {"heads": 8}, ("dense",) * 8),
    "ylg": Ablation("ylg", {}, YLG),
    "no ESA": Ablation("ylg", {"order": "row"}, YLG, order="row"),
    "strided two-sided": Ablation("ylg", {"patterns": "strided"}, _pairs("strided1_two_sided", "strided2")),
    "strided circular": Ablation("ylg", {"patterns": "strided_circular"}, _pairs("strided1_circular", "strided2")),
    "strided released": Ablation("ylg", {"patterns": "strided_released"}, _pairs("strided1", "strided2")),
    "dense and sparse": Ablation("ylg", {"patterns": list(SPARSE_AND_DENSE)}, SPARSE_AND_DENSE),
    "widths": Ablation(
        "ylg", {"patterns": "dense", "head_channels": WIDE, "head_values": (1,) * 8}, ("dense",) * 8, shares=WIDE
    ),
    "hilbert": Ablation("ylg", {"order": "hilbert"}, YLG, order="hilbert"),
    "nearest": Ablation("ylg", {"mapping": "nearest"}, YLG, mapping="nearest"),
}
# Both networks at 32x32 as released, and the demo's 16x16 on 8x8; the rest of each network is as narrow as can be.
NETWORKS = {
    "G 32": (SaganGenerator, 32, (8, 8, 8, 256), 32, 256),
    "D 32": (SaganDiscriminator, 64, (8, 8, 8, 8, 128), 32, 128),
    "G 16": (SaganGenerator, 16, (8, 8, 256), 16, 256),
    "D 16": (SaganDiscriminator, 32, (8, 8, 8, 128), 16, 128),
}


def build(network: str, ablation: Ablation) -> tuple[Any, SlotBlock, int]:
    """The network in float64 with sigma 0.7, its attention block, and the side of the map that attends."""
    make, image_size, channels, side, _ = NETWORKS[network]
    attention = sagan_attention(ablation.backend, **ablation.options)
    built = make(image_size=image_size, channels=channels, classes=3, attention=attention, attention_at=side)
    built.double().eval()
    (block,) = built.attention_blocks.values()
    torch.nn.init.constant_(block.sigma, 0.7)
    return built, block, side


# The oracle


@functools.cache
def masks_of(ablation: str, side: int) -> Tensor:
    """(heads, side^2, side^2 / 4) bool: queries of a map, keys of the pooled one."""
    chosen, half = ABLATIONS[ablation], side // 2
    n = half * half
    cells = {
        "esa": lambda: esa_cells(half, half),
        "row": lambda: list(range(n)),
        "hilbert": lambda: hilbert_cells(half),
    }
    rank = np.argsort(cells[chosen.order]())
    rows = [key_cell(chosen.mapping, r, c, (side, side), (half, half)) for r in range(side) for c in range(side)]
    grids = {name: token_mask(name, n)[rank][:, rank][rows] for name in dict.fromkeys(chosen.patterns)}
    return torch.stack([grids[name] for name in chosen.patterns])


def used(convolution: SpectralConv2d) -> Tensor:
    """(in, out): the weight of a 1x1 convolution over its largest singular value, one round from the stored vector."""
    matrix = convolution.weight[:, :, 0, 0].T
    with torch.no_grad():
        v = matrix.T @ convolution.u
        v = v / v.norm()
        u = matrix @ v
        u = u / u.norm()
    return matrix / (u @ matrix @ v)


def expected(block: Any, x: Tensor, ablation: str) -> Tensor:
    """(B, Y, X, C) -> (B, Y, X, C)."""
    q, k, v = (x @ used(part) for part in (block.query, block.key, block.value))
    q, k, v = q.flatten(1, 2), pool_max(k).flatten(1, 2), pool_max(v).flatten(1, 2)
    masks, shares = masks_of(ablation, x.shape[1]), ABLATIONS[ablation].shares
    brought, start = [], 0
    for head, (mask, share) in enumerate(zip(masks, shares, strict=True)):
        width, height = q.shape[2] * share // sum(shares), v.shape[2] // len(shares)
        mine = slice(start, start + width)
        logits = torch.einsum("bqd,bkd->bqk", q[..., mine], k[..., mine])
        weights = logits.masked_fill(~mask, -torch.inf).softmax(2)
        brought.append(weights @ v[..., head * height : (head + 1) * height])
        start += width
    return x + block.sigma * (torch.cat(brought, 2).unflatten(1, x.shape[1:3]) @ used(block.out))


def assert_same(ours: Tensor, theirs: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape, what
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert size > 0, what
    assert error <= tolerance * max(1.0, size), f"{what}: off by {error:.2e}, largest {size:.2e}"


def draw(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Outputs and gradients


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_attention_and_all_its_gradients(network: str, ablation: str) -> None:
    _, block, side = build(network, ABLATIONS[ablation])
    x = draw(1 if side == 32 else 2, block.spec.q_channels, side, side).requires_grad_()
    leaves = {"x": x, **dict(block.named_parameters())}
    assert set(leaves) == {"x", "sigma", "query.weight", "key.weight", "value.weight", "out.weight"}
    out = expected(block, x.permute(0, 2, 3, 1), ablation).permute(0, 3, 1, 2)
    upstream = draw(*out.shape, seed=6)
    theirs = torch.autograd.grad((out * upstream).sum(), list(leaves.values()))
    ours = block(x, x)
    assert_same(ours, out, "output")
    assert (ours - x).abs().max() > 0.05
    for name, mine, other in zip(
        leaves, torch.autograd.grad((ours * upstream).sum(), list(leaves.values())), theirs, strict=True
    ):
        assert_same(mine, other, f"gradient of {name}")


@pytest.mark.parametrize("network", NETWORKS)
def test_the_whole_network_and_gradients_of_all_its_parameters(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, block, _ = build(network, ABLATIONS["ylg"])
    labels = torch.tensor([0, 2])
    images = (2, 3, *built.image_size)
    x = draw(2, built.latent) if isinstance(built, SaganGenerator) else draw(*images)

    def run() -> tuple[Tensor, list[Tensor]]:
        out = built(x, labels)
        return out.detach(), list(torch.autograd.grad((out * draw(*out.shape, seed=8)).sum(), built.parameters()))

    out, gradients = run()

    def oracle(q_map: Tensor, kv_map: Tensor) -> Tensor:
        assert q_map is kv_map
        return expected(block, q_map.permute(0, 2, 3, 1), "ylg").permute(0, 3, 1, 2)

    monkeypatch.setattr(block, "forward", oracle)
    expected_out, expected_gradients = run()
    assert_same(out, expected_out, "output", 1e-11)
    names = [name for name, _ in built.named_parameters()]
    for name, mine, other in zip(names, gradients, expected_gradients, strict=True):
        assert_same(mine, other, f"gradient of {name}", 1e-11)


# Counts


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_parameters_do_not_depend_on_the_heads(ablation: str) -> None:
    channels = (1024, 1024, 512, 256, 128, 64)
    with torch.device("meta"):
        attention = sagan_attention(ABLATIONS[ablation].backend, **ABLATIONS[ablation].options)
        networks = [
            make(image_size=128, channels=channels, attention=attention)
            for make in (SaganGenerator, SaganDiscriminator)
        ]
    totals = [sum(p.numel() for p in network.parameters()) for network in networks]
    layers = [sum(p.numel() for p in network.attention.parameters()) for network in networks]
    assert totals == [42_078_852, 39_463_618]
    assert layers == [81_921, 20_481]


# At 1024 queries on 256 keys: allowed pairs of all heads, of their union, and the first digits of the masks' digest
# (sha256 of np.packbits). None where there is no published or analysed figure.
MASKS: dict[str, tuple[int, int | None, str | None]] = {
    "sagan 1 head": (262_144, 262_144, None),
    "sagan 8 heads": (2_097_152, 262_144, None),
    "ylg": (104_192, 47_104, "cd18cbb2565c85de"),
    "no ESA": (104_192, 47_104, "d767a85c6f5e30e3"),
    "strided two-sided": (188_672, None, "be9c862343bbd613"),
    "strided circular": (131_072, None, "1e46a4d757f86aed"),
    "strided released": (129_152, None, "2a7dc3f4c61370c4"),
    "dense and sparse": (4 * 262_144 + 2 * 8704 + 2 * 17_344, 262_144, None),
    "widths": (2_097_152, 262_144, None),
    "hilbert": (104_192, 47_104, None),
    "nearest": (104_192, 47_104, None),
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_pairs_that_the_layer_lets_attend(ablation: str) -> None:
    """Read from the weights of all queries: a pair is allowed where its weight is not 0."""
    _, block, side = build("D 32", ABLATIONS[ablation])
    x = draw(1, block.spec.q_channels, side, side)
    places = torch.arange(side * side)
    with torch.no_grad():
        found = block.weights(x, x, torch.stack([places // side, places % side], 1))
    masks = torch.zeros(1, len(ABLATIONS[ablation].patterns), side * side, side * side // 4, dtype=torch.float64)
    allowed = masks.scatter_add_(3, found.indices, found.weights)[0] > 0
    total, union, digest = MASKS[ablation]
    assert torch.equal(allowed, masks_of(ablation, side))
    assert int(allowed.sum()) == total
    assert union is None or int(allowed.any(0).sum()) == union
    assert digest is None or hashlib.sha256(np.packbits(allowed.numpy()).tobytes()).hexdigest()[:16] == digest
    if union == 47_104:
        assert set(allowed.any(0).sum(1).tolist()) == {46}


# Spectral norm


@pytest.mark.parametrize(("make", "layers"), [(SaganGenerator, 15), (SaganDiscriminator, 17)], ids=["G", "D"])
def test_spectral_norms_are_those_of_the_singular_value_decomposition(make: Any, layers: int) -> None:
    built = make(
        image_size=32, channels=(8, 8, 64, 64), classes=5, attention=sagan_attention("ylg"), attention_at=16
    ).double()
    (block,) = built.attention_blocks.values()
    equal = {id(part) for part in (block.query, block.key, block.value, block.out)}
    found = {name: part for name, part in built.named_modules() if hasattr(part, "normalised")}
    above = set()
    for number, (name, layer) in enumerate(found.items()):
        with torch.no_grad():
            layer.weight.mul_(0.3 if number % 2 else 1.7)
            true = np.linalg.svd(layer.weight.flatten(1).numpy(), compute_uv=False)[0]
            before = 0.0
            while (now := layer.sigma().item()) > before * (1 + 1e-9):  # the estimate grows until it has converged
                before = now
            norm = np.linalg.svd(layer.normalised().flatten(1).numpy(), compute_uv=False)[0]
        assert now == pytest.approx(true, rel=1e-4), name
        assert norm == pytest.approx(1.0 if id(layer) in equal else min(1.0, true), rel=1e-4), name
        above.add(bool(true > 1))
    assert above == {False, True}
    assert len(found) == layers
