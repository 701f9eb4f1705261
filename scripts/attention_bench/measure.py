"""Time, memory, products and quality of one cell, in the process that calls this; `fresh` starts such processes."""

from __future__ import annotations

import gc
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from attention_bench import quality, sagan
from attention_bench.backends import BACKENDS
from attention_bench.cells import COUNT, DTYPES, MODES, Cell
from attention_bench.counting import (
    ALLOCATOR,
    COUNTED,
    FLOPS,
    PROFILED,
    count_peak_bytes,
    counted_flops,
    cpu_peak_bytes,
    saved_bytes,
    spread,
    without_data,
)
from attention_bench.inputs import make_maps

MIB = 2**20
# A call longer than this is not repeated only to count its products: they are counted on tensors without data.
COUNT_SECONDS = 1.0


def _resident_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Subject:
    """The call under test: makes its inputs, runs it, reads the clocks."""

    def __init__(self, cell: Cell, maps: Sequence[Any] | None = None) -> None:
        import torch

        if cell.mode not in MODES:
            raise ValueError(f"bench_attention: no mode is called {cell.mode!r}; valid: {', '.join(MODES)}")
        torch.set_num_threads(cell.threads)
        self.torch = torch
        self.cell = cell
        self.cuda = cell.device.startswith("cuda")
        self.grad = cell.mode != "forward"
        self.run = BACKENDS[cell.backend](cell)
        *inputs, self.upstream = maps or make_maps(cell.case, cell.dtype, cell.device)
        self.inputs = [x.requires_grad_(self.grad) for x in inputs]
        self.out: Any = None  # of the last call without autograd

    def _now(self) -> tuple[float, float]:
        if self.cuda:
            self.torch.cuda.synchronize()
        return 1e3 * time.perf_counter(), 1e3 * time.process_time()

    def call(self) -> dict[str, tuple[float, float]]:
        """One call of the mode; wall and CPU milliseconds of its parts: forward, backward."""
        start = self._now()
        if not self.grad:
            with self.torch.no_grad():
                self.out = self.run(*self.inputs)
            return {"forward": _since(start, self._now())}
        out = self.run(*self.inputs)
        middle = self._now()
        if out is not None:  # `levels` runs backward itself
            # A model's own gradient of the output is new memory too, so it is made here and not among the inputs.
            out.backward(self.upstream.clone())
            del out
        return {"forward": _since(start, middle), "backward": _since(middle, self._now())}

    def clear(self) -> None:
        self.out = None
        for x in self.inputs:
            x.grad = None
        gc.collect()

    def timed(self) -> dict[str, tuple[float, float]]:
        self.clear()
        return self.call()

    def timed_and_weighed(self) -> tuple[dict[str, tuple[float, float]], dict[str, Any]]:
        """One call with its memory: times as in `timed`, and the memory columns of the row."""
        self.clear()
        times: list[dict[str, tuple[float, float]]] = []
        resident: list[float] = [_resident_peak_mib()]

        def call() -> None:
            times.append(self.call())
            resident.append(_resident_peak_mib())

        if self.cuda:
            before = self.torch.cuda.memory_allocated()
            self.torch.cuda.reset_peak_memory_stats()
            call()
            peak = self.torch.cuda.max_memory_allocated() - before
        else:
            peak = cpu_peak_bytes(call)
        return times[0], {
            "peak_new_mib": round(peak / MIB, 3),
            "rss_growth_mib": round(resident[1] - resident[0], 1),
            "memory_method": ALLOCATOR if self.cuda else PROFILED,
        }

    def part(self, times: dict[str, tuple[float, float]]) -> tuple[float, float]:
        """Wall and CPU milliseconds of what the mode names."""
        chosen = [times["backward"]] if self.cell.mode == "backward" else list(times.values())
        return sum(t[0] for t in chosen), sum(t[1] for t in chosen)


def _since(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


def _kernels_used() -> str:
    """Which kernels the library's own dispatch chose, from its ledger; empty for a peer that does not use it."""
    dispatch = sys.modules.get("saccade.ops.dispatch")
    if dispatch is None:
        return ""
    return "+".join(dict.fromkeys(str(entry["kernel"]) for entry in dispatch.ledger()))


def measure(cell: Cell) -> dict[str, Any]:
    """Measured columns of a cell. The first call warms up and is weighed; it is also the time if it takes too long."""
    if cell.backend == sagan.STEP:
        return sagan.measure_step(cell)
    if cell.how == COUNT:
        return _count(cell)
    subject = Subject(cell)
    cold, row = subject.timed_and_weighed()
    row["kernel"] = _kernels_used()
    seconds = sum(wall for wall, _ in cold.values()) / 1e3
    if "time" in cell.measures:
        times = [subject.timed() for _ in range(min(cell.repeats, math.floor(cell.cell_seconds / max(seconds, 1e-6))))]
        row |= {"warmup": 1 if times else 0, "repeats": max(1, len(times))}
        times = times or [cold]
        parts = [subject.part(t) for t in times]
        row |= {**spread("wall_ms", [t[0] for t in parts]), **spread("cpu_ms", [t[1] for t in parts])}
        if subject.grad:
            row["forward_wall_ms"] = round(statistics.median(t["forward"][0] for t in times), 3)
            row["backward_wall_ms"] = round(statistics.median(t["backward"][0] for t in times), 3)
    if cell.measures_quality:
        row |= quality.judge(cell, subject.run, [x.detach() for x in subject.inputs], subject.out)
    subject.clear()
    if "saved" in cell.measures:
        row["saved_mib"] = round(saved_bytes(subject.run, subject.inputs) / MIB, 3)
    if "flops" in cell.measures:
        row |= _flops(cell, subject, seconds)
    return row


def _flops(cell: Cell, subject: Subject, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {"flops_counts": FLOPS}
    computed = quality.computed_cost(cell, subject.run)
    if computed is not None:
        row["flops_computed"] = {
            "forward": computed.forward_flops,
            "backward": computed.backward_flops,
            "forward+backward": computed.forward_flops + computed.backward_flops,
        }[cell.mode]
        row["saved_bytes_computed"] = computed.saved_bytes
    if cell.mode == "backward":
        return row
    if seconds <= COUNT_SECONDS:
        row["flops_counted"] = counted_flops(subject.call)
        subject.clear()
    elif not subject.cuda:
        counted = _quietly(lambda: _on_data_less(cell, counted_flops))
        if counted is not None:
            row["flops_counted"] = counted
    return row


def _quietly(count: Callable[[], int]) -> int | None:
    """A count, or None where the call needs data: it looks at values, or runs a compiled kernel."""
    try:
        return count()
    except Exception:
        return None


def _on_data_less(cell: Cell, count: Callable[[Callable[[], object]], int]) -> int:
    import torch

    with without_data():
        case, dtype = cell.case, getattr(torch, DTYPES[cell.dtype])
        q, upstream = (torch.empty(case.batch, c, *case.q_size, dtype=dtype) for c in (case.channels, case.v_channels))
        k, v = (torch.empty(case.batch, c, *case.kv_size, dtype=dtype) for c in (case.channels, case.v_channels))
        subject = Subject(cell, (q, k, v, upstream))
        return count(subject.call)


def _count(cell: Cell) -> dict[str, Any]:
    """Memory of a call that would take minutes, without making it."""
    peak = _on_data_less(cell, count_peak_bytes)
    return {"peak_new_mib": round(peak / MIB, 3), "memory_method": COUNTED, "kernel": _kernels_used()}


def ran_out(error: BaseException) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def row_of(cell: Cell) -> dict[str, Any]:
    """Measure; running out of memory is a row, as is a peer that is not there. Other errors pass."""
    if cell.memory_limit_gib is not None:
        limit = int(cell.memory_limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        return {"status": "ok", **measure(cell)}
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return {"status": "out of memory"}


def worker(text: str) -> None:
    """Body of a process of its own: measures the cell given as JSON and prints one line of JSON."""
    print(json.dumps(row_of(Cell.from_json(text))))
