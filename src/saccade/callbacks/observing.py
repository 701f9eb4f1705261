"""Looking at a run without changing it: what the picture callbacks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from saccade.pictures.canvas import Picture, write_png


@contextmanager
def observing(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and afterwards every sub-module's mode and all random states as before.

    Without it a run that draws pictures would end in other weights than one that does not.
    """
    training = [part for part in module.modules() if part.training]
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    module.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def images_seen(module: Any) -> int:
    """The clock of a task."""
    return int(module.images_seen)


class PictureCallback(pl.Callback):
    """Draw after every evaluation and at the end of training, once for each count of images seen, on rank zero.

    The task offers `images_seen`, `picture_batch()` and `samples(batch)`: named samples, each a mapping of
    named tensors (see `saccade.pictures.grid.sample_grid`), the main one first and computed first.

    Args:
        folder: where the pictures go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._drawn_at: int | None = None

    @abstractmethod
    def draw(self, trainer: pl.Trainer, task: Any) -> None:
        """Write the pictures of this moment; called inside `observing`."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw_once(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_once(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw_once(trainer, pl_module)

    def _draw_once(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = images_seen(pl_module)
        if not trainer.is_global_zero or now == self._drawn_at:
            return
        with observing(pl_module):
            self.draw(trainer, pl_module)
        self._drawn_at = now

    def keep(self, trainer: pl.Trainer, task: Any, name: str, picture: Picture, *, key: str) -> None:
        """Write `<folder>/<name>.png` and hand it to every logger that takes images."""
        path = write_png(self.folder / f"{name}.png", picture)
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)
            if callable(log_image):
                log_image(key=key, images=[str(path)], caption=[f"{images_seen(task):,} images seen"])


def sampling_batch(task: Any) -> Any:
    """The task's fixed batch, on the task's device."""
    batch = task.picture_batch()
    return batch.to(task.device) if hasattr(batch, "to") else batch
