"""What the plain loops of test_gpa_oracle.py do not cover: memory, chunks, memory orders, ties, coverage, messages."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.geometry import Size
from saccade.ops import dense_attention, gpa_attention, gpa_coverage, gpa_select, gpa_weights
from saccade.ops.gpa import keys as gpa_keys
from saccade.ops.gpa import layout as gpa_layout
from saccade.ops.gpa.keys import stable_top

OPTIONS = {"cells": Size(2, 3), "keys_per_cell": 3, "coarse": Size(4, 6)}  # d = 2, cells of 2x2 coarse pixels


def _maps(q_size=(8, 12), kv_size=(6, 10), heads=2, channels=5, values=3, dtype=torch.float64, gain=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(c, size, factor):
        return (factor * torch.randn(2, heads, c, *size, generator=generator, dtype=torch.float64)).to(dtype)

    maps = [draw(channels, q_size, gain), draw(channels, kv_size, gain), draw(values, kv_size, 1.0)]
    return [x.requires_grad_() for x in maps]


def _mask(kv_size=(6, 10)):
    """A few keys, and in the second image but one: most cells there choose blocks that are masked."""
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(3)) > 0.6
    mask[1] = False
    mask[1, 0, 3, 4] = True
    return mask


def _with_gradients(maps, **options):
    out = gpa_attention(*maps, **{**OPTIONS, **options})
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def _assert_same(found, expected, atol=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("entries", [1, 200, 2000])
def test_chunks_do_not_change_the_result(monkeypatch, order, entries, score, masked):
    """One cell at a time, some cells of a row, some rows: each cut of the nested axes, and cuts of cells themselves."""
    maps = [x.detach().flatten(1, 2).contiguous(memory_format=order).unflatten(1, (2, -1)) for x in _maps()]
    maps, mask = [x.requires_grad_() for x in maps], _mask() if masked else None
    expected = _with_gradients(maps, score=score, key_mask=mask, kernel="reference")
    monkeypatch.setitem(gpa_layout.CHUNK_ENTRIES, "cpu", entries)
    monkeypatch.setitem(gpa_layout.WEIGHT_ENTRIES, "cpu", entries)
    monkeypatch.setitem(gpa_keys.CHUNK_ENTRIES, "cpu", entries)
    _assert_same(_with_gradients(maps, score=score, key_mask=mask, kernel="recompute"), expected)


def test_chunks_visit_every_item_once():
    for counts in [(2, 3, 4, 5), (1, 1, 7, 2), (3, 1, 1, 1)]:
        for limit in [0, 1, 2, 4, 5, 9, 20, 39, 40, 61, 1000]:
            seen = torch.zeros(counts, dtype=torch.long)
            for part in gpa_layout.chunks(counts, limit):
                seen[part] += 1
                assert seen[part].numel() <= max(1, limit)
            assert bool((seen == 1).all())


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("kernel", ["recompute", "reference"])
def test_memory_order_of_the_maps_does_not_matter(kernel, heads):
    maps = _maps(heads=heads, values=5)
    expected = _with_gradients(maps, kernel="reference")
    orders = {
        "channels last": lambda x: (
            x.flatten(1, 2).contiguous(memory_format=torch.channels_last).unflatten(1, (heads, -1))
        ),
        "cols before rows": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
        "part of a larger map": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    }
    for order, change in orders.items():
        changed = [change(x.detach()).requires_grad_() for x in maps]
        found = _with_gradients(changed, kernel=kernel)
        _assert_same(found, expected)
        assert found[0].shape == expected[0].shape, order


def test_gradients_come_in_the_memory_order_of_their_maps():
    maps = _maps(heads=1, values=5)
    turned = [x.detach().squeeze(1).contiguous(memory_format=torch.channels_last).unsqueeze(1) for x in maps]
    for changed in (maps, [x.requires_grad_() for x in turned]):
        out, *gradients = _with_gradients(changed, kernel="recompute")
        assert [gradient.stride() for gradient in gradients] == [x.stride() for x in changed]
        assert (out.stride(2) == 1) == (changed[0].stride(2) == 1)


def test_only_inputs_and_indices_are_kept_for_backward():
    maps, saved = _maps(), []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gpa_attention(*maps, **OPTIONS, score="l2", kernel="recompute")
    inputs = {x.untyped_storage().data_ptr() for x in maps}
    extra = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in inputs]
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in extra] == [(torch.long, (2, 2, 6, 3))]


class _Largest(TorchDispatchMode):
    """The largest storage that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("score", ["dot", "l2"])
def test_nothing_larger_than_a_map_or_a_chunk_is_made(score, monkeypatch):
    """Neither all coarse pairs nor all gathered keys exist at once, forward or backward."""
    budget = 2**14
    monkeypatch.setitem(gpa_layout.CHUNK_ENTRIES, "cpu", budget)
    monkeypatch.setitem(gpa_keys.CHUNK_ENTRIES, "cpu", budget)
    maps = _maps((32, 32), (32, 32), heads=1, channels=16, values=16)
    options = {"cells": Size(16, 16), "coarse": Size(16, 16), "keys_per_cell": 4, "score": score}
    coarse_pairs, gathered, whole_map = 2 * 256**2, 2 * 256 * 16 * 16, 2 * 16 * 32 * 32
    with _Largest() as reference:
        _with_gradients(maps, **options, kernel="reference")
    assert reference.numel >= gathered
    with _Largest() as recompute:
        _with_gradients(maps, **options, kernel="recompute")
    assert recompute.numel <= max(whole_map, budget) < min(gathered, coarse_pairs)


def test_one_cell_that_attends_to_all_does_not_hold_all_pairs(monkeypatch):
    budget = 2**12
    for entries in (gpa_layout.CHUNK_ENTRIES, gpa_layout.WEIGHT_ENTRIES, gpa_keys.CHUNK_ENTRIES):
        monkeypatch.setitem(entries, "cpu", budget)
    maps = [x.detach()[:1].requires_grad_() for x in _maps((32, 32), (32, 32), heads=1, channels=4, values=4)]
    for kappa in (200, 256):
        options = {"cells": Size(1, 1), "coarse": Size(16, 16), "keys_per_cell": kappa}
        expected = _with_gradients(maps, **options, kernel="reference")
        with _Largest() as recompute:
            found = _with_gradients(maps, **options, kernel="recompute")
        _assert_same(found, expected)
        assert recompute.numel <= 2 * budget < 256 * 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kv_size", [(14, 18), (22, 26)])
def test_constant_maps_choose_the_first_keys(dtype, kv_size):
    """Every key ties with every other, also where their number is no multiple of a vector."""
    q = torch.full((1, 1, 7, 8, 8), 0.3, dtype=dtype)
    k = torch.full((1, 1, 7, *kv_size), 0.7, dtype=dtype)
    for score in ("dot", "l2"):
        chosen = gpa_select(q, k, cells=Size(2, 2), keys_per_cell=5, coarse=Size(4, 4), score=score)
        assert torch.equal(chosen, torch.arange(5).expand(1, 1, 4, 5))


def test_masked_keys_are_not_chosen_before_allowed_ones_without_weight():
    """The last key takes all the weight, so that the third's is exactly 0, as the masked ones' is."""
    q = torch.full((1, 1, 1, 2, 2), 1e4, dtype=torch.float64)
    k = torch.tensor([0.0, 0.0, -1.0, 1.0], dtype=torch.float64).view(1, 1, 1, 1, 4)
    mask = torch.tensor([False, False, True, True]).view(1, 1, 1, 4)
    chosen = gpa_select(q, k, cells=Size(1, 1), keys_per_cell=2, coarse=Size(2, 2), key_mask=mask)
    assert chosen.flatten().tolist() == [2, 3]


def test_stable_top_equals_a_stable_sort():
    generator = torch.Generator().manual_seed(0)
    for levels in (1, 2, 3, 10, 10_000):
        scores = torch.randint(levels, (50, 37), generator=generator).float() / levels
        for kappa in (1, 2, 5, 36):
            expected = scores.sort(dim=-1, descending=True, stable=True).indices[:, :kappa].sort(-1).values
            assert torch.equal(stable_top(scores, kappa), expected)


def test_stable_top_survives_what_is_not_a_number():
    scores = torch.tensor([[0.5, float("nan"), 0.5, 0.1], [float("nan")] * 4, [1.0, 0.0, 0.0, 0.0]])
    chosen = stable_top(scores, 2)
    assert chosen.shape == (3, 2)
    assert chosen[2].tolist() == [0, 1]
    assert bool(((chosen >= 0) & (chosen < 4)).all())


def test_more_keys_than_there_are_means_all_and_equals_dense_attention():
    maps = _maps()
    for score in ("dot", "l2"):
        for kernel in ("recompute", "reference"):
            out = gpa_attention(*maps, **{**OPTIONS, "keys_per_cell": 99}, score=score, kernel=kernel)
            torch.testing.assert_close(out, dense_attention(*maps, score=score, kernel="reference"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_weights_bring_the_output_of_their_queries(score, masked):
    maps, mask = _maps(), _mask() if masked else None
    queries = torch.tensor([[0, 0], [7, 11], [3, 4], [4, 4]])
    out = gpa_attention(*maps, **OPTIONS, score=score, key_mask=mask)
    pixels, weights = gpa_weights(*maps[:2], queries, **OPTIONS, score=score, key_mask=mask)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, len(queries), -1)  # (B, G, E, Q, K)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 3, -1, -1)) * weights.unsqueeze(2)).sum(4)
    torch.testing.assert_close(brought, out[..., queries[:, 0], queries[:, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_coverage_rises_with_kappa_to_one(masked):
    q, k, _ = _maps()
    mask = _mask() if masked else None
    shares = [
        gpa_coverage(q, k, **{**OPTIONS, "keys_per_cell": kappa}, score="l2", key_mask=mask)
        for kappa in (1, 2, 4, 8, 15)
    ]
    for fewer, more in pairwise(shares):
        assert bool((more >= fewer - 1e-12).all())
    assert 0 < float(shares[0][0].max()) < 1  # of the second image one key is left, which is always chosen
    torch.testing.assert_close(shares[-1], torch.ones(2, 2, dtype=torch.float64))


def test_coverage_is_the_mass_of_dense_attention_on_the_chosen_keys():
    q, k, _ = _maps(heads=1)
    chosen = gpa_select(q, k, **OPTIONS)
    marked = torch.zeros(2, 1, 6, 15, dtype=torch.float64).scatter_(3, chosen, 1.0)  # (B, G, cells, coarse keys)
    marked = marked.unflatten(3, (3, 5)).repeat_interleave(2, 3).repeat_interleave(2, 4)  # (B, G, cells, Y, X)
    out = dense_attention(q, k, marked.transpose(1, 2).flatten(1, 2).unsqueeze(1))  # (B, 1, cells, Yq, Xq)
    cell = (torch.arange(8)[:, None] // 4) * 3 + torch.arange(12) // 4
    share = out.squeeze(1).gather(1, cell.expand(2, 1, 8, 12))
    torch.testing.assert_close(gpa_coverage(q, k, **OPTIONS), share.mean((2, 3)))
    some = torch.tensor([[1, 2], [7, 0]])
    expected = share[:, :, some[:, 0], some[:, 1]].mean(2)
    torch.testing.assert_close(gpa_coverage(q, k, **OPTIONS, queries=some), expected)


def test_coverage_draws_are_reproducible():
    q, k, _ = _maps()
    first, again, other = (
        gpa_coverage(q, k, **OPTIONS, samples=9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(gpa_coverage(q, k, **OPTIONS, samples=96), gpa_coverage(q, k, **OPTIONS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["recompute", "reference"])
def test_half_precision_stays_near_the_rounding_of_its_inputs(dtype, kernel):
    maps = [x.detach().to(dtype).requires_grad_() for x in _maps(heads=1)]
    exact = [x.detach().double().requires_grad_() for x in maps]
    for score in ("dot", "l2"):
        found, expected = (_with_gradients(m, score=score, kernel=kernel) for m in (maps, exact))
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            assert (one.double() - other).abs().max() <= 4 * torch.finfo(dtype).eps * other.abs().max()


def test_autocast_does_not_lower_the_products():
    maps = [x.detach().float().requires_grad_() for x in _maps(heads=1)]
    for kernel in ("recompute", "reference"):
        expected = _with_gradients(maps, kernel=kernel)
        with torch.autocast("cpu", torch.bfloat16):
            out = gpa_attention(*maps, **OPTIONS, kernel=kernel)
        _assert_same([out], expected[:1], atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # backward inside, too, though PyTorch advises against it
        _assert_same(_with_gradients(maps, kernel="recompute"), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["recompute", "reference"])
def test_shapes_are_known_on_the_meta_device(kernel):
    q, k, v = (x.detach().to("meta").requires_grad_() for x in _maps())
    out = gpa_attention(q, k, v, **OPTIONS, kernel=kernel)
    assert out.shape == (2, 2, 3, 8, 12)
    out.sum().backward()
    assert (q.grad.shape, k.grad.shape, v.grad.shape) == (q.shape, k.shape, v.shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cells": Size(32, 32)},
            r"query map 8x12, pooled to 4x6, does not split into 32x32 cells .* Valid here: 2x2, 1x1",
        ),
        ({"cells": Size(4, 4)}, r"\(6 is not a multiple of 4\)"),
        ({"coarse": Size(3, 6)}, r"query map 8x12 does not pool to 3x6 by one whole factor. Valid here: 4x6"),
        ({"coarse": Size(16, 24)}, r"does not pool to 16x24"),
        ({"coarse": Size(2, 3), "cells": Size(1, 1)}, r"key map 6x10 does not pool by the query map's factor 4"),
        ({"keys_per_cell": 0}, r"keys_per_cell must be a whole number, 1 or more; got 0"),
        ({"score": "angle"}, r"no score is called 'angle'"),
        ({"kernel": "triton"}, r"no kernel is called 'triton'. Valid here: auto, recompute, reference"),
    ],
)
def test_wrong_sizes_and_names_get_the_nearest_choices(options, message):
    with pytest.raises(ValueError, match=message):
        gpa_attention(*_maps(), **{**OPTIONS, **options})


def test_coverage_refuses_queries_beside_samples_and_too_many():
    q, k, _ = _maps()
    with pytest.raises(ValueError, match="queries or samples, not both"):
        gpa_coverage(q, k, **OPTIONS, queries=torch.tensor([[0, 0]]), samples=3)
    with pytest.raises(ValueError, match="samples must be between 1 and the 96 pixels"):
        gpa_coverage(q, k, **OPTIONS, samples=97)
