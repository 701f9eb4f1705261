import copy
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.performer import PerformerAttention
from saccade.geometry import AttentionShape, Size
from saccade.ops.performer import performer_attention
from saccade.ops.performer.features import performer_projection

sys.path.append(str(Path(__file__).parents[2] / "scripts"))


def _maps(q_size=(6, 5), kv_size=(4, 7), qk=6, values=4, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(channels, size):
        return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64).to(dtype)

    return draw(qk, q_size), draw(qk, kv_size), draw(values, kv_size)


def _heads(maps, heads):
    return [x.unflatten(1, (heads, -1)) for x in maps]


def _mask():
    return torch.rand(2, 1, 4, 7, generator=torch.Generator().manual_seed(1)) > 0.5


@pytest.mark.parametrize("patch_size", [1, 3])
def test_it_is_the_op_with_heads_split_in_order_and_directions_from_the_seed(patch_size):
    maps, mask = _maps(), _mask()
    mixer = PerformerAttention(features=11, score="l2", scale=0.3, patch_size=patch_size, eps=1e-3, seed=4, heads=2)
    about = PerformerAttention(features=11, patch_size=patch_size, centre=True, seed=4, heads=2)
    projection = performer_projection(11, 3 * patch_size**2, 4)
    options = {"score": "l2", "scale": 0.3, "patch_size": patch_size, "eps": 1e-3, "key_mask": mask}
    expected = performer_attention(*_heads(maps, 2), projection=projection, **options).flatten(1, 2)
    assert torch.equal(mixer(*maps, mask), expected)
    options = {"patch_size": patch_size, "centre": True, "key_mask": mask}
    expected = performer_attention(*_heads(maps, 2), projection=projection, **options).flatten(1, 2)
    assert torch.equal(about(*maps, mask), expected)


def test_a_seed_gives_the_same_directions_in_every_call_and_none_new_ones():
    maps = _maps()
    fixed, new = PerformerAttention(features=8, seed=3), PerformerAttention(features=8, seed=None)
    assert torch.equal(fixed(*maps), fixed(*maps))
    assert torch.equal(fixed(*maps), PerformerAttention(features=8, seed=3)(*maps))
    assert not torch.equal(fixed(*maps), PerformerAttention(features=8, seed=4)(*maps))
    assert not torch.equal(new(*maps), new(*maps))
    torch.manual_seed(0)
    first = new(*maps)
    torch.manual_seed(0)
    assert torch.equal(new(*maps), first)


def test_nothing_enters_the_state_dict():
    mixer = PerformerAttention(features=8)
    mixer(*_maps())
    assert not mixer.state_dict()
    assert not list(mixer.parameters())
    assert torch.equal(copy.deepcopy(mixer)(*_maps()), mixer(*_maps()))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_weights_bring_the_output(masked, patch_size):
    (q, k, v), mask = _maps(), _mask() if masked else None
    mixer = PerformerAttention(features=9, patch_size=patch_size, heads=2)
    queries = torch.tensor([[0, 0], [5, 4], [2, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    assert indices.shape == weights.shape == (2, 2, 3, 28)
    brought = torch.einsum("bgqk,bgek->bgeq", weights, v.unflatten(1, (2, 2)).flatten(3)).flatten(1, 2)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[:, :, queries[:, 0], queries[:, 1]], rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="queries must lie inside the 6x5 query map"):
        mixer.weights(q, k, torch.tensor([[6, 0]]))


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_costs_are_what_a_profiler_counts(patch_size, eps):
    shape = AttentionShape(2, 2, 8, 12, Size(16, 12), Size(10, 14))
    maps = [
        torch.randn(2, 2 * c, *size, requires_grad=True) for c, size in ((8, (16, 12)), (8, (10, 14)), (12, (10, 14)))
    ]
    mixer = PerformerAttention(features=40, patch_size=patch_size, eps=eps, heads=2, kernel="chunked")
    cost = mixer.cost(shape)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = mixer(*maps)
    assert forward.get_total_flops() == pytest.approx(cost.forward_flops, rel=0.05)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == pytest.approx(cost.backward_flops, rel=0.05)
    inputs = {x.untyped_storage().data_ptr() for x in maps}
    held = sum(size for where, size in saved.items() if where not in inputs)
    assert held == pytest.approx(cost.saved_bytes, rel=0.05)


def test_costs_of_the_papers_layer():
    """65536 pixels, 7x7 patches of 16 channels, 5224 features: 1.07 TFLOP without the values."""
    shape = AttentionShape(1, 1, 16, 16, Size(256, 256), Size(256, 256))
    cost = PerformerAttention(patch_size=7).cost(shape)
    assert cost.forward_flops == 2 * 65536 * 5224 * (2 * 784 + 2 * 16 + 1)
    assert cost.saved_bytes == 4 * 5224 * (18 + 784)


@pytest.mark.parametrize("backward", [False, True])
def test_memory_stays_far_below_the_features(backward):
    """Features of one map alone would take 8192 x 600 x 4 B = 19 MiB, patches of one 25 MiB."""
    from attention_bench.measure import cpu_peak_bytes

    q, k, v = (x.requires_grad_(backward) for x in _maps((64, 128), (64, 128), 16, 16, 1, torch.float32))
    mixer = PerformerAttention(features=600, patch_size=7)
    mixer(*(x[:, :, :8, :8] for x in (q, k, v)))  # draws the directions

    def call():
        out = mixer(q, k, v)
        if backward:
            out.backward(torch.ones_like(out))

    assert cpu_peak_bytes(call) < (34 if backward else 22) * 2**20


def test_it_runs_on_the_meta_device_and_with_strided_maps():
    mixer = PerformerAttention(heads=2, patch_size=3)
    maps = [x.to("meta") for x in _maps()]
    assert mixer(*maps).shape == (2, 4, 6, 5)
    q, k, v = _maps()
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    torch.testing.assert_close(mixer(*turned), mixer(q, k, v), rtol=0, atol=1e-13)
    for x in turned:
        x.requires_grad_()
    mixer(*turned).sum().backward()
    assert all(x.grad.isfinite().all() for x in turned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be a whole number, 1 or more"),
        ({"features": 0}, "features must be a whole number, 1 or more, or None for d ln d; got 0"),
        ({"score": "cosine"}, "Valid here: dot, l2"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"patch_size": 2}, "patch_size must be an odd number"),
        ({"eps": -1e-4}, "eps must be a number, 0 or more"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, or None"),
        ({"kernel": "fast"}, "no kernel is called 'fast'. Valid here: auto, chunked, reference"),
    ],
)
def test_wrong_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        PerformerAttention(**options)


def test_it_serves_any_two_maps_and_shows_its_options():
    mixer = PerformerAttention(features=8)
    assert mixer.reasons_against(AttentionShape(1, 1, 4, 4, Size(3, 5), Size(9, 1))) == []
    assert "features=8, score=dot" in repr(mixer)


@pytest.mark.slow
def test_memory_of_the_papers_layer():
    """PSAL's Table 1 (arXiv 2202.03163): patch 7, 16 channels, 5224 features at 128x128 took 2.84 GB."""
    from attention_bench.measure import cpu_peak_bytes

    q, k, v = (x.requires_grad_() for x in _maps((128, 128), (128, 128), 16, 16, 1, torch.float32))
    mixer = PerformerAttention(patch_size=7)
    mixer(*(x[:, :, :8, :8] for x in (q, k, v)))  # draws the directions

    def call():
        out = mixer(q, k, v)
        out.backward(torch.ones_like(out))

    assert cpu_peak_bytes(call) < 40 * 2**20
