"""What a run says on the console before it starts and when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from rich.panel import Panel
from rich.table import Table


@rank_zero_only
def show(config: DictConfig, folder: Path, notices: list[str]) -> None:
    """Name the run and, loudly, everything that makes its numbers incomparable with published ones."""
    console = Console(soft_wrap=True)
    console.print(
        f"[bold]{config.model.name}[/bold] with [bold]{config.attention.name}[/bold] attention on {config.data.name}, "
        f"task {config.task.name}, budget {config.budget.name} ({config.budget.images:,} images), seed {config.seed}"
    )
    console.print(f"run folder: {folder}", highlight=False)
    if notices:
        text = "\n".join(f"* {notice}" for notice in notices)
        Console().print(Panel(text, title="NOT COMPARABLE WITH PUBLISHED NUMBERS", border_style="bold red"))
    if config.budget.name == "paper" and not torch.cuda.is_available():
        text = (
            f"PAPER-SIZE NETWORK, and no GPU was found: a training step takes seconds to minutes here, and up to many "
            f"GiB of memory; {config.budget.images:,} images are out of reach. What fits: budget=demo (minutes), "
            f"budget=demo_long (an hour or more). `python scripts/doctor.py` says what this machine has."
        )
        Console().print(Panel(text, title="TOO LARGE FOR THIS MACHINE", border_style="bold yellow"))


@rank_zero_only
def show_result(result: dict[str, Any], folder: Path, page: Path | None) -> None:
    """Print the metrics and where to look."""
    console = Console(soft_wrap=True)
    table = Table("metric", "value", title=result["name"])
    for name, value in result["metrics"].items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"record:   {folder / 'result.json'}", highlight=False)
    console.print(f"pictures: {folder / 'pictures'}", highlight=False)
    if page is not None:
        console.print(f"report:   {page}", highlight=False)
