"""Measure inpainting of a large picture at its own size: processor time and peak memory, each in a fresh process.

    python scripts/bench_inpainting.py [--attention psal full] [--threads 1] [--out benchmarks]

The network has the released width and random weights, which cost the same as trained ones; the picture has four holes
of 128x128. A refusal is a row with its message.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from attention_bench.conditions import conditions
from saccade.files import write_text

HOLE = 128


def work(attention: str, rows: int, cols: int, threads: int) -> dict[str, Any]:
    """Fill the holes once, in this process."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from saccade.run.config import CONF, register

    torch.set_num_threads(threads)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["model=inpainting", f"attention={attention}"])
    torch.manual_seed(0)
    network = instantiate(config.model.net, _convert_="all").eval()
    picture, mask = torch.rand(1, 3, rows, cols) * 2 - 1, torch.zeros(1, 1, rows, cols)
    for row in (rows // 4, 3 * rows // 4):
        for col in (cols // 4, 3 * cols // 4):
            mask[..., row - HOLE // 2 : row + HOLE // 2, col - HOLE // 2 : col + HOLE // 2] = 1
    started, used = time.monotonic(), time.process_time()
    try:
        with torch.inference_mode():
            made = network(picture, mask).completed
    except RuntimeError as refusal:
        if "may be taken" not in str(refusal):
            raise
        return {"status": "refused", "told": str(refusal)}
    known = mask[0, 0] == 0
    if not torch.equal(made[0][:, known], picture[0][:, known]) or not bool(made.isfinite().all()):
        raise RuntimeError("known pixels changed, or the result is not finite")
    return {"status": "done", "cpu_s": time.process_time() - used, "wall_s": time.monotonic() - started}


def measured(attention: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row of the table: `work` in a process of its own, with the most memory that the process had resident."""
    size = [str(arguments.rows), str(arguments.cols)]
    command = [sys.executable, __file__, "--rows", size[0], "--cols", size[1], "--threads", str(arguments.threads)]
    child = subprocess.Popen([*command, "--child", attention], stdout=subprocess.PIPE, text=True)
    told = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    if status or not told.strip():
        raise RuntimeError(f"attention={attention} ended with status {status}")
    found = json.loads(told.strip().splitlines()[-1])
    row = {"attention": attention, "rows": arguments.rows, "cols": arguments.cols, "holes": 4, "hole": HOLE}
    figures = {key: round(found[key], 1) for key in ("cpu_s", "wall_s") if key in found}
    peak = {"peak_resident_mib": round(usage.ru_maxrss / 1024)} if found["status"] == "done" else {}
    return {
        **row,
        "threads": arguments.threads,
        **found,
        **figures,
        **peak,
        **conditions("cpu"),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2700)
    parser.add_argument("--cols", type=int, default=3300)
    parser.add_argument("--attention", nargs="+", default=["psal", "full"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of the CSV; without it the rows are printed alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(work(arguments.child, arguments.rows, arguments.cols, arguments.threads)))
        return
    rows = []
    for attention in arguments.attention:
        rows.append(measured(attention, arguments))
        print(", ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    if arguments.out is None:
        return
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    found = conditions("cpu")
    words = [f"inpainting-{arguments.rows}x{arguments.cols}", found["device_name"], f"{found['cores']}cores"]
    words += [f"{arguments.threads}threads", f"torch-{found['torch']}", "fp32"]
    name = "_".join("".join(c if c.isalnum() or c in ".-" else "-" for c in word) for word in words)
    path = arguments.out / f"{name}.csv"
    write_text(path, text.getvalue())
    print(path)


if __name__ == "__main__":
    main()
