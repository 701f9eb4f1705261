"""One training step of SAGAN under a backend, and how much of it the attention blocks take.

The step is the task's: an update of the discriminator by the hinge loss on real and generated images, then one of the
generator on other latents, both by Adam. Images are noise: time does not depend on what they show.

A block's time is read at its ends, forward by hooks on the module, backward by hooks on its gradients. Inside are its
projections, pooling, spectral norm, mixer and sum. Backward through a block is one stretch, for no other branch of the
graph lies between its output and its input. With one CPU thread times within a step are CPU time, which other work on
the machine disturbs least, else wall time, with the device waited for; the column clock says which.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from attention_bench.backends import MODULES
from attention_bench.cells import ROOT, Case, Cell
from attention_bench.counting import ALLOCATOR, PROFILED, cpu_peak_bytes, spread

STEP = "sagan-step"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Network:
    """The two networks of a step: what their constructors are given, and how many images a step sees.

    Args:
        image_size: side in pixels.
        channels: of both networks, coarsest first.
        attention_at: side of the maps that attend.
        classes: number of classes.
        batch: images of a step.
    """

    image_size: int
    channels: list[int]
    attention_at: int
    classes: int
    batch: int

    def cell(self, label: str, backend: str, options: dict[str, Any], **more: Any) -> Cell:
        """A step as a cell of the benchmark; its case is the generator's attention."""
        level = int(math.log2(self.attention_at)) - 2
        width = self.channels[level] if level < len(self.channels) else self.channels[-1]
        q_size, kv_size = (self.attention_at,) * 2, (self.attention_at // 2,) * 2
        case = Case(q_size, kv_size, width // 8, width // 2, self.batch, "noise")
        network = {name: value for name, value in dataclasses.asdict(self).items() if name != "batch"}
        settings = {"attention": backend, "with": options, **network}
        return Cell("step", label, STEP, settings, case, "forward+backward", **more)


RELEASED = Network(128, [1024, 1024, 512, 256, 128, 64], 32, 1000, batch=8)
TINY = Network(32, [16, 16, 64, 64], 16, 10, batch=2)
# Label, backend, and what is changed of the options that `train.py model=sagan attention=` takes.
LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "full": ("full", {}),
    "full-8-heads": ("full", {"heads": 8}),
    "ylg": ("ylg", {}),
    "ylg-masked-dense": ("ylg", {"kernel": "reference"}),
    **{name: (name, {}) for name in MODULES if name not in ("full", "ylg")},
}


def step_cells(network: Network, labels: Sequence[str], **more: Any) -> list[Cell]:
    """A step under each of `LINES`, with the options of conf/."""
    cells = []
    for label in labels:
        backend, changes = LINES[label]
        options = {**configured(backend), **changes}
        cells.append(network.cell(label, backend, fitting(backend, options, network.attention_at // 2), **more))
    return cells


def configured(backend: str) -> dict[str, Any]:
    """The options of conf/attention, with those of conf/tuning for SAGAN in their place."""
    from omegaconf import OmegaConf

    mixer = OmegaConf.load(ROOT / "conf" / "attention" / f"{backend}.yaml").mixer
    tuning = ROOT / "conf" / "tuning" / f"sagan_{backend}.yaml"
    merged = OmegaConf.merge(mixer, OmegaConf.load(tuning)) if tuning.is_file() else mixer
    options: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    return {name: value for name, value in options.items() if name not in ("_target_", "_partial_")}


def fitting(backend: str, options: dict[str, Any], key_side: int) -> dict[str, Any]:
    """The same options, made smaller where the pooled key map is."""
    most = {
        "gpa": {"coarse": key_side, "cells": key_side // 2, "keys_per_cell": key_side},
        "local": {"window": key_side},
        "nystromformer": {"landmarks": key_side * key_side // 4},
        "psal": {"patch_size": key_side - 1},
    }.get(backend, {})
    return {name: min(value, most[name]) if name in most else value for name, value in options.items()}


class Watch:
    """Time inside modules by a clock, apart for forward and backward."""

    def __init__(self, modules: list[Any], now: Callable[[], float]) -> None:
        self.forward = self.backward = 0.0
        self._now, self._start = now, 0.0
        for module in modules:
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end_forward)
            module.register_full_backward_pre_hook(self._begin)
            module.register_full_backward_hook(self._end_backward)

    def clear(self) -> None:
        self.forward = self.backward = 0.0

    def _begin(self, *_: Any) -> None:
        self._start = self._now()

    def _end_forward(self, *_: Any) -> None:
        self.forward += self._now() - self._start

    def _end_backward(self, *_: Any) -> None:
        self.backward += self._now() - self._start


def networks_of(cell: Cell) -> tuple[Any, Any]:
    """The generator and the discriminator of a step, on torch's default device."""
    from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention

    given = dict(cell.options)
    options = {key: tuple(x) if isinstance(x, list) else x for key, x in given.pop("with").items()}
    attention = sagan_attention(given.pop("attention"), **options)
    return SaganGenerator(**given, attention=attention), SaganDiscriminator(**given, attention=attention)


class Step:
    """Both networks with their optimisers and a batch; `call` makes one step and returns the ms of its two halves."""

    def __init__(self, cell: Cell) -> None:
        import torch

        torch.set_num_threads(cell.threads)
        torch.manual_seed(0)
        self.torch, self.cuda = torch, cell.device.startswith("cuda")
        batch, side = cell.case.batch, cell.options["image_size"]
        with torch.device(cell.device):
            self.generator, self.discriminator = networks_of(cell)
            self.images = torch.randn(batch, 3, side, side).clamp(-1, 1)
            self.labels = torch.randint(cell.options["classes"], (batch,))
            self.latents = torch.randn(2, batch, self.generator.latent)
        pairs = ((self.discriminator, 4e-4), (self.generator, 1e-4))
        self.optimisers = [torch.optim.Adam(net.parameters(), rate, betas=(0.0, 0.999)) for net, rate in pairs]
        blocks = [*self.generator.attention_blocks.values(), *self.discriminator.attention_blocks.values()]
        for block in blocks:
            torch.nn.init.constant_(block.sigma, 0.5)  # at 0 nothing reaches what lies before
        self.clock = "wall" if self.cuda or cell.threads > 1 else "cpu"
        self.watch = Watch(blocks, self.now)

    def now(self) -> float:
        """Milliseconds by `clock`."""
        if self.cuda:
            self.torch.cuda.synchronize()
        return 1e3 * (time.process_time() if self.clock == "cpu" else time.perf_counter())

    def call(self) -> dict[str, float]:
        from saccade.losses.adversarial import hinge_discriminator, hinge_generator

        start = self.now()
        self.discriminator.requires_grad_(True)
        with self.torch.no_grad():
            fake = self.generator(self.latents[0], self.labels)
        judged = (self.discriminator(self.images, self.labels), self.discriminator(fake, self.labels))
        self._update(self.optimisers[0], hinge_discriminator(*judged))
        middle = self.now()
        self.discriminator.requires_grad_(False)
        made = self.generator(self.latents[1], self.labels)
        self._update(self.optimisers[1], hinge_generator(self.discriminator(made, self.labels)))
        return {"discriminator": middle - start, "generator": self.now() - middle}

    def _update(self, optimiser: Any, terms: dict[str, Any]) -> None:
        sum(terms.values()).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def timed(self) -> dict[str, float]:
        """`call`, with the ms of both clocks and inside the attention blocks."""
        gc.collect()
        self.watch.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        parts = self.call()
        return {
            "wall": 1e3 * (time.perf_counter() - wall),
            "cpu": 1e3 * (time.process_time() - cpu),
            **parts,
            "attention_forward": self.watch.forward,
            "attention_backward": self.watch.backward,
        }

    def peak_bytes(self) -> int:
        """Peak of what a step allocates above networks, optimisers and batch."""
        gc.collect()
        if not self.cuda:
            return cpu_peak_bytes(self.call)
        before = self.torch.cuda.memory_allocated()
        self.torch.cuda.reset_peak_memory_stats()
        self.call()
        return int(self.torch.cuda.max_memory_allocated() - before)


def measure_step(cell: Cell) -> dict[str, Any]:
    """Measured columns of a step. The first one warms up (Adam makes its slots), the second is weighed."""
    from saccade.ops import dispatch

    dispatch.reset_ledger()
    step = Step(cell)
    step.call()
    row: dict[str, Any] = {
        "peak_new_mib": round(step.peak_bytes() / MIB, 2),
        "memory_method": ALLOCATOR if step.cuda else PROFILED,
    }
    times = [step.timed()]
    repeats = max(1, min(cell.repeats, math.floor(cell.cell_seconds * 1e3 / max(times[0]["wall"], 1e-3))))
    times += [step.timed() for _ in range(repeats - 1)]
    middle = {name: statistics.median(t[name] for t in times) for name in times[0]}
    inside = middle["attention_forward"] + middle["attention_backward"]
    for name in ("wall", "cpu"):
        row |= spread(f"{name}_ms", [t[name] for t in times])
    for name in ("discriminator", "generator", "attention_forward", "attention_backward"):
        row[f"{name}_ms"] = round(middle[name], 3)
    row |= {
        "attention_share": round(inside / (middle["discriminator"] + middle["generator"]), 4),
        "clock": step.clock,
        "warmup": 2,
        "repeats": len(times),
        "kernel": "+".join(dict.fromkeys(str(entry["kernel"]) for entry in dispatch.ledger())),
        "parameters": sum(p.numel() for net in (step.generator, step.discriminator) for p in net.parameters()),
    }
    return row
