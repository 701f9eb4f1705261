"""Your Local GAN attention as a backend: its options, heads of different width, what it costs and refuses."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.block import AttentionBlock
from saccade.attention.mixer import SpatialAttention
from saccade.attention.ylg import YourLocalAttention
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.ylg import ylg_attention
from saccade.ops.ylg.patterns import HEADS


def draw(q_size=(8, 8), kv_size=(4, 4), qk=16, values=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((qk, *q_size), (qk, *kv_size), (values, *kv_size))
    return [torch.randn(2, *shape, generator=generator, dtype=dtype) for shape in shapes]


def diagonal(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


def test_defaults_are_the_released_layer():
    mixer = YourLocalAttention()
    assert tuple(pattern.name for pattern in mixer.patterns) == HEADS["ylg"]
    assert (mixer.mapping, mixer.order, mixer.scale, mixer.score) == ("released", "esa", 1.0, "dot")
    assert list(mixer.state_dict()) == []
    maps = draw()
    heads = [x.unflatten(1, (8, -1)) for x in maps]  # a head is a run of channels
    assert torch.equal(mixer(*maps), ylg_attention(*heads).flatten(1, 2))
    four = YourLocalAttention(heads=4)
    assert [pattern.name for pattern in four.patterns] == ["rtl1", "rtl2", "ltr1", "ltr2"]
    assert [pattern.name for pattern in YourLocalAttention(heads=2).patterns] == ["rtl1", "rtl2"]


def test_options_reach_the_op():
    maps = draw((6, 8), (3, 4))
    options = {
        "patterns": "strided_circular",
        "mapping": "nearest",
        "order": "hilbert",
        "scale": None,
        "score": "cosine",
        "patch_size": 3,
    }
    heads = [x.unflatten(1, (8, -1)) for x in maps]
    mask = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    expected = ylg_attention(*heads, **options, key_mask=mask).flatten(1, 2)
    assert torch.equal(YourLocalAttention(**options)(*maps, mask), expected)


@pytest.mark.parametrize("values", [None, (1, 2, 1, 2)])
def test_heads_of_different_width(values):
    patterns = ["ltr1", "dense", "ltr2", diagonal]
    mixer = YourLocalAttention(heads=4, patterns=patterns, head_channels=(1, 4, 1, 2), head_values=values)
    q, k, v = (x.requires_grad_() for x in draw())
    widths = [2, 8, 2, 4]  # of 16 channels
    value_widths = [3, 12, 3, 6] if values is None else [4, 8, 4, 8]
    maps = [x.split(w, 1) for x, w in ((q, widths), (k, widths), (v, value_widths))]
    each = [
        YourLocalAttention(heads=1, patterns=[pattern], kernel="reference")(*(x[head] for x in maps))
        for head, pattern in enumerate(patterns)
    ]
    expected = torch.cat(each, 1)
    out = mixer(q, k, v)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(out.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    queries = torch.tensor([[0, 0], [7, 3]])
    indices, weights = mixer.weights(q, k, queries)
    assert indices.shape == weights.shape == (2, 4, 2, 16)
    for head, values_of_head in enumerate(maps[2]):
        rows = values_of_head.flatten(2).transpose(1, 2)  # (B, K, E)
        picked = torch.stack([rows[b][indices[b, head]] for b in range(2)])  # (B, Q, 16, E)
        brought = (weights[:, head].unsqueeze(3) * picked).sum(2).transpose(1, 2)
        torch.testing.assert_close(brought, each[head][..., queries[:, 0], queries[:, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_bring_the_output(masked):
    q, k, v = draw()
    mask = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5 if masked else None
    queries = torch.tensor([[0, 0], [7, 7], [5, 3]])
    mixer: SpatialAttention = YourLocalAttention()
    indices, weights = mixer.weights(q, k, queries, mask)
    assert indices.shape == weights.shape == (2, 8, 3, 5)  # four summaries and the own key
    values = v.unflatten(1, (8, -1)).flatten(3)
    picked = values.unsqueeze(3).expand(-1, -1, -1, 3, -1).gather(4, indices.unsqueeze(2).expand(-1, -1, 3, -1, -1))
    brought = (weights.unsqueeze(2) * picked).sum(4).flatten(1, 2)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[..., queries[:, 0], queries[:, 1]])


SHAPES = [
    ({}, (32, 32), (16, 16)),
    ({"mapping": "tile"}, (16, 32), (8, 16)),  # 128 keys, l = 11
    ({"mapping": "nearest", "score": "l2"}, (32, 32), (16, 16)),
    ({"patterns": "strided"}, (16, 16), (16, 16)),
    ({"heads": 3, "patterns": [diagonal] * 3, "patch_size": 3, "scale": 0.5}, (16, 16), (8, 8)),
    ({"heads": 2, "patterns": ["ltr1", "rtl2"], "head_channels": (1, 3)}, (16, 16), (8, 8)),
]


@pytest.mark.parametrize(("options", "q_size", "kv_size"), SHAPES)
def test_costs_are_what_a_profiler_counts(options, q_size, kv_size):
    mixer = YourLocalAttention(**options)
    shape = AttentionShape(2, mixer.heads, 4, 16, Size(*q_size), Size(*kv_size))
    maps = draw(q_size, kv_size, 4 * mixer.heads, 16 * mixer.heads, torch.float32)
    mixer(*maps)
    cost = mixer.cost(shape)
    with FlopCounterMode(display=False) as counter:
        mixer(*maps)
    assert cost.forward_flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    leaves = [x.requires_grad_() for x in maps]
    with FlopCounterMode(display=False) as counter:
        mixer(*leaves).sum().backward()
    assert cost.forward_flops + cost.backward_flops == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.parametrize(("options", "q_size", "kv_size"), SHAPES[:4])
def test_saved_bytes_are_what_autograd_keeps(options, q_size, kv_size):
    mixer = YourLocalAttention(**options)
    shape = AttentionShape(2, 8, 4, 16, Size(*q_size), Size(*kv_size))
    maps = [x.requires_grad_() for x in draw(q_size, kv_size, 32, 128, torch.float32)]
    mixer(*maps)
    known = {x.untyped_storage().data_ptr() for x in maps}
    kept: dict[int, int] = {}

    def keep(x):
        if x.is_floating_point() and x.untyped_storage().data_ptr() not in known:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = mixer(*maps)
    assert out.requires_grad
    assert mixer.cost(shape).saved_bytes == pytest.approx(sum(kept.values()), rel=0.05)


def test_the_cost_of_the_papers_layer_is_linear_in_the_stride():
    cost = YourLocalAttention().cost(AttentionShape(1, 8, 4, 16, Size(32, 32), Size(16, 16)))
    assert cost.forward_flops == 8 * 2 * 1024 * 16 * (4 + 16)
    assert cost.backward_flops == 2 * cost.forward_flops


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "even number; got heads=3. Valid here: heads=4, or patterns with 3 entries"),
        ({"patterns": ["ltr1"]}, "patterns name 1 heads, heads=8. Valid here: heads=1"),
        ({"patterns": "zebra"}, "no list of heads is called 'zebra'"),
        ({"patterns": ["zebra"] * 8}, "no pattern is called 'zebra'. Valid here: ltr1"),
        ({"mapping": "shift"}, "no mapping is called 'shift'"),
        ({"order": "random"}, "no order is called 'random'"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"score": "angle"}, "no score is called"),
        ({"patch_size": 4}, "odd number"),
        ({"kernel": "flash"}, "Valid here: auto, structured, gathered, reference"),
        ({"head_channels": (1, 2)}, "head_channels must hold 8 positive whole numbers"),
        ({"head_values": (0,) * 8}, "head_values must hold 8 positive whole numbers"),
    ],
)
def test_wrong_options_are_named_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        YourLocalAttention(**options)


@pytest.mark.parametrize(
    ("options", "q_size", "kv_size", "words"),
    [
        ({}, (5, 5), (4, 4), "query map 5x5 (25 pixels) is not a whole multiple of key map 4x4"),
        ({"mapping": "tile"}, (6, 8), (4, 4), "not tiled by key map 4x4"),
    ],
)
def test_misfits_are_explained_before_a_run(options, q_size, kv_size, words):
    spec = SlotSpec("up.8", 16, 16, 24, Size(*q_size), Size(*kv_size))
    mixer = YourLocalAttention(spec, **options)
    shape = AttentionShape(1, 8, 2, 3, Size(*q_size), Size(*kv_size))
    (reason,) = mixer.reasons_against(shape)
    assert words in reason
    with pytest.raises(ValueError, match=r"^ylg, slot up\.8: ") as caught:
        mixer(*draw(q_size, kv_size))
    assert reason in str(caught.value)
    with pytest.raises(ValueError, match="Valid here"):
        mixer.cost(shape)
    assert YourLocalAttention(mapping="nearest").reasons_against(shape) == []


def test_widths_and_masks_that_cannot_be_are_reasons():
    shape = AttentionShape(1, 2, 3, 4, Size(4, 4), Size(2, 2))
    wide = YourLocalAttention(heads=2, patterns=["ltr1", "ltr2"], head_channels=(1, 4))
    reasons = wide.reasons_against(shape)
    assert "6 channels do not split in the proportion 1:4. Valid numbers of channels here: 5, 10." in reasons
    assert "8 channels do not split in the proportion 1:4. Valid numbers of channels here: 5, 10." in reasons
    with pytest.raises(ValueError, match="proportion 1:4"):
        wide(*draw((4, 4), (2, 2), 6, 8))
    strict = YourLocalAttention(heads=1, patterns=[lambda n: torch.ones(n, n).tril(-1) > 0])
    assert "leaves token 0 of 4 no key" in strict.reasons_against(shape)[0]


def test_in_a_block_on_the_meta_device_and_in_training():
    spec = SlotSpec("up.16", 32, 32, 32, Size(16, 16), Size(8, 8))
    block = AttentionBlock(spec, YourLocalAttention(spec))
    assert block.mixer.reasons_against(block.shape()) == []
    out = block(torch.randn(1, 32, 16, 16), torch.randn(1, 32, 8, 8))
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    assert block.to("meta")(torch.empty(1, 32, 16, 16, device="meta"), torch.empty(1, 32, 8, 8, device="meta")).is_meta
