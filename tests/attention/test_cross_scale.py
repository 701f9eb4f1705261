"""CSNLN's blocks: the released numbers, a dense oracle in float64 with PSAL beside, odd sizes, every backend."""

import math

import pytest
import torch
import torch.nn.functional as F
from every_backend import ATTENDING, make

from oracles import csnln_patches as oracle
from oracles.cross_scale_backends import BACKENDS
from saccade.attention import (
    FullAttention,
    GridPartitionedAttention,
    LocalAttention,
    NoAttention,
    PatchBasedStochasticAttention,
    SpatialAttention,
)
from saccade.attention.cross_scale import CrossScaleBlock, InScaleBlock, cross_scale_attention, in_scale_attention
from saccade.geometry import Size, SlotSpec

RELEASED = {"score": "unit_key", "scale": 10.0, "patch_size": 3}


def cross(size, factor=2, channels=8, mixer=None):
    mixer = FullAttention(**RELEASED) if mixer is None else mixer
    large = Size(*size)
    spec = SlotSpec(
        "cross_scale", channels, channels, channels, large, Size(large.rows // factor, large.cols // factor)
    )
    torch.manual_seed(0)
    return CrossScaleBlock(spec, mixer).double()


def drawn(size, channels=8, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64, requires_grad=True)


def fill(module):
    """Weights by the closed formula that the released code's numbers were made with."""
    for index, parameter in enumerate(module.parameters()):
        t = torch.arange(parameter.numel(), dtype=torch.float64)
        if parameter.dim() >= 2:
            values = torch.sin(0.7 * t + index) / math.sqrt(parameter[0].numel())
        elif parameter.numel() == 1:
            values = torch.full((1,), 0.25, dtype=torch.float64)
        else:
            values = 0.1 * torch.sin(0.7 * t + index)
        parameter.data.copy_(values.view(parameter.shape))


def test_numbers_of_the_released_code():
    """16 channels, x2, 12x12: computed once with the released module in float32."""
    block = cross((12, 12), channels=16).float()
    fill(block)
    x = torch.sin(0.7 * torch.arange(16 * 144, dtype=torch.float64) + 0.4).float().view(1, 16, 12, 12)
    out = block(x, x).detach().double()
    assert out.shape == (1, 16, 24, 24)
    moments = [float(out.mean()), float(out.abs().mean()), float(out.square().mean().sqrt())]
    assert moments == pytest.approx([0.07117571, 0.07786851, 0.09708046], rel=2e-6)
    flat, middle = out.flatten(), out.numel() // 2
    picked = torch.cat([flat[:4], flat[middle : middle + 4], flat[-4:]])
    wanted = [0.0667044, 0.058361, 0.0851128, 0.0692945, 0.0882006, 0.0512527, 0.0979804, 0.0481389]
    wanted += [0.120675, 0.0585632, -0.00787208, -0.0344431]
    assert picked.tolist() == pytest.approx(wanted, abs=5e-7)


def compare(block, x, wanted):
    """Outputs and all gradients."""
    out = block(x, x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [x, *block.parameters()]
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((result * upstream).sum(), inputs) for result in (out, wanted))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def state_of(block):
    return dict(block.named_parameters())


@pytest.mark.parametrize(("size", "factor"), [((6, 8), 2), ((2, 2), 2), ((9, 6), 3), ((3, 9), 3), ((8, 8), 4)])
def test_full_equals_the_dense_oracle(size, factor):
    block, x = cross(size, factor), drawn(size)
    if factor == 4:  # the oracle shrinks by the middle pixels: of four, two
        torch.testing.assert_close(
            F.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False), oracle.shrunk(x, 4)
        )
    compare(block, x, oracle.cross_scale(x, state_of(block), factor))


@pytest.mark.parametrize("readout", [{}, {"readout": "fold", "fold_divisor": 6.0}])
@pytest.mark.parametrize("matches", [1, 3, 12])
def test_exact_psal_equals_the_oracle_of_its_best_keys(matches, readout):
    mixer = PatchBasedStochasticAttention(matches=matches, search="exact", **RELEASED, **readout)
    block, x = cross((6, 8), 2, mixer=mixer), drawn((6, 8))
    wanted = oracle.cross_scale(x, state_of(block), 2, best=matches)
    if matches > 1:
        compare(block, x, wanted)
    else:  # costs do not steer one match: the parameters of queries and keys have no gradient
        torch.testing.assert_close(block(x, x), wanted, rtol=1e-12, atol=1e-12)


def test_psal_search_comes_near_the_exact_one():
    """Random search between maps of two sizes, against the exact three keys; without rounds it is a random choice."""
    x = drawn((16, 16), batch=1)
    x = F.avg_pool2d(x, 3, 1, 1) * 3  # neighbours look alike, as in pictures
    x = x.detach()
    exact = cross((16, 16), mixer=PatchBasedStochasticAttention(search="exact", **RELEASED))(x, x).detach()
    errors = []
    for iterations in (0, 10):
        mixer = PatchBasedStochasticAttention(seed=0, iterations=iterations, **RELEASED)
        found = cross((16, 16), mixer=mixer)(x, x).detach()
        errors.append(float((found - exact).square().mean() / exact.var()))
    assert errors[0] > 0.4
    assert errors[1] < 0.25 * errors[0]


def test_patches_that_psal_compares_may_differ_from_those_it_pastes():
    mixer = PatchBasedStochasticAttention(matches=12, search="exact", score="unit_key", scale=10.0, patch_size=5)
    block = cross((6, 8), mixer=mixer)
    full = cross((6, 8), mixer=FullAttention(score="unit_key", scale=10.0, patch_size=5))
    x = drawn((6, 8))
    torch.testing.assert_close(block(x, x), full(x, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("size", "factor"), [((7, 9), 2), ((1, 1), 2), ((5, 4), 3), ((1, 7), 3)])
def test_other_sides_continue_the_map_of_the_keys(size, factor):
    block, x = cross((6 * factor, 6 * factor), factor), drawn(size)
    rows, cols = (-side % factor for side in size)
    continued = torch.cat([x, x[:, :, -1:].expand(-1, -1, rows, -1)], 2)
    continued = torch.cat([continued, continued[..., -1:].expand(-1, -1, -1, cols)], 3)
    state = state_of(block)
    keys = oracle.act_conv(oracle.shrunk(continued, factor), state, "conv_match_2")
    values, queries = oracle.act_conv(continued, state, "conv_assembly"), oracle.act_conv(x, state, "conv_match_1")
    wanted = [
        oracle.pasted(oracle.match_weights(q, k), v, factor, size)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    compare(block, x, torch.stack(wanted))
    assert block.key_size(Size(*size)) == Size(*keys.shape[2:])


def test_masked_keys_bring_nothing():
    block, x = cross((6, 8)), drawn((6, 8))
    mask = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    mask[:, :, :, 2:] = False
    only = PatchBasedStochasticAttention(matches=6, search="exact", **RELEASED)
    other = cross((6, 8), mixer=only)
    torch.testing.assert_close(block(x, x, mask), other(x, x, mask), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(block(x, x, mask), block(x, x))


@pytest.mark.parametrize("name", ATTENDING)
def test_paste_is_forward_of_patches_folded(name):
    """Whatever way a backend has of its own."""
    mixer = make(name, **({"patch_size": 3} if name == "psal" else {}))
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    torch.manual_seed(0)
    patches = F.unfold(v, 3, padding=1).view(1, 36, 8, 8)
    wanted = F.fold(mixer(q, k, patches).flatten(2), (8, 8), 3, padding=1) / 6
    torch.manual_seed(0)
    torch.testing.assert_close(mixer.paste(q, k, v, side=3, divisor=6.0), wanted, rtol=1e-10, atol=1e-10)


class OneSize(FullAttention):
    """Full attention that takes only multiples of its slot's sizes, as GPA does."""

    def reasons_against(self, shape):
        fits = shape.q_size.rows % self.spec.q_size.rows == 0 and shape.q_size.cols % self.spec.q_size.cols == 0
        return [] if fits else ["no"]

    def attend(self, q, k, v, key_mask):
        if Size(*q.shape[3:]).rows % self.spec.q_size.rows or Size(*q.shape[3:]).cols % self.spec.q_size.cols:
            raise ValueError("no")
        return super().attend(q, k, v, key_mask)


@pytest.mark.parametrize("size", [(4, 6), (7, 5), (9, 4), (12, 18), (1, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_backends_of_one_size_serve_others_exactly(size, masked):
    spec = SlotSpec("in_scale", 4, 4, 4, Size(4, 6), Size(4, 6))
    options = {"score": "dot", "scale": 1.0, "patch_size": 3}
    picky, plain = OneSize(spec, **options), FullAttention(spec, **options)
    q, k, v = (drawn(size, 4) for _ in range(3))
    mask = None
    if masked:
        mask = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.5
        mask[..., 0, 0] = True
    brought, wanted = picky.at_any_size(q, k, v, mask), plain(q, k, v, mask)
    torch.testing.assert_close(brought, wanted, rtol=1e-10, atol=1e-10)
    ours = SpatialAttention.paste(picky, q, k, v, mask, side=3, divisor=6.0)
    torch.testing.assert_close(ours, plain.paste(q, k, v, mask, side=3, divisor=6.0), rtol=1e-10, atol=1e-10)


def test_outside_a_slot_a_refusal_stays_one():
    mixer = GridPartitionedAttention(coarse=4, cells=2, keys_per_cell=3)
    q, k, v = (torch.randn(1, 4, 7, 5) for _ in range(3))
    with pytest.raises(ValueError, match=r"^gpa: query map 7x5"):
        mixer.at_any_size(q, k, v)


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (11, 13)])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_fills_both_slots_at_any_size(name, size):
    for policy, spec in (
        (cross_scale_attention, SlotSpec("cross_scale", 8, 8, 8, Size(16, 16), Size(8, 8))),
        (in_scale_attention, SlotSpec("in_scale", 8, 8, 8, Size(16, 16), Size(16, 16))),
    ):
        backend, options = BACKENDS[name]
        torch.manual_seed(0)
        block = policy(backend, **options).build([spec])[spec.name]
        x = drawn(size).float().detach().requires_grad_()
        out = block(x, x)
        factor = 2 if spec.name == "cross_scale" else 1
        assert out.shape == (2, 8, factor * size[0], factor * size[1])
        assert bool(torch.isfinite(out).all())
        if name != "none":
            wanted = {n for n, p in block.named_parameters() if p.requires_grad}
            out.square().sum().backward()
            assert {n for n, p in block.named_parameters() if p.grad is not None} == wanted
            assert x.grad.abs().sum() > 0


def test_policies_compare_as_released():
    cross_spec = SlotSpec("cross_scale", 8, 8, 8, Size(8, 8), Size(4, 4))
    mixer = cross_scale_attention().build([cross_spec])["cross_scale"].mixer
    assert (mixer.score, mixer.scale, mixer.patch_size) == ("unit_key", 10.0, 3)
    in_spec = SlotSpec("in_scale", 8, 8, 8, Size(8, 8), Size(8, 8))
    mixer = in_scale_attention(LocalAttention, window=5).build([in_spec])["in_scale"].mixer
    assert (mixer.name, mixer.score, mixer.scale) == ("local", "dot", 1.0)


def test_in_scale_equals_the_oracle_and_without_attention_keeps_values():
    spec = SlotSpec("in_scale", 8, 8, 8, Size(5, 7), Size(5, 7))
    block, x = InScaleBlock(spec, FullAttention(score="dot", scale=1.0)).double(), drawn((5, 7))
    compare(block, x, oracle.in_scale(x, state_of(block)))
    none = InScaleBlock(spec, NoAttention()).double()
    none.load_state_dict(block.state_dict())
    assert torch.equal(none(x, x), oracle.act_conv(x, state_of(block), "conv_assembly"))
    assert {n.split(".")[0] for n, p in none.named_parameters() if p.requires_grad} == {"conv_assembly"}


def test_cross_scale_without_attention_is_zero():
    block, x = cross((6, 8), mixer=NoAttention()), drawn((6, 8))
    assert torch.equal(block(x, x), torch.zeros(2, 8, 12, 16, dtype=torch.float64))
    assert not any(p.requires_grad for p in block.parameters())
    assert set(block.state_dict()) == set(cross((6, 8)).state_dict())


def test_weights_number_the_coarse_keys():
    block, x = cross((6, 8)), drawn((6, 8))
    indices, weights = block.weights(x, x, torch.tensor([[0, 0], [5, 7]]))
    state = state_of(block)
    keys = oracle.act_conv(oracle.shrunk(x, 2), state, "conv_match_2")
    wanted = oracle.match_weights(oracle.act_conv(x, state, "conv_match_1")[1], keys[1])[[0, 47]]
    ours = torch.zeros(2, 12, dtype=torch.float64).scatter(1, indices[1, 0], weights[1, 0])
    torch.testing.assert_close(ours, wanted)
    assert block.kv_map_size == Size(6, 8)
    assert block.key_size(Size(6, 8)) == Size(3, 4)


@pytest.mark.parametrize(
    ("q_size", "kv_size", "options", "message"),
    [
        ((8, 8), (8, 8), {}, r"slot cross_scale: .*queries 8x8 and keys 8x8. Nearest valid queries: 16x16"),
        ((8, 12), (4, 4), {}, r"queries 8x12 and keys 4x4. Nearest valid queries: 8x8"),
        ((8, 8), (4, 4), {"reduction": 9}, r"reduction=9 leaves no channel of 8. Valid here: up to 8"),
        ((8, 8), (4, 4), {"side": 2}, "odd number of pixels"),
        ((8, 8), (4, 4), {"divisor": -1}, "divisor must be a positive number"),
    ],
)
def test_wrong_slots_and_options_are_refused(q_size, kv_size, options, message):
    spec = SlotSpec("cross_scale", 8, 8, 8, Size(*q_size), Size(*kv_size))
    with pytest.raises(ValueError, match=message):
        CrossScaleBlock(spec, FullAttention(), **options)


def test_heads_split_keys_and_pixels_of_values():
    """Two heads are two blocks with half the channels of queries, keys and values each."""
    x = drawn((6, 8))
    whole = cross((6, 8), mixer=FullAttention(heads=2, **RELEASED))
    state, parts = state_of(whole), []
    for head in range(2):
        half, own = cross((6, 8)), slice(2 * head, 2 * head + 2)
        q, k = whole.conv_match_1(x)[:, own], whole._keys(x)[:, own]
        v = whole.conv_assembly(x)[:, 4 * head : 4 * head + 4]
        weights = [oracle.match_weights(a, b) for a, b in zip(q, k, strict=True)]
        parts.append(torch.stack([oracle.pasted(w, y, 2, (6, 8)) for w, y in zip(weights, v, strict=True)]))
        assert half.qk_channels == 4
    assert state["conv_match_1.0.weight"].shape[0] == 4
    torch.testing.assert_close(whole(x, x), torch.cat(parts, 1), rtol=1e-11, atol=1e-11)
