"""The root of the configuration. Groups below it are plain YAML whose constructor signatures are the schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

CONF = Path(__file__).resolve().parents[3] / "conf"


@dataclass
class Budget:
    """How much is trained and evaluated."""

    name: str = MISSING
    images: int = MISSING  # length of training, in images seen
    eval_samples: int | None = None  # None: the whole test list
    eval_every: int = MISSING  # images seen between evaluations
    checkpoint_every: int = MISSING  # images seen between checkpoints
    pictures: int = 8  # rows of the sample grids
    max_ratio: float | None = None  # the run fails if a task's headline ratio ends above this
    max_rise: float | None = None  # the run fails if the headline rises by more than this share between evaluations


@dataclass
class Numerics:
    """Arithmetic: part of a run's identity."""

    name: str = MISSING
    precision: str = "32-true"
    deterministic: bool = False


@dataclass
class Runtime:
    """What depends on the machine: never part of a run's identity."""

    root: str = "runs"
    data_dir: str = "data"
    cache_dir: str | None = None
    weights_dir: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    workers: Any = "auto"
    threads: int | None = None
    wandb: str = "auto"
    wandb_project: str = "saccade"
    progress: str = "auto"
    force: bool = False
    ignore_collapse: bool = False


@dataclass
class Root:
    """One run."""

    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    numerics: Numerics = field(default_factory=Numerics)
    runtime: Runtime = field(default_factory=Runtime)
    model: Any = MISSING
    attention: Any = MISSING
    data: Any = MISSING
    task: Any = MISSING


def register() -> None:
    """Make the schema known to Hydra as `saccade` (the first entry of conf/train.yaml)."""
    ConfigStore.instance().store(name="saccade", node=Root, provider="saccade")
