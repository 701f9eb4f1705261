import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.linear import LinearAttention
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.linear import linear_attention, linear_weights


def _maps(q_size=(12, 10), kv_size=(12, 10), qk=8, values=4, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = ((qk, q_size), (qk, kv_size), (values, kv_size))
    maps = (torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64) for channels, size in sizes)
    return [x.to(dtype) for x in maps]


def _shape(q_size, kv_size, qk=4, values=2):
    return AttentionShape(2, 2, qk, values, Size(*q_size), Size(*kv_size))


@pytest.mark.parametrize("kv_size", [(12, 10), (7, 16)])
@pytest.mark.parametrize("heads", [1, 2])
def test_heads_split_in_order_and_options_reach_the_op(heads, kv_size):
    maps = _maps(kv_size=kv_size)
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(1)) > 0.3
    mixer = LinearAttention(patch_size=3, heads=heads)
    split = [x.unflatten(1, (heads, -1)) for x in maps]
    expected = linear_attention(*split, patch_size=3, key_mask=mask, kernel="reference").flatten(1, 2)
    torch.testing.assert_close(mixer(*maps, mask), expected, rtol=0, atol=1e-12)
    queries = torch.tensor([[0, 0], [11, 9]])
    found = mixer.weights(maps[0], maps[1], queries, mask)
    _, weights = linear_weights(split[0], split[1], queries, patch_size=3, key_mask=mask)
    torch.testing.assert_close(found.weights, weights)
    assert not found.weights[~mask.flatten(2).unsqueeze(2).expand_as(found.weights)].any()


def test_defaults_and_empty_state():
    mixer = LinearAttention()
    assert (mixer.patch_size, mixer.heads, mixer.kernel) == (1, 1, "auto")
    assert repr(mixer) == "LinearAttention(patch_size=1, heads=1, kernel=auto)"
    assert not list(mixer.parameters())
    assert not mixer.state_dict()
    assert mixer.reasons_against(_shape((3, 5), (70, 2))) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"patch_size": 6}, ValueError, "Valid here: 5 or 7"),
        ({"heads": 0}, ValueError, "heads must be a whole number, 1 or more"),
        ({"kernel": "fastest"}, ValueError, "auto, convolution, reference"),
        ({"score": "dot"}, TypeError, "score"),  # the algorithm has no choice there
        ({"scale": 1.0}, TypeError, "scale"),
    ],
)
def test_wrong_options_are_refused_in_the_constructor(options, error, words):
    with pytest.raises(error, match=words):
        LinearAttention(**options)


@pytest.mark.parametrize(("q_size", "kv_size"), [((40, 44), (40, 44)), ((33, 50), (64, 36))])
@pytest.mark.parametrize(("patch", "qk", "values"), [(1, 4, 2), (3, 4, 2), (7, 16, 16), (3, 20, 35)])
def test_cost_is_what_a_profiler_counts(patch, qk, values, q_size, kv_size):
    mixer = LinearAttention(patch_size=patch, heads=2)
    cost = mixer.cost(_shape(q_size, kv_size, qk, values))
    maps = [x.requires_grad_() for x in _maps(q_size, kv_size, 2 * qk, 2 * values, dtype=torch.float32)]
    with FlopCounterMode(display=False) as counter:
        out = mixer(*maps)
    assert counter.get_total_flops() == pytest.approx(cost.forward_flops, rel=0.05)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == pytest.approx(cost.backward_flops, rel=0.05)


def test_what_stays_for_backward_is_counted():
    maps = [x.requires_grad_() for x in _maps((40, 40), (20, 30), dtype=torch.float32)]
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mixer = LinearAttention(patch_size=3, heads=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mixer(*maps)
    own = {x.untyped_storage().data_ptr() for x in maps}
    saved = sum(size for place, size in held.items() if place not in own)
    assert saved == mixer.cost(_shape((40, 40), (20, 30))).saved_bytes


def test_meta_device_and_copies():
    mixer = LinearAttention(SlotSpec("up.12", 8, 8, 4, Size(12, 10), Size(12, 10)), patch_size=3)
    for size in ((12, 10), (40, 40)):
        with torch.device("meta"):
            maps = [torch.empty(2, channels, *size) for channels in (8, 8, 4)]
            assert mixer(*maps).shape == (2, 4, *size)
    maps = _maps()
    torch.testing.assert_close(copy.deepcopy(mixer)(*maps), mixer(*maps))
