"""The trainable choice of keys: memberships, the hard limit, and gradients through the choice."""

import math

import pytest
import torch

from oracles.gpa_nd_loops import gpa_nd_loops, memberships
from saccade.attention import GridPartitionedAttention
from saccade.ops import double_backward, gpa_attention, gpa_weights, ledger, reset_ledger
from saccade.ops.gpa import layout as gpa_layout
from saccade.ops.gpa.soft import log_memberships

OPTIONS = {"coarse": (4, 6), "cells": (2, 3), "keys_per_cell": 3}
SOFT = {**OPTIONS, "selection": "soft", "temperature": 0.3}
each_score = pytest.mark.parametrize("score", ["dot", "l2"])
each_kernel = pytest.mark.parametrize("kernel", ["recompute", "reference"])


def draw(*shape, gain=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def setup(heads=2, gain=1.5):
    sizes = ((3, 8, 12), (3, 6, 10), (2, 6, 10))
    return tuple(draw(2, heads, *size, gain=gain, seed=seed) for seed, size in enumerate(sizes))


def mask_of(k):
    """Some keys, and in the second image those of two blocks: fewer than a cell chooses."""
    mask = torch.rand(2, 1, *k.shape[3:], generator=torch.Generator().manual_seed(4)) > 0.5
    mask[1] = False
    mask[1, 0, 0, 0] = mask[1, 0, 5, 9] = True
    return mask


@pytest.mark.parametrize("temperature", [0.01, 0.3, 5.0])
@pytest.mark.parametrize("kappa", [1, 3, 6, 7])
def test_memberships_are_those_of_the_threshold(kappa, temperature):
    ranks = draw(4, 7).detach()
    found = log_memberships(ranks, kappa, temperature)
    for row, wanted in zip(found.tolist(), ranks.tolist(), strict=True):
        expected = memberships(wanted, kappa, temperature)
        assert [math.exp(x) for x in row] == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(found.exp().sum(1), torch.full((4,), float(kappa), dtype=torch.float64))


def test_memberships_leave_out_what_is_not_valid():
    ranks, valid = draw(3, 5).detach(), torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]).bool()
    found = log_memberships(ranks, 2, 0.5, valid)
    expected = memberships(ranks[0][valid[0]].tolist(), 2, 0.5)
    assert found[0][valid[0]].exp().tolist() == pytest.approx(expected, abs=1e-12)
    assert not found[0, 2]
    assert not found[1:].any()  # no more than two: all are members


@pytest.mark.parametrize("valid", [None, torch.tensor([[True] * 5, [True, False, True, True, True]])])
def test_derivatives_of_memberships_are_those_of_the_implicit_threshold(valid):
    ranks = draw(2, 5)

    def members(ranks):
        return log_memberships(ranks, 2, 0.4, valid)

    assert torch.autograd.gradcheck(members, ranks)
    assert torch.autograd.gradgradcheck(members, ranks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-8, 1e-4, 1e-2])
def test_cold_memberships_and_their_gradients_are_finite(temperature, dtype):
    ranks = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(row)) for row in range(6)])
    ranks = (0.3 * ranks - 5).to(dtype).requires_grad_()
    found = log_memberships(ranks, 4, temperature)
    best = ranks.topk(4).indices
    assert found.gather(1, best).exp().min() > 0.99
    (gradient,) = torch.autograd.grad(found.exp().sum(), ranks)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("candidates", [None, 5])
@each_score
def test_outputs_match_the_loops(score, candidates, masked):
    maps = setup(heads=1)
    mask = mask_of(maps[1]) if masked else None
    loops = gpa_nd_loops(*maps, key_mask=mask, score=score, temperature=0.3, candidates=candidates, **OPTIONS)
    assert loops.smallest_gap > 1e-9
    for kernel in ("recompute", "reference"):
        found = gpa_attention(*maps, key_mask=mask, score=score, candidates=candidates, kernel=kernel, **SOFT)
        torch.testing.assert_close(found, loops.output, rtol=0, atol=1e-11)


@pytest.mark.parametrize("masked", [False, True])
@each_score
def test_at_low_temperature_it_is_the_hard_selection(score, masked):
    maps = setup()
    mask = mask_of(maps[1]) if masked else None
    upstream = draw(2, 2, 2, 8, 12, seed=8).detach()
    hard = gpa_attention(*maps, key_mask=mask, score=score, **OPTIONS)
    distances = []
    for temperature in (1.0, 0.1, 1e-8):
        soft = gpa_attention(*maps, key_mask=mask, score=score, **{**SOFT, "temperature": temperature})
        distances.append(float((soft - hard).detach().abs().mean()))
    assert distances[0] > distances[1] > 1e-3
    assert distances[2] < 1e-12
    for one, other in zip(*(torch.autograd.grad(out, maps, upstream) for out in (soft, hard)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_all_keys_leave_nothing_to_choose():
    maps = setup()
    everything = {"keys_per_cell": 99}
    expected = gpa_attention(*maps, **{**OPTIONS, **everything})
    assert torch.equal(gpa_attention(*maps, **{**SOFT, **everything}), expected)
    as_many = gpa_attention(*maps, **SOFT, candidates=3)
    torch.testing.assert_close(as_many, gpa_attention(*maps, **OPTIONS), rtol=0, atol=1e-12)


def small():
    return tuple(
        draw(1, 1, c, *size, gain=1.5, seed=s) for s, (c, size) in enumerate(((2, (4, 4)), (2, (4, 4)), (1, (4, 4))))
    )


SMALL = {
    "coarse": (2, 2),
    "cells": (1, 2),
    "keys_per_cell": 1,
    "selection": "soft",
    "temperature": 0.7,
    "candidates": 3,
}


@each_score
@each_kernel
def test_gradcheck(kernel, score):
    def attend(*x):
        return gpa_attention(*x, score=score, kernel=kernel, **SMALL)

    assert torch.autograd.gradcheck(attend, small())


def test_gradgradcheck_inside_double_backward():
    def attend(*x):
        with double_backward():
            return gpa_attention(*x, **SMALL)

    reset_ledger()
    assert torch.autograd.gradgradcheck(attend, small())
    assert {entry["kernel"] for entry in ledger()} == {"reference"}


def test_the_choice_learns():
    """Gradient descent on q alone makes a cell look at a block that holds the wanted value, from outside its choice.

    The values mark one block. With the hard selection q has no way to learn of it; the soft one brings it in.
    """
    torch.manual_seed(0)
    k = torch.randn(1, 1, 8, 8, 8).repeat_interleave(2, 3).repeat_interleave(2, 4)
    v = torch.zeros(1, 1, 1, 16, 16)
    v[..., 4:6, 6:8] = 1.0
    shares = {}
    for selection in ("hard", "soft"):
        q = (k.mean((3, 4), keepdim=True) + 0.1 * torch.randn(1, 1, 8, 4, 4)).detach().requires_grad_()
        options = {"coarse": (2, 2), "cells": (1, 1), "keys_per_cell": 4, "selection": selection, "scale": 1.0}
        options |= {"temperature": 0.5, "candidates": 64} if selection == "soft" else {}
        optimiser = torch.optim.Adam([q], lr=0.05)
        for _ in range(40):
            optimiser.zero_grad()
            (-gpa_attention(q, k, v, **options).mean()).backward()
            optimiser.step()
        hard = {**options, "selection": "hard"}
        shares[selection] = float(gpa_attention(q.detach(), k, v, **hard).mean())
    assert shares["hard"] == 0.0
    assert shares["soft"] > 0.9


@pytest.mark.parametrize("entries", [1, 200])
def test_chunks_and_cut_cells_do_not_change_the_gradient_of_the_choice(monkeypatch, entries):
    maps = setup()
    upstream = draw(2, 2, 2, 8, 12, seed=8).detach()
    expected = torch.autograd.grad(gpa_attention(*maps, kernel="reference", **SOFT), maps, upstream)
    monkeypatch.setitem(gpa_layout.CHUNK_ENTRIES, "cpu", entries)
    monkeypatch.setitem(gpa_layout.WEIGHT_ENTRIES, "cpu", entries)
    found = torch.autograd.grad(gpa_attention(*maps, kernel="recompute", **SOFT), maps, upstream)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_weights_bring_the_output():
    maps = setup()
    places = torch.tensor([[0, 0], [7, 11], [3, 4]])
    pixels, weights = gpa_weights(*maps[:2], places, **SOFT)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    torch.testing.assert_close(brought, gpa_attention(*maps, **SOFT)[..., places[:, 0], places[:, 1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_stays_near(dtype):
    maps = [x.detach().to(dtype).requires_grad_() for x in setup()]
    exact = gpa_attention(*(x.detach().double() for x in maps), **SOFT)
    found = gpa_attention(*maps, **SOFT)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()
    found.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": "maybe"}, "no selection is called 'maybe'. Valid here: hard, soft"),
        ({"temperature": 0.0}, "temperature must be a positive number; got 0.0"),
        ({"temperature": float("nan")}, "temperature must be a positive number"),
        ({"candidates": 2}, "candidates must be at least keys_per_cell=3"),
    ],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        gpa_attention(*setup(), **{**SOFT, **change})
    with pytest.raises(ValueError, match=message):
        GridPartitionedAttention(**{"keys_per_cell": 3, **change})
