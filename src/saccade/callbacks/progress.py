"""Progress in images seen: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from torch import Tensor

from saccade.callbacks.observing import images_seen

Style = Literal["auto", "bar", "lines", "off"]
STYLES: tuple[Style, ...] = ("auto", "bar", "lines", "off")
_WINDOW_S = 60.0
_REFRESH_S = 0.5
_TERMS = 3


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:04:05 or 2 d 03:00."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Rate:
    """Images a second over the last minute."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, now: float, images: int) -> None:
        """Note that `images` were seen at time `now` (seconds of any steady clock); only a new count tells anything."""
        if self._marks and self._marks[-1][1] == images:
            return
        self._marks.append((now, images))
        while len(self._marks) > 2 and now - self._marks[0][0] > _WINDOW_S:
            self._marks.popleft()

    @property
    def per_second(self) -> float | None:
        """None until two marks lie apart in time and images."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start and last > first else None


def main_terms(metrics: Mapping[str, Tensor], weights: Mapping[str, float], headline: str | None) -> str:
    """The weighted loss terms (a few), then the headline of the last evaluation: `self_l1 0.123, ratio_figure 0.81`."""
    losses = [name for name in metrics if name.startswith("loss/")]
    weighted = [name for name in losses if weights.get(name.removeprefix("loss/"), 0.0) != 0.0]
    shown = [(name.removeprefix("loss/"), metrics[name]) for name in (weighted or losses)[:_TERMS]]
    if headline and f"eval/{headline}" in metrics:
        shown.append((headline.rsplit("/", 1)[-1], metrics[f"eval/{headline}"]))
    return ", ".join(f"{name} {float(value):.3f}" for name, value in shown)


class ImagesProgress(pl.Callback):
    """Show how far a run is, how fast, how long it will still take, and its main loss terms.

    Args:
        total: images of the whole run.
        style: "bar"; "lines" (for files and pipes); "auto", a bar on a terminal and lines elsewhere; or "off".
        every_seconds: between two lines.
        console: where to; None: standard output.

    Raises:
        ValueError: an unknown style, or no images.
    """

    def __init__(
        self, *, total: int, style: Style = "auto", every_seconds: float = 10.0, console: Console | None = None
    ) -> None:
        if style not in STYLES:
            raise ValueError(f"progress style {style!r} is unknown; choose one of {', '.join(STYLES)}")
        if total < 1:
            raise ValueError(f"ImagesProgress: total is the number of images of the run, 1 or more; got {total}")
        self.total, self.every_seconds = total, every_seconds
        self.console = console or Console()
        self.style: Style = ("bar" if self.console.is_terminal else "lines") if style == "auto" else style
        self._rate = Rate()
        self._bar: Progress | None = None
        self._train: TaskID | None = None
        self._check: TaskID | None = None
        self._shown = 0.0
        self._shown_at = -1

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._active(trainer):
            return
        seen = images_seen(pl_module)
        self._rate = Rate()
        self._rate.mark(time.monotonic(), seen)
        self._shown = time.monotonic()
        if self.style == "bar":
            self._train = self._open().add_task("training", total=self.total, completed=seen, note="starting")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if not self._active(trainer):
            return
        now = time.monotonic()
        wait = _REFRESH_S if self.style == "bar" else self.every_seconds
        if now - self._shown < wait:
            return
        self._shown = now
        self._show(trainer, pl_module, now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._active(trainer) and (self.style == "bar" or images_seen(pl_module) != self._shown_at):
            self._show(trainer, pl_module, time.monotonic())
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _show(self, trainer: pl.Trainer, module: Any, now: float) -> None:
        seen = images_seen(module)
        self._shown_at = seen
        self._rate.mark(now, seen)
        rate = self._rate.per_second
        left = clock((self.total - seen) / rate) if rate else "?"
        speed = f"{rate:.1f} images/s" if rate else "? images/s"
        weights, headline = getattr(module, "weights", {}), getattr(module, "headline", None)
        terms = main_terms(trainer.callback_metrics, weights, headline)
        if self._bar is not None and self._train is not None:
            self._bar.update(self._train, completed=seen, note=f"{speed}, {left} left  {terms}")
        elif self.style == "lines":
            share = seen / self.total
            text = f"{seen:,} of {self.total:,} images ({share:.0%}), {speed}, {left} left" + (
                f" | {terms}" if terms else ""
            )
            self.console.print(text, highlight=False, soft_wrap=True)

    # ------------------------------------------------------------------ evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._begin_check(trainer, trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._advance_check()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_check(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_check(trainer, trainer.num_test_batches)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._advance_check()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_check(trainer)

    def _begin_check(self, trainer: pl.Trainer, batches: Any) -> None:
        if not self._active(trainer):
            return
        counts = batches if isinstance(batches, (list, tuple)) else [batches]
        finite = [float(count) for count in counts if float(count) != float("inf")]
        if self.style == "bar":
            self._check = self._open().add_task("evaluating", total=sum(finite) or None, note="")
        elif trainer.state.fn == "test":
            self.console.print(f"evaluating, {sum(finite):.0f} batches", highlight=False)

    def _advance_check(self) -> None:
        if self._bar is not None and self._check is not None:
            self._bar.advance(self._check)

    def _end_check(self, trainer: pl.Trainer) -> None:
        if self._bar is not None and self._check is not None:
            self._bar.remove_task(self._check)
        self._check = None
        if self._train is None:
            self._close()

    # ------------------------------------------------------------------ the bar

    def _active(self, trainer: pl.Trainer) -> bool:
        return self.style != "off" and trainer.is_global_zero

    def _open(self) -> Progress:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
            )
            self._bar.start()
        return self._bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._train, self._check = None, None, None
