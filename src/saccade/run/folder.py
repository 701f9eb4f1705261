"""The folder of a run: what is in it, and writing to it so that nothing is ever half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from saccade.files import write_text


class RunFolder:
    """Paths and records of one run.

    Layout: config.yaml, result.json, metrics/{train,eval}.csv, checkpoints/last.ckpt and, of tasks that choose one,
    best.ckpt, pictures/*.png, report.html.

    Raises:
        RuntimeError: the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def create(self) -> None:
        try:
            for folder in (self.metrics, self.pictures, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(self.path / ".writable", "")
            (self.path / ".writable").unlink()
            for leftover in self.path.rglob("*.tmp"):
                leftover.unlink()
        except OSError as error:
            raise RuntimeError(
                f"cannot write the run folder {self.path}: {error.strerror or error}. "
                f"Choose another with runtime.root=<folder>"
            ) from error

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    def write_config(self, config: DictConfig) -> None:
        """config.yaml, with its interpolations: `evaluate.py attention=` changes what hangs on what."""
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(config))

    def read_config(self) -> DictConfig:
        """The resolved configuration of the run.

        Raises:
            ValueError: this is no run folder.
        """
        file = self.path / "config.yaml"
        if not file.is_file():
            raise ValueError(f"{self.path} is no run folder: it holds no config.yaml")
        config = OmegaConf.load(file)
        if not isinstance(config, DictConfig):
            raise ValueError(f"{file} holds no mapping")
        return config

    def result(self) -> dict[str, Any]:
        """The record of the run; empty if there is none yet."""
        if not self.result_file.is_file():
            return {}
        try:
            found = json.loads(self.result_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.result_file} is not JSON ({error}); delete it to run again") from error
        return dict(found)

    def write_result(self, result: dict[str, Any]) -> None:
        write_text(self.result_file, json.dumps(result, indent=2, sort_keys=False, default=_plain) + "\n")

    @property
    def finished(self) -> bool:
        return self.result().get("status") == "complete"


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"result.json cannot hold a {type(value).__name__}")
