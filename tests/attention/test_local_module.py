import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.local import LocalAttention
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops import double_backward
from saccade.ops.local import local_attention, local_weights


def _maps(q_size=(12, 10), kv_size=(12, 10), qk=8, values=4, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = ((qk, q_size), (qk, kv_size), (values, kv_size))
    maps = (torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64) for channels, size in sizes)
    return [x.to(dtype) for x in maps]


def _shape(q_size, kv_size=None, heads=1, qk=4, values=4, batch=1):
    return AttentionShape(batch, heads, qk, values, Size(*q_size), Size(*(kv_size or q_size)))


@pytest.mark.parametrize("kv_size", [(12, 10), (7, 16)])
@pytest.mark.parametrize("heads", [1, 2])
def test_heads_split_in_order_and_options_reach_the_op(heads, kv_size):
    maps = _maps(kv_size=kv_size)
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(1)) > 0.3
    options = {"window": (5, 4), "score": "cosine", "scale": 3.0, "patch_size": 3}
    mixer = LocalAttention(**options, heads=heads)
    split = [x.unflatten(1, (heads, -1)) for x in maps]
    expected = local_attention(*split, **options, key_mask=mask, kernel="reference").flatten(1, 2)
    torch.testing.assert_close(mixer(*maps, mask), expected, rtol=0, atol=1e-12)
    queries = torch.tensor([[0, 0], [11, 9]])
    found = mixer.weights(maps[0], maps[1], queries, mask)
    indices, weights = local_weights(split[0], split[1], queries, **options, key_mask=mask)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.weights, weights)


def test_defaults_are_the_comparison_of_psal():
    mixer = LocalAttention()
    assert (mixer.window, mixer.score, mixer.scale, mixer.patch_size, mixer.heads) == (Size(50, 50), "l2", None, 1, 1)
    assert "window=50x50, score=l2" in repr(mixer)
    assert not list(mixer.parameters())
    assert not mixer.state_dict()
    assert mixer.reasons_against(_shape((3, 5), (70, 2))) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window must be"),
        ({"window": (3, 4, 5)}, "window must be"),
        ({"score": "angle"}, "dot, l2, cosine, unit_key"),
        ({"scale": 0.0}, "scale must be a positive number"),
        ({"patch_size": 6}, "Valid here: 5 or 7"),
        ({"heads": 0}, "heads must be a whole number, 1 or more"),
        ({"kernel": "fastest"}, "auto, shift, tiles, reference"),
    ],
)
def test_wrong_options_are_refused_in_the_constructor(options, words):
    with pytest.raises(ValueError, match=words):
        LocalAttention(**options)


@pytest.mark.parametrize("score", ["dot", "l2", "unit_key"])
@pytest.mark.parametrize(
    ("q_size", "kv_size", "window", "patch"),
    [
        ((40, 44), None, 16, 7),
        ((45, 50), None, 30, 3),
        ((34, 50), None, (5, 9), 1),
        ((24, 24), None, 7, 1),
        ((20, 33), (41, 17), (12, 30), 3),
    ],
)
def test_cost_is_what_a_profiler_counts(q_size, kv_size, window, patch, score):
    mixer = LocalAttention(window=window, patch_size=patch, score=score, heads=2)
    cost = mixer.cost(_shape(q_size, kv_size, heads=2, qk=4, values=2))
    maps = [x.requires_grad_() for x in _maps(q_size, kv_size or q_size, batch=1, dtype=torch.float32)]
    with FlopCounterMode(display=False) as counter:
        out = mixer(*maps)
    assert counter.get_total_flops() == pytest.approx(cost.forward_flops, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == pytest.approx(cost.backward_flops, rel=0.05)


@pytest.mark.parametrize("kv_size", [(40, 40), (20, 30)])
def test_only_the_output_and_the_softmax_sums_stay_for_backward(kv_size):
    maps = [x.requires_grad_() for x in _maps((40, 40), kv_size, dtype=torch.float32)]
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mixer = LocalAttention(window=9, patch_size=3, heads=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mixer(*maps)
    own = {x.untyped_storage().data_ptr() for x in maps}
    saved = sum(size for place, size in held.items() if place not in own)
    assert saved == mixer.cost(_shape((40, 40), kv_size, heads=2, qk=4, values=2, batch=2)).saved_bytes


def test_meta_device_copies_and_double_backward():
    mixer = LocalAttention(SlotSpec("up.12", 8, 8, 4, Size(12, 10), Size(12, 10)), window=4, patch_size=3)
    for kv_size in ((12, 10), (6, 5)):
        with torch.device("meta"):
            maps = [torch.empty(2, channels, *size) for channels, size in ((8, (12, 10)), (8, kv_size), (4, kv_size))]
            assert mixer(*maps).shape == (2, 4, 12, 10)
    maps = [x.requires_grad_() for x in _maps()]
    torch.testing.assert_close(copy.deepcopy(mixer)(*maps), mixer(*maps))
    with double_backward():
        out = mixer(*maps)
    (grad,) = torch.autograd.grad(out.square().sum(), maps[0], create_graph=True)
    grad.square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)
