"""Causal grid-partitioned attention: the loops, and that nothing ever hears of what comes after it."""

import math

import pytest
import torch

from oracles.gpa_nd_loops import gpa_nd_loops
from saccade.attention import GridPartitionedAttention
from saccade.ops import dense_attention, gpa_attention, gpa_weights
from saccade.ops.gpa import keys as gpa_keys
from saccade.ops.gpa import layout as gpa_layout

CASES = {
    "sequence": {"size": (24,), "coarse": (12,), "cells": (6,)},
    "image": {"size": (8, 12), "coarse": (4, 6), "cells": (4, 3)},
    "volume": {"size": (4, 4, 6), "coarse": (2, 2, 3), "cells": (2, 1, 3)},
}
each_case = pytest.mark.parametrize("case", CASES)
each_score = pytest.mark.parametrize("score", ["dot", "l2"])
masks = pytest.mark.parametrize("masked", [False, True])


def setup(case, keys_per_cell=2, seed=0):
    options = {**CASES[case], "keys_per_cell": keys_per_cell, "causal": True}
    size, generator = options.pop("size"), torch.Generator().manual_seed(seed)

    def draw(channels, gain):
        return (gain * torch.randn(1, 1, channels, *size, generator=generator, dtype=torch.float64)).requires_grad_()

    return (draw(3, 2.0), draw(3, 2.0), draw(2, 1.0)), options


def mask_of(k):
    mask = torch.rand(k.shape[0], 1, *k.shape[3:], generator=torch.Generator().manual_seed(4)) > 0.5
    mask.flatten(2)[..., -1] = True
    return mask


@masks
@each_score
@each_case
def test_outputs_and_gradients_match_the_loops(case, score, masked):
    maps, options = setup(case)
    mask = mask_of(maps[1]) if masked else None
    loops = gpa_nd_loops(*maps, key_mask=mask, score=score, **options)
    assert loops.smallest_gap > 1e-9
    upstream = torch.linspace(-1, 1, loops.output.numel(), dtype=torch.float64).view(loops.output.shape)
    expected = torch.autograd.grad(loops.output, maps, upstream)
    for kernel in ("recompute", "reference"):
        found = gpa_attention(*maps, key_mask=mask, score=score, kernel=kernel, **options)
        torch.testing.assert_close(found, loops.output, rtol=0, atol=1e-12)
        for one, other in zip(torch.autograd.grad(found, maps, upstream), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * max(1.0, float(other.abs().max())))


@each_score
@each_case
def test_the_future_changes_nothing_before_it(case, score):
    """Not through weights, not through the choice of keys, not through rounding: equal to the last bit."""
    maps, options = setup(case, keys_per_cell=1)
    count = math.prod(maps[0].shape[3:])
    before = gpa_attention(*maps, score=score, **options).flatten(3)
    generator = torch.Generator().manual_seed(7)
    changed_later = 0
    for last in range(0, count - 1, 9):
        changed = []
        for x in maps:
            flat = x.detach().flatten(3).clone()
            flat[..., last + 1 :] = 9 * torch.randn(flat[..., last + 1 :].shape, generator=generator).double()
            changed.append(flat.view(x.shape))
        after = gpa_attention(*changed, score=score, **options).flatten(3)
        assert torch.equal(after[..., : last + 1], before[..., : last + 1])
        changed_later += int((after != before).any())
    assert changed_later >= 3


@each_case
def test_no_gradient_reaches_the_future(case):
    maps, options = setup(case)
    out = gpa_attention(*maps, **options).flatten(3)
    count = out.shape[3]
    for place in (0, 1, count // 3, count // 2, count - 2):
        gradients = torch.autograd.grad(out[..., place].sum(), maps, retain_graph=True)
        for name, gradient in zip("qkv", gradients, strict=True):
            assert not gradient.flatten(3)[..., place + 1 :].any(), name
        assert gradients[2].flatten(3)[..., : place + 1].any()


@masks
@each_score
@each_case
def test_all_keys_is_causal_dense_attention(case, score, masked):
    maps, options = setup(case, keys_per_cell=999)
    mask = mask_of(maps[1]) if masked else None
    lines = [x.flatten(3).unsqueeze(3) for x in maps]
    line = None if mask is None else mask.flatten(2).unsqueeze(2)
    dense = dense_attention(*lines, score=score, causal=True, key_mask=line, kernel="reference").squeeze(3)
    found = gpa_attention(*maps, score=score, key_mask=mask, **options).flatten(3)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 300])
def test_chunks_do_not_change_the_result(monkeypatch, entries):
    maps, options = setup("image")
    expected = gpa_attention(*maps, kernel="reference", **options)
    for budget in (gpa_layout.CHUNK_ENTRIES, gpa_layout.WEIGHT_ENTRIES, gpa_keys.CHUNK_ENTRIES):
        monkeypatch.setitem(budget, "cpu", entries)
    torch.testing.assert_close(gpa_attention(*maps, **options), expected, rtol=0, atol=1e-13)


@each_case
def test_weights_bring_the_output(case):
    maps, options = setup(case)
    generator = torch.Generator().manual_seed(0)
    places = torch.stack([torch.randint(side, (5,), generator=generator) for side in maps[0].shape[3:]], 1)
    pixels, weights = gpa_weights(*maps[:2], places, **options)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 5, -1)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    torch.testing.assert_close(brought, gpa_attention(*maps, **options)[(..., *places.T)], rtol=0, atol=1e-12)


def test_gradcheck():
    maps, options = setup("sequence", keys_per_cell=1)
    assert gpa_nd_loops(*maps, **options).smallest_gap > 1e-3
    for kernel in ("recompute", "reference"):
        assert torch.autograd.gradcheck(lambda *x, kernel=kernel: gpa_attention(*x, kernel=kernel, **options), maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "causal attention needs patch_size=1"),
        ({"selection": "soft"}, "causal attention chooses keys by selection='hard' alone"),
    ],
)
def test_what_cannot_be_causal_is_refused(change, message):
    maps, options = setup("image")
    with pytest.raises(ValueError, match=message):
        gpa_attention(*maps, **{**options, **change})
    with pytest.raises(ValueError, match=message):
        GridPartitionedAttention(causal=True, **change)


def test_the_module_is_causal_and_wants_maps_of_one_size():
    mixer = GridPartitionedAttention(coarse=(4, 6), cells=(4, 3), keys_per_cell=2, causal=True, score="dot")
    maps, options = setup("image")
    expected = gpa_attention(*maps, **options)
    assert torch.equal(mixer(*(x.squeeze(1) for x in maps)), expected.squeeze(1))
    with pytest.raises(ValueError, match="causal attention needs maps of one size"):
        mixer(*(x.squeeze(1) for x in (maps[0], maps[1][..., :6], maps[2][..., :6])))
