"""The words of the benchmark: a case is what attention is given, a cell is one measurement of one backend on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODES = ("forward", "backward", "forward+backward")
DTYPES = {"fp32": "float32", "fp64": "float64", "fp16": "float16", "bf16": "bfloat16"}
INPUTS = ("photograph", "photograph-raw", "noise")
MEASURES = ("time", "memory", "flops", "saved", "error", "match")
RUN, COUNT = "run", "count"


@dataclass(frozen=True)
class Case:
    """What one attention call is given. Sizes are (rows, cols); channels are those of all heads together."""

    q_size: tuple[int, int]
    kv_size: tuple[int, int]
    channels: int
    v_channels: int
    batch: int = 1
    inputs: str = "photograph"

    @classmethod
    def square(cls, side: int, channels: int, inputs: str = "photograph") -> Case:
        return cls((side, side), (side, side), channels, channels, 1, inputs)

    @property
    def name(self) -> str:
        q, kv = (f"{rows}x{cols}" for rows, cols in (self.q_size, self.kv_size))
        channels = f"c{self.channels}" + ("" if self.v_channels == self.channels else f"v{self.v_channels}")
        batch = "" if self.batch == 1 else f"-b{self.batch}"
        return f"{q}{'' if q == kv else '-on-' + kv}-{channels}{batch}"

    @property
    def pixels(self) -> int:
        """Query pixels of one map."""
        return self.q_size[0] * self.q_size[1]


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        suite: the family it belongs to.
        label: its line in plots and tables; one backend with one set of options.
        backend: a name in `backends.BACKENDS`.
        options: what the backend is built with, ready for JSON.
        measures: of MEASURES; what else than time and memory to find out.
        how: RUN, or COUNT: nothing is computed, memory is counted on tensors without data.
        heavy: left out unless asked for: it takes minutes on a CPU.
    """

    suite: str
    label: str
    backend: str
    options: dict[str, Any]
    case: Case
    mode: str
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    cell_seconds: float = 10.0
    memory_limit_gib: float | None = None
    measures: tuple[str, ...] = ("time", "memory", "flops")
    how: str = RUN
    heavy: bool = field(default=False, compare=False)

    @classmethod
    def from_json(cls, text: str) -> Cell:
        fields = json.loads(text)
        case = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.pop("case").items()}
        return cls(**{**fields, "case": Case(**case), "measures": tuple(fields["measures"])})

    @property
    def measures_quality(self) -> bool:
        return "error" in self.measures or "match" in self.measures

    @property
    def patch_size(self) -> int:
        return int(self.options.get("patch_size", 1))
