"""Memory of a run: peaks of training and evaluation, and the paper's own measure of the attention blocks alone.

On CUDA the allocator answers (peak allocated and peak reserved of every step). A CPU allocator keeps no statistics,
so there the storages of two training steps and two evaluation batches are counted (`saccade.callbacks.allocation`);
the record says which.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from saccade.callbacks.allocation import METHOD as COUNTED
from saccade.callbacks.allocation import count_allocations
from saccade.callbacks.attention_pictures import find_blocks
from saccade.geometry import Size, SlotSpec

ALLOCATOR = "CUDA caching allocator"
PROTOCOL = (
    "the attention blocks alone, batch 1, float32, random inputs of the slots' sizes, one forward and one backward "
    "pass; weights, inputs and gradients included (arXiv 2107.03742)"
)
_MIB = 1024.0**2
_COUNTED_STEPS = 2


class PhaseMemory(TypedDict):
    """Peaks of one phase, MiB: in all, of which was there before the step; reserved is None off CUDA."""

    peak_allocated_mib: float
    held_before_mib: float
    peak_reserved_mib: float | None
    steps: int


class HasSpec(Protocol):
    """An attention block knows its slot."""

    spec: SlotSpec


@dataclass(frozen=True)
class BlockMemory:
    """The paper's measure: MiB for each slot run alone, and for all slots at once.

    `total` is below the sum where a slot's temporary memory is free again before the next slot needs its own.
    """

    slots: dict[str, float]
    total: float
    method: str

    def record(self) -> dict[str, Any]:
        """As result.json keeps it."""
        return {
            "slots_mib": {name: round(value, 3) for name, value in self.slots.items()},
            "total_mib": round(self.total, 3),
            "method": self.method,
            "protocol": PROTOCOL,
        }


def _run_blocks(blocks: Mapping[str, nn.Module], device: torch.device) -> None:
    """Copies of the blocks, one forward and one backward; weights, inputs and results are all made inside this call."""
    copies = {name: copy.deepcopy(block).float() for name, block in blocks.items()}
    outputs: list[Tensor] = []
    inputs: list[Tensor] = []
    for block in copies.values():
        spec = cast(HasSpec, block).spec
        kv_size: Size = getattr(block, "kv_map_size", spec.kv_size)  # where the block pools, that of its input
        maps = [
            torch.randn(1, channels, *size, device=device, requires_grad=True)
            for channels, size in ((spec.q_channels, spec.q_size), (spec.kv_channels, kv_size))
        ]
        inputs += maps
        outputs.append(block(*maps))
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def _peak_mib(blocks: Mapping[str, nn.Module], device: torch.device) -> float:
    """MiB that running the blocks needs at most beyond what is there already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _run_blocks(blocks, device)
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / _MIB
    with count_allocations() as counted:
        _run_blocks(blocks, device)
    return counted.peak / _MIB


def measure_attention_blocks(blocks: Mapping[str, nn.Module]) -> BlockMemory:
    """Peak memory of attention blocks by the paper's protocol, for each slot and for all together.

    The blocks themselves, their gradients and the random state stay as they are: copies are measured.

    Args:
        blocks: by slot name; each has a `spec` that gives channels and sizes.

    Raises:
        ValueError: no blocks.
    """
    if not blocks:
        raise ValueError("measure_attention_blocks: the model has no attention blocks")
    device = next((p.device for block in blocks.values() for p in block.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        slots = {name: _peak_mib({name: block}, device) for name, block in blocks.items()}
        total = _peak_mib(blocks, device)
    return BlockMemory(slots, total, ALLOCATOR if device.type == "cuda" else COUNTED)


def held_bytes(module: nn.Module, optimisers: object) -> int:
    """Bytes of weights, buffers, gradients and optimiser state, each storage once."""
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [p.grad for p in module.parameters() if p.grad is not None]
    listed = optimisers if isinstance(optimisers, (list, tuple)) else [optimisers]
    for optimiser in listed:
        if isinstance(optimiser, torch.optim.Optimizer):
            for state in optimiser.state.values():
                tensors += [value for value in state.values() if isinstance(value, Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class MemoryRecord(pl.Callback):
    """Measure the peaks of training and of evaluation, and at the end of training the attention blocks alone.

    List it before callbacks that draw, so that their memory is not counted. `record()` is ready for result.json; it
    survives a resume.
    """

    def __init__(self) -> None:
        self.phases: dict[str, PhaseMemory] = {}
        self.blocks: dict[str, Any] | None = None
        self.method = ""
        self._counter: count_allocations | None = None
        self._held = 0.0
        self._left = {"train": _COUNTED_STEPS, "evaluate": _COUNTED_STEPS}

    def record(self) -> dict[str, Any]:
        """What was measured: method, phases, and the attention blocks (None if the model has none)."""
        return {"method": self.method, "phases": dict(self.phases), "attention_blocks": self.blocks}

    def state_dict(self) -> dict[str, Any]:
        return {"phases": {name: dict(phase) for name, phase in self.phases.items()}, "method": self.method}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.phases = dict(state_dict["phases"])
        self.method = str(state_dict["method"])

    def _start(self, trainer: pl.Trainer, module: pl.LightningModule, phase: str) -> None:
        if module.device.type == "cuda":
            self.method = ALLOCATOR
            torch.cuda.reset_peak_memory_stats(module.device)
            self._held = torch.cuda.memory_allocated(module.device) / _MIB
        elif self._left[phase] > 0 and self._counter is None:
            self.method = COUNTED
            self._held = held_bytes(module, trainer.optimizers) / _MIB
            self._counter = count_allocations()
            self._counter.__enter__()

    def _end(self, module: pl.LightningModule, phase: str) -> None:
        if module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(module.device) / _MIB
            self._note(phase, peak, torch.cuda.max_memory_reserved(module.device) / _MIB)
        elif self._counter is not None:
            peak = self._held + self._counter.peak / _MIB
            self._stop()
            self._left[phase] -= 1
            self._note(phase, peak, None)

    def _stop(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def _note(self, phase: str, peak: float, reserved: float | None) -> None:
        before = self.phases.get(phase)
        steps = before["steps"] + 1 if before else 1
        if before and before["peak_allocated_mib"] >= peak:
            before["steps"] = steps
            return
        self.phases[phase] = {
            "peak_allocated_mib": round(peak, 3),
            "held_before_mib": round(self._held, 3),
            "peak_reserved_mib": None if reserved is None else round(reserved, 3),
            "steps": steps,
        }

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._start(trainer, pl_module, "train")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._end(pl_module, "train")

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._start(trainer, pl_module, "evaluate")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._end(pl_module, "evaluate")

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._start(trainer, pl_module, "evaluate")

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._end(pl_module, "evaluate")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()
        blocks = {name: several[0] for name, several in find_blocks(pl_module).items()}
        if blocks and trainer.is_global_zero:
            self.blocks = self._measured(blocks)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    @staticmethod
    def _measured(blocks: Mapping[str, nn.Module]) -> dict[str, Any]:
        try:
            return measure_attention_blocks(blocks).record()
        except torch.cuda.OutOfMemoryError as error:
            return {"slots_mib": {}, "total_mib": None, "method": ALLOCATOR, "protocol": PROTOCOL, "failed": str(error)}
