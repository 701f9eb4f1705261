"""How far a network is with one picture: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from torch import nn

from saccade.callbacks.progress import STYLES, Style, clock


class StepProgress:
    """Count steps of known number and show them.

    Args:
        what: is being done.
        total: number of steps. More than that make the total grow.
        style: "bar"; "lines" (for files and pipes); "auto", a bar on a terminal and lines elsewhere; or "off".
        every_seconds: between two lines.
        console: where to; None: standard error, so that standard output holds the results alone.

    Raises:
        ValueError: an unknown style.
    """

    def __init__(
        self,
        what: str,
        total: int,
        style: Style = "auto",
        *,
        every_seconds: float = 10.0,
        console: Console | None = None,
    ) -> None:
        if style not in STYLES:
            raise ValueError(f"progress={style} is unknown; choose one of {', '.join(STYLES)}")
        self.what, self.total, self.done = what, max(1, total), 0
        self.every_seconds = every_seconds
        self.console = console or Console(stderr=True)
        self.style: Style = ("bar" if self.console.is_terminal else "lines") if style == "auto" else style
        self._begun = self._shown = time.monotonic()
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> StepProgress:
        self._begun = self._shown = time.monotonic()
        if self.style == "bar":
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(self.what, total=self.total)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, steps: int = 1) -> None:
        """Some more steps are done."""
        self.done += steps
        self.total = max(self.total, self.done)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)
            return
        now = time.monotonic()
        if self.style == "lines" and (now - self._shown >= self.every_seconds or self.done == self.total):
            self._shown = now
            share = self.done / self.total
            text = f"{self.what}: {self.done} of {self.total} steps ({share:.0%}), {clock(now - self._begun)}"
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def following(self, network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
        """Inside, every call of a module of one of these kinds is a step. Modules inside a followed one are not."""
        handles = [module.register_forward_hook(self._step) for module in outermost(network, kinds)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _step(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.advance()


def outermost(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """The modules of the given kinds that lie in no other one of them, each once."""
    found: list[nn.Module] = []
    for child in network.children():
        found += [child] if isinstance(child, kinds) else outermost(child, kinds)
    return list(dict.fromkeys(found))
