"""Train, resume or skip one run, evaluate it, and write its record."""

from __future__ import annotations

import datetime
import logging
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

import saccade
from saccade.callbacks.attention_pictures import AttentionPictures
from saccade.callbacks.checkpoint import BestPoint, ResumePoint, TrainingInterrupted
from saccade.callbacks.memory import MemoryRecord
from saccade.callbacks.progress import ImagesProgress
from saccade.callbacks.samples import SampleGrids
from saccade.ops import dispatch
from saccade.run import banner
from saccade.run.build import build_data, build_task, build_trainer, export_folders
from saccade.run.config import CONF
from saccade.run.folder import RunFolder
from saccade.run.identity import resolve_autos, run_name, signature
from saccade.run.loggers import wandb_logger
from saccade.run.records import CsvRecord
from saccade.run.report import write_report
from saccade.run.run_record import Curves, read_curves

__all__ = ["TrainingInterrupted", "train"]
log = logging.getLogger("saccade")
SHIPPED = CONF.parent / "demo"  # weights that come with the project, and their records


def train(config: DictConfig) -> dict[str, Any]:
    """One run from wherever it stands: finished runs are skipped, others go on from their last checkpoint.

    Returns:
        The record, as in result.json.

    Raises:
        ValueError, RuntimeError, FileNotFoundError: something the user can mend.
        TrainingInterrupted: a signal stopped it; the same command resumes.
        NonFiniteTraining, TrainingCollapsed: the task gave up, leaving its checkpoints.
    """
    export_folders(config)
    notices = resolve_autos(config)
    name = run_name(config)
    folder = RunFolder(Path(config.runtime.root).expanduser() / name)
    if config.runtime.force and folder.path.is_dir():
        shutil.rmtree(folder.path)
    if folder.finished:
        log.info("Finished already, skipped: %s (train again: runtime.force=true)", folder.path)
        return folder.result()
    folder.create()
    folder.write_config(config)
    banner.show(config, folder.path, notices)
    return _run(config, name, folder, notices)


def _run(config: DictConfig, name: str, folder: RunFolder, notices: list[str]) -> dict[str, Any]:
    if config.runtime.threads:
        torch.set_num_threads(config.runtime.threads)
    dispatch.reset_ledger()
    task, data = build_task(config), build_data(config)
    if config.runtime.ignore_collapse:
        task.collapse = None
    resume = folder.checkpoint if folder.checkpoint.is_file() else None
    record = CsvRecord(folder.metrics)
    seen = _images_seen(resume)
    data.set_position(seen)  # type: ignore[attr-defined]
    record.truncate(seen)
    if resume:
        log.info("Resuming at image %s of %s", f"{seen:,}", f"{config.budget.images:,}")
    point = ResumePoint(folder.checkpoint, every_images=config.budget.checkpoint_every)
    memory, best = MemoryRecord(), BestPoint(folder.best_checkpoint)
    callbacks = [
        memory,
        SampleGrids(folder.pictures, count=config.budget.pictures),
        AttentionPictures(folder.pictures),
        ImagesProgress(total=config.budget.images, style=config.runtime.progress),
        best,
        point,
    ]
    loggers: list[Logger] = [record]
    mirror = wandb_logger(config, folder.path, name=name, signature=signature(config), tags=_tags(notices))
    if mirror is not None:
        loggers.append(mirror)
    trainer = build_trainer(
        config,
        folder=folder.path,
        loggers=loggers,
        callbacks=callbacks,
        batch_size=data.batch_size,  # type: ignore[attr-defined]
    )
    started = time.monotonic()
    try:
        trainer.fit(task, datamodule=data, ckpt_path=resume, weights_only=True)
        metrics = trainer.test(task, datamodule=data, verbose=False)[0]
    except TrainingInterrupted as stop:
        log.info("Stopped at image %s. The same command resumes.", f"{int(task.images_seen):,}")
        _finish(mirror, 1)
        raise stop
    except BaseException:
        _finish(mirror, 1)
        raise
    failure = failure_of(config, task.headline, read_curves(folder.metrics / "eval.csv"), metrics)
    judged = config.budget.max_ratio is not None or config.budget.max_rise is not None
    result = {
        "status": "complete",
        "passed": (failure is None) if judged and task.headline else None,
        "failure": failure,
        **describe(config, name, notices),
        "images_seen": int(task.images_seen),
        "batch": data.batch_size * trainer.world_size,  # type: ignore[attr-defined]
        "seconds": round(point.seconds, 1),
        "seconds_this_session": round(time.monotonic() - started, 1),
        "headline": task.headline,
        "metrics": {key.removeprefix("eval/"): value for key, value in metrics.items() if key.startswith("eval/")},
        **best_of(best.record()),
        "memory": memory.record(),
        "nonfinite_steps": task.nonfinite_steps,
        "ledger": dispatch.ledger(),
        "provenance": task.provenance(),
        "machine": machine(),
    }
    _finish_run(config, folder, result)
    _finish(mirror, 0)
    return result


@rank_zero_only
def _finish_run(config: DictConfig, folder: RunFolder, result: dict[str, Any]) -> None:
    folder.write_result(result)
    shipped = sorted(SHIPPED.glob(f"{config.model.name}_*")) if config.budget.name == "demo" else []
    page = write_report(folder.path, shipped)
    banner.show_result(result, folder.path, page)


def failure_of(config: DictConfig, headline: str | None, curves: Curves, metrics: Mapping[str, float]) -> str | None:
    """What the budget holds against the headline: it ended above `max_ratio`, or rose by more than `max_rise`.

    Args:
        curves: held-out metrics against images seen.
        metrics: the last evaluation's, by `eval/<name>`.
    """
    if headline is None:
        return None
    limit, rise = config.budget.max_ratio, config.budget.max_rise
    last = metrics[f"eval/{headline}"]
    if limit is not None and not last <= limit:
        return f"{headline} is {last:.3f}, above the budget's {limit} (budget.max_ratio)"
    seen, values = curves.get(headline, ([], []))
    for index, value in enumerate(values[1:], 1):
        before = values[index - 1]
        if rise is not None and not value <= before * (1.0 + rise):
            return (
                f"{headline} rose from {before:.4f} at image {seen[index - 1]:,.0f} to {value:.4f} at "
                f"{seen[index]:,.0f}, by more than a share of {rise} (budget.max_rise)"
            )
    return None


def best_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of the best checkpoint, beside the metrics of the last weights; nothing where none is kept.

    Both are scores of the test data, and the choice is made by one of them.
    """
    if not record:
        return {}
    note = "the lowest of all evaluations by the score that is reported: optimistic, as published best values are"
    return {"best": {**record, "checkpoint": "checkpoints/best.ckpt", "note": note}}


def describe(config: DictConfig, name: str, notices: list[str]) -> dict[str, Any]:
    """What was run, in words that a reader of result.json needs."""
    return {
        "name": name,
        "signature": signature(config),
        "model": config.model.name,
        "attention": config.attention.name,
        "data": config.data.name,
        "data_source": config.data.get("source"),
        "task": config.task.name,
        "budget": config.budget.name,
        "numerics": config.numerics.name,
        "seed": config.seed,
        "warnings": notices,
        "version": saccade.__version__,
        "command": shlex.join(sys.argv),
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """The conditions that times and memory were measured under."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "platform": platform.platform(terse=True),
    }


def _images_seen(checkpoint: Path | None) -> int:
    if checkpoint is None:
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return int(state["state_dict"]["images_seen"])


def _tags(notices: list[str]) -> list[str]:
    words = {"stand-in": "stand-in data", "random": "random features"}
    return [tag for word, tag in words.items() if any(word in notice.lower() for notice in notices)]


def _finish(mirror: Logger | None, code: int) -> None:
    """Close W&B now, so that nothing waits at the interpreter's exit and a sweep's next job starts its own run."""
    if mirror is not None:
        mirror.experiment.finish(exit_code=code)  # type: ignore[attr-defined]
