"""The cases, the backends and the cells of the attention benchmark. A new rival is one function and one line here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODES = ("forward", "forward+backward")
SCORES = ("dot", "l2")
DTYPES = {"fp32": "float32", "fp64": "float64", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Case:
    """One attention call: batch 1, one head, key map as large as the query map. Sizes are (rows, cols).

    `dense_bar` says how many times faster than exact attention our forward has to be.
    """

    name: str
    size: tuple[int, int]
    channels: int
    downsampling: int
    cells: tuple[int, int]
    keys_per_cell: int
    dense_bar: float | None = None

    @property
    def coarse(self) -> tuple[int, int]:
        return self.size[0] // self.downsampling, self.size[1] // self.downsampling

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]


# The two approximate levels of the paper's pivot model, GPA1024_12_64, at 256x256 (Table 2 of the paper).
CASES = (
    Case("128x128-d2-c320-k12", (128, 128), 320, 2, (32, 32), 12, dense_bar=8.0),
    Case("256x256-d4-c160-k12", (256, 256), 160, 4, (32, 32), 12, dense_bar=50.0),
)
QUICK_CASES = (
    Case("16x16-d2-c8-k3", (16, 16), 8, 2, (4, 4), 3),
    Case("32x32-d4-c8-k3", (32, 32), 8, 4, (4, 4), 3),
)


@dataclass(frozen=True)
class Cell:
    """One measurement: what runs, and how long it may take."""

    backend: str
    case: Case
    score: str
    dtype: str
    mode: str
    device: str
    threads: int
    repeats: int
    cell_seconds: float
    memory_limit_gib: float | None

    @classmethod
    def from_json(cls, text: str) -> Cell:
        fields = json.loads(text)
        case = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.pop("case").items()}
        return cls(case=Case(**case), **fields)


# A backend maps a case and a score to a function of q, k, v, each (B, G, channels, Y, X). Imports happen inside, so
# that a cell's process loads only what it measures.
Attention = Callable[[Any, Any, Any], Any]


def _gpa(case: Case, score: str) -> Attention:
    from saccade.geometry import Size
    from saccade.ops.gpa import gpa_attention

    cells, coarse = Size.of(case.cells), Size.of(case.coarse)

    def run(q: Any, k: Any, v: Any) -> Any:
        return gpa_attention(q, k, v, cells=cells, keys_per_cell=case.keys_per_cell, coarse=coarse, score=score)

    return run


def _full(case: Case, score: str) -> Attention:
    from saccade.ops.dense import dense_attention

    return lambda q, k, v: dense_attention(q, k, v, score=score)


def _released_gpa(case: Case, score: str) -> Attention:
    path = ROOT / "benchmarks" / "peers" / "released_gpa.py"
    spec = importlib.util.spec_from_file_location("released_gpa", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"bench_attention: cannot load the peer {path}")
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    cells, coarse = case.cells, case.coarse

    def run(q: Any, k: Any, v: Any) -> Any:
        return peer.released_gpa(q, k, v, cells=cells, keys_per_cell=case.keys_per_cell, coarse=coarse, score=score)

    return run


BACKENDS: dict[str, Callable[[Case, str], Attention]] = {
    "gpa": _gpa,
    "released-gpa": _released_gpa,
    "full": _full,
}
