"""PSAL's search: the schedule against plain loops, exactly; and what must hold of any search's matches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from oracles.psal_loops import Loops, mix, random_below
from saccade.geometry import Size
from saccade.ops.inputs import draw_seed
from saccade.ops.psal import exact as psal_exact
from saccade.ops.psal import patches as psal_patches
from saccade.ops.psal import psal_search
from saccade.ops.psal.random import below, draw, mix32, pixel_state
from saccade.ops.psal.search import QUERIES, SearchPlan, coarse_candidates, search

SEED = 3 * 2**40 + 12345
SCORES = ("l2", "dot", "cosine", "unit_key")


def _maps(q_size=(9, 8), kv_size=(7, 10), maps=2, channels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(maps, channels, *size, generator=generator, dtype=dtype) for size in (q_size, kv_size)]


def _mask(batch, kv_size, share=0.5):
    return torch.rand(batch, 1, *kv_size, generator=torch.Generator().manual_seed(1)) < share


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_numbers_are_the_documented_hash():
    words = torch.tensor([0, 1, 2**31, 2**32 - 1, 123456789, 2**40 + 5])
    assert mix32(words).tolist() == [mix(int(word)) for word in words]
    pixels, heads = torch.arange(50), torch.arange(50) % 3
    for number, bound in ((0, 7), (5, 65536), (2**33 + 1, 1), (77, 2**31 - 1)):
        drawn = below(draw(pixel_state(SEED, pixels), SEED, heads, number), bound)
        expected = [random_below(SEED, int(h), int(p), number, bound) for p, h in zip(pixels, heads, strict=True)]
        assert drawn.tolist() == expected


def test_random_numbers_are_uniform_and_unrelated():
    pixels = torch.arange(20000)
    first, second = (
        draw(pixel_state(SEED, pixels), SEED, torch.zeros_like(pixels), number).double() / 2**32 for number in (0, 1)
    )
    for numbers in (first, second):
        counts = torch.histc(numbers, 16, 0, 1)
        assert ((counts - 1250).abs() < 5 * math.sqrt(1250)).all()
    together = torch.corrcoef(torch.stack([first, second, first.roll(1)]))
    assert (together - torch.eye(3)).abs().max() < 5 / math.sqrt(20000)


def test_the_seed_comes_from_the_generator_or_the_global_one():
    assert draw_seed(_generator(4)) == draw_seed(_generator(4)) != draw_seed(_generator(5))
    torch.manual_seed(3)
    first = draw_seed(None)
    torch.manual_seed(3)
    assert first == draw_seed(None) != draw_seed(None)


@pytest.mark.parametrize(
    ("score", "border", "masked", "matches", "patch"),
    [
        ("l2", "zeros", False, 3, 3),
        ("l2", "zeros", True, 4, 5),
        ("l2", "released", False, 2, 3),
        ("l2", "released", True, 1, 3),
        ("dot", "zeros", False, 1, 3),
        ("dot", "released", False, 3, 3),
        ("cosine", "zeros", True, 2, 3),
        ("unit_key", "zeros", False, 2, 1),
    ],
)
def test_jumps_follow_the_schedule_exactly(score, border, masked, matches, patch):
    q, k = _maps(maps=4)
    heads = 2
    mask = _mask(2, (7, 10)) if masked else None
    plan = SearchPlan(matches, patch, 2, score, border, heads=heads)
    allowed = None
    if mask is not None or border == "released":
        allowed = torch.ones(2, 7, 10, dtype=torch.bool) if mask is None else mask[:, 0].clone()
        half = patch // 2 if border == "released" else 0
        allowed[:, :half], allowed[:, 7 - half :] = False, False
        allowed[:, :, :half], allowed[:, :, 10 - half :] = False, False
    found, costs = search(q, k, None if allowed is None else allowed.flatten(1), plan, SEED)
    assert found.dtype == torch.int32
    for n in range(4):
        loops = Loops(
            q[n],
            k[n],
            matches=matches,
            patch_size=patch,
            score=score,
            border=border,
            allowed=None if mask is None else mask[n // heads, 0],
            seed=SEED,
            head=n % heads,
        )
        expected, expected_costs = loops.jump(2)
        assert torch.equal(found[n].long(), expected)
        torch.testing.assert_close(costs[n], expected_costs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("border", "masked"), [("zeros", False), ("zeros", True), ("released", True)])
def test_exact_search_is_brute_force(score, border, masked):
    q, k = _maps()
    mask = _mask(2, (7, 10), 0.7) if masked else None
    found, costs = psal_search(
        q.unsqueeze(1),
        k.unsqueeze(1),
        matches=4,
        patch_size=3,
        score=score,
        border=border,
        search="exact",
        key_mask=mask,
        generator=_generator(),
        kernel="torch",
    )
    seed = draw_seed(_generator())
    for n in range(2):
        allowed = None if mask is None else mask[n, 0]
        loops = Loops(q[n], k[n], matches=4, patch_size=3, score=score, border=border, allowed=allowed, seed=seed)
        expected, expected_costs = loops.exact()
        assert torch.equal(found[n, 0].flatten(1).long(), expected)
        torch.testing.assert_close(costs[n, 0].flatten(1), expected_costs, rtol=1e-12, atol=1e-12)


def test_exact_search_takes_the_lower_index_of_a_few_equal_keys():
    q, k = (x.unsqueeze(1) for x in _maps((5, 5), (6, 6), maps=1))
    best = k[..., 2, 3].clone()
    for row, col in ((5, 1), (0, 4), (3, 3)):
        k[..., row, col] = best
    found, costs = psal_search(best[..., None, None].expand_as(q), k, matches=3, patch_size=1, search="exact")
    assert (found.flatten(3)[0, 0] == torch.tensor([[4], [15], [21]])).all()
    assert (costs == 0).all()


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_exact_search_does_not_lose_digits_to_a_large_mean(kernel):
    q, k = (x.unsqueeze(1) for x in _maps((12, 12), (12, 12)))
    options = {"matches": 1, "patch_size": 5, "search": "exact", "kernel": kernel}
    inner = key_mask = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
    inner[..., 2:-2, 2:-2] = True  # where no patch reads zeros outside the map
    _, expected = psal_search(q, k, key_mask=key_mask, **options)
    _, found = psal_search((q + 1000).float(), (k + 1000).float(), key_mask=key_mask, **options)
    torch.testing.assert_close(found.double()[inner[:, None]], expected[inner[:, None]], rtol=1e-3, atol=0)


def test_exact_search_over_several_tiles(monkeypatch):
    q, k = (x.unsqueeze(1) for x in _maps((11, 9), (10, 8)))
    options = {"matches": 3, "patch_size": 5, "search": "exact", "kernel": "torch"}
    whole = psal_search(q, k, **options)
    monkeypatch.setattr(psal_exact, "TILE_ROWS", 3)
    monkeypatch.setitem(psal_exact.ENTRIES, "cpu", 2000)
    for expected, tiled in zip(whole, psal_search(q, k, **options), strict=True):
        torch.testing.assert_close(tiled, expected)


@pytest.mark.parametrize("search_name", ["jump", "exact", "coarse"])
@pytest.mark.parametrize(("border", "masked"), [("zeros", False), ("zeros", True), ("released", True)])
def test_matches_are_distinct_allowed_and_sorted(search_name, border, masked):
    q, k = (x.unflatten(0, (2, 2)) for x in _maps((13, 11), (12, 14), maps=4))
    mask = _mask(2, (12, 14), 0.2) if masked else None
    options = {"jump": {}, "exact": {"search": "exact"}, "coarse": {"coarse_start": 3}}[search_name]
    found, costs = psal_search(
        q, k, matches=6, patch_size=5, iterations=3, border=border, key_mask=mask, kernel="torch", **options
    )
    flat = found.flatten(3).long()
    assert ((flat >= 0) & (flat < 12 * 14)).all()
    assert (flat.sort(2).values.diff(dim=2) > 0).all(), "distinct"
    assert (costs.diff(dim=2) >= 0).all(), "sorted"
    allowed = torch.ones(2, 12, 14, dtype=torch.bool) if mask is None else mask[:, 0].clone()
    if border == "released":
        inner = torch.zeros_like(allowed)
        inner[:, 2:-2, 2:-2] = True
        allowed &= inner
        assert (costs[..., :2, :] == 0).all()
        assert (costs[..., :, -2:] == 0).all()
    read = allowed.flatten(1)[:, None, None].expand(2, 2, 6, -1).gather(3, flat)
    assert read.all()


@pytest.mark.parametrize("score", SCORES)
def test_cost_never_rises_with_iterations(score):
    q, k = (x.unsqueeze(1) for x in _maps((16, 16), (16, 16)))
    costs = [
        psal_search(q, k, patch_size=3, iterations=n, score=score, generator=_generator(), kernel="torch")[1]
        for n in range(5)
    ]
    for fewer, more in itertools.pairwise(costs):
        assert (more <= fewer).all()
    assert costs[-1].mean() < costs[0].mean()


def test_same_seed_same_matches_on_any_batch_split():
    q, k = (x.unflatten(0, (4, 2)) for x in _maps((12, 10), (9, 11), maps=8))
    mask = _mask(4, (9, 11))

    def run(part, seed=7):
        return psal_search(
            q[part], k[part], patch_size=3, key_mask=mask[part], generator=_generator(seed), kernel="torch"
        )

    whole = run(slice(None))
    for part in (slice(0, 1), slice(1, 3), slice(3, 4)):
        for expected, alone in zip(whole, run(part), strict=True):
            assert torch.equal(expected[part], alone)
    assert not torch.equal(whole[0], run(slice(None), seed=8)[0])


def test_same_matches_whatever_the_chunks(monkeypatch):
    q, k = (x.unsqueeze(1) for x in _maps((12, 10), (9, 11)))
    whole = psal_search(q, k, patch_size=3, generator=_generator(), kernel="torch")
    monkeypatch.setitem(psal_patches.SCRATCH, "cpu", 50)
    monkeypatch.setitem(QUERIES, "cpu", 37)
    chunks = psal_search(q, k, patch_size=3, generator=_generator(), kernel="torch")
    for expected, chunked in zip(whole, chunks, strict=True):
        assert torch.equal(expected, chunked)


def _features(size, seed=0):
    photo = torch.from_numpy(np.ascontiguousarray(data.astronaut())).permute(2, 0, 1).unsqueeze(0).float() / 255
    weight = torch.randn(16, 3, 3, 3, generator=_generator(seed)) * 0.3
    return F.relu(F.conv2d(F.interpolate(photo, size, mode="area"), weight, padding=1))


def _warped(maps):
    """Moved by a smooth warp of a few pixels."""
    rows, cols = maps.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    grid = torch.stack([x + 0.1 * torch.sin(2.5 * y + 0.3), y + 0.08 * torch.cos(3 * x)], -1)
    return F.grid_sample(maps, grid.unsqueeze(0), align_corners=True, padding_mode="reflection")


@pytest.mark.parametrize("search_name", ["jump", "exact"])
def test_a_shifted_copy_is_found_away_from_borders(search_name):
    maps = _features((40, 40))
    shift = (5, -3)
    k = maps.roll(shift, (2, 3))
    found, costs = psal_search(
        maps[None], k[None], matches=1, patch_size=5, iterations=6, search=search_name, generator=_generator()
    )
    rows, cols = torch.arange(4, 33), torch.arange(6, 36)  # their patches, moved, lie inside and do not wrap
    expected = (rows + shift[0]).unsqueeze(1) * 40 + cols + shift[1]
    inner = (0, 0, 0, slice(4, 33), slice(6, 36))
    recovered = (found[inner] == expected).double().mean()
    assert recovered == 1 if search_name == "exact" else recovered > 0.98
    assert (costs[inner][found[inner] == expected] == 0).all()


@pytest.mark.parametrize("coarse", [None, 4])
def test_mean_cost_on_a_warped_photograph_is_close_to_exact(coarse):
    k = _features((56, 56))
    q = _warped(k)
    options = {"matches": 1, "patch_size": 7, "generator": _generator(), "kernel": "torch"}
    _, exact = psal_search(q[None], k[None], search="exact", **options)
    _, found = psal_search(q[None], k[None], iterations=5, coarse_start=coarse, **options)
    assert (found >= exact * (1 - 1e-4) - 1e-5).all()
    assert found.mean() <= 1.10 * exact.mean()


def test_coarse_candidates_keep_their_place_in_the_block():
    q, k = _maps((10, 9), (8, 11), maps=1)
    plan = SearchPlan(2, 3, 0, "l2", coarse_start=3)
    candidates = coarse_candidates(q, k, None, plan, SEED)
    assert candidates.shape == (2, 90)
    pooled = [F.avg_pool2d(x, 3, ceil_mode=True, count_include_pad=False) for x in (q, k)]
    coarse, _ = search(*pooled, None, replace(plan, search="exact", coarse_start=None), SEED)
    size = Size(*pooled[0].shape[2:])
    for flat in range(90):
        row, col = divmod(flat, 9)
        for match in range(2):
            block = divmod(int(coarse[0, match, row // 3 * size.cols + col // 3]), pooled[1].shape[3])
            key = (block[0] * 3 + row % 3, block[1] * 3 + col % 3)
            inside = key[0] < 8 and key[1] < 11
            assert candidates[match, flat] == (key[0] * 11 + key[1] if inside else -1)


def test_a_coarse_start_is_never_worse_than_its_random_start():
    q, k = (x.unsqueeze(1) for x in _maps((20, 20), (20, 20)))
    options = {"patch_size": 3, "iterations": 0, "kernel": "torch"}
    _, plain = psal_search(q, k, generator=_generator(), **options)
    _, coarse = psal_search(q, k, generator=_generator(), coarse_start=4, **options)
    assert (coarse <= plain).all()
    assert coarse[:, :, 0].mean() < plain[:, :, 0].mean()
