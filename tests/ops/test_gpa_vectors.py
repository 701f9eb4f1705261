"""Patches and unit vectors in grid-partitioned attention, and the digits of distances in float32."""

from itertools import product

import pytest
import torch

from oracles.gpa_loops import gpa_loops
from saccade.ops import dense_attention, gpa_attention, gpa_coverage, gpa_select, gpa_weights

OPTIONS = {"coarse": (4, 4), "cells": (2, 2), "keys_per_cell": 3}
SCORES = ("dot", "l2", "cosine", "unit_key")
each_kernel = pytest.mark.parametrize("kernel", ["recompute", "reference"])


def draw(*shape, gain=1.0, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    maps = gain * torch.randn(shape, generator=generator, dtype=torch.float64) + offset
    return maps.requires_grad_()


def setup(channels=3):
    return (
        draw(1, 2, channels, 8, 8, gain=2),
        draw(1, 2, channels, 6, 10, gain=2, seed=1),
        draw(1, 2, 2, 6, 10, seed=2),
    )


def vectors(maps, side):
    """(B, G, D, Y, X) -> (B, G, D * p * p, Y, X) by shifting the map, zeros outside."""
    half, (rows, cols) = side // 2, maps.shape[3:]
    padded = maps.new_zeros(*maps.shape[:3], rows + 2 * half, cols + 2 * half)
    padded[..., half : half + rows, half : half + cols] = maps
    shifts = [padded[..., i : i + rows, j : j + cols] for i, j in product(range(side), repeat=2)]
    return torch.stack(shifts, 3).flatten(2, 3)


def as_plain(q, k, side, score):
    """Maps whose "dot" or "l2" is the score of the patches."""
    q, k = vectors(q, side), vectors(k, side)
    if score in ("cosine", "unit_key"):
        k = k / k.square().sum(2, keepdim=True).sqrt()
    if score == "cosine":
        q = q / q.square().sum(2, keepdim=True).sqrt()
    return q, k, "l2" if score == "l2" else "dot"


def scale_of(score, channels, side):
    return (channels * side**2) ** -0.5 if score in ("dot", "l2") else 1.0


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("score", SCORES)
@each_kernel
def test_patches_and_unit_vectors_match_the_loops(kernel, score, side, masked):
    q, k, v = setup()
    mask = torch.rand(1, 1, 6, 10, generator=torch.Generator().manual_seed(4)) > 0.4 if masked else None
    a, b, plain = as_plain(q, k, side, score)
    loops = gpa_loops(a, b, v, score=plain, scale=scale_of(score, 3, side), key_mask=mask, **OPTIONS)
    assert loops.smallest_margin > 1e-7
    found = gpa_attention(q, k, v, score=score, patch_size=side, key_mask=mask, kernel=kernel, **OPTIONS)
    torch.testing.assert_close(found, loops.output, rtol=0, atol=1e-12)
    upstream = draw(*found.shape, seed=9).detach()
    for one, other in zip(*(torch.autograd.grad(x, (q, k, v), upstream) for x in (found, loops.output)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("score", SCORES)
def test_all_keys_is_dense_attention_on_patches(score):
    maps = setup()
    expected = dense_attention(*maps, score=score, patch_size=3, kernel="reference")
    found = gpa_attention(*maps, score=score, patch_size=3, **{**OPTIONS, "keys_per_cell": 99})
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_weights_and_coverage_compare_what_the_output_compares(score):
    q, k, v = setup()
    options = {**OPTIONS, "score": score, "patch_size": 3}
    places = torch.tensor([[0, 0], [7, 7], [3, 4]])
    pixels, weights = gpa_weights(q, k, places, **options)
    values = v.flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    torch.testing.assert_close(brought, gpa_attention(q, k, v, **options)[..., places[:, 0], places[:, 1]])
    a, b, plain = as_plain(q, k, 3, score)
    expected = gpa_coverage(a, b, score=plain, scale=scale_of(score, 3, 3), **OPTIONS)
    torch.testing.assert_close(gpa_coverage(q, k, **options), expected)
    plain_choice = gpa_select(a, b, score=plain, scale=scale_of(score, 3, 3), **OPTIONS)
    assert torch.equal(gpa_select(q, k, **options), plain_choice)


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck_on_patches(score):
    maps = draw(1, 1, 2, 4, 4), draw(1, 1, 2, 4, 4, seed=1), draw(1, 1, 1, 4, 4, seed=2)
    options = {"coarse": (2, 2), "cells": (1, 2), "keys_per_cell": 2, "score": score, "patch_size": 3}
    assert torch.autograd.gradcheck(lambda *x: gpa_attention(*x, **options), maps)


@pytest.mark.parametrize("selection", ["hard", "soft"])
@each_kernel
def test_a_large_common_offset_costs_distances_no_digits(kernel, selection):
    """|q - k|^2 of float32 maps around 100: without a common origin each square is 10,000 times the distance."""
    maps = draw(1, 1, 8, 8, 8, offset=100.0), draw(1, 1, 8, 8, 8, seed=1, offset=100.0), draw(1, 1, 2, 8, 8, seed=2)
    single = [x.detach().float().requires_grad_() for x in maps]
    options = {**OPTIONS, "score": "l2", "selection": selection}
    exact_maps = [x.detach().double().requires_grad_() for x in single]
    exact = gpa_attention(*exact_maps, kernel="reference", **options)
    found = gpa_attention(*single, kernel=kernel, **options)
    assert torch.equal(gpa_select(*single[:2], score="l2", **OPTIONS), gpa_select(*maps[:2], score="l2", **OPTIONS))
    assert (found - exact).abs().max() < 2e-5
    upstream = draw(*exact.shape, seed=9).detach()
    expected = torch.autograd.grad(exact, exact_maps, upstream)
    gradients = torch.autograd.grad(found, single, upstream.float())
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).abs().max() < 5e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", ["cosine", "unit_key"])
def test_unit_vectors_in_half_precision_under_autocast(score, dtype):
    maps = [x.detach().to(dtype).requires_grad_() for x in setup()]
    with torch.autocast("cpu", torch.bfloat16):
        out = gpa_attention(*maps, score=score, patch_size=3, **OPTIONS)
    exact = gpa_attention(*(x.detach().double() for x in maps), score=score, patch_size=3, **OPTIONS)
    assert out.dtype == dtype
    assert (out.double() - exact).detach().abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in maps)


@pytest.mark.parametrize("size", [2, 0])
def test_even_patches_are_refused(size):
    with pytest.raises(ValueError, match="gpa: patch_size must be an odd number"):
        gpa_attention(*setup(), patch_size=size, **OPTIONS)
