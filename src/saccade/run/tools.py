"""What the tools for one's own pictures share: their options, the network they use, and the file they write."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from saccade.callbacks.progress import STYLES, Style, clock
from saccade.data.edit_files import PictureFile
from saccade.run.arguments import read_choice, read_options, read_whole
from saccade.run.config import CONF

DEMO = CONF.parent / "demo"
DEVICES = ("auto", "cpu", "cuda")
SHARED = ("run", "attention", "out", "overwrite", "device", "seed", "progress")
SHARED_USAGE = """run=        folder of a trained run, of shipped or of imported weights [{demo}]
attention=  put another backend into the network: train with one, use with another; its options and any other key of
            the run's config.yaml can be changed too, as in attention.mixer.iterations=10
out=        the file to write, or a folder for it [beside the picture, as <name>{suffix}.png]
overwrite=  true|false: whether a file may be replaced [false]
device=     auto|cpu|cuda [auto: a GPU where there is one]
seed=       of random searches, as PSAL's: the same seed makes the same picture [0]
progress=   auto|bar|lines|off [auto: a bar on a terminal, lines elsewhere]
"""


@dataclass(frozen=True)
class Shared:
    """The options that every tool has, with defaults filled in; see SHARED_USAGE."""

    run: Path
    changes: Mapping[str, str]  # attention, and dotted keys of the configuration
    out: Path
    device: torch.device
    seed: int
    progress: Style


def split_arguments(
    arguments: Sequence[str], *, required: Sequence[str], optional: Sequence[str], usage: str
) -> tuple[dict[str, str], dict[str, str]]:
    """The tool's options, and the changes to the run's configuration (dotted keys).

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or missing key.
    """
    dotted = {argument.partition("=")[0] for argument in arguments if "." in argument.partition("=")[0]}
    options = read_options(arguments, required=required, optional=(*optional, *SHARED, *sorted(dotted)), usage=usage)
    return {k: v for k, v in options.items() if k not in dotted}, {k: v for k, v in options.items() if k in dotted}


def read_shared(
    options: Mapping[str, str],
    changes: Mapping[str, str],
    *,
    image: Path,
    suffix: str,
    demo: str,
    beside: Sequence[Path] = (),
) -> Shared:
    """Read the shared options; the file to write is settled before any work begins.

    Args:
        options: of the command.
        changes: dotted keys.
        image: the picture that the result stands beside.
        suffix: of the result's name.
        demo: name of the shipped weights that are the default.
        beside: what else the command reads, as a mask.

    Raises:
        ValueError: a wrong value, a run or a GPU that is not there, or a file that must not be written.
    """
    run = Path(options["run"]).expanduser() if "run" in options else DEMO / demo
    if "run" not in options and not run.is_dir():
        there = ", ".join(sorted(folder.name for folder in DEMO.glob("*/"))) or "none"
        raise ValueError(
            f"there are no shipped weights in {run}; name the folder of a run with run=. Shipped are: {there}"
        )
    device = read_choice(options, "device", DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but PyTorch finds no GPU here; choose cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    overwrite = read_choice(options, "overwrite", ("false", "true")) == "true"
    attention = {"attention": options["attention"]} if "attention" in options else {}
    return Shared(
        run=run,
        changes={**attention, **changes},
        out=output_path(image, suffix, options.get("out"), overwrite=overwrite, beside=beside),
        device=torch.device(device),
        seed=read_whole(options, "seed", 0, least=0),
        progress=cast(Style, read_choice(options, "progress", STYLES)),
    )


def output_path(image: Path, suffix: str, out: str | None, *, overwrite: bool, beside: Sequence[Path] = ()) -> Path:
    """Where the result goes: beside the picture, or where `out` says; never where one of the command's own inputs lies.

    Raises:
        ValueError: the name does not end in .png, is an input's, is taken, or lies where nothing can be written.
    """
    name = f"{image.stem}{suffix}.png"
    path = image.with_name(name) if out is None else Path(out).expanduser()
    if out is not None and (path.is_dir() or out.endswith(("/", os.sep))):
        path = path / name
    if path.suffix.lower() != ".png":
        raise ValueError(f"out={out}: the result is written as PNG, so give a name that ends in .png, or a folder")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; choose another name with out=<file.png>")
    if path.exists():
        if image.exists() and path.samefile(image):
            raise ValueError(f"{path} is the picture itself, which is never written over; choose another out=")
        if any(other.exists() and path.samefile(other) for other in beside):
            raise ValueError(f"{path} is read by this command and never written over; choose another out=")
        if not overwrite:
            raise ValueError(f"{path} exists already; overwrite=true replaces it, out=<file.png> writes elsewhere")
    folder = next((parent for parent in path.absolute().parents if parent.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: {folder} takes no files; choose out=<file.png or folder>")
    return path


# ---------------------------------------------------------------------- the network


@dataclass(frozen=True)
class Loaded:
    """A run's network, ready to use.

    Attributes:
        config: of the run, with the changes that were asked for.
        network: the averaged generator in evaluation mode, on the wanted device.
        told: what it is, in one line.
    """

    config: DictConfig
    network: nn.Module
    told: str


def load_network(shared: Shared, model: str) -> Loaded:
    """Load the network of a run, with another attention if asked.

    Raises:
        ValueError: no run, a run of another model, no weights, or an unknown key or backend.
        RuntimeError: the network cannot be loaded here.
    """
    from saccade.run.evaluate import override, swap_attention
    from saccade.run.folder import RunFolder
    from saccade.run.load import load_task

    folder = RunFolder(shared.run)
    config = folder.read_config()
    if config.model.name != model:
        raise ValueError(f"run={shared.run} is a run of model={config.model.name}; this tool takes those of {model}")
    trained = config.attention.name
    changes = dict(shared.changes)
    if "attention" in changes:
        config = swap_attention(config, changes.pop("attention"))
    config, task = load_task(shared.run, override(config, changes))
    network = cast(Any, task).ema.network.to(shared.device)
    record = folder.result()
    words = [f"{config.attention.name} attention"]
    if trained != config.attention.name:
        words.append(f"trained with {trained}")
    imported = record.get("status") == "imported"
    words.append("released weights" if imported else f"{int(cast(Any, task).images_seen):,} images seen")
    if record.get("data_source") == "standin":
        words.append("stand-in data: do not expect what the paper shows")
    return Loaded(config, network, f"{shared.run}: {', '.join(words)}")


@contextmanager
def inference(shared: Shared) -> Iterator[None]:
    """Without gradients, from the seed that was asked for."""
    torch.manual_seed(shared.seed)
    with torch.inference_mode():
        yield


def grown(maps: Tensor, least: int) -> Tensor:
    """Maps (B, C, Y, X) whose last row and column go on until neither side is below `least` pixels.

    Attention has too few keys to choose from in a picture of a few pixels.
    """
    rows, cols = (max(0, least - side) for side in maps.shape[2:])
    return F.pad(maps, (0, cols, 0, rows), mode="replicate") if rows or cols else maps


# ---------------------------------------------------------------------- what is told


class Clock:
    """Time since its making, and the process's peak memory where the system tells it."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def told(self) -> str:
        words = clock(time.monotonic() - self._begun)
        if sys.platform == "win32":
            return words
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return f"{words}, peak memory {peak / 2**30:.1f} GiB"


def notes_of(*pictures: PictureFile) -> list[str]:
    """What reading left out or changed, one line a note, and what the result keeps of the first picture."""
    lines = [f"note:      {picture.path.name}: {note}" for picture in pictures for note in picture.notes]
    first = pictures[0]
    kept = [f"{first.depth} bits"] if first.depth != 8 else []
    kept += ["transparency"] if first.alpha is not None else []
    if kept:
        lines.append(f"kept:      {' and '.join(kept)}")
    return lines
