"""The CSV logger of a run: wide tables that continue under resume without a row twice."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from saccade.files import write_text

EVAL_PREFIX = "eval/"


class CsvRecord(Logger):
    """Write metrics/train.csv and metrics/eval.csv, one row a logging step, keyed by images seen.

    Names that begin with `eval/` go to eval.csv. New columns rewrite the file; `truncate` drops rows that a resumed run
    will write again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._tables: dict[str, _Table] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def truncate(self, images_seen: int) -> None:
        """Forget rows beyond `images_seen` (they were written after the checkpoint that training resumes from)."""
        for table in ("train", "eval"):
            self._table(table).truncate(images_seen)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name not in ("epoch", "images_seen")}
        if not values or "images_seen" not in metrics:
            return
        evaluation = {k.removeprefix(EVAL_PREFIX): v for k, v in values.items() if k.startswith(EVAL_PREFIX)}
        training = {k: v for k, v in values.items() if not k.startswith(EVAL_PREFIX)}
        for table, row in (("eval", evaluation), ("train", training)):
            if row:
                if table == "eval":  # the evaluation at the end replaces the one in training at the same place
                    self._table(table).truncate(int(metrics["images_seen"]) - 1)
                self._table(table).append({"images_seen": int(metrics["images_seen"]), **row})

    def _table(self, name: str) -> _Table:
        if name not in self._tables:
            self._tables[name] = _Table(self.folder / f"{name}.csv")
        return self._tables[name]


class _Table:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = next(csv.reader(file), [])

    def append(self, row: dict[str, float]) -> None:
        new = [name for name in row if name not in self.columns]
        if new:
            rows = self.rows()
            self.columns += new
            self._write(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def truncate(self, images_seen: int) -> None:
        rows = self.rows()
        kept = [row for row in rows if row["images_seen"].isdigit() and int(row["images_seen"]) <= images_seen]
        if len(kept) < len(rows):
            self._write(kept)

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({name: row.get(name, "") for name in self.columns} for row in rows)
        write_text(self.path, text.getvalue())
