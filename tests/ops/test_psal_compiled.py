"""PSAL's compiled kernel: the matches of the schedule in plain loops and in PyTorch, whatever threads and vectors."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from oracles.psal_loops import Loops
from saccade.kernels import load_patchmatch
from saccade.ops import dispatch
from saccade.ops.psal import compiled as psal_compiled
from saccade.ops.psal import patches as psal_patches
from saccade.ops.psal import psal_attention
from saccade.ops.psal.compiled import BAND, LAST_WINDOWS, cost_gradients, search
from saccade.ops.psal.search import SearchPlan, allowed_keys
from saccade.ops.psal.search import search as torch_search

kernels = load_patchmatch()
pytestmark = pytest.mark.skipif(isinstance(kernels, str), reason=f"{kernels}"[:200])

SEED = 5 * 2**50 + 987654321
SCORES = ("l2", "dot", "cosine", "unit_key")
# query map, key map, patch, matches, coarse start
SIZES = (
    ((9, 11), (9, 11), 3, 1, None),
    ((13, 8), (10, 17), 5, 3, None),
    ((16, 16), (12, 9), 7, 7, None),
    ((20, 14), (17, 22), 3, 3, 4),
    ((7, 5), (1, 9), 1, 2, None),
    ((18, 18), (18, 18), 1, 1, 2),
)


def _maps(q_size, kv_size, maps=4, channels=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(maps, channels, *size, generator=generator, dtype=dtype) for size in (q_size, kv_size)]


def _photograph(name, size, channels=16):
    """Features of a photograph, and of the same moved by a smooth warp: (1, C, size, size) twice."""
    picture = torch.from_numpy(getattr(data, name)().copy()).float().permute(2, 0, 1)[None] / 255
    side = min(picture.shape[2:])
    picture = F.interpolate(picture[:, :, :side, :side], (size, size), mode="area")
    place = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(place, place, indexing="ij")
    grid = torch.stack([0.96 * x + 0.04 * torch.cos(3 * y), 1.03 * y + 0.04 * torch.sin(4 * x)], -1)[None]
    moved = F.grid_sample(picture, grid, padding_mode="reflection", align_corners=True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, 3, 3, 3, generator=generator) / math.sqrt(27)
    return [F.relu(F.conv2d(x, weight, padding=1)) for x in (moved, picture)]


class Scans(Loops):
    """The sweeps that the module describes, one query after the other."""

    def sweep(self, iterations, band, coarse_start=None):
        self.start()
        windows = int(math.log2(max(self.k_size)))
        rows, cols = self.q_size
        for t in range(iterations):
            before = {x: self.lists[x][0][1] for x in self.queries}
            step, shift = (1, 0) if t % 2 == 0 else (-1, band // 2)
            widest = max(0, min(2 * (t if coarse_start is None else t + 1), windows - LAST_WINDOWS))
            for row in range(rows)[::step]:
                for col in range(cols)[::step]:
                    self._visit((row, col), step, before, [(r - shift) // band for r in range(rows)])
                    self._draw((row, col), t, widest, windows)
        return self.result()

    def _visit(self, x, step, before, bands):
        for down, right in ((0, step), (step, 0)):
            near = (x[0] - down, x[1] - right)
            if near in self.searched:
                same = bands[near[0]] == bands[x[0]]
                for key in [entry[1] for entry in self.lists[near]] if same else [before[near]]:
                    self.offer(x, (key[0] + down, key[1] + right))

    def _draw(self, x, t, widest, windows):
        centre = self.lists[x][0][1]
        for z in range(widest, windows):
            reach, number = max(self.k_size) >> z, self.matches + 2 * (t * windows + z)
            row = centre[0] - reach + self.draw(x, number, 2 * reach)
            self.offer(x, (row, centre[1] - reach + self.draw(x, number + 1, 2 * reach)))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("border", ["zeros", "released"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_matches_are_those_of_pytorch(score, border, masked):
    for q_size, kv_size, patch, count, coarse in SIZES:
        if border == "released" and min(*q_size, *kv_size) < patch:
            continue
        q, k = _maps(q_size, kv_size)
        plan = SearchPlan(count, patch, 3, score, border, coarse_start=coarse, heads=2)
        mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(1)) < 0.8 if masked else None
        allowed = allowed_keys(torch.unflatten(k, 0, (2, 2)), mask, plan)
        if allowed is not None and int(allowed.sum(1).min()) < count:
            continue
        for name in ("jump", "exact"):
            expected = torch_search(q, k, allowed, replace(plan, search=name), SEED)
            found = search(q, k, allowed, replace(plan, search=name), SEED)
            assert torch.equal(found[0], expected[0]), (q_size, name)
            torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("search_name", ["jump", "sweep", "exact"])
@pytest.mark.parametrize(
    ("score", "border", "matches", "patch"),
    [("l2", "zeros", 1, 3), ("l2", "released", 3, 3), ("cosine", "zeros", 4, 1), ("dot", "zeros", 2, 5)],
)
def test_the_matches_are_those_of_plain_loops(monkeypatch, search_name, score, border, matches, patch):
    monkeypatch.setattr(psal_compiled, "BAND", 4)
    q, k = _maps((11, 7), (8, 10), maps=2, channels=3)
    mask = torch.rand(1, 1, 8, 10, generator=torch.Generator().manual_seed(2)) < 0.7
    plan = SearchPlan(matches, patch, 3, score, border, search_name, heads=2)
    found, costs = search(q, k, allowed_keys(k[None], mask, plan), plan, SEED)
    for head in range(2):
        loops = Scans(
            q[head],
            k[head],
            matches=matches,
            patch_size=patch,
            score=score,
            border=border,
            allowed=mask[0, 0],
            seed=SEED,
            head=head,
        )
        arguments = {"jump": (3,), "sweep": (3, 4), "exact": ()}[search_name]
        expected = getattr(loops, search_name)(*arguments)
        assert torch.equal(found[head].long(), expected[0])
        torch.testing.assert_close(costs[head], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("score", ["l2", "cosine"])
@pytest.mark.parametrize("channels", [1, 3, 16, 21])
def test_every_width_of_vectors_agrees(score, channels):
    q, k = _maps((12, 13), (10, 15), channels=channels)
    widths, results = [16, 32, 64], []
    widest = kernels.lanes()
    try:
        for width in widths[: widths.index(widest) + 1]:
            kernels.set_lanes(width)
            plans = [SearchPlan(3, 5, 2, score, search=name) for name in ("jump", "sweep", "exact")]
            results.append([search(q, k, None, plan, SEED) for plan in plans])
    finally:
        kernels.set_lanes(widest)
    for other in results[1:]:
        for (found, costs), (expected, expected_costs) in zip(other, results[0], strict=True):
            assert torch.equal(found, expected)
            torch.testing.assert_close(costs, expected_costs, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="16 to"):
        kernels.set_lanes(48)


@pytest.mark.parametrize("search_name", ["jump", "sweep", "exact"])
def test_threads_do_not_change_a_bit(monkeypatch, search_name):
    monkeypatch.setattr(psal_compiled, "BAND", 8)
    q, k = _maps((33, 20), (31, 22), dtype=torch.float32)
    plan = SearchPlan(3, 5, 3, "l2", search=search_name, coarse_start=None, heads=2)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found, costs = search(q, k, None, plan, SEED)
            results.append((found, costs, *cost_gradients(q, k, found, costs, costs, 5, "l2")))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_results_do_not_depend_on_how_a_batch_is_split():
    q, k = _maps((12, 11), (13, 10), maps=6)
    mask = torch.rand(3, 1, 13, 10, generator=torch.Generator().manual_seed(3)) < 0.7
    for name, coarse in (("jump", None), ("sweep", None), ("sweep", 3), ("exact", None)):
        plan = SearchPlan(3, 3, 2, "l2", search=name, coarse_start=coarse, heads=2)
        whole = search(q, k, mask.flatten(1), plan, SEED)
        parts = [search(q[2 * b : 2 * b + 2], k[2 * b : 2 * b + 2], mask[b].flatten(1), plan, SEED) for b in range(3)]
        for all_, one in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(all_, torch.cat(one))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("count", "patch"), [(1, 1), (3, 3), (2, 7)])
def test_gradients_are_those_of_the_unfolded_patches(score, count, patch):
    q, k = (x.requires_grad_() for x in _maps((8, 9), (10, 6), maps=2, channels=3))
    generator = torch.Generator().manual_seed(4)
    matches = torch.randint(60, (2, count, 72), generator=generator, dtype=torch.int32)
    queries, keys = (F.unfold(x, patch, padding=patch // 2) for x in (q, k))  # (N, D * p * p, pixels)
    if score == "cosine":
        queries = queries / queries.norm(dim=1, keepdim=True)
    if score in ("cosine", "unit_key"):
        keys = keys / keys.norm(dim=1, keepdim=True)
    chosen = keys.gather(2, matches.long().flatten(1)[:, None].expand(-1, keys.shape[1], -1)).unflatten(2, (count, 72))
    if score == "l2":
        costs = (queries.unsqueeze(2) - chosen).square().sum(1)
    else:
        costs = -(queries.unsqueeze(2) * chosen).sum(1)
    grad = torch.randn(costs.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(costs, (q, k), grad)
    found = cost_gradients(q.detach(), k.detach(), matches, costs.detach(), grad, patch, score)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch_found = psal_patches.cost_gradients(q.detach(), k.detach(), matches, costs.detach(), grad, patch, score)
    for mine, theirs in zip(found, torch_found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_op_through_the_compiled_kernel_is_the_reference():
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 2, 3, 9, 8, generator=generator, dtype=torch.float64)
    k = torch.randn(2, 2, 3, 7, 11, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 2, 4, 7, 11, generator=generator, dtype=torch.float64)
    results = []
    for kernel in ("compiled", "reference"):
        maps = [x.clone().requires_grad_() for x in (q, k, v)]
        draws = torch.Generator().manual_seed(6)
        out = psal_attention(*maps, matches=3, patch_size=3, readout="aggregate", generator=draws, kernel=kernel)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), maps)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_half_precision_is_searched_in_float32():
    q, k = _maps((9, 8), (7, 10), dtype=torch.bfloat16)
    plan = SearchPlan(2, 3, 2, "l2")
    found, costs = search(q, k, None, plan, SEED)
    expected = search(q.float(), k.float(), None, plan, SEED)
    assert costs.dtype == torch.float32
    assert torch.equal(found, expected[0])
    grads = cost_gradients(q, k, found, costs, torch.ones_like(costs), 3, "l2")
    assert [x.dtype for x in grads] == [torch.bfloat16] * 2


@pytest.mark.parametrize("search_name", ["jump", "sweep", "exact"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_matches_are_keys_whatever_the_maps_hold(search_name, value):
    q, k = _maps((9, 8), (7, 10), dtype=torch.float32)
    q[:, :, 3:5], k[:, 0] = value, value
    found, _ = search(q, k, None, SearchPlan(3, 3, 2, "l2", search=search_name), SEED)
    assert int(found.min()) >= 0
    assert int(found.max()) < 70


def test_sweeps_keep_distinct_allowed_sorted_keys():
    q, k = _photograph("astronaut", 2 * BAND + 7, channels=4)
    allowed = torch.rand(1, k[0, 0].numel(), generator=torch.Generator().manual_seed(7)) < 0.5
    found, costs = search(q, k, allowed, SearchPlan(5, 3, 2, "l2", search="sweep"), SEED)
    assert bool(allowed[0, found.flatten().long()].all())
    assert bool((found.sort(1).values.diff(dim=1) > 0).all())
    assert bool((costs.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("matches", [1, 3])
def test_sweeps_find_no_worse_matches_than_jumps_and_sooner(matches):
    q, k = _photograph("astronaut", 192)
    plan = SearchPlan(matches, 7, 5, "l2")
    sweeps = replace(plan, search="sweep", coarse_start=4, iterations=3)
    results = {}
    for name, chosen in (("jump", plan), ("sweep", sweeps)):
        start = time.process_time()
        costs = search(q, k, None, chosen, SEED)[1]
        results[name] = (float(costs.mean()), time.process_time() - start)
    assert results["sweep"][0] <= results["jump"][0]
    assert results["sweep"][1] * 1.5 < results["jump"][1]


def test_a_missing_extension_is_said_and_worked_around(monkeypatch):
    monkeypatch.setattr(psal_compiled, "_patchmatch", "the C++ extension was not built: no compiler")
    q, k = (x[None] for x in _maps((6, 6), (6, 6), maps=1, channels=2))
    dispatch.reset_ledger()
    psal_attention(q, k, k, matches=1, patch_size=3, iterations=1)
    (entry,) = dispatch.ledger()
    assert entry["kernel"] != "compiled"
    assert entry["skipped"]["compiled"] == ["the C++ extension was not built: no compiler"]
    with pytest.raises(RuntimeError, match="was not built"):
        psal_attention(q, k, k, matches=1, patch_size=3, iterations=1, kernel="compiled")


def test_wrong_calls_of_the_extension_are_refused():
    with pytest.raises(TypeError, match="integers"):
        kernels.jump(1, 2, 3)
    with pytest.raises(TypeError):
        kernels.set_lanes("wide")


@pytest.mark.slow
def test_mean_cost_at_256_is_close_to_the_exact_one():
    """The published schedule keeps 1.10 on average; fur (chelsea) alone is above it. Our settings keep it on each."""
    plan = SearchPlan(1, 7, 5, "l2")
    settings = {
        "jump": plan,
        "jump, coarse start": replace(plan, coarse_start=4),
        "sweep": replace(plan, search="sweep", coarse_start=4, iterations=3),
    }
    ratios: dict[str, list[float]] = {setting: [] for setting in settings}
    for name in ("astronaut", "coffee", "rocket", "chelsea"):
        q, k = _photograph(name, 256)
        exact = float(search(q, k, None, replace(plan, search="exact"), SEED)[1].mean())
        for setting, chosen in settings.items():
            ratios[setting].append(float(search(q, k, None, chosen, SEED)[1].mean()) / exact)
    assert all(1 <= ratio <= 1.10 for setting in ("jump, coarse start", "sweep") for ratio in ratios[setting]), ratios
    assert sum(ratios["jump"]) / 4 <= 1.10, ratios
    assert max(ratios["jump"]) <= 1.20, ratios
