"""Reformer as a backend: options reach the op, costs are those that PyTorch counts, seeds and shapes behave."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.reformer import ReformerAttention
from saccade.geometry import AttentionShape, Size
from saccade.ops.reformer import reformer_attention

SMALL = {"bucket_size": 10, "hashes": 3}


def _maps(q_size=(9, 8), kv_size=(9, 8), qk=6, values=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(channels, size):
        return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64).to(dtype)

    return draw(qk, q_size) * 2, draw(qk, kv_size) * 2, draw(values, kv_size)


def _shape(q_size, kv_size, qk=3, values=2, heads=2):
    return AttentionShape(2, heads, qk, values, Size(*q_size), Size(*kv_size))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_qk": True},
        {"keys_only": False},
        {"rotation_buckets": 4},
        {"scale": 3.0},
        {"patch_size": 3},
        {"hashes": 1},
        {"bucket_size": 30},
        {"kernel": "reference"},
    ],
    ids=str,
)
def test_options_reach_the_op_with_heads_split_in_order(options):
    q, k, v = _maps()
    mask = torch.rand(2, 1, 9, 8, generator=torch.Generator().manual_seed(1)) > 0.3
    mixer = ReformerAttention(heads=2, seed=3, **{**SMALL, **options})
    heads = [x.unflatten(1, (2, -1)) for x in (q, k, v)]
    generator = torch.Generator().manual_seed(3)
    expected = reformer_attention(*heads, key_mask=mask, generator=generator, **{**SMALL, **options}).flatten(1, 2)
    out = mixer(q, k, v, mask)
    assert torch.equal(out, expected)
    if options and "kernel" not in options:
        assert not torch.allclose(out, ReformerAttention(heads=2, seed=3, **SMALL)(q, k, v, mask))
    queries = torch.tensor([[0, 0], [8, 7], [5, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    values = heads[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, indices.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    torch.testing.assert_close(brought.flatten(1, 2), out[:, :, queries[:, 0], queries[:, 1]])


def test_the_default_layer_is_the_papers():
    mixer = ReformerAttention()
    assert (mixer.bucket_size, mixer.hashes, mixer.scale, mixer.patch_size, mixer.heads) == (64, 8, None, 1, 1)
    assert (mixer.shared_qk, mixer.keys_only, mixer.seed, mixer.kernel) == (False, True, None, "auto")
    assert not list(mixer.parameters())
    assert not list(mixer.buffers())
    for word in ("bucket_size=64", "hashes=8", "shared_qk=False", "keys_only=True", "seed=None"):
        assert word in repr(mixer)


def test_a_seed_repeats_and_none_follows_the_global_generator():
    maps = _maps()
    fixed = ReformerAttention(seed=1, **SMALL)
    assert torch.equal(fixed(*maps), fixed(*maps))
    free = ReformerAttention(**SMALL)
    torch.manual_seed(4)
    first, second = free(*maps), free(*maps)
    torch.manual_seed(4)
    assert torch.equal(free(*maps), first)
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("options", "q_size", "kv_size"),
    [
        ({}, (9, 8), (9, 8)),
        ({}, (12, 7), (5, 6)),
        ({"shared_qk": True}, (9, 8), (9, 8)),
        ({"patch_size": 5}, (9, 8), (6, 8)),
        ({"rotation_buckets": 4, "bucket_size": 3}, (9, 8), (9, 8)),
        ({"bucket_size": 1000}, (9, 8), (9, 8)),
    ],
)
def test_costs_are_those_that_pytorch_counts(options, q_size, kv_size):
    mixer = ReformerAttention(heads=2, seed=0, **{**SMALL, **options})
    cost = mixer.cost(_shape(q_size, kv_size))
    q, k, v = (x.requires_grad_() for x in _maps(q_size, kv_size, dtype=torch.float32))
    kept: dict[int, int] = {}

    def keep(tensor):
        if not any(tensor.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in (q, k, v)):
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with FlopCounterMode(display=False) as forward, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = mixer(q, k, v)
    assert forward.get_total_flops() == cost.forward_flops
    assert sum(kept.values()) == cost.saved_bytes
    with FlopCounterMode(display=False) as backward:
        out.square().sum().backward()
    assert backward.get_total_flops() == cost.backward_flops


def test_shared_queries_and_keys_need_one_size():
    mixer = ReformerAttention(shared_qk=True, **SMALL)
    assert mixer.reasons_against(_shape((9, 8), (9, 8))) == []
    (reason,) = mixer.reasons_against(_shape((9, 8), (9, 7)))
    assert "both maps must have one size; got 9x8 and 9x7" in reason
    with pytest.raises(ValueError, match="reformer: with shared_qk") as caught:
        mixer(*_maps(kv_size=(9, 7)))
    assert reason in str(caught.value)
    assert ReformerAttention(**SMALL).reasons_against(_shape((9, 8), (9, 7))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_size": 0}, "bucket_size must be a whole number, 1 or more"),
        ({"hashes": 0}, "hashes must be a whole number, 1 or more"),
        ({"rotation_buckets": 0}, "rotation_buckets must be a whole number, 2 or more"),
        ({"patch_size": 2}, "odd"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"seed": -1}, "seed must be a whole number, 0 or more, or None"),
        ({"kernel": "lsh"}, "no kernel is called 'lsh'"),
        ({"heads": 0}, "heads must be a whole number, 1 or more"),
    ],
)
def test_wrong_options_are_refused_in_the_constructor(options, message):
    with pytest.raises(ValueError, match=message):
        ReformerAttention(**options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_half_precision_trains(dtype, shared):
    q, k, v = (x.to(dtype).requires_grad_() for x in _maps())
    out = ReformerAttention(shared_qk=shared, patch_size=3, seed=0, **SMALL)(q, k, v)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    for x in (q, v) if shared else (q, k, v):
        assert x.grad.dtype == dtype
        assert torch.isfinite(x.grad).all()
        assert x.grad.any()


def test_autocast_meta_device_and_layouts():
    mixer = ReformerAttention(seed=0, patch_size=3, **SMALL)
    q, k, v = _maps(dtype=torch.float32)
    expected = mixer(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(mixer(q, k, v), expected, rtol=0, atol=0)
    turned = (x.contiguous(memory_format=torch.channels_last) for x in (q, k, v))
    torch.testing.assert_close(mixer(*turned), expected)
    with torch.device("meta"):
        shaped = mixer(*(torch.empty(x.shape) for x in (q, k, v)))
    assert shaped.shape == expected.shape
    assert shaped.device.type == "meta"
