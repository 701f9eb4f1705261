"""PSAL's search and its cost gradients on CUDA, by the Triton kernels of `saccade.kernels.psal_triton`.

"jump" follows the schedule of `saccade.ops.psal.search` and finds the same matches, up to rounding where two costs are
closer than that. It takes one launch to start and four an iteration; the random windows run in that of the last jump.
Maps stay in their own dtype, with costs in at least float32.

Gradients of the costs gather for q and add with atomics for k, whose sums therefore come in no fixed order: with
torch.use_deterministic_algorithms this kernel refuses what needs gradients, and PyTorch serves it.

Not yet measured on a GPU. TRITON_INTERPRET=1, set before Python starts, runs it on the CPU for tests, slowly.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.ops.dispatch import Request, Score
from saccade.ops.inputs import at_least_float32
from saccade.ops.psal import patches as psal_patches
from saccade.ops.psal.engine import Engine
from saccade.ops.psal.patches import PaddedMap, add_length_terms, cross_factor, inverse_length
from saccade.ops.psal.search import JUMPS, SearchPlan, coarse_candidates, window_count

# Ours, estimates: numbers of a tile's lists, of its differences; the longest piece of a patch row; a tile's side.
LISTS = 1024
DIFFERENCES = 2048
LONGEST = 64
SIDE = 8
# Tesla V100 is 7.0. Lists longer than this spill.
CAPABILITY = (7, 0)
MOST_MATCHES = 32
# Older compilers were not tried, or fail.
OLDEST = (3, 3)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def search(q: Tensor, k: Tensor, allowed: Tensor | None, plan: SearchPlan, seed: int) -> tuple[Tensor, Tensor]:
    """Find every query's K cheapest keys as the plan says: see `saccade.ops.psal.search.search`."""
    pairs = _Pairs(q, k, plan.patch_size, plan.score)
    matches, pixels = plan.matches, q.shape[2] * q.shape[3]
    found = torch.empty(q.shape[0], matches, pixels, dtype=torch.int32, device=q.device)
    costs = at_least_float32(q[:0]).new_empty(found.shape)
    now, after = (torch.empty(q.shape[0], pixels, dtype=torch.int32, device=q.device) for _ in range(2))
    listed = counts = usable = None
    if allowed is not None:
        usable = allowed.to(torch.uint8).contiguous()
        counts = allowed.sum(1)
        listed = (1 - usable).sort(dim=1, stable=True).indices.int()
    lists = 1 << (matches - 1).bit_length()
    words = {"K": matches, "KP": lists, **pairs.words(LISTS // lists)}
    drawing = (_signed(seed), _signed(seed >> 32), plan.heads)
    ring = plan.patch_size // 2 if plan.border == "released" else 0
    pairs.launch("start", *pairs.maps, listed, counts, found, costs, now, *drawing, *pairs.sizes, ring, **words)

    def improve(offers: Tensor | None, step: int, first: int, windows: int) -> None:
        given = (usable, found, costs, now, after, offers, 0 if offers is None else offers.shape[0])
        tail = (*drawing, *pairs.sizes, ring, step, first, windows)
        pairs.launch("improve", *pairs.maps, *given, *tail, **words)

    if plan.coarse_start is not None:
        improve(coarse_candidates(q, k, allowed, plan, seed).int().contiguous(), 0, 0, 0)
        now, after = after, now
    windows = window_count(Size(*k.shape[2:]))
    for iteration in range(plan.iterations):
        for step in JUMPS:
            improve(None, step, matches + 2 * iteration * windows, windows if step == JUMPS[-1] else 0)
            now, after = after, now
    return found, costs


def given_costs(q: Tensor, k: Tensor, matches: Tensor, patch_size: int, score: Score) -> Tensor:
    """Costs of given matches: (N, D, Yq, Xq), (N, D, Yk, Xk), (N, K, n_q) flat key pixels -> (N, K, n_q)."""
    pairs = _Pairs(q, k, patch_size, score)
    costs = at_least_float32(q[:0]).new_empty(matches.shape)
    words = {"K": matches.shape[1], **pairs.words(LISTS)}
    pairs.launch("given", *pairs.maps, matches.contiguous(), costs, *pairs.sizes, **words)
    return costs


def cost_gradients(
    q: Tensor, k: Tensor, matches: Tensor, costs: Tensor, grad: Tensor, patch_size: int, score: Score
) -> tuple[Tensor, Tensor]:
    """Gradients of the costs of given matches: arguments and results of `saccade.ops.psal.patches.cost_gradients`."""
    if torch.are_deterministic_algorithms_enabled():  # since the forward pass
        return psal_patches.cost_gradients(q, k, matches, costs, grad, patch_size, score)
    padded = PaddedMap(q, patch_size // 2), PaddedMap(k, patch_size // 2)
    grads = padded[0].like(), padded[1].like()
    factor = cross_factor(q, k, matches, grad, patch_size, score).to(padded[0].data.dtype).contiguous()
    sizes, channels = (*q.shape[2:], *k.shape[2:]), q.shape[1]
    block = min(LONGEST, 1 << (channels - 1).bit_length())
    tile = _tile(min(SIDE**2, DIFFERENCES // block))
    grid = (q.shape[0] * -(-q.shape[2] // tile[0]) * -(-q.shape[3] // tile[1]), -(-channels // block))
    words = {"D": channels, "P": patch_size, "K": matches.shape[1], "L2": score == "l2"}
    words |= {"BLOCK": block, "TILE_Y": tile[0], "TILE_X": tile[1]}
    with _on(q.device):
        for name, target in (("gradient_q", grads[0]), ("gradient_k", grads[1])):
            arguments = (padded[0].data, padded[1].data, matches.contiguous(), factor, target.data, *sizes)
            _kernel(name)[grid](*arguments, **words)
    if score in ("cosine", "unit_key"):
        add_length_terms(*padded, *grads, matches, costs * grad, q, k, patch_size, score)
    return grads[0].unpadded(q.dtype), grads[1].unpadded(k.dtype)


def reasons_against(request: Request, plan: SearchPlan) -> list[str]:
    """Why Triton cannot serve a request."""
    return list(_reasons(request, plan))


def _reasons(request: Request, plan: SearchPlan) -> Iterator[str]:
    installed = importlib.util.find_spec("triton") is not None
    if not installed:
        yield "triton is not installed"
    if request.device.type == "cuda":
        capability = torch.cuda.get_device_capability(request.device)
        if capability < CAPABILITY:
            yield f"it needs compute capability 7.0; {request.device} has {capability[0]}.{capability[1]}"
        version = str(importlib.import_module("triton").__version__) if installed else ""
        if installed and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            yield f"it needs triton {OLDEST[0]}.{OLDEST[1]} or newer; {version} is installed"
    elif request.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
        yield f"it runs on CUDA; the maps are on {request.device.type}"
    if request.dtype not in DTYPES:
        yield f"it reads fp16, bf16, fp32 and fp64; the maps are {request.dtype}"
    if plan.search != "jump":
        yield f"it searches by jumps; search={plan.search!r} is another kernel's"
    if plan.matches > MOST_MATCHES:
        yield f"it keeps at most {MOST_MATCHES} matches in registers; got matches={plan.matches}"
    shape, ring = request.shape, plan.patch_size - 1
    for size in (shape.q_size, shape.kv_size):
        numbers = (size.rows + ring) * (size.cols + ring) * shape.qk_channels
        if max(numbers, size.area * plan.matches) >= 2**31:
            yield f"it counts a map's numbers in 32 bits; a map of {size} with {shape.qk_channels} channels has more"
    if request.requires_grad and torch.are_deterministic_algorithms_enabled():
        yield "its gradients add in no fixed order, and torch.use_deterministic_algorithms is on"


TRITON = Engine("triton", search, cost_gradients, reasons_against, costs=given_costs)


class _Pairs:
    """Two maps as the kernels read them, and how a pass over the queries is launched."""

    def __init__(self, q: Tensor, k: Tensor, patch_size: int, score: Score) -> None:
        inverse_q = inverse_length(q, patch_size).contiguous() if score == "cosine" else None
        inverse_k = inverse_length(k, patch_size).contiguous() if score in ("cosine", "unit_key") else None
        self.maps = (_padded(q, patch_size // 2), _padded(k, patch_size // 2), inverse_q, inverse_k)
        self.sizes = (*q.shape[2:], *k.shape[2:])
        self.entries, self.channels = q.shape[:2]
        self.patch_size, self.l2, self.device = patch_size, score == "l2", q.device

    def words(self, most: int) -> dict[str, Any]:
        """The constants of a kernel whose tiles hold `most` queries, or fewer."""
        block = _block(self.patch_size * self.channels)
        tile = _tile(min(SIDE**2, most, DIFFERENCES // block))
        words = {"D": self.channels, "P": self.patch_size, "L2": self.l2}
        return words | {"BLOCK": block, "TILE_Y": tile[0], "TILE_X": tile[1]}

    def launch(self, name: str, *arguments: Any, **words: Any) -> None:
        """One program for each tile of queries of each map."""
        tiles = -(-self.sizes[0] // words["TILE_Y"]) * -(-self.sizes[1] // words["TILE_X"])
        with _on(self.device):
            _kernel(name)[(self.entries * tiles,)](*arguments, **words)


def _padded(maps: Tensor, half: int) -> Tensor:
    """(N, D, Y, X) -> (N, Y + 2 half, X + 2 half, D), zeros around."""
    count, channels, rows, cols = maps.shape
    out = maps.new_zeros(count, rows + 2 * half, cols + 2 * half, channels)
    out[:, half : half + rows, half : half + cols] = maps.permute(0, 2, 3, 1)
    return out


def _block(run: int) -> int:
    """The longest power of two up to LONGEST that cuts a run into pieces with little waste, an eighth if possible."""
    padded = {size: -(-run // size) * size for size in (4, 8, 16, 32, 64) if size <= LONGEST}
    most = max(min(padded.values()), run * 9 // 8)
    return max(size for size, numbers in padded.items() if numbers <= most)


def _tile(most: int) -> tuple[int, int]:
    """Rows and columns of a tile of at most so many queries, powers of two."""
    power = most.bit_length() - 1
    return 1 << power // 2, 1 << (power - power // 2)


def _signed(number: int) -> int:
    """The low 32 bits as a signed number: one type whatever the seed, so one compilation."""
    low = number & 0xFFFFFFFF
    return low - 2**32 if low >= 2**31 else low


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Launches go to the current CUDA device: make it the maps'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _kernel(name: str) -> Any:
    return getattr(importlib.import_module("saccade.kernels.psal_triton"), name)
