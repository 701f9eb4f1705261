"""scripts/bench_step.py: what is timed inside a step, what counts as kept for backward, and a run on tiny networks."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))

sagan, cells, counting, inputs, measure, backends = (
    importlib.import_module(f"attention_bench.{name}")
    for name in ("sagan", "cells", "counting", "inputs", "measure", "backends")
)
bench: Any = importlib.import_module("bench_step")


class Clock:
    """Time passes only where a test says so."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Slow(torch.autograd.Function):
    """The identity; its forward and backward take a given time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, clock: Clock, forward: float, backward: float) -> torch.Tensor:
        clock.time += forward
        ctx.clock, ctx.backward = clock, backward
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.clock.time += ctx.backward
        return upstream, None, None, None


class Branches(torch.nn.Module):
    """As an attention block: a sum of its input and of what several ways through it bring."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.weight = clock, torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = Slow.apply(x * self.weight, self.clock, 2.0, 30.0), Slow.apply(x, self.clock, 3.0, 40.0)
        return x + one * other


def test_only_what_is_inside_a_block_is_timed() -> None:
    clock = Clock()
    block = Branches(clock)
    watch = sagan.Watch([block], clock)
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):  # as real and generated images: two graphs, one backward pass
        before = Slow.apply(x, clock, 500.0, 7000.0)
        loss = Slow.apply(block(before), clock, 500.0, 7000.0).sum()
        x.grad = None
        loss.backward()
    assert (watch.forward, watch.backward) == (10.0, 140.0)
    watch.clear()
    two = [block(Slow.apply(x, clock, 500.0, 7000.0)).sum() for _ in range(2)]
    sum(two, torch.zeros(())).backward()
    assert (watch.forward, watch.backward) == (10.0, 140.0)
    assert clock.time > 40_000


def test_every_pass_through_a_block_is_seen_once() -> None:
    (cell,) = sagan.step_cells(sagan.TINY, ["ylg"])
    step = sagan.Step(cell)
    ticks = iter(range(1000))
    step.watch._now = lambda: float(next(ticks))  # every reading is one more than the last
    before = {name: p.detach().clone() for name, p in step.discriminator.named_parameters()}
    step.call()
    assert step.watch.forward == 5  # generator twice, discriminator on real, generated, and generated images again
    assert step.watch.backward == 4  # all but the generator's first, whose images are data to the discriminator
    changed = [name for name, p in step.discriminator.named_parameters() if not torch.equal(p, before[name])]
    assert set(changed) >= set(before) - {"embedding.weight"}
    assert all(p.grad is None for p in step.generator.parameters())


def test_a_step_without_attention_spends_nothing_there() -> None:
    rows = {}
    for cell in sagan.step_cells(sagan.TINY, ["none", "full-8-heads"], repeats=2):
        rows[cell.label] = measure.measure(cell)
        assert set(rows[cell.label]) | {"status"} <= set(bench.COLUMNS)
    assert rows["none"]["attention_share"] < rows["full-8-heads"]["attention_share"] < 1
    assert rows["none"]["parameters"] == rows["full-8-heads"]["parameters"]
    assert rows["none"]["kernel"] == ""
    assert rows["full-8-heads"]["kernel"] == "sdpa"
    assert rows["full-8-heads"]["peak_new_mib"] > rows["none"]["peak_new_mib"] > 0
    assert rows["full-8-heads"]["repeats"] == 2


def test_options_are_those_of_the_configuration_and_fit_small_maps() -> None:
    released = {cell.label: cell for cell in sagan.step_cells(sagan.RELEASED, list(sagan.LINES))}
    assert set(released) == {"none", "full-8-heads", "ylg-masked-dense", *backends.MODULES}
    assert released["ylg"].case == cells.Case((32, 32), (16, 16), 32, 128, 8, "noise")
    assert released["ylg"].options["with"]["heads"] == 8
    assert released["gpa"].options["with"]["scale"] == 1.0
    assert released["local"].options["with"]["window"] == 7
    assert released["full-8-heads"].options["with"] == {**released["full"].options["with"], "heads": 8}
    assert released["none"].options["channels"] == [1024, 1024, 512, 256, 128, 64]
    for label, cell in released.items():
        bench.check(cell)
        assert cells.Cell.from_json(json.dumps({**vars(cell), "case": vars(cell.case)})).options == cell.options, label


def test_bytes_kept_for_backward() -> None:
    x, y = torch.ones(1000, requires_grad=True), torch.ones(1000)
    assert counting.saved_bytes(lambda x: x + y, [x]) == 0
    assert counting.saved_bytes(lambda x: x * y, [x]) == 4000  # y, which is no input
    assert counting.saved_bytes(lambda x, y: x * y, [x, y]) == 0
    assert counting.saved_bytes(lambda x: (2 * x).exp().exp(), [x]) == 8000  # both results; views of one are one
    assert counting.saved_bytes(lambda x: (lambda z: z[:500] * z[500:])(x.exp()), [x]) == 4000


def test_rivals_of_the_kernel_do_the_same() -> None:
    for cell in bench.kernel_cells(batch=2, side=8):
        maps = inputs.make_maps(cell.case, "fp64", "cpu")
        assert maps[0].shape == (2, cell.case.channels, 8, 8)
        ours = backends.BACKENDS["ylg"](cells.Cell("", "", "ylg", {"heads": 8}, cell.case, cell.mode))(*maps[:3])
        theirs = backends.BACKENDS[cell.backend](cell)(*maps[:3])
        assert (ours - theirs).abs().max() < 1e-12, cell.label


def test_kernel_cells_are_the_calls_of_both_networks() -> None:
    found = list(bench.kernel_cells(batch=8, side=32))
    assert {(c.case.channels, c.case.v_channels, c.case.q_size, c.case.kv_size, c.case.batch) for c in found} == {
        (32, 128, (32, 32), (16, 16), 8),
        (16, 64, (32, 32), (16, 16), 8),
    }
    assert {(c.label, "saved" in c.measures) for c in found if c.mode == "forward+backward"} == {
        (label, True) for label in bench.RIVALS
    }


def _row(label: str, mode: str, cpu: float, saved: float | None, peak: float) -> dict[str, Any]:
    return {
        "suite": "kernels",
        "label": label,
        "mode": mode,
        "status": "ok",
        "device": "cpu",
        "threads": 1,
        "channels": 32,
        "q_rows": 32,
        "kv_rows": 16,
        "batch": 8,
        "dtype": "fp32",
        "cpu_ms_median": cpu,
        "wall_ms_median": 1.0,
        "saved_mib": saved,
        "peak_new_mib": peak,
    }


def test_bars_are_judged_by_ratio() -> None:
    rows = [
        _row("ylg", "forward", 10.0, None, 2.0),
        _row("ylg-sdpa", "forward", 9.0, None, 30.0),
        _row("ylg", "forward+backward", 10.0, 5.0, 20.0),
        _row("ylg-sdpa", "forward+backward", 40.0, 60.0, 90.0),
    ]
    found = [(v.what.rpartition(": ")[2], v.value, v.met) for v in bench.verdicts(rows)]
    assert found == [
        ("cpu_ms_median", 0.9, False),
        ("peak_new_mib", 15.0, True),
        ("cpu_ms_median", 4.0, True),
        ("saved_mib", 12.0, True),
        ("peak_new_mib", 4.5, False),
    ]
    assert bench.verdicts(rows)[0].what.startswith("ylg 1024/256, 32 channels, batch 8, forward against SDPA")


@pytest.mark.parametrize(
    ("image_size", "channels"),
    [(128, [1024, 1024, 512, 256, 128, 64]), (32, [512, 256, 128, 64]), (256, [1024, 1024, 1024, 512, 256, 128, 64])],
)
def test_widths_follow_the_released_ones(image_size: int, channels: list[int]) -> None:
    assert bench.channels_of(image_size, 64) == channels


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image-size", "100"], "image_size 100x100 is no square of side 4 times a power of 2"),
        (["--attention-at", "24"], "attention_at [24] is no map"),
        (["--base-channels", "3", "--lines", "ylg"], "step ylg: "),
        (["--quick"], "--quick needs --out"),
        (["--device", "tpu"], "--device takes cpu, cuda or cuda:N"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_measured(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_writes_a_csv_for_each_suite(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench_step.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--lines", "none", "ylg"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = []
    for path in sorted(tmp_path.iterdir()):
        assert path.name.startswith(("attention-step_", "attention-kernels_"))
        with path.open(newline="") as file:
            rows += list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["label"] for row in rows if row["suite"] == "step"] == ["none", "ylg"]
    assert len([row for row in rows if row["suite"] == "kernels"]) == 12
