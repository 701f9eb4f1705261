"""PSAL's read-outs and costs: the released code's numbers, plain loops, F.fold; values and gradients in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles.psal_loops import costs_loops, read_loops
from saccade.ops.psal import psal_attention, psal_costs, psal_read, psal_search

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
SCORES = ("l2", "dot", "cosine", "unit_key")


def _closed_form(shape, phase):
    """Maps of the reference numbers below: entry t is sin(0.7 t + phase), rounded to float32."""
    count = torch.Size(shape).numel()
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + phase).float().view(shape)


def _indices(*sides):
    return torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")


def _assert_statistics(out: Tensor, mean, absolute, rms, first, middle, last):
    """The released code's float32 results: mean, mean of absolute values, root mean square, and twelve entries."""
    flat = out.double().flatten()
    found = [flat.mean(), flat.abs().mean(), flat.square().mean().sqrt()]
    torch.testing.assert_close(torch.stack(found), torch.tensor([mean, absolute, rms]).double(), rtol=2e-6, atol=1e-8)
    half = flat.shape[0] // 2
    picked = torch.cat([flat[:4], flat[half : half + 4], flat[-4:]])
    expected = torch.tensor([*first, *middle, *last], dtype=torch.float64)
    torch.testing.assert_close(picked, expected, rtol=2e-5, atol=1e-6)


def _released_case():
    """Matches and costs of 9 x 9 queries in an 11 x 10 map of values, K = 3."""
    k, i, j = _indices(3, 9, 9)
    rows, cols = 1 + (3 * k + 2 * i + 5 * j) % 9, 1 + (5 * k + 3 * i + 2 * j) % 8
    costs = 0.25 * ((k + 2 * i + 3 * j) % 7).float()
    return (rows * 10 + cols)[None, None], costs[None, None], _closed_form((4, 11, 10), 0.2)[None, None]


def test_the_released_aggregation():
    out = psal_read(*_released_case(), patch_size=3, readout="aggregate", border="released")
    assert out.shape == (1, 1, 4, 9, 9)
    _assert_statistics(
        out,
        *(0.0001747995, 0.08010669, 0.1001305),
        first=(0.229064, 0.119202, 0.0407201, -0.100544),
        middle=(-0.232589, -0.116205, -0.0341116, 0.100855),
        last=(0.231659, -0.0367709, -0.101314, 0.109148),
    )


@pytest.mark.parametrize("border", ["zeros", "released"])
def test_the_released_read_out_of_centres(border):
    out = psal_read(*_released_case(), readout="centre", border=border)
    _assert_statistics(
        out,
        *(0.0002696619, 0.6120097, 0.6814259),
        first=(0.909257, -0.0768379, -0.930677, -0.594333),
        middle=(-0.925555, 0.0185155, 0.915877, 0.64289),
        last=(-0.942588, -0.29563, 0.743987, 0.86303),
    )


def test_the_released_costs_and_their_true_gradients():
    a = _closed_form((3, 8, 8), 0.0)[None, None].requires_grad_()
    b = _closed_form((3, 9, 9), 0.5)[None, None].requires_grad_()
    i, j = _indices(8, 8)
    found = ((1 + (i + 2 * j) % 7) * 9 + 1 + (2 * i + j) % 7)[None, None, None]
    costs = psal_costs(a, b, found, patch_size=3, border="released")
    _assert_statistics(
        costs,
        *(17.82749, 17.82749, 26.70379),
        first=(0, 0, 0, 0),
        middle=(0, 33.4865, 27.5765, 39.4755),
        last=(0, 0, 0, 0),
    )
    costs.sum().backward()  # the ring's costs are constants
    _assert_statistics(
        a.grad,
        *(1.386467, 7.571842, 9.281548),
        first=(-0.943278, 3.47177, 10.6219, 11.1735),
        middle=(-8.08191, -13.0188, -5.82032, 7.84051),
        last=(-3.03109, 5.09831, 7.2651, 3.81579),
    )
    _assert_statistics(
        b.grad,
        *(-1.09548, 6.222113, 7.839605),
        first=(0, 3.10035, 5.65335, 2.2711),
        middle=(-10.9147, -16.7433, -15.3747, -7.00461),
        last=(-3.27173, -4.28628, -2.53021, -1.48423),
    )


def _case(q_size=(5, 4), kv_size=(4, 5), matches=2, maps=2, channels=3, values=2):
    generator = torch.Generator().manual_seed(0)

    def draw(count, size):
        return torch.randn(maps, 1, count, *size, generator=generator, dtype=torch.float64)

    keys = kv_size[0] * kv_size[1]
    found = torch.stack(
        [torch.randperm(keys, generator=generator)[:matches] for _ in range(maps * q_size[0] * q_size[1])], 1
    )
    found = found.view(matches, maps, 1, *q_size).permute(1, 2, 0, 3, 4)
    return draw(channels, q_size), draw(channels, kv_size), draw(values, kv_size), found


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("patch", "border"), [(1, "zeros"), (3, "zeros"), (3, "released"), (7, "zeros")])
def test_costs_and_gradients_are_those_of_loops(score, patch, border):
    q, k, _, found = _case()
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    costs = psal_costs(*leaves, found, patch_size=patch, score=score, border=border)
    grads = torch.autograd.grad((costs * upstream).sum(), leaves)
    slow = [x.clone().requires_grad_() for x in (q, k)]
    expected = torch.stack(
        [costs_loops(*(x[n, 0] for x in slow), found[n, 0], patch, score, border) for n in range(2)]
    ).unsqueeze(1)
    torch.testing.assert_close(costs, expected, **TOLERANCE)
    for grad, loops in zip(grads, torch.autograd.grad((expected * upstream).sum(), slow), strict=True):
        torch.testing.assert_close(grad, loops, **TOLERANCE)


def test_costs_of_a_patch_without_length_have_the_gradient_of_a_constant_length():
    _, k, _, found = _case(matches=1)
    q = torch.zeros(2, 1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    k = (k * 1e-7).requires_grad_()
    costs = psal_costs(q, k, found, patch_size=3, score="cosine")
    slow = [x.detach().clone().requires_grad_() for x in (q, k)]
    expected = torch.stack([costs_loops(*(x[n, 0] for x in slow), found[n, 0], 3, "cosine") for n in range(2)])
    for grad, loops in zip(
        torch.autograd.grad(costs.sum(), (q, k)), torch.autograd.grad(expected.sum(), slow), strict=True
    ):
        torch.testing.assert_close(grad, loops, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("readout", "border", "divisor"),
    [
        ("centre", "zeros", None),
        ("aggregate", "zeros", None),
        ("aggregate", "released", None),
        ("fold", "zeros", None),
        ("fold", "zeros", 6.0),
    ],
)
@pytest.mark.parametrize("patch", [3, 5])
@pytest.mark.parametrize("matches", [1, 3])
def test_read_outs_and_gradients_are_those_of_loops(readout, border, divisor, patch, matches):
    _, _, v, found = _case(matches=matches)
    generator = torch.Generator().manual_seed(1)
    costs = torch.rand(found.shape, generator=generator, dtype=torch.float64) * 8
    upstream = torch.randn(2, 1, 2, 5, 4, generator=generator, dtype=torch.float64)
    options = {"readout": readout, "border": border, "fold_divisor": divisor, "patch_size": patch, "scale": 0.7}
    leaves = [x.clone().requires_grad_() for x in (costs, v)]
    out = psal_read(found, *leaves, **options)
    grads = torch.autograd.grad((out * upstream).sum(), leaves)
    slow = [x.clone().requires_grad_() for x in (costs, v)]
    expected = torch.stack([read_loops(found[n, 0], *(x[n, 0] for x in slow), **options) for n in range(2)]).unsqueeze(
        1
    )
    torch.testing.assert_close(out, expected, **TOLERANCE)
    for grad, loops in zip(grads, torch.autograd.grad((expected * upstream).sum(), slow), strict=True):
        torch.testing.assert_close(grad, loops, **TOLERANCE)


@pytest.mark.parametrize("readout", ["centre", "aggregate", "fold"])
def test_only_the_wanted_gradients_are_made(readout):
    _, _, v, found = _case()
    costs = torch.rand(found.shape, dtype=torch.float64)
    both = [x.clone().requires_grad_() for x in (costs, v)]
    expected = torch.autograd.grad(psal_read(found, *both, patch_size=3, readout=readout).square().sum(), both)
    for place in (0, 1):
        leaves = [costs, v]
        leaves[place] = leaves[place].clone().requires_grad_()
        out = psal_read(found, *leaves, patch_size=3, readout=readout)
        torch.testing.assert_close(torch.autograd.grad(out.square().sum(), leaves[place])[0], expected[place])


def test_fold_with_every_key_is_attention_pasted_with_torch_fold():
    """Contextual attention without its extras: softmax over all key patches, value patches pasted and averaged."""
    q, k, v, _ = _case(q_size=(5, 6), kv_size=(5, 6), maps=1)
    out = psal_attention(
        q, k, v, matches=30, iterations=0, patch_size=3, readout="fold", scale=0.2, kernel="torch"
    ).squeeze(1)
    queries, keys, values = (F.unfold(x[:, 0], 3, padding=1) for x in (q, k, v))
    weights = torch.softmax(-0.2 * torch.cdist(queries.mT, keys.mT).square(), -1)
    pasted = F.fold(values @ weights.mT, (5, 6), 3, padding=1)
    overlaps = F.fold(torch.ones_like(values), (5, 6), 3, padding=1)[:, :1]
    torch.testing.assert_close(out, pasted / overlaps, **TOLERANCE)


def test_aggregation_needs_no_values_beyond_the_map():
    """With one match a query and all costs equal, the result is the mean of the neighbours' shifted matches."""
    found = torch.tensor([[0, 1], [2, 3]]).view(1, 1, 1, 2, 2)  # every query its own place: all candidates agree
    v = torch.tensor([[10.0, 20.0], [30.0, 40.0]]).view(1, 1, 1, 2, 2)
    out = psal_read(found, torch.zeros(1, 1, 1, 2, 2), v, patch_size=3)
    torch.testing.assert_close(out, v)


def test_far_costs_neither_overflow_nor_vanish():
    _, _, v, found = _case()
    costs = torch.rand(found.shape, dtype=torch.float64) * 1e6
    out = psal_read(found, costs, v, patch_size=3)
    assert torch.isfinite(out).all()
    assert out.abs().max() <= v.abs().max()


def test_a_read_out_of_search_results_is_the_attention():
    q, k, v, _ = _case()
    for readout in ("centre", "aggregate", "fold"):
        found, costs = psal_search(q, k, patch_size=3, matches=2, generator=torch.Generator().manual_seed(3))
        expected = psal_attention(
            q, k, v, patch_size=3, matches=2, readout=readout, generator=torch.Generator().manual_seed(3)
        )
        torch.testing.assert_close(psal_read(found, costs, v, patch_size=3, readout=readout), expected)
        torch.testing.assert_close(psal_costs(q, k, found, patch_size=3), costs)


def test_matches_that_do_not_fit_are_refused():
    q, k, v, found = _case()
    costs = torch.rand(found.shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"psal: matches must be \(B, G, K, Yq, Xq\) for q"):
        psal_costs(q, k, found[..., :-1], patch_size=3)
    with pytest.raises(ValueError, match=r"psal: matches must be \(B, G, K, Yq, Xq\) for v"):
        psal_read(found[0], costs, v, patch_size=3)
    with pytest.raises(ValueError, match="costs of their shape"):
        psal_read(found, costs[:, :, :1], v, patch_size=3)
    for outside in (-1, k.shape[3] * k.shape[4]):
        with pytest.raises(ValueError, match=r"flat pixels of the \d+x\d+ key map"):
            psal_costs(q, k, torch.full_like(found, outside))
    with pytest.raises(ValueError, match="whole numbers"):
        psal_costs(q, k, found.double(), patch_size=3)
