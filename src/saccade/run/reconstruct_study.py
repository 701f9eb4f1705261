"""Reconstruct a pair by an attention at a size, and measure error, time and memory.

Errors are means of squared differences over pixels and channels in [0, 1], of the whole picture and without a margin
(7 pixels in the released evaluation); outputs are not clamped, as there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.attention import SpatialAttention
from saccade.geometry import AttentionShape, Size
from saccade.ops import dispatch, psal_search
from saccade.run.peak_memory import peak_bytes
from saccade.run.reconstruct_methods import CHANNELS, Method, reconstruct
from saccade.run.reconstruct_pairs import Pair, read_frame

MIB = 2.0**20
_MOTION_SIDE = 128


@dataclass(frozen=True)
class Cell:
    """One method at one size and temperature. `temperature` is None where the method has none; side None is native."""

    method: Method
    side: int | None
    temperature: float | None

    @property
    def size_name(self) -> str:
        return "native" if self.side is None else str(self.side)


@dataclass(frozen=True)
class Measured:
    """One pair in one cell: errors, seconds of one call, map sizes, and how far the pair moves (see `motion_of`)."""

    cell: Cell
    pair: Pair
    queries: Size
    keys: Size
    mse: float
    mse_cropped: float
    wall_s: float
    cpu_s: float
    kernel: str
    gflops: float
    motion: float
    peak_mib: float | None = None
    memory_method: str = ""


@dataclass(frozen=True)
class Plan:
    """What a study does beside its cells.

    Attributes:
        crop: margin in pixels that the cropped error leaves out.
        device: "cpu" or "cuda".
        memory: whether the first pair of each cell is run once more to weigh it.
        window: side of the window that motion is compared with, pixels.
    """

    crop: int = 7
    device: str = "cpu"
    memory: bool = True
    window: int = 50


def make_cells(methods: Sequence[Method], sides: Sequence[int | None], temperatures: Sequence[float]) -> list[Cell]:
    """Every method at every size and temperature that it has; those without one once."""
    cells = []
    for side in sides:
        for method in methods:
            if method.sizes and side not in method.sizes:
                continue
            heat: Sequence[float | None] = temperatures if method.tempered else (None,)
            cells += [Cell(method, side, temperature) for temperature in heat]
    return cells


def measure_pair(cell: Cell, pair: Pair, plan: Plan, *, weigh: bool) -> tuple[Measured, Tensor]:
    """One reconstruction, its errors and its cost; weighed in a call before, which also warms up."""
    target, reference = (read_frame(path, cell.side).to(plan.device) for path in (pair.target, pair.reference))
    queries, keys = Size(*target.shape[2:]), Size(*reference.shape[2:])
    mixer = cell.method.build(keys, cell.temperature or 1.0).to(plan.device)
    cropped = check_margin(queries, plan.crop)
    peak, how = None, ""
    if weigh:
        newly, how = peak_bytes(lambda: reconstruct(mixer, target, reference), plan.device)
        peak = newly / MIB
    dispatch.reset_ledger()
    started = _now(plan.device)
    picture = reconstruct(mixer, target, reference)
    ended = _now(plan.device)
    error = (picture - target).square()
    return Measured(
        cell,
        pair,
        queries,
        keys,
        mse=float(error.mean()),
        mse_cropped=float(error[..., cropped[0], cropped[1]].mean()),
        wall_s=ended[0] - started[0],
        cpu_s=ended[1] - started[1],
        kernel="+".join(dict.fromkeys(entry["kernel"] for entry in dispatch.ledger())),
        gflops=_gflops(mixer, queries, keys),
        motion=motion_of(pair),
        peak_mib=peak,
        memory_method=how,
    ), picture.cpu()


@lru_cache(maxsize=4096)
def motion_of(pair: Pair) -> float:
    """How far a pair moves: the commonest displacement of best matches, the larger of its two axes, as a share.

    The commonest, since patches of grass or sky match best anywhere. Measured on the frames at 128x128, by the search
    that PSAL does, whatever size is reconstructed.
    """
    side = _MOTION_SIDE
    target, reference = (read_frame(path, side).unsqueeze(1) for path in (pair.target, pair.reference))
    found, _ = psal_search(target, reference, matches=1, iterations=10, generator=torch.Generator().manual_seed(0))
    places = found[0, 0, 0].long()
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    down, across = places // side - rows + side, places % side - cols + side  # 1 to 2 side - 1
    counts = torch.bincount((down * 2 * side + across).flatten(), minlength=(2 * side) ** 2)
    near = F.avg_pool2d(
        counts.float().view(1, 1, 2 * side, 2 * side), 3, 1, 1
    )  # of this displacement or 1 pixel beside
    peak = int(near.argmax())
    return max(abs(peak // (2 * side) - side), abs(peak % (2 * side) - side)) / side


def moves_beyond(measured: Measured, window: int) -> bool:
    """Whether a pair moves out of a window of so many pixels around each, at the size of its cell."""
    return measured.motion * min(measured.queries) > window / 2


def check_margin(size: Size, crop: int) -> tuple[slice, slice]:
    """Rows and cols inside a margin.

    Raises:
        ValueError: the margin leaves nothing.
    """
    if 2 * crop >= min(size):
        raise ValueError(
            f"crop={crop}: a margin of {crop} pixels leaves nothing of a picture of {size}. Valid here: 0 to "
            f"{(min(size) - 1) // 2}."
        )
    return slice(crop, size.rows - crop), slice(crop, size.cols - crop)


def _now(device: str) -> tuple[float, float]:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def _gflops(mixer: SpatialAttention, queries: Size, keys: Size) -> float:
    channels = CHANNELS // mixer.heads
    shape = AttentionShape(1, mixer.heads, channels, channels, queries, keys)
    return mixer.cost(shape).forward_flops / 1e9
