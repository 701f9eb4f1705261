"""Time and peak memory of one cell, in the process that calls this; `run_fresh` starts such a process."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attention_bench.cases import BACKENDS, DTYPES, Cell

MIB = 2**20


def peak_of(changes: Iterable[tuple[int, int]]) -> int:
    """Largest running total, in bytes, of (address, size) changes; size is negative where memory is released.

    Releases of what was allocated before the first change do not count: they would hide as much new memory.
    """
    live: dict[int, int] = {}
    total = peak = 0
    for address, size in changes:
        if size >= 0:
            live[address] = size
            total += size
            peak = max(peak, total)
        else:
            total -= live.pop(address, 0)
    return peak


def cpu_peak_bytes(call: Callable[[], object]) -> int:
    """Peak of the bytes that PyTorch's CPU allocator holds during `call`, above what it held before.

    Raises:
        RuntimeError: the profiler of this torch build records no allocations.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    if not memory:
        raise RuntimeError("bench_attention: torch.profiler recorded no allocation, so memory cannot be counted here")
    memory.sort(key=lambda e: float(e["ts"]))
    return peak_of((e["args"]["Addr"], e["args"]["Bytes"]) for e in memory)


def _resident_peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _Subject:
    """The call under test: makes its inputs, runs it, reads the clocks."""

    def __init__(self, cell: Cell) -> None:
        import torch

        torch.set_num_threads(cell.threads)
        self.torch = torch
        self.cuda = cell.device.startswith("cuda")
        self.backward = cell.mode == "forward+backward"
        self.run = BACKENDS[cell.backend](cell.case, cell.score)
        generator = torch.Generator().manual_seed(0)
        shape = (1, 1, cell.case.channels, *cell.case.size)
        dtype = getattr(torch, DTYPES[cell.dtype])
        maps = [torch.randn(shape, generator=generator).to(cell.device, dtype) for _ in range(4)]
        self.inputs = [x.requires_grad_(self.backward) for x in maps[:3]]
        self.upstream = maps[3]

    def _call(self) -> None:
        if self.backward:
            out = self.run(*self.inputs)
            # A model's own gradient of the output is new memory too, so it is made here and not among the inputs.
            out.backward(self.upstream.clone())
        else:
            with self.torch.no_grad():
                self.run(*self.inputs)
        if self.cuda:
            self.torch.cuda.synchronize()

    def _clear(self) -> None:
        for x in self.inputs:
            x.grad = None
        gc.collect()

    def _clocked(self) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        self._call()
        return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)

    def timed(self) -> tuple[float, float]:
        """Wall and CPU milliseconds of one call."""
        self._clear()
        return self._clocked()

    def timed_and_weighed(self) -> tuple[tuple[float, float], dict[str, float]]:
        """One call with its memory: times as in `timed`, and the memory columns of the row."""
        self._clear()
        times: list[tuple[float, float]] = []
        resident: list[float] = [_resident_peak_mib()]

        def call() -> None:
            times.append(self._clocked())
            resident.append(_resident_peak_mib())

        if self.cuda:
            before = self.torch.cuda.memory_allocated()
            self.torch.cuda.reset_peak_memory_stats()
            call()
            peak = self.torch.cuda.max_memory_allocated() - before
        else:
            peak = cpu_peak_bytes(call)
        growth = resident[1] - resident[0]
        return times[0], {"peak_new_mib": round(peak / MIB, 2), "rss_growth_mib": round(growth, 1)}


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}_median": round(statistics.median(values), 3),
        f"{name}_min": round(min(values), 3),
        f"{name}_max": round(max(values), 3),
    }


def _kernels_used() -> str:
    """Which kernels the library's own dispatch chose, from its ledger; empty for a peer that does not use it."""
    dispatch = sys.modules.get("saccade.ops.dispatch")
    if dispatch is None:
        return ""
    return "+".join(sorted({str(entry["kernel"]) for entry in dispatch.ledger()}))


def measure(cell: Cell) -> dict[str, Any]:
    """Measured columns of a cell. The first call warms up and is weighed; it is also the time if it takes too long."""
    subject = _Subject(cell)
    first, row = subject.timed_and_weighed()
    affordable = math.floor(1e3 * cell.cell_seconds / max(first[0], 1e-3))
    times = [subject.timed() for _ in range(min(cell.repeats, affordable))]
    warmup = 1 if times else 0
    times = times or [first]
    counts = {"warmup": warmup, "repeats": len(times), "kernel": _kernels_used()}
    return {**row, **counts, **_spread("wall_ms", [t[0] for t in times]), **_spread("cpu_ms", [t[1] for t in times])}


def _ran_out(error: Exception) -> bool:
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def worker(text: str) -> None:
    """Body of the fresh process: measures the cell given as JSON and prints one line of JSON."""
    cell = Cell.from_json(text)
    if cell.memory_limit_gib is not None:
        limit = int(cell.memory_limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        row = {"status": "ok", **measure(cell)}
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        row = {"status": "out of memory"}
    print(json.dumps(row))


def run_fresh(cell: Cell, script: Path) -> dict[str, Any]:
    """Measure a cell in a process of its own. One that fails is a row with its last words, not an exception."""
    threads = str(cell.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, str(script), "--worker", json.dumps(dataclasses.asdict(cell))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return row
    if done.returncode == -9:  # the kernel's out-of-memory killer leaves no other trace
        return {"status": "out of memory"}
    return {"status": f"failed ({done.returncode}): {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
