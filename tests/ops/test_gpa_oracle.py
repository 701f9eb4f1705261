"""Grid Partitioned Attention against plain loops that were written independently: outputs and gradients in float64."""

from __future__ import annotations

import functools
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from oracles.gpa_loops import dense_loops, gpa_loops
from saccade.attention.block import AttentionBlock
from saccade.attention.gpa import GridPartitionedAttention
from saccade.geometry import Size, SlotSpec
from saccade.ops import double_backward
from saccade.ops.gpa import gpa_attention, gpa_select

ROOT = Path(__file__).resolve().parents[2]
released_gpa = runpy.run_path(str(ROOT / "benchmarks" / "peers" / "released_gpa.py"))["released_gpa"]

TOLERANCE = 1e-12  # relative to the largest entry of the expected tensor, or absolute where that is below 1
KERNELS = ("reference", "recompute")
SCORES = ("dot", "l2")
KV_CHANNELS, Q_CHANNELS, OUT_CHANNELS = 7, 6, 5
QK_CHANNELS = max(KV_CHANNELS, Q_CHANNELS)


@dataclass(frozen=True)
class Config:
    """Sizes are (rows, cols); `released` says how the released layer would name the partition (SHIERARCHY, splitM)."""

    query: tuple[int, int]
    key: tuple[int, int]
    released: tuple[int, int]
    keys_per_cell: int

    @property
    def factor(self) -> int:
        return self.query[0] // self.released[0]

    @property
    def coarse(self) -> Size:
        return Size(self.query[0] // self.factor, self.query[1] // self.factor)

    @property
    def cells(self) -> Size:
        side = min(self.coarse) // self.released[1]
        return Size(self.coarse.rows // side, self.coarse.cols // side)

    @property
    def options(self) -> dict[str, object]:
        return {"cells": self.cells, "keys_per_cell": self.keys_per_cell, "coarse": self.coarse}

    def __str__(self) -> str:
        return f"q{Size(*self.query)}-k{Size(*self.key)}-cells{self.cells}-kappa{self.keys_per_cell}"


CONFIGS = (
    Config((16, 16), (16, 16), (8, 4), 3),
    Config((32, 16), (32, 16), (8, 4), 2),
    Config((32, 16), (32, 16), (8, 2), 2),
    Config((32, 32), (32, 32), (8, 8), 5),
    Config((24, 24), (24, 24), (8, 2), 4),  # d = 3
    Config((16, 16), (16, 32), (8, 4), 3),
    Config((16, 16), (32, 16), (8, 2), 3),
)
each_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
each_score = pytest.mark.parametrize("score", SCORES)
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def draw(*shape: int, gain: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def assert_close(got: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape, what
    error = (got - expected).abs().max().item()
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert error <= bound, f"{what}: off by {error:.2e}, allowed {bound:.2e}"


class Expected(NamedTuple):
    inputs: tuple[Tensor, ...]
    upstream: Tensor
    output: Tensor
    gradients: tuple[Tensor, ...]
    distinct_choices: int
    smallest_margin: float


def expect(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Expected:
    """Output and gradients of q, k, v by the loops, with the gradient of the output drawn at random."""
    loops = gpa_loops(q, k, v, **options)  # type: ignore[arg-type]
    upstream = draw(*loops.output.shape, seed=9).detach()
    gradients = torch.autograd.grad(loops.output, (q, k, v), upstream)
    distinct = len({tuple(sorted(choice.keys)) for choice in loops.choices.values()})
    return Expected((q, k, v), upstream, loops.output.detach(), gradients, distinct, loops.smallest_margin)


def compare(expected: Expected, output: Tensor) -> None:
    assert_close(output, expected.output, "output")
    gradients = torch.autograd.grad(output, expected.inputs, expected.upstream)
    for name, got, wanted in zip("qkv", gradients, expected.gradients, strict=True):
        assert_close(got, wanted, f"gradient of {name}")


@functools.cache
def expected_of(config: Config, score: str) -> Expected:
    # Standard normal maps times 4: at smaller gains all cells choose nearly the same keys and the test sees no choice.
    q = draw(2, 1, QK_CHANNELS, *config.query, gain=4, seed=1)
    k = draw(2, 1, QK_CHANNELS, *config.key, gain=4, seed=2)
    v = draw(2, 1, OUT_CHANNELS, *config.key, seed=3)
    return expect(q, k, v, score=score, **config.options)


@each_config
@each_score
def test_choice_matters_and_is_far_from_ties(config: Config, score: str) -> None:
    """The 14 comparisons below mean something: cells choose differently, and no choice hangs on rounding."""
    expected = expected_of(config, score)
    assert expected.distinct_choices > 0.7 * 2 * config.cells.area
    assert expected.smallest_margin > 1e-6


@each_config
@each_score
@each_kernel
def test_output_and_gradients_match_the_loops(config: Config, score: str, kernel: str) -> None:
    expected = expected_of(config, score)
    compare(expected, gpa_attention(*expected.inputs, score=score, kernel=kernel, **config.options))


@each_score
def test_select_returns_the_choice_of_the_loops(score: str) -> None:
    config = CONFIGS[5]
    q, k, v = expected_of(config, score).inputs
    chosen = gpa_select(q, k, score=score, **config.options)
    cols = config.key[1] // config.factor
    for (b, g, row, col), choice in gpa_loops(q, k, v, score=score, **config.options).choices.items():
        wanted = {y * cols + x for y, x in choice.keys}
        assert set(chosen[b, g, row * config.cells.cols + col].tolist()) == wanted


def _block_by_loops(block: AttentionBlock, q_map: Tensor, kv_map: Tensor, config: Config, score: str) -> Tensor:
    """The released layer around the loops: x[:, :m] + conv1x1([x, attention]), all convolutions with bias."""

    def conv(x: Tensor, layer: torch.nn.Conv2d) -> Tensor:
        return torch.einsum("oi,biyx->boyx", layer.weight[:, :, 0, 0], x) + layer.bias[None, :, None, None]

    q, k, v = conv(q_map, block.query), conv(kv_map, block.key), conv(kv_map, block.value)
    loops = gpa_loops(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), score=score, **config.options)
    assert loops.smallest_margin > 1e-6
    return q_map[:, :OUT_CHANNELS] + conv(torch.cat([q_map, loops.output.squeeze(1)], 1), block.fuse)


@each_config
@each_score
def test_block_matches_the_loops(config: Config, score: str) -> None:
    spec = SlotSpec("up.test", Q_CHANNELS, KV_CHANNELS, OUT_CHANNELS, Size(*config.query), Size(*config.key))
    mixer = GridPartitionedAttention(
        spec, coarse=config.coarse, cells=config.cells, keys_per_cell=config.keys_per_cell, score=score
    )
    block = AttentionBlock(spec, mixer).double()
    assert block.qk_channels == QK_CHANNELS
    with torch.no_grad():
        block.query.weight.mul_(4)
        block.key.weight.mul_(4)
    q_map = draw(2, Q_CHANNELS, *config.query, gain=2, seed=4)
    kv_map = draw(2, KV_CHANNELS, *config.key, gain=2, seed=5)
    parameters = dict(block.named_parameters())
    assert len(parameters) == 8

    output, expected = block(q_map, kv_map), _block_by_loops(block, q_map, kv_map, config, score)
    assert_close(output, expected, "output")
    upstream = draw(*output.shape, seed=6).detach()
    leaves = (q_map, kv_map, *parameters.values())
    names = ("query map", "key/value map", *parameters)
    got, wanted = (torch.autograd.grad(out, leaves, upstream) for out in (output, expected))
    for name, one, other in zip(names, got, wanted, strict=True):
        assert_close(one, other, f"gradient of {name}")


@each_score
@each_kernel
def test_heads_and_scale_match_the_loops(score: str, kernel: str) -> None:
    """Three heads choose for themselves; the scale is free; the map is not square."""
    q, k, v = draw(1, 3, 3, 12, 18, gain=2), draw(1, 3, 3, 6, 12, gain=2, seed=1), draw(1, 3, 2, 6, 12, seed=2)
    options = {"cells": Size(2, 3), "keys_per_cell": 2, "coarse": Size(4, 6), "score": score, "scale": 0.37}
    expected = expect(q, k, v, **options)
    assert expected.distinct_choices > 9
    compare(expected, gpa_attention(q, k, v, kernel=kernel, **options))


@each_score
@each_kernel
@pytest.mark.parametrize("cells", [Size(16, 11), Size(8, 11), Size(4, 1)], ids=str)
def test_unpadded_deepfashion_aspect_matches_the_loops(cells: Size, score: str, kernel: str) -> None:
    """256x176, at an eighth of the size: the released layer fails there."""
    q, k, v = draw(1, 1, 4, 32, 22, gain=4), draw(1, 1, 4, 32, 22, gain=4, seed=1), draw(1, 1, 3, 32, 22, seed=2)
    options = {"cells": cells, "keys_per_cell": 3, "coarse": Size(16, 11), "score": score}
    compare(expect(q, k, v, **options), gpa_attention(q, k, v, kernel=kernel, **options))


@each_score
@each_kernel
@pytest.mark.parametrize("keys_per_cell", [24, 1000])
def test_all_keys_is_dense_attention(keys_per_cell: int, score: str, kernel: str) -> None:
    q, k, v = draw(2, 2, 5, 8, 12, gain=3), draw(2, 2, 5, 12, 8, gain=3, seed=1), draw(2, 2, 3, 12, 8, seed=2)
    output = gpa_attention(
        q, k, v, cells=Size(2, 3), keys_per_cell=keys_per_cell, coarse=Size(4, 6), score=score, kernel=kernel
    )
    dense = dense_loops(q, k, v, score=score)
    assert_close(output, dense, "output")
    upstream = draw(*output.shape, seed=3).detach()
    got, wanted = (torch.autograd.grad(out, (q, k, v), upstream) for out in (output, dense))
    for name, one, other in zip("qkv", got, wanted, strict=True):
        assert_close(one, other, f"gradient of {name}")


def _mask(case: str) -> Tensor:
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool)
    if case == "scattered":
        mask = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(5)) < 0.5
    elif case == "blocks":
        mask[:, :, :4] = False
        mask[:, :, :, 6:8] = False
    elif case == "few":  # fewer coarse keys than a cell keeps
        mask[:] = False
        mask[0, 0, 2, 3:5] = True
        mask[1, 0, 11, 11] = True
    elif case == "one in one image":
        mask[1] = False
        mask[1, 0, 7, 2] = True
    return mask


@each_score
@each_kernel
@pytest.mark.parametrize("case", ["all", "scattered", "blocks", "few", "one in one image"])
def test_masked_keys_match_the_loops(case: str, score: str, kernel: str) -> None:
    q, k, v = draw(2, 2, 4, 8, 8, gain=3), draw(2, 2, 4, 12, 12, gain=3, seed=1), draw(2, 2, 3, 12, 12, seed=2)
    options = {"cells": Size(2, 2), "keys_per_cell": 3, "coarse": Size(4, 4), "score": score, "key_mask": _mask(case)}
    expected = expect(q, k, v, **options)
    compare(expected, gpa_attention(q, k, v, kernel=kernel, **options))
    masked = ~_mask(case).unsqueeze(1)
    assert not any((gradient * masked).any() for gradient in expected.gradients[1:])


@each_kernel
def test_ties_go_to_the_lower_index(kernel: str) -> None:
    """Equal keys everywhere: each cell keeps the first blocks in scan-line order, here three of a row of four."""
    q, k, v = draw(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8, dtype=torch.float64), draw(1, 1, 2, 8, 8, seed=1)
    output = gpa_attention(q, k, v, cells=Size(2, 2), keys_per_cell=3, coarse=Size(4, 4), kernel=kernel)
    expected = v[:, :, :, :2, :6].mean(dim=(3, 4), keepdim=True).expand_as(output)
    assert_close(output, expected, "output")


@each_score
def test_ties_between_equal_blocks_match_the_loops(score: str) -> None:
    """The right half of the key map repeats the left, so every coarse key has a twin of a higher index."""
    q, half = draw(1, 1, 3, 8, 8, gain=4), draw(1, 1, 3, 8, 8, gain=4, seed=1).detach()
    k = torch.cat([half, half], dim=4).requires_grad_()
    v = draw(1, 1, 2, 8, 16, seed=2)
    options = {"cells": Size(2, 2), "keys_per_cell": 5, "coarse": Size(4, 4), "score": score}
    compare(expect(q, k, v, **options), gpa_attention(q, k, v, **options))


def _odd() -> tuple[Tensor, Tensor, Tensor]:
    return draw(1, 1, 3, 3, 9), draw(1, 1, 3, 9, 3, seed=1), draw(1, 1, 1, 9, 3, seed=2)


ODD = {"cells": Size(1, 3), "keys_per_cell": 2, "coarse": Size(1, 3)}


@each_score
@each_kernel
def test_gradcheck_on_odd_sizes(score: str, kernel: str) -> None:
    q, k, v = _odd()
    assert gpa_loops(q, k, v, score=score, **ODD).smallest_margin > 1e-3  # finite differences must not change a choice
    assert torch.autograd.gradcheck(
        lambda *x: gpa_attention(*x, score=score, kernel=kernel, **ODD), (q, k, v), fast_mode=False
    )


@each_score
@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_gradgradcheck_on_odd_sizes(score: str, kernel: str) -> None:
    def attend(*x: Tensor) -> Tensor:
        with double_backward():
            return gpa_attention(*x, score=score, kernel=kernel, **ODD)

    assert torch.autograd.gradgradcheck(attend, _odd())


def test_recompute_refuses_a_second_derivative() -> None:
    """Silence would drop a gradient penalty."""
    q, k, v = _odd()
    out = gpa_attention(q, k, v, kernel="recompute", **ODD)
    with pytest.raises(RuntimeError, match="twice differentiable"):
        torch.autograd.grad(out.square().sum(), q, create_graph=True)[0].square().sum().backward()


@each_kernel
@pytest.mark.parametrize(("score", "offset"), [("dot", 0), ("l2", 0), ("l2", 64)])
def test_float32_is_as_exact_as_plain_pytorch(score: str, offset: int, kernel: str) -> None:
    """Against the released layer's plain operations in float32; an offset common to q and k is where l2 cancels."""
    config = CONFIGS[0]
    q, k, v = (
        (x.detach() + shift).float()
        for x, shift in zip(expected_of(config, score).inputs, (offset, offset, 0), strict=True)
    )
    exact = gpa_loops(q.double(), k.double(), v.double(), score=score, **config.options).output
    plain = released_gpa(q, k, v, score=score, **config.options)
    got = gpa_attention(q, k, v, score=score, kernel=kernel, **config.options)
    assert got.dtype == torch.float32
    assert (got - exact).abs().max().item() <= 2 * (plain - exact).abs().max().item()


@each_score
@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[4], CONFIGS[6]], ids=str)
def test_the_benchmark_peer_computes_the_same(config: Config, score: str) -> None:
    """benchmarks/peers restates the released layer's cost: a ratio to it means something only if it is the same op."""
    expected = expected_of(config, score)
    compare(expected, released_gpa(*expected.inputs, score=score, **config.options))


@each_score
@pytest.mark.parametrize("channels", [6, 24], ids=lambda channels: f"c{channels}")
@pytest.mark.parametrize("keys_per_cell", [3, 9])
def test_many_chunks_of_cells_match_the_peer(keys_per_cell: int, channels: int, score: str) -> None:
    """Maps too large for one chunk, and too large for the loops: the peer, which the loops vouch for, stands in."""
    q = draw(1, 2, channels, 80, 72, gain=2, seed=1)
    k, v = draw(1, 2, channels, 56, 96, gain=2, seed=2), draw(1, 2, channels, 56, 96, seed=3)
    options = {"cells": Size(40, 36), "keys_per_cell": keys_per_cell, "coarse": Size(40, 36), "score": score}
    output = released_gpa(q, k, v, **options)
    upstream = draw(*output.shape, seed=4).detach()
    gradients = torch.autograd.grad(output, (q, k, v), upstream)
    compare(Expected((q, k, v), upstream, output.detach(), gradients, 0, 0.0), gpa_attention(q, k, v, **options))
