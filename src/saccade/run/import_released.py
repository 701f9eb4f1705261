"""`scripts/import_ylg.py`: the released weights of Your Local GAN as a folder that other commands take like a run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from saccade.data.pack import sha256
from saccade.files import new_folder
from saccade.models.sagan_import import CHANNELS, Imported, import_released
from saccade.run.arguments import read_options, read_whole, run_command
from saccade.run.config import CONF, Runtime, register
from saccade.run.folder import RunFolder
from saccade.run.train import describe

USAGE = """usage: python scripts/import_ylg.py arrays=<checkpoint.npz> out=<new folder> [batch_size=<images a step>]
                                   [channels=1024,1024,512,256,128,64] [classes=1000]

arrays=      the checkpoint's arrays, by variable name; how to write them is told in scripts/import_ylg.py
out=         a folder that must not exist: config.yaml, weights.pt (both networks, float32) and result.json
batch_size=  of the training, which the checkpoint does not tell; without it the images seen are recorded as 0
channels=    of both networks, coarsest first [as released]
classes=     number of classes [1000]
"""
EXPERIMENT = "ylg/table1_ylg"  # the run that the weights come from
_REQUIRED = ("arrays", "out")
_OPTIONAL = ("batch_size", "channels", "classes")
_UNKNOWN_LENGTH = "the checkpoint tells training steps and no batch size: images_seen is not known and stands at 0"


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """The arrays of an .npz, by name.

    Raises:
        ValueError: no such file, or something else than arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = f" ({error})" if isinstance(error, OSError) else ""  # NumPy's own advice would unpickle the file
        raise ValueError(f"arrays={path}: not a readable .npz of arrays{reason}") from error


def import_checkpoint(
    arrays: Path, out: Path, *, batch_size: int = 0, channels: Sequence[int] = CHANNELS, classes: int = 1000
) -> Path:
    """Write config.yaml, weights.pt and result.json into a new folder.

    Args:
        arrays: .npz of the checkpoint's arrays.
        out: the new folder.
        batch_size: images of a training step; 0 if not known.
        channels: of both networks, coarsest first.
        classes: number of classes.

    Raises:
        ValueError: `out` exists, the file is no .npz, or its arrays are not those of such networks.
    """
    target = RunFolder(out)
    if target.path.exists():
        raise ValueError(f"{target.path} exists already; import into a new folder")
    imported = import_released(read_arrays(arrays), channels=channels, classes=classes)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = [f"experiment={EXPERIMENT}", f"model.channels={list(channels)}", f"model.classes={classes}"]
        config = compose("train", overrides=chosen)
    config.runtime = OmegaConf.structured(Runtime)
    _check_fit(config, imported)
    images_seen = batch_size * (imported.step or 0)
    weights = {"generator": imported.generator, "discriminator": imported.discriminator}
    with new_folder(target.path) as partial:
        torch.save({**weights, "images_seen": torch.tensor(images_seen)}, partial / "weights.pt")
        folder = RunFolder(partial)
        folder.write_config(config)
        notices = [] if images_seen else [_UNKNOWN_LENGTH]
        folder.write_result(
            {
                "status": "imported",
                **describe(config, target.path.name, notices),
                "images_seen": images_seen,
                "released_step": imported.step,
                "arrays": {"file": arrays.name, "sha256": sha256(arrays), "left_out": imported.ignored},
            }
        )
    return target.path


def _check_fit(config: DictConfig, imported: Imported) -> None:
    """Raise RuntimeError unless the weights are those of the networks that the configuration builds."""
    for node, state in (("net", imported.generator), ("discriminator", imported.discriminator)):
        with torch.device("meta"):
            network = instantiate(config.model[node], _convert_="all")
        network.load_state_dict(state, assign=True)


def _channels(text: str) -> list[int]:
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", text):
        raise ValueError(
            f"channels={text}: give whole numbers with commas between, as in {','.join(map(str, CHANNELS))}"
        )
    return [int(word) for word in text.split(",")]


def _work(arguments: Sequence[str]) -> list[str]:
    options = read_options(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    path = import_checkpoint(
        Path(options["arrays"]).expanduser(),
        Path(options["out"]).expanduser(),
        batch_size=read_whole(options, "batch_size", 0, least=0),
        channels=_channels(options["channels"]) if "channels" in options else CHANNELS,
        classes=read_whole(options, "classes", 1000, least=1),
    )
    result = RunFolder(path).result()
    left_out = ", ".join(f"{count} {kind}" for kind, count in result["arrays"]["left_out"].items()) or "nothing"
    return [f"{path}: step {result['released_step']}; left out: {left_out}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/import_ylg.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
