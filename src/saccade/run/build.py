"""From a resolved configuration to objects: data, task, trainer."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.loggers import Logger

from saccade.tasks.base import Task


def export_folders(config: DictConfig) -> None:
    """Let losses and metrics find the weights folder, which may not be part of their options (it is the machine's)."""
    if config.runtime.weights_dir:
        os.environ["SACCADE_WEIGHTS"] = str(Path(config.runtime.weights_dir).expanduser().resolve())
    os.environ["SACCADE_CACHE"] = str(cache_dir(config))


def cache_dir(config: DictConfig) -> Path:
    """Where stand-ins and statistics are kept: the runtime option, $SACCADE_CACHE, or ~/.cache/saccade."""
    chosen = config.runtime.cache_dir or os.environ.get("SACCADE_CACHE") or Path.home() / ".cache" / "saccade"
    return Path(chosen).expanduser().resolve()


def workers(config: DictConfig) -> int:
    """Data-loading processes: the runtime option, or 4 with a GPU and 0 without."""
    asked = config.runtime.workers
    if asked == "auto":
        return min(4, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    if not isinstance(asked, int) or asked < 0:
        raise ValueError(f"runtime.workers must be 'auto' or a number of processes, 0 or more; got {asked!r}")
    return asked


@contextmanager
def constructing() -> Iterator[None]:
    """Let what constructors say against their options out as it was raised: Hydra wraps it in an error of its own.

    Raises:
        ValueError, RuntimeError, OSError: the constructor's; ValueError in place of any other.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, (ValueError, RuntimeError, OSError)):
            raise cause from None
        raise ValueError(str(error)) from error


def build_data(config: DictConfig) -> pl.LightningDataModule:
    """The data module of the run."""
    with constructing():
        factory = instantiate(config.data.module, _partial_=True, _convert_="all")
    data: pl.LightningDataModule = factory(
        root=Path(config.runtime.data_dir).expanduser().resolve() / config.data.name,
        cache=cache_dir(config),
        workers=workers(config),
        seed=config.seed,
        pin_memory=torch.cuda.is_available(),
    )
    return data


def build_task(config: DictConfig) -> Task:
    """The task with its networks, whose initial weights depend on the seed alone (and not on each other)."""
    torch.manual_seed(config.seed)
    discriminator = None
    with constructing():
        generator = instantiate(config.model.net, _convert_="all")
        if config.task.adversarial:
            torch.manual_seed(config.seed + 1)
            discriminator = instantiate(config.model.discriminator, _convert_="all")
        factory = instantiate(config.task.module, _partial_=True, _convert_="all")
    task: Task = factory(generator, discriminator, images=config.budget.images, seed=config.seed)
    return task


def quieten() -> None:
    """Leave out what Lightning says at every start and a user can do nothing about."""
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)


_NOISE = (
    r".*does not have many workers.*",
    r".*in eval mode at the start of training.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*torch\.jit\.script.*",
    r".*IterableDataset.* has `__len__`.*",
    r".*The `srun` command is available.*",
    r".*It is recommended to use `self.log.*sync_dist=True.*",  # the metrics gather by themselves
)


def build_trainer(
    config: DictConfig, *, folder: Path, loggers: Sequence[Logger], callbacks: Sequence[pl.Callback], batch_size: int
) -> pl.Trainer:
    """A trainer whose clock is images seen: it stops when the task says so."""
    quieten()
    if config.numerics.precision == "16-mixed" and not torch.cuda.is_available():
        raise ValueError("numerics=fp16 needs a GPU, and none was found; valid here: fp32, bf16, deterministic")
    runtime, numerics = config.runtime, config.numerics
    ranks = max(1, int(runtime.devices)) * int(runtime.num_nodes)
    options: dict[str, Any] = {"strategy": "ddp_find_unused_parameters_true"} if ranks > 1 else {}
    return pl.Trainer(
        accelerator=runtime.accelerator,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        precision=numerics.precision,
        deterministic=numerics.deterministic or None,
        benchmark=not numerics.deterministic,
        default_root_dir=str(folder),
        logger=list(loggers),
        callbacks=list(callbacks),
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=max(1, int(config.budget.eval_every) // (batch_size * ranks)),
        check_val_every_n_epoch=None,
        log_every_n_steps=max(1, min(10, int(config.budget.images) // (batch_size * ranks * 100))),
        use_distributed_sampler=False,
        **options,
    )
