"""What attention costs a training step of SAGAN, and YLG's kernel beside PyTorch's attention with a mask.

  step     one training step (discriminator, then generator, with their optimisers) under each backend: time, peak new
           memory, and the share of the time that the attention blocks of both networks take
  kernels  YLG's structured kernel, PyTorch's attention with YLG's mask, and the masked product, on the call that each
           network makes: 1024 queries on 256 keys; time, peak new memory, and the bytes kept for backward

Every line runs in a process of its own. Rows go to CSVs whose names and columns say under which conditions they were
taken; --check judges the bars that this project sets itself. "none" is a step whose attention blocks do nothing: the
difference to it is another reading of what attention costs. Options of the backends are those that
`train.py model=sagan attention=<backend>` takes, made smaller where the maps are.

The default is the released network at 128x128, batch 8: about a quarter of an hour of one CPU thread, and some 4 GiB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bench_attention
from attention_bench.cells import ROOT, Case, Cell
from attention_bench.conditions import conditions
from attention_bench.requests import check_device, positive, whole
from attention_bench.sagan import LINES, TINY, Network, step_cells
from attention_bench.verdicts import Bar, Verdict, as_text, clock_of, figure, judge_ratio

COLUMNS = [
    *("suite", "label", "backend", "options", "kernel", "batch", "q_rows", "q_cols", "kv_rows", "kv_cols"),
    *("channels", "v_channels", "inputs", "patch_size", "dtype", "mode", "parameters", "status", "warmup", "repeats"),
    *("wall_ms_median", "wall_ms_min", "wall_ms_max", "cpu_ms_median", "cpu_ms_min", "cpu_ms_max"),
    *("discriminator_ms", "generator_ms", "attention_forward_ms", "attention_backward_ms", "attention_share", "clock"),
    *("forward_wall_ms", "backward_wall_ms", "peak_new_mib", "rss_growth_mib", "memory_method"),
    *("saved_mib", "saved_bytes_computed", "device", "device_name", "cores", "threads", "torch", "python"),
]
SUITES = ("step", "kernels")
# Per network: channels of queries and keys, and of values, over eight heads.
CALLS = {"G": (32, 128), "D": (16, 64)}
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "ylg": ("ylg", {"heads": 8, "kernel": "structured"}),
    "ylg-sdpa": ("ylg-sdpa", {}),
    "ylg-masked-dense": ("ylg", {"heads": 8, "kernel": "reference"}),
}
# The structured kernel against PyTorch's attention with a mask: no slower, and five times lighter.
FASTER, LIGHTER = Bar(1.0), Bar(5.0)


def kernel_cells(batch: int, side: int, **more: Any) -> Iterator[Cell]:
    """Calls of `side` x `side` queries on a quarter as many keys; rivals side by side."""
    for channels, v_channels in CALLS.values():
        case = Case((side, side), (side // 2, side // 2), channels, v_channels, batch)
        for mode in ("forward", "forward+backward"):
            measures = ("time", "memory", "saved") if mode == "forward+backward" else ("time", "memory")
            for label, (backend, options) in RIVALS.items():
                yield Cell("kernels", label, backend, options, case, mode, measures=measures, **more)


def verdicts(rows: Sequence[dict[str, Any]], clock: str = "auto") -> list[Verdict]:
    """YLG's kernel against the masked ones, wherever both were measured on one call."""
    found = []
    own = [row for row in rows if row["suite"] == "kernels"]
    keys = ("mode", "channels", "q_rows", "batch", "device", "dtype")
    for ours in (row for row in own if row["label"] == "ylg"):
        alike = [row for row in own if all(str(row[key]) == str(ours[key]) for key in keys)]
        for peer in (row for row in alike if row["label"] == "ylg-sdpa"):
            column = clock_of(ours, clock)
            pixels = f"{int(ours['q_rows']) ** 2}/{int(ours['kv_rows']) ** 2}"
            what = f"ylg {pixels}, {ours['channels']} channels, batch {ours['batch']}, {ours['mode']} against SDPA"
            for name, bar in ((column, FASTER), ("saved_mib", LIGHTER), ("peak_new_mib", LIGHTER)):
                if name == "saved_mib" and figure(ours, name) is None:
                    continue  # forward alone keeps nothing
                found.append(judge_ratio(f"{what}: {name}", figure(ours, name), figure(peer, name), bar))
    return found


def channels_of(image_size: int, base: int) -> list[int]:
    """The released widths, 16 times the base at most, for images of another size: coarsest first."""
    levels = (image_size // 4).bit_length()
    return [base * min(16, 2 ** (levels - 1 - level)) for level in range(levels)]


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="bench_step.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cli.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    cli.add_argument("--lines", nargs="+", choices=list(LINES), metavar="NAME", help=f"of step: {', '.join(LINES)}")
    cli.add_argument("--image-size", type=whole, default=128, help="side in pixels, 4 x a power of 2 (default: 128)")
    cli.add_argument("--base-channels", type=whole, default=64, help="channels of the finest map (default: 64)")
    cli.add_argument("--attention-at", type=whole, help="side of the maps that attend (default: 32, or half the image)")
    cli.add_argument("--classes", type=whole, default=1000)
    cli.add_argument("--batch", type=whole, default=8)
    cli.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    cli.add_argument("--threads", type=whole, default=1, help="CPU threads (default: 1)")
    cli.add_argument("--repeats", type=whole, default=3, help="timed calls after the warm-up (default: 3)")
    cli.add_argument(
        "--cell-seconds", type=positive, default=40.0, help="fewer repeats where they would take longer (default: 40)"
    )
    cli.add_argument(
        "--quick", action="store_true", help="tiny networks: shows that the tool works, says nothing; needs --out"
    )
    cli.add_argument("--out", type=Path, help="folder for the CSVs (default: benchmarks/)")
    cli.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    return cli


def plan(options: argparse.Namespace) -> list[Cell]:
    """Cells in running order.

    Raises:
        ValueError: networks that cannot be built.
    """
    common = {"device": options.device, "threads": options.threads, "cell_seconds": options.cell_seconds}
    common["repeats"] = 1 if options.quick else options.repeats
    size = options.image_size
    at = options.attention_at or min(32, size // 2)
    network = Network(size, channels_of(size, options.base_channels), at, options.classes, options.batch)
    if options.quick:
        network = TINY
    cells: list[Cell] = []
    if "step" in options.suites:
        cells += step_cells(network, options.lines or list(LINES), **common)
        for cell in cells:
            check(cell)
    if "kernels" in options.suites:
        cells += kernel_cells(1 if options.quick else options.batch, 8 if options.quick else 32, **common)
    return cells


def check(cell: Cell) -> None:
    """Build a step's networks without data, so that what they refuse is told before anything is measured."""
    import torch

    from attention_bench.sagan import networks_of

    try:
        with torch.device("meta"):
            networks_of(cell)
    except (TypeError, ValueError) as error:
        raise ValueError(f"step {cell.label}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser()
    options = cli.parse_args(arguments)
    if options.quick and (options.check or options.out is None):
        cli.error("--quick needs --out (its figures do not belong in benchmarks/) and cannot --check bars")
    try:
        check_device(options.device)
        cells = plan(options)
    except ValueError as error:
        cli.error(str(error))
    found = conditions(options.device)
    rows = bench_attention.run_all(cells, found, heavy=True)
    for path in bench_attention.save(rows, options.out or ROOT / "benchmarks", found, COLUMNS):
        print(f"written: {path}")
    judged = [] if options.quick else verdicts(rows)
    if judged:
        print("\n" + as_text(judged))
    failed = any(row["status"] != "ok" for row in rows)
    missed = any(verdict.met is not True for verdict in judged) or not judged
    return 1 if failed or (options.check and missed) else 0


if __name__ == "__main__":
    sys.exit(main())
