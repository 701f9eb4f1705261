"""Counting what a call allocates and how many products it makes."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attention_bench.cells import ROOT
from saccade.run.peak_memory import ALLOCATOR as ALLOCATOR
from saccade.run.peak_memory import PROFILED as PROFILED
from saccade.run.peak_memory import cpu_peak_bytes as cpu_peak_bytes
from saccade.run.peak_memory import peak_of as peak_of

COUNTED = "storages counted on tensors without data: not run, temporaries inside operators not seen"
FLOPS = "torch.utils.flop_counter: matmul, bmm, convolution, SDPA; not elementwise work, not compiled kernels"


@contextlib.contextmanager
def without_data() -> Iterator[None]:
    """Make tensors inside without data: sizes, types and lifetimes are real, nothing is computed.

    The library's look for NaN has nothing to look at, so it is left out.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = importlib.import_module("saccade.ops.inputs")
    look = inputs._check_values
    inputs._check_values = lambda *arguments: None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
            yield
    finally:
        inputs._check_values = look


def count_peak_bytes(call: Callable[[], object]) -> int:
    """Peak of the bytes of storages made during `call`; it counts tensors without data like any others."""
    allocation = _load_allocation()
    with allocation.count_allocations() as counted:
        call()
    return int(counted.peak)


def _load_allocation() -> Any:
    """saccade.callbacks.allocation; the package around it is kept out, it would load Lightning."""
    name = "attention_bench_allocation"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "src/saccade/callbacks/allocation.py")
        if spec is None or spec.loader is None:
            raise RuntimeError("bench_attention: saccade/callbacks/allocation.py cannot be loaded")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def saved_bytes(run: Callable[..., Any], inputs: Sequence[Any]) -> int:
    """Bytes of the storages that autograd keeps for backward after `run(*inputs)`, beside those of the inputs."""
    import torch

    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # the tensor, so that its address is not given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(*inputs)
    for given in inputs:
        kept.pop(given.untyped_storage().data_ptr(), None)
    return sum(int(tensor.untyped_storage().nbytes()) for tensor in kept.values())


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Columns `<name>_median`, `_min` and `_max`."""
    return {
        f"{name}_median": round(statistics.median(values), 3),
        f"{name}_min": round(min(values), 3),
        f"{name}_max": round(max(values), 3),
    }


def counted_flops(call: Callable[[], object]) -> int:
    """Products and sums of one call by torch's counter, a multiply-add as two.

    It has no formula for the CPU's fused attention; that is given here: two products forward, five backward.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    mapping: dict[Any, Any] = {}
    for name, formula in (("", forward), ("_backward", backward)):
        operator = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}", None)
        if operator is not None:
            mapping[operator] = formula
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return int(counter.get_total_flops())
