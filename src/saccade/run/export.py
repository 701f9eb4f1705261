"""Export a run for others: its networks in half precision, beside its configuration, record and pictures."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import cast

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import Tensor

from saccade.files import new_folder
from saccade.run.config import Runtime
from saccade.run.folder import RunFolder
from saccade.run.load import checkpoint_of
from saccade.tasks.base import Task

USAGE = "usage: python scripts/export_weights.py run=<run folder> out=<new folder> [weights=last|best]"
PREFIXES = {"generator": "ema.network."}  # the averaged one, which is the generator itself where none is averaged


def export(run: Path, out: Path, weights: str = "last") -> Path:
    """Write weights.pt, config.yaml, result.json and the newest pictures of a finished run into a new folder.

    Whatever takes a run folder takes such a folder. weights.pt holds tensors only (`torch.load(weights_only=True)`):
    the generator's, and those of the other networks that the task exports, in float16, and `images_seen`. What float16
    cannot hold stays as it is.

    Args:
        run: folder of the run.
        out: a new folder.
        weights: of the last checkpoint, or of the best one; result.json says which, and where that one stood.

    Raises:
        ValueError: the run is not finished, has no such weights, or `out` exists.
    """
    source, target = RunFolder(run), RunFolder(out)
    if not source.finished or not source.checkpoint.is_file():
        raise ValueError(f"{source.path} is not a finished run: no complete result.json with checkpoints/last.ckpt")
    if target.path.exists():
        raise ValueError(f"{target.path} exists already; export into a new folder")
    config = source.read_config()
    checkpoint = checkpoint_of(source, weights)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]  # type: ignore[arg-type]
    task = cast(type[Task], get_class(config.task.module._target_))
    networks = {name: _halved(state, name) for name in task.exported}
    with new_folder(target.path) as partial:
        (partial / "pictures").mkdir(parents=True)
        torch.save({**networks, "images_seen": state["images_seen"]}, partial / "weights.pt")
        config.runtime = OmegaConf.structured(Runtime)  # the folders of one machine are of no use on another
        RunFolder(partial).write_config(config)
        RunFolder(partial).write_result({**source.result(), "weights": weights})
        for picture in _newest_pictures(source.pictures):
            shutil.copyfile(picture, partial / "pictures" / picture.name)
    return target.path


def _halved(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of one network."""
    prefix = PREFIXES.get(name, f"{name}.")
    return {key.removeprefix(prefix): _half(value) for key, value in state.items() if key.startswith(prefix)}


def _half(value: Tensor) -> Tensor:
    half = value.half() if value.is_floating_point() else value
    return half if torch.equal(half.isfinite(), value.isfinite()) else value


def _newest_pictures(folder: Path) -> list[Path]:
    # samples-<kind>-<images seen>.png: the last of each kind; everything else is kept up to date under one name
    latest: dict[str, Path] = {}
    for path in sorted(folder.glob("*.png")):
        kind, _, number = path.stem.rpartition("-")
        latest[kind if number.isdigit() else path.stem] = path
    return list(latest.values())


def main() -> None:
    """Entry point of scripts/export_weights.py."""
    pairs = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    if not {"run", "out"} <= set(pairs) <= {"run", "out", "weights"}:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        print(export(Path(pairs["run"]), Path(pairs["out"]), pairs.get("weights", "last")))
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
