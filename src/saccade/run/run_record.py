"""What a run folder holds, read for the report: record, configuration, curves and pictures."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Curves = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Attributes:
        result: result.json; empty while the run has none.
        config: config.yaml as text; empty if there is none.
        training, evaluation: name -> (images seen, values), from metrics/train.csv and metrics/eval.csv.
        samples: image grids by name, oldest first; those of the run's own task before the others.
        attention: attention pictures, finest slot first.
    """

    folder: Path
    result: dict[str, Any]
    config: str
    training: Curves
    evaluation: Curves
    samples: dict[str, list[Path]]
    attention: list[Path]


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, or a folder of shipped results: result.json beside its pictures.

    Raises:
        ValueError: the folder is none of the two, or result.json or a table cannot be read; the file is named.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("result.json", "config.yaml")):
        raise ValueError(f"report: {folder} is no run folder: it holds neither result.json nor config.yaml")
    pictures = folder / "pictures" if (folder / "pictures").is_dir() else folder
    config = folder / "config.yaml"
    result = _read_result(folder / "result.json")
    return RunRecord(
        folder=folder,
        result=result,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        training=read_curves(folder / "metrics" / "train.csv"),
        evaluation=read_curves(folder / "metrics" / "eval.csv"),
        samples=_samples(pictures, str(result.get("task", ""))),
        attention=sorted(pictures.glob("attention-*.png"), key=_slot_rows, reverse=True),
    )


def _read_result(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"report: {file} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"report: {file} holds a {type(found).__name__}, not a mapping")
    return found


def _samples(pictures: Path, task: str) -> dict[str, list[Path]]:
    """samples-<name>-<images seen>.png by name; the count, and the name too, may be left out."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in pictures.glob("samples*.png"):
        match = re.fullmatch(r"samples(?:-([a-z][a-z_]*))?(?:-(\d+))?", path.stem)
        if match is not None:
            found.setdefault(match[1] or "", []).append((int(match[2] or 0), path))
    order = sorted(found, key=lambda name: (name not in task, name))
    return {name: [path for _, path in sorted(found[name])] for name in order}


def _slot_rows(path: Path) -> int:
    """Rows of the slot in a picture's name (attention-up.32.png): 32."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0


def read_curves(file: Path) -> Curves:
    """Columns of a wide CSV with empty cells, against its column `images_seen`; the last value for one count stands.

    Raises:
        ValueError: there is no such column, or a cell is no number; file and line are named.
    """
    if not file.is_file():
        return {}
    values: dict[str, dict[float, float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames is None:
            return {}
        if "images_seen" not in reader.fieldnames:
            raise ValueError(f"report: {file} has no column images_seen; it has {', '.join(reader.fieldnames)}")
        for row in reader:
            try:
                numbers = {name: float(cell) for name, cell in row.items() if isinstance(cell, str) and cell != ""}
            except ValueError as error:
                raise ValueError(f"report: {file}, line {reader.line_num}: {error}") from error
            seen = numbers.pop("images_seen", math.nan)
            if math.isnan(seen):
                continue
            for name, value in numbers.items():
                values.setdefault(name, {})[seen] = value
    return {name: (sorted(line), [line[x] for x in sorted(line)]) for name, line in values.items()}
