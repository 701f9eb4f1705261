"""PSAL's search on the CPU in C++: jumps, serial sweeps, exact search, gradients of the costs.

"jump" and "exact" follow the schedule of `saccade.ops.psal.search` and find the same matches, up to rounding where
two costs are closer than that, and up to the order of equal costs after a coarse start, whose offers are compared first
here. What they leave out changes nothing: evaluating a neighbour's offer again that has not changed since it was
refused, and finishing a distance that already exceeds the worst match's.

"sweep" is ours, after Barnes et al. (PatchMatch, SIGGRAPH 2009, section 3.2), whose scan order needs a few sweeps where
jumps need many passes. Sweep t = 0 .. iterations-1 visits the queries in reading order, against it where t is odd. Each
is offered all K keys of the two neighbours visited just before it, in its row and in its column, shifted back. Then it
draws one key from each window as iteration t of the jumps does, but without the 2 t widest windows, which have served
(2 t + 2 after a coarse start). To run on several threads with one result, the map is cut into bands of BAND rows, half
a band lower in odd sweeps; of a neighbour in another band the best key before the sweep is offered.

Maps are copied once to channels-last with a ring of zeros, so a patch row is one run of p * D numbers. fp16 and bf16
maps are searched in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.geometry import Size
from saccade.kernels import load_patchmatch
from saccade.ops.dispatch import Request, Score
from saccade.ops.inputs import at_least_float32
from saccade.ops.psal.engine import Engine
from saccade.ops.psal.patches import PaddedMap, add_length_terms, cross_factor, inverse_length
from saccade.ops.psal.search import JUMPS, SearchPlan, coarse_candidates, inside_ring, window_count

# Ours: rows that one thread sweeps alone; windows that a sweep always draws from.
BAND = 64
LAST_WINDOWS = 2
# Numbers before and behind a map: the kernels read whole vectors at its ends.
SPARE = 64
# Pieces for each thread, so that none waits long for the others.
PIECES = 4

_patchmatch = load_patchmatch()


def search(q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int) -> tuple[Tensor, Tensor]:
    """Find every query's K cheapest keys as the plan says: see `saccade.ops.psal.search.search`."""
    if plan.search == "exact":
        found, costs = _exact(q, k, allowed, plan)
        ring = plan.patch_size // 2 if plan.border == "released" else 0
        if ring == 0:
            return found, costs
        inside = inside_ring(Size(*q.shape[2:]), ring, q.device)
        drawn, zeros = _Lists(q, k, allowed, plan, seed).result()
        return torch.where(inside, found, drawn), torch.where(inside, costs, zeros)
    lists = _Lists(q, k, allowed, plan, seed)
    improve = lists.jump if plan.search == "jump" else lists.sweep
    for iteration in range(plan.iterations):
        improve(iteration)
    return lists.result()


def cost_gradients(
    q: Tensor, k: Tensor, matches: Tensor, costs: Tensor, grad: Tensor, patch_size: int, score: Score
) -> tuple[Tensor, Tensor]:
    """Gradients of the costs of given matches: arguments and results of `saccade.ops.psal.patches.cost_gradients`."""
    padded = PaddedMap(q, patch_size // 2), PaddedMap(k, patch_size // 2)
    grads = padded[0].like(), padded[1].like()
    weights = cross_factor(q, k, matches, grad, patch_size, score).to(padded[0].data.dtype)
    if score == "l2":
        weights = weights.neg()
    weights, found = weights.contiguous(), matches.contiguous()
    sizes = (*q.shape[2:], *k.shape[2:], q.shape[1], patch_size, matches.shape[1])
    addresses = [x.data_ptr() for x in (padded[0].data, padded[1].data, found, weights)]
    jobs = []
    for plane in range(q.shape[0]):
        for of_queries, target in ((1, grads[0]), (0, grads[1])):
            tail = (*addresses, target.data.data_ptr(), *sizes, plane, of_queries)
            for first, last in _pieces(target.height, torch.get_num_threads()):
                jobs.append(partial(_kernel("gradient"), _wide(weights), int(score == "l2"), first, last, *tail))
    _run(jobs)
    if score in ("cosine", "unit_key"):
        add_length_terms(*padded, *grads, matches, costs * grad, q, k, patch_size, score)
    return grads[0].unpadded(q.dtype), grads[1].unpadded(k.dtype)


def reasons_against(request: Request, plan: SearchPlan) -> list[str]:
    """Why the compiled kernel cannot serve a request."""
    reasons = [_patchmatch] if isinstance(_patchmatch, str) else []
    if request.device.type != "cpu":
        reasons.append(f"it runs on the CPU; the maps are on {request.device.type}")
    return reasons


COMPILED = Engine("compiled", search, cost_gradients, reasons_against)


class _Lists:
    """The K matches of all queries of all maps, sorted by cost, and the passes that improve them."""

    def __init__(self, q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int) -> None:
        self.plan = plan
        self.planes, self.rows = q.shape[0], q.shape[2]
        self.queries, keys = q.shape[2] * q.shape[3], k.shape[2] * k.shape[3]
        self.windows = window_count(Size(*k.shape[2:]))
        self.l2 = int(plan.score == "l2")
        inputs = _runs(q, plan.patch_size // 2), _runs(k, plan.patch_size // 2)
        lengths = _inverse_lengths(q, k, plan)
        self.matches = torch.empty(self.planes, self.queries, plan.matches, dtype=torch.int32)
        self.costs = torch.empty(self.matches.shape, dtype=inputs[0].dtype)
        bits = None if allowed is None else allowed.expand(-1, keys).contiguous()
        self._held = (*inputs, *lengths, bits)  # what the addresses point to
        spared = [x.data_ptr() + SPARE * x.element_size() for x in inputs]
        self._search = (
            *spared,
            *(_address(x) for x in (*lengths, bits, self.matches, self.costs)),
            *(plan.heads, *q.shape[2:], *k.shape[2:], q.shape[1], plan.patch_size, plan.matches),
            *(plan.patch_size // 2 if plan.border == "released" else 0, self.windows, seed),
        )
        self.now, self.next = (torch.empty(self.planes, self.queries, 2, dtype=torch.int32) for _ in range(2))
        self._pass = 0
        self._start(q, k, allowed, seed)

    def jump(self, iteration: int) -> None:
        """Steps a and b of `saccade.ops.psal.search`'s schedule; b runs in the pass of the last jump."""
        for step in JUMPS:
            self._pass += 1
            draw = self._first_draw(iteration) if step == JUMPS[-1] else -1
            seen = self._pass - len(JUMPS)
            self._rows("jump", self.now.data_ptr(), self.next.data_ptr(), step, draw, 0, self._pass, seen)
            self.now, self.next = self.next, self.now

    def sweep(self, iteration: int) -> None:
        """One scan of all queries, bands beside each other."""
        self.now[:, :, 0] = self.matches[:, :, 0]
        served = iteration if self.plan.coarse_start is None else iteration + 1
        widest = max(0, min(2 * served, self.windows - LAST_WINDOWS))
        step, shift = (1, 0) if iteration % 2 == 0 else (-1, BAND // 2)
        options = (self.now.data_ptr(), 0, step, self._first_draw(iteration), widest, 0, 0)
        cuts = sorted({0, *range(shift, self.rows, BAND), self.rows})
        bands = [
            (plane * self.rows + first, plane * self.rows + last)
            for plane in range(self.planes)
            for first, last in pairwise(cuts)
        ]
        _run([partial(self._call, "scan", first, last, *options) for first, last in bands])

    def result(self) -> tuple[Tensor, Tensor]:
        """(N, K, n_q) keys and costs."""
        return self.matches.transpose(1, 2).contiguous(), self.costs.transpose(1, 2).contiguous()

    def _start(self, q: Tensor, k: Tensor, allowed: Tensor | None, seed: int) -> None:
        offered = torch.empty(0, dtype=torch.int64)
        if self.plan.coarse_start is not None and self.plan.search != "exact":
            offered = coarse_candidates(q, k, allowed, self.plan, seed, search).contiguous()
        listed = counts = None
        if allowed is not None:
            counts = allowed.sum(1)
            listed = (~allowed).to(torch.uint8).sort(dim=1, stable=True).indices.int().contiguous()
        addresses = (_address(x) for x in (listed, counts, offered, self.now))
        self._rows("start", *addresses, offered.shape[0], self.planes)

    def _first_draw(self, iteration: int) -> int:
        return self.plan.matches + 2 * iteration * self.windows if self.windows else -1

    def _rows(self, work: str, *options: int) -> None:
        pieces = _pieces(self.planes * self.rows, torch.get_num_threads() * PIECES)
        _run([partial(self._call, work, first, last, *options) for first, last in pieces])

    def _call(self, work: str, first: int, last: int, *options: int) -> None:
        _kernel(work)(_wide(self.costs), self.l2, first, last, *self._search, *options)


def _exact(q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan) -> tuple[Tensor, Tensor]:
    half = plan.patch_size // 2
    inputs = _planar(q, half), _planar(k, half)
    lengths = _inverse_lengths(q, k, plan)
    matches = torch.zeros(q.shape[0], plan.matches, q.shape[2] * q.shape[3], dtype=torch.int32)
    costs = torch.full(matches.shape, float("inf"), dtype=inputs[0].dtype)
    penalty = None
    if allowed is not None:
        penalty = torch.zeros(allowed.shape, dtype=costs.dtype).masked_fill_(~allowed, float("inf"))
    arguments = (
        *(x.data_ptr() + SPARE * x.element_size() for x in inputs),
        *(_address(x) for x in (*lengths, penalty, matches, costs)),
        *(plan.heads, *q.shape[2:], *k.shape[2:], q.shape[1], plan.patch_size, plan.matches),
        *(q.shape[3] + 2 * half, k.shape[3] + 2 * half),
    )
    jobs = [
        partial(_kernel("exact"), _wide(costs), int(plan.score == "l2"), start + first, start + last, *arguments)
        for start in range(0, q.shape[0] * q.shape[2], q.shape[2])
        for first, last in _pieces(q.shape[2], torch.get_num_threads())
    ]
    _run(jobs)
    return matches, costs


def _runs(maps: Tensor, half: int) -> Tensor:
    """(N, D, Y, X) as channels-last with a ring of zeros, flat, with SPARE zeros before and behind."""
    count, channels, rows, cols = maps.shape
    shape = (count, rows + 2 * half, cols + 2 * half, channels)
    flat = torch.zeros(Size(*shape[:2]).area * shape[2] * channels + 2 * SPARE, dtype=at_least_float32(maps[:0]).dtype)
    inner = flat[SPARE:-SPARE].view(shape)[:, half : half + rows, half : half + cols]
    inner.copy_(maps.permute(0, 2, 3, 1))
    return flat


def _planar(maps: Tensor, half: int) -> Tensor:
    """(N, D, Y, X) with a ring of zeros, flat, with SPARE zeros before and four times as many behind."""
    padded = F.pad(at_least_float32(maps), (half,) * 4)
    return F.pad(padded.reshape(-1), (SPARE, 4 * SPARE))


def _inverse_lengths(q: Tensor, k: Tensor, plan: SearchPlan) -> tuple[Tensor | None, Tensor | None]:
    return (
        inverse_length(q, plan.patch_size).contiguous() if plan.score == "cosine" else None,
        inverse_length(k, plan.patch_size).contiguous() if plan.score in ("cosine", "unit_key") else None,
    )


def _kernel(work: str) -> Callable[..., None]:
    if isinstance(_patchmatch, str):
        raise RuntimeError(f"psal: {_patchmatch}.")
    function: Callable[..., None] = getattr(_patchmatch, work)
    return function


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _wide(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.float64)


def _pieces(rows: int, count: int) -> list[tuple[int, int]]:
    """Ranges of rows, about `count` of them."""
    step = -(-rows // count)
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _run(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs that do not depend on each other on as many threads as PyTorch uses, the caller's among them."""
    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2:
        for job in jobs:
            job()
        return
    waiting = iter(jobs)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            job()

    with ThreadPoolExecutor(threads - 1, "psal") as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
