"""Peak memory of one call: told by CUDA's allocator, rebuilt from the profiler's allocation events on a CPU."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# torch is imported where it is used: who measures in fresh processes forks before it is loaded.

PROFILED = "torch.profiler allocation events of the CPU allocator"
ALLOCATOR = "torch.cuda.max_memory_allocated"


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

    Scratch space that oneDNN, BLAS or a compiled kernel take from the system is not seen.

    Raises:
        RuntimeError: the profiler of this torch build records no allocations.
    """
    from torch.profiler import ProfilerActivity, profile

    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _unheard():
        recorded.start()
    try:
        call()
    finally:
        with _unheard():
            recorded.stop()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [e for e in events if e.get("name") == "[memory]" and e["args"]["Device Type"] == 0]
    if not memory:
        raise RuntimeError("torch.profiler recorded no allocation, so memory cannot be counted here")
    memory.sort(key=lambda e: float(e["ts"]))
    return peak_of((e["args"]["Addr"], e["args"]["Bytes"]) for e in memory)


@contextmanager
def _unheard() -> Iterator[None]:
    """Leave out what native code writes to standard error: some builds tell of every start and stop of the profiler."""
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError):  # closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(call: Callable[[], object], device: str) -> tuple[int, str]:
    """Peak of newly allocated bytes during `call` on a device ("cpu", "cuda", "cuda:1"), and how it was measured."""
    if not device.startswith("cuda"):
        return cpu_peak_bytes(call), PROFILED
    import torch

    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, ALLOCATOR
