"""`scripts/colorization_study.py`: Tables 4, 5 and 8 and Fig. 5 of PSAL (arXiv 2202.03163) by training and swapping."""

from __future__ import annotations

import contextlib
import csv
import io
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from saccade.files import write_text
from saccade.run.arguments import read_options, read_whole, run_command
from saccade.run.colorization_methods import DEFAULT, METHODS, SWAPPED_TO, Method, methods_named
from saccade.run.colorization_tables import error_column, figure_5, tables
from saccade.run.config import CONF, register

USAGE = """usage: python scripts/colorization_study.py out=<folder> [methods=<name>[,<name>...]] [seeds=<n>[,<n>...]]
                [jobs=<n>] [budget=demo] [side=<pixels>] [images=<n>] [full_stride=<n>]
                [source=auto|files|standin] [set=<key>=<value>[,...]] [runs=<folder>] [data_dir=<folder>]
                [cache_dir=<folder>]

Trains the colourisation network with each attention and seed on equal numbers of pairs, tests what was trained with
psal1 in its place, and writes study.csv (a row an attention trained, an attention tested and a seed), tables.md
(Tables 4, 5 and 8 of the paper, its numbers beside) and figure5.svg into out=. Finished trainings are not repeated.

methods=  full (l2), dot, psal1, psal3, psal7, psal15, psal31, aggregate, local, linear, performer, reformer
          [full,dot,psal1,psal3,aggregate]
seeds=    one training of each attention a seed [0,1,2]
jobs=     processes at once, one thread each [1]
budget=   demo: 64x64, minutes | paper: 256x256 on DAVIS, a GPU's work | smoke [demo]
side=     of the pictures, in pixels [the budget's]
images=   pairs that each training sees [the budget's]
full_stride=  rows and columns between the keys of full and dot [1 at 64, 2 at 128, 3 at 256, 10 at 512]
source=   of the data: auto takes DAVIS where it is, else the stand-in [auto]
set=      any other keys of the configuration, such as task.module.generator_optimiser.lr=0.003
runs=     folder of the run folders [runs]; data_dir=, cache_dir= as train.py's runtime.data_dir, runtime.cache_dir
"""


@dataclass(frozen=True)
class Study:
    """What is trained, and where it goes."""

    methods: Sequence[Method]
    seeds: Sequence[int]
    budget: str = "demo"
    side: int | None = None
    images: int | None = None
    full_stride: int | None = None
    source: str = "auto"
    overrides: Sequence[str] = ()
    runs: Path = Path("runs")
    data_dir: Path = Path("data")
    cache_dir: Path | None = None
    logs: Path | None = field(default=None, compare=False)

    def command_line(self, method: Method, seed: int) -> list[str]:
        """The training's own command line, to be given to train.py."""
        line = [
            "model=colorization",
            f"attention={method.attention}",
            f"budget={self.budget}",
            f"seed={seed}",
            f"data.source={self.source}",
            f"runtime.root={self.runs}",
            f"runtime.data_dir={self.data_dir}",
            f"runtime.cache_dir={self.cache_dir or 'null'}",
            "runtime.progress=off",
            "runtime.wandb=off",
            "runtime.workers=0",
            "runtime.threads=1",
        ]
        if self.images is not None:
            line.append(f"budget.images={self.images}")
        if self.side is not None:
            line.append(f"model.image_size=[{self.side},{self.side}]")
        return [*line, *self.overrides]

    def configuration(self, method: Method, seed: int) -> DictConfig:
        """The configuration of one training, with the method's options for its side of pictures.

        Raises:
            ValueError: a key or a word that the configuration does not have.
        """
        register()
        line = self.command_line(method, seed)
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                side = int(compose("train", overrides=line).model.image_size[0])
                options = method.overrides(side, self.full_stride)
                return compose("train", overrides=[*line, *(f"{key}={value}" for key, value in options.items())])
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(f"study: {error}") from error


@dataclass(frozen=True)
class Cell:
    """One training and the attentions that it is tested with, itself first."""

    study: Study
    method: Method
    seed: int
    tested: Sequence[Method]

    @property
    def title(self) -> str:
        return f"{self.method.name}-s{self.seed}"


def cells_of(study: Study) -> list[Cell]:
    """All trainings, the slow ones first, so that processes end together."""
    order = sorted(study.methods, key=lambda method: method.attention != "full")
    swap = METHODS[SWAPPED_TO]

    def tested(method: Method) -> list[Method]:
        return [method] if method.name in (SWAPPED_TO, "dot") else [method, swap]

    return [Cell(study, method, seed, tested(method)) for method in order for seed in study.seeds]


def run_cell(cell: Cell) -> list[dict[str, Any]]:
    """Train, or find it trained, and test: a row of study.csv for each attention tested; its talk goes to a log."""
    talk = io.StringIO()
    try:
        with contextlib.redirect_stdout(talk):
            return _trained_and_tested(cell)
    finally:
        if cell.study.logs is not None:
            write_text(cell.study.logs / f"{cell.title}.txt", talk.getvalue())


def _trained_and_tested(cell: Cell) -> list[dict[str, Any]]:
    import torch

    from saccade.run.evaluate import evaluate_run
    from saccade.run.train import TrainingInterrupted, train

    torch.set_num_threads(1)
    config = cell.study.configuration(cell.method, cell.seed)
    try:
        result = train(config)
    except TrainingInterrupted as stop:  # which the same command resumes
        raise KeyboardInterrupt from stop
    folder = Path(config.runtime.root).expanduser() / result["name"]
    rows = []
    for method in cell.tested:
        found = result
        if method is not cell.method:
            side = int(config.model.image_size[0])
            changed = method.overrides(side, cell.study.full_stride)
            options = {key: str(value) for key, value in changed.items()}
            found = evaluate_run(folder, {"attention": method.attention, **options})
        swapped = cell.study.configuration(method, cell.seed)
        rows.append(_row(cell, method, config, result, found["metrics"], _costs(swapped)))
    return rows


def _costs(config: DictConfig) -> dict[str, float]:
    """GFLOPs of one attention call, by the backend's own count, and what its block needs in memory, measured."""
    import torch
    from hydra.utils import instantiate

    from saccade.callbacks.memory import measure_attention_blocks

    network = instantiate(config.model.net, _convert_="all")
    blocks = (network.cuda() if torch.cuda.is_available() else network).attention_blocks
    flops = sum(block.mixer.cost(block.shape()).forward_flops for block in blocks.values())
    return {"gflops": flops / 1e9, "memory_mib": measure_attention_blocks(blocks).total}


def _row(
    cell: Cell,
    method: Method,
    config: DictConfig,
    result: Mapping[str, Any],
    metrics: Mapping[str, float],
    costs: Mapping[str, float],
) -> dict[str, Any]:
    scores = {name: value for name, value in metrics.items() if name.startswith("mse")}
    return {
        "trained": cell.method.name,
        "tested": method.name,
        "seed": cell.seed,
        "side": int(config.model.image_size[0]),
        "images": int(result["images_seen"]),
        "full_stride": config.attention.mixer.get("key_stride"),
        "data": config.data.name,
        "source": result["data_source"],
        **scores,
        **{name: round(value, 4) for name, value in costs.items()},
        "train_seconds": result["seconds"],
        "threads": result["machine"]["threads"],
        "torch": result["machine"]["torch"],
        "run": result["name"],
    }


def run_study(study: Study, out: Path, *, jobs: int = 1) -> list[dict[str, Any]]:
    """All cells, several at once if asked, with study.csv written anew after each.

    Returns:
        The rows of study.csv.
    """
    cells = cells_of(study)
    found: dict[str, list[dict[str, Any]]] = {}
    for cell, rows in _each(cells, jobs):
        found[cell.title] = rows
        ordered = [row for done in cells for row in found.get(done.title, [])]
        write_csv(out / "study.csv", ordered)
        errors = ", ".join(f"{row['tested']} {row[error_column(row)]:.5f}" for row in rows)
        print(f"[{len(found)}/{len(cells)}] {cell.title}: {errors}", flush=True)
    return [row for cell in cells for row in found[cell.title]]


def _each(cells: Sequence[Cell], jobs: int) -> Iterator[tuple[Cell, list[dict[str, Any]]]]:
    if jobs == 1:
        yield from ((cell, run_cell(cell)) for cell in cells)
        return
    _build_data(cells[0])  # once, before several processes want the same stand-in
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from zip(cells, pool.map(run_cell, cells), strict=True)


def _build_data(cell: Cell) -> None:
    from saccade.run.build import build_data
    from saccade.run.identity import resolve_autos

    config = cell.study.configuration(cell.method, cell.seed)
    resolve_autos(config)
    build_data(config).prepare_data()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under the columns of all of them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a study.csv."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _study(options: Mapping[str, str], out: Path) -> tuple[Study, int]:
    seeds = options.get("seeds", "0,1,2").split(",")
    if not all(seed.isdigit() for seed in seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={','.join(seeds)}: give different whole numbers, 0 or more, separated by commas")
    whole = {
        key: read_whole(options, key, 0, least=1) if key in options else None
        for key in ("side", "images", "full_stride")
    }
    cache = options.get("cache_dir")
    study = Study(
        methods=methods_named(options.get("methods", ",".join(DEFAULT)).split(",")),
        seeds=[int(seed) for seed in seeds],
        budget=options.get("budget", "demo"),
        **whole,
        source=options.get("source", "auto"),
        overrides=options["set"].split(",") if "set" in options else (),
        runs=Path(options.get("runs", "runs")),
        data_dir=Path(options.get("data_dir", "data")),
        cache_dir=None if cache is None else Path(cache),
        logs=out / "logs",
    )
    return study, read_whole(options, "jobs", 1, least=1)


def _work(arguments: Sequence[str]) -> list[str]:
    optional = (
        "methods",
        "seeds",
        "jobs",
        "budget",
        "side",
        "images",
        "full_stride",
        "source",
        "set",
        "runs",
        "data_dir",
        "cache_dir",
    )
    options = read_options(arguments, required=("out",), optional=optional, usage=USAGE)
    out = Path(options["out"]).expanduser()
    study, jobs = _study(options, out)
    study.configuration(study.methods[0], study.seeds[0])  # a wrong key or word must fail before anything trains
    rows = run_study(study, out, jobs=jobs)
    text = tables(rows)
    write_text(out / "tables.md", text)
    write_text(out / "figure5.svg", figure_5(rows))
    return [text, *(f"wrote {out / name}" for name in ("study.csv", "tables.md", "figure5.svg"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/colorization_study.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
