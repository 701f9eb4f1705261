import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention.nystromformer import NystromAttention
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.nystromformer import nystrom_attention

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
def test_it_is_the_op_with_heads_split_in_order(patch_size):
    maps, mask = _maps(), _mask()
    options = {"landmarks": 5, "pinv_iterations": 4, "score": "l2", "scale": 0.3, "patch_size": patch_size}
    mixer = NystromAttention(heads=2, **options)
    expected = nystrom_attention(*_heads(maps, 2), key_mask=mask, **options).flatten(1, 2)
    assert torch.equal(mixer(*maps, mask), expected)
    each = [NystromAttention(**options)(*(x.chunk(2, 1)[g] for x in maps), mask) for g in range(2)]
    torch.testing.assert_close(torch.cat(each, 1), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_weights_bring_the_output(masked, patch_size):
    (q, k, v), mask = _maps(), _mask() if masked else None
    mixer = NystromAttention(landmarks=6, patch_size=patch_size, heads=2)
    queries = torch.tensor([[0, 0], [5, 4], [2, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    assert indices.shape == weights.shape == (2, 2, 3, 28)
    brought = torch.einsum("bgqk,bgek->bgeq", weights, v.unflatten(1, (2, 2)).flatten(3)).flatten(1, 2)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[:, :, queries[:, 0], queries[:, 1]], rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="queries must lie inside the 6x5 query map"):
        mixer.weights(q, k, torch.tensor([[6, 0]]))


@pytest.mark.parametrize("masked", [False, True])
def test_value_convolution_adds_filtered_values_of_each_head(masked):
    (q, k, v), mask = _maps((4, 7)), _mask() if masked else None
    mixer = NystromAttention(landmarks=6, value_conv=3, heads=2).double()
    kernel = mixer.value_conv.weight
    assert kernel.shape == (2, 1, 3, 3)
    expected = NystromAttention(landmarks=6, heads=2)(q, k, v, mask)
    padded = torch.zeros(2, 4, 6, 9, dtype=torch.float64)
    padded[:, :, 1:5, 1:8] = v if mask is None else v * mask
    for channel in range(4):
        for y in range(4):
            for x in range(7):
                window = padded[:, channel, y : y + 3, x : x + 3]
                expected[:, channel, y, x] += (window * kernel[channel // 2, 0]).sum((1, 2))
    torch.testing.assert_close(mixer(q, k, v, mask), expected, rtol=0, atol=1e-13)
    mixer(q, k, v, mask).sum().backward()
    assert kernel.grad.abs().sum() > 0


def test_state_dicts_stay_compatible_but_for_the_convolution():
    assert not NystromAttention().state_dict()
    mixer = NystromAttention(value_conv=3, heads=2)
    assert list(mixer.state_dict()) == ["value_conv.weight"]
    found = mixer.load_state_dict(NystromAttention(heads=2).state_dict(), strict=False)
    assert found.missing_keys == ["value_conv.weight"]


def test_value_convolution_needs_one_size_of_maps():
    size, other = Size(4, 7), Size(6, 5)
    mixer = NystromAttention(SlotSpec("up.8", 6, 6, 4, other, size), value_conv=3)
    assert mixer.reasons_against(AttentionShape(1, 1, 6, 4, size, size)) == []
    (reason,) = mixer.reasons_against(AttentionShape(1, 1, 6, 4, other, size))
    assert "query map is 6x5 and the key map is 4x7. Valid here: value_conv=None" in reason
    with pytest.raises(ValueError, match=r"^nystromformer, slot up\.8: value_conv"):
        mixer(*_maps())
    assert NystromAttention().reasons_against(AttentionShape(1, 1, 6, 4, other, size)) == []


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("value_conv", [None, 3])
def test_costs_are_what_a_profiler_counts(patch_size, value_conv):
    kv_size = (10, 14) if value_conv is None else (16, 12)
    shape = AttentionShape(2, 2, 8, 12, Size(16, 12), Size(*kv_size))
    maps = [
        torch.randn(2, 2 * c, *size, requires_grad=True) for c, size in ((8, (16, 12)), (8, kv_size), (12, kv_size))
    ]
    mixer = NystromAttention(landmarks=20, patch_size=patch_size, value_conv=value_conv, heads=2, kernel="chunked")
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
    if value_conv is None:
        assert held == pytest.approx(cost.saved_bytes, rel=0.05)


@pytest.mark.parametrize("backward", [False, True])
def test_memory_stays_far_below_the_kernels(backward):
    """One kernel alone would take 8192 x 256 x 4 B = 8 MiB, patches of one map 25 MiB."""
    from attention_bench.measure import cpu_peak_bytes

    q, k, v = (x.requires_grad_(backward) for x in _maps((64, 128), (64, 128), 16, 16, 1, torch.float32))
    mixer = NystromAttention(landmarks=256, patch_size=7)

    def call():
        out = mixer(q, k, v)
        if backward:
            out.backward(torch.ones_like(out))

    assert cpu_peak_bytes(call) < (60 if backward else 22) * 2**20


@pytest.mark.parametrize("value_conv", [None, 3])
def test_it_runs_on_the_meta_device_in_half_precision_and_with_strided_maps(value_conv):
    mixer = NystromAttention(landmarks=7, heads=2, patch_size=3, value_conv=value_conv)
    maps = _maps((4, 7), dtype=torch.float32)
    assert mixer.to("meta")(*(x.to("meta") for x in maps)).shape == (2, 4, 4, 7)
    mixer = NystromAttention(landmarks=7, heads=2, patch_size=3, value_conv=value_conv)
    expected = mixer(*maps)
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in maps]
    torch.testing.assert_close(mixer(*turned), expected, rtol=0, atol=1e-5)
    mixer(*turned).sum().backward()
    assert all(x.grad.isfinite().all() for x in turned)
    half = mixer(*(x.half() for x in maps))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be a whole number, 1 or more"),
        ({"landmarks": 0}, "landmarks must be a whole number, 1 or more; got 0"),
        ({"pinv_iterations": -1}, "pinv_iterations must be a whole number, 1 or more; got -1"),
        ({"score": "cos"}, "no score is called 'cos'"),
        ({"scale": float("inf")}, "scale must be a positive number"),
        ({"patch_size": 2}, "patch_size must be an odd number"),
        ({"value_conv": 4}, "value_conv must be an odd side of 1 or more, or None; got 4. Valid here: 3 or 5"),
        ({"kernel": "fast"}, "no kernel is called 'fast'. Valid here: auto, chunked, reference"),
    ],
)
def test_wrong_options_are_named_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        NystromAttention(**options)


def test_it_shows_its_options():
    assert "landmarks=9, pinv_iterations=6" in repr(NystromAttention(landmarks=9))


@pytest.mark.slow
def test_memory_on_patches_of_a_large_map():
    """256x256, patch 7, 16 channels: the patches of one map alone would take 196 MiB."""
    from attention_bench.measure import cpu_peak_bytes

    q, k, v = (x.requires_grad_() for x in _maps((256, 256), (256, 256), 16, 16, 1, torch.float32))
    mixer = NystromAttention(patch_size=7)

    def call():
        out = mixer(q, k, v)
        out.backward(torch.ones_like(out))

    assert cpu_peak_bytes(call) < 60 * 2**20
