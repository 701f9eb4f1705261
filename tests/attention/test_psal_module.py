"""The module of patch-based stochastic attention: options, cost, weights, seeds."""

from __future__ import annotations

import copy

import pytest
import torch

from saccade.attention.psal import PatchBasedStochasticAttention
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.psal import psal_attention


def _maps(q_size=(9, 8), kv_size=(7, 10), qk=4, values=6, batch=2):
    generator = torch.Generator().manual_seed(0)
    sizes = ((qk, q_size), (qk, kv_size), (values, kv_size))
    return [torch.randn(batch, count, *size, generator=generator) for count, size in sizes]


def _shape(q_size=(16, 16), kv_size=(16, 16), batch=1, heads=1, qk=16, values=16):
    return AttentionShape(batch, heads, qk, values, Size(*q_size), Size(*kv_size))


def test_defaults_are_the_papers():
    mixer = PatchBasedStochasticAttention()
    for words in (
        "matches=3",
        "patch_size=7",
        "iterations=5",
        "score=l2",
        "scale=1.0",
        "readout=centre",
        "search=jump",
    ):
        assert words in mixer.extra_repr()
    assert not list(mixer.parameters())
    assert not mixer.state_dict()


@pytest.mark.parametrize("heads", [1, 2])
def test_heads_split_in_order_and_options_reach_the_op(heads):
    maps = _maps()
    options = {"matches": 2, "patch_size": 3, "score": "dot", "scale": 0.1, "readout": "fold", "fold_divisor": 5.0}
    mixer = PatchBasedStochasticAttention(heads=heads, seed=4, iterations=2, coarse_start=2, **options)
    expected = psal_attention(
        *(x.unflatten(1, (heads, -1)) for x in maps),
        iterations=2,
        coarse_start=2,
        generator=torch.Generator().manual_seed(4),
        **options,
    )
    assert torch.equal(mixer(*maps), expected.flatten(1, 2))


def test_a_seed_repeats_and_none_follows_the_global_generator():
    maps = _maps()
    options = {"matches": 2, "patch_size": 3, "iterations": 0}
    seeded = PatchBasedStochasticAttention(seed=1, **options)
    assert torch.equal(seeded(*maps), copy.deepcopy(seeded)(*maps))
    free = PatchBasedStochasticAttention(**options)
    torch.manual_seed(0)
    first, second = free(*maps), free(*maps)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(free(*maps), first)


@pytest.mark.parametrize("readout", ["centre", "aggregate", "fold"])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_bring_the_output(readout, masked):
    q, k, v = _maps()
    mask = torch.rand(2, 1, 7, 10, generator=torch.Generator().manual_seed(1)) > 0.5 if masked else None
    mixer = PatchBasedStochasticAttention(heads=2, matches=2, patch_size=3, readout=readout, scale=0.2, seed=0)
    queries = torch.tensor([[0, 0], [8, 7], [4, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    values = v.unflatten(1, (2, -1)).flatten(3)
    picked = values.unsqueeze(3).expand(-1, -1, -1, 3, -1).gather(4, indices.unsqueeze(2).expand(-1, -1, 3, -1, -1))
    brought = (picked * weights.unsqueeze(2)).sum(4).flatten(1, 2)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[:, :, queries[:, 0], queries[:, 1]])


@pytest.mark.parametrize("readout", ["centre", "aggregate", "fold"])
@pytest.mark.parametrize("matches", [1, 3])
@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_what_stays_for_backward_is_what_cost_says(readout, matches, kernel):
    maps = [x.requires_grad_() for x in _maps((16, 16), (16, 16), 16, 16, batch=1)]
    mixer = PatchBasedStochasticAttention(matches=matches, readout=readout, kernel=kernel)
    known = {x.data_ptr() for x in maps}
    kept: dict[int, int] = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = mixer(*maps)
    assert out.requires_grad
    assert sum(kept.values()) == mixer.cost(_shape()).saved_bytes


def test_cost_counts_the_schedule():
    # 3 starts, 5 rounds of 16 jumps and 4 windows, 3 FLOPs for each of 16 x 49 channels; 3 matches of 16 values read
    assert PatchBasedStochasticAttention().cost(_shape()).forward_flops == 256 * (103 * 3 * 784 + 2 * 3 * 16)
    exact = PatchBasedStochasticAttention(search="exact", score="dot").cost(_shape())
    assert exact.forward_flops == 256 * (256 * 2 * 784 + 2 * 3 * 16)
    # the paper's counting of its local attention: 3 n 50^2 784 at 256 x 256 is 385.35 G (Table 8)
    window = PatchBasedStochasticAttention(search="exact", matches=1).cost(_shape((256, 256), (50, 50)))
    assert window.forward_flops / 1e9 == pytest.approx(385.35, rel=1e-4)
    pooled = PatchBasedStochasticAttention(matches=1, iterations=0, coarse_start=4, patch_size=3).cost(_shape())
    assert pooled.forward_flops == 256 * 2 * 3 * 144 + 16 * 16 * 3 * 144 + 256 * 2 * 16
    sweeps = PatchBasedStochasticAttention(matches=2, search="sweep", iterations=2).cost(_shape((16, 16), (64, 64)))
    assert sweeps.forward_flops == 256 * ((2 + 2 * 4 + 6 + 4) * 3 * 784 + 2 * 2 * 16)
    more = PatchBasedStochasticAttention(iterations=10).cost(_shape(batch=2, heads=3))
    assert more.forward_flops == 6 * 256 * (203 * 3 * 784 + 2 * 3 * 16)


def test_cost_of_backward():
    one, three, joint = (
        PatchBasedStochasticAttention(matches=matches, readout=readout).cost(_shape())
        for matches, readout in ((1, "centre"), (3, "centre"), (1, "aggregate"))
    )
    assert one.backward_flops == 256 * 2 * 16
    assert three.backward_flops == 256 * 3 * (4 * 16 + 4 * 784)
    assert joint.backward_flops == 256 * (4 * 49 * 16 + 4 * 784)


def test_exact_search_does_the_products_that_cost_counts():
    from torch.utils.flop_counter import FlopCounterMode

    maps = _maps((16, 12), (14, 10), qk=8)
    with FlopCounterMode(display=False) as counter:
        PatchBasedStochasticAttention(search="exact", score="dot", patch_size=1, kernel="torch")(*maps)
    cost = PatchBasedStochasticAttention(search="exact", score="dot", patch_size=1).cost(
        _shape((16, 12), (14, 10), batch=2, qk=8, values=0)
    )
    assert counter.get_total_flops() == pytest.approx(cost.forward_flops, rel=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"matches": 300}, "Valid here: 1 to 256"),
        ({"border": "released", "patch_size": 17}, "patch_size=15"),
        ({"border": "released", "patch_size": 15, "matches": 5}, "4 keys"),
    ],
)
def test_shapes_that_cannot_be_searched_are_explained(options, words):
    mixer = PatchBasedStochasticAttention(SlotSpec("up.16", 4, 4, 4, Size(16, 16), Size(16, 16)), **options)
    reasons = mixer.reasons_against(_shape())
    assert reasons
    assert words in " ".join(reasons)
    with pytest.raises(ValueError, match="psal"):
        mixer.cost(_shape())
    with pytest.raises(ValueError, match="psal"):
        mixer(*(torch.zeros(1, 4, 16, 16) for _ in range(3)))


@pytest.mark.parametrize(
    "options",
    [
        {"matches": 0},
        {"patch_size": 2},
        {"iterations": -1},
        {"score": "l1"},
        {"scale": -1.0},
        {"readout": "none"},
        {"border": "wrap"},
        {"search": "grid"},
        {"coarse_start": 0},
        {"fold_divisor": 6.0},
        {"seed": -1},
        {"heads": 0},
        {"kernel": "cuda"},
    ],
)
def test_wrong_options_are_refused_in_the_constructor(options):
    with pytest.raises(ValueError, match="psal: "):
        PatchBasedStochasticAttention(**options)


def test_meta_maps_give_meta_maps():
    with torch.device("meta"):
        maps = _maps_on_meta()
        assert PatchBasedStochasticAttention(heads=2)(*maps).shape == (2, 6, 9, 8)


def _maps_on_meta():
    return [torch.empty(2, 4, 9, 8), torch.empty(2, 4, 7, 10), torch.empty(2, 6, 7, 10)]
