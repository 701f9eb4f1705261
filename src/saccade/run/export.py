"""Export a run for others: the averaged generator in half precision, beside its configuration, record and pictures."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from saccade.run.config import Runtime
from saccade.run.folder import RunFolder

USAGE = "usage: python scripts/export_weights.py run=<run folder> out=<new folder>"
EMA_PREFIX = "ema.network."


def export(run: Path, out: Path) -> Path:
    """Write weights.pt, config.yaml, result.json and the newest pictures of a finished run into a new folder.

    `evaluate.py run=<out>` and `scripts/morph.py run=<out>` take such a folder. weights.pt holds tensors only
    (`torch.load(weights_only=True)`): the generator's in float16 and `images_seen`.

    Raises:
        ValueError: the run is not finished, or `out` exists.
    """
    source, target = RunFolder(run), RunFolder(out)
    if not source.finished or not source.checkpoint.is_file():
        raise ValueError(f"{source.path} is not a finished run: no complete result.json with checkpoints/last.ckpt")
    if target.path.exists():
        raise ValueError(f"{target.path} exists already; export into a new folder")
    state = torch.load(source.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    weights = {key.removeprefix(EMA_PREFIX): value for key, value in state.items() if key.startswith(EMA_PREFIX)}
    halved = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    partial = target.path.with_name(f".{target.path.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "pictures").mkdir(parents=True)
        torch.save({"generator": halved, "images_seen": state["images_seen"]}, partial / "weights.pt")
        config = source.read_config()
        config.runtime = OmegaConf.structured(Runtime)  # the folders of one machine are of no use on another
        RunFolder(partial).write_config(config)
        shutil.copyfile(source.result_file, partial / "result.json")
        for picture in _newest_pictures(source.pictures):
            shutil.copyfile(picture, partial / "pictures" / picture.name)
        os.replace(partial, target.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target.path


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
    if set(pairs) != {"run", "out"}:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        print(export(Path(pairs["run"]), Path(pairs["out"])))
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
