"""Resume points, a run's best weights, and a clean stop: files that are whole or absent, Ctrl-C that loses nothing."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch


class TrainingInterrupted(Exception):
    """A signal asked for a stop; everything up to the last step, or the last evaluation, is saved."""


class ResumePoint(pl.Callback):
    """Write checkpoints/last.ckpt every so many images, at the end, and before the process stops on a signal.

    A checkpoint is written under a temporary name and renamed. It holds tensors and plain containers only. The first
    SIGINT or SIGTERM lets the running step finish, saves, and stops; the second stops at once, leaving the last
    checkpoint.

    A run goes on with as many devices as it began with, or its batches would change.

    An evaluation that is due before the first step runs first: one that a stop cut short, and the one before training
    of a task that asks for it (`score_start`).

    Args:
        path: of the checkpoint.
        every_images: images seen between two checkpoints.

    Raises:
        ValueError: when training starts on another number of devices.
    """

    def __init__(self, path: Path, *, every_images: int) -> None:
        self.path, self.every_images = path, every_images
        self.seconds = 0.0  # of training, over all sessions
        self.interrupted = False
        self._handlers: dict[int, Any] = {}
        self._since = 0.0
        self._saved_at = -1
        self._evaluating = False
        self._ranks: int | None = None  # devices that train together, all nodes

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds + (time.monotonic() - self._since if self._since else 0.0)
        return {"seconds": seconds, "evaluating": self._evaluating, "ranks": self._ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = float(state_dict["seconds"])
        self._evaluating = bool(state_dict.get("evaluating", False))
        self._ranks = state_dict.get("ranks")

    def save(self, trainer: pl.Trainer, images_seen: int) -> None:
        """Write the checkpoint of this very moment, between two steps."""
        if images_seen == self._saved_at and not self._evaluating:
            return
        temporary = self.path.with_suffix(".ckpt.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        trainer.strategy.barrier("resume point")
        self._saved_at = images_seen

    # ------------------------------------------------------------------ hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._ranks not in (None, trainer.world_size):
            raise ValueError(
                f"this run began on {self._ranks} devices and has come back on {trainer.world_size}, which would "
                f"change the batch of a step; go on with {self._ranks} (runtime.devices times runtime.num_nodes), or "
                "begin again with runtime.force=true"
            )
        self._ranks = trainer.world_size
        self._since = time.monotonic()
        self._saved_at = int(pl_module.images_seen)  # type: ignore[arg-type]
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)
        except ValueError:  # not the main thread: signals stay with whoever runs us
            self._handlers.clear()
        if self._evaluating or (self._saved_at == 0 and getattr(pl_module, "score_start", False)):
            evaluate_now(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        images_seen = int(pl_module.images_seen)  # type: ignore[arg-type]
        due = images_seen // self.every_images > max(self._saved_at, 0) // self.every_images
        stop = self._anyone_interrupted(trainer, pl_module)
        if due or stop:
            self.save(trainer, images_seen)
        if stop:
            raise TrainingInterrupted(images_seen)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._evaluating = True
            self.save(trainer, int(pl_module.images_seen))  # type: ignore[arg-type]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluating = False

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self.interrupted:
            raise TrainingInterrupted(int(pl_module.images_seen))  # type: ignore[arg-type]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, int(pl_module.images_seen))  # type: ignore[arg-type]
        self._finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._since:
            self.seconds += time.monotonic() - self._since
            self._since = 0.0
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.interrupted = True
        print("\nStopping after this step, with a checkpoint. Once more stops at once.", flush=True)

    def _anyone_interrupted(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        if trainer.world_size == 1:
            return self.interrupted
        flag = torch.tensor(float(self.interrupted), device=pl_module.device)
        return bool(trainer.strategy.reduce(flag, reduce_op="max") > 0)


def evaluate_now(trainer: pl.Trainer) -> None:
    """Run the validation loop between two training steps, as Lightning does when one is due."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


class BestPoint(pl.Callback):
    """Keep checkpoints/best.ckpt: the weights of the evaluation with the lowest value of the task's `selection`.

    The file holds `state_dict`, and in `best` the metric's name (`selected_by`), its `value`, `images_seen` and all
    `metrics` of that evaluation. It is no resume point. What was best so far is read from the file itself, so a run
    that was killed goes on with the file it left. A task without `selection` keeps none. An evaluation of another
    protocol, as that at the end is where training scores fewer samples, does not compare and replaces nothing.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self) -> dict[str, Any]:
        """What is known of the best evaluation so far; empty if there was none."""
        if not self.path.is_file():
            return {}
        return dict(torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)["best"])

    def consider(self, trainer: pl.Trainer, task: Any) -> None:
        """Keep the present weights if their evaluation is the best so far; called on every rank."""
        name, metrics = getattr(task, "selection", None), getattr(task, "evaluation", {})
        if not trainer.is_global_zero or name is None or not math.isfinite(metrics.get(name, math.nan)):
            return
        known = self.record()
        if known and (known["selected_by"] != name or known["value"] <= metrics[name]):
            return
        best = {"selected_by": name, "value": metrics[name], "images_seen": int(task.images_seen), "metrics": metrics}
        temporary = self.path.with_suffix(".ckpt.tmp")
        torch.save({"state_dict": task.state_dict(), "best": best}, temporary)
        os.replace(temporary, self.path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.consider(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.consider(trainer, pl_module)
