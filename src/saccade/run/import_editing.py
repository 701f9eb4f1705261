"""`scripts/import_editing.py`: released checkpoints of the editing networks as folders that commands take like runs.

Read are the generator files of the PyTorch port of contextual attention (daa233/generative-inpainting-pytorch,
gen_*.pt, with the critics' dis_*.pt beside if wanted) and those of CSNLN (model_x2.pt and its like). Keys and shapes
must be exactly those of the network; CSNLN's own loader lets wrong ones pass.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from saccade.data.pack import sha256
from saccade.files import new_folder
from saccade.run.arguments import read_options, run_command
from saccade.run.build import constructing
from saccade.run.config import CONF, Runtime, register
from saccade.run.folder import RunFolder

USAGE = """usage: python scripts/import_editing.py weights=<file.pt> out=<new folder> [critics=<file.pt>]

weights=    gen_<iteration>.pt of generative-inpainting-pytorch, or a model of CSNLN (x2, x3 or x4); its keys tell which
            one it is, its scale and its width
out=        a folder that must not exist: config.yaml, weights.pt (float32) and result.json. scripts/inpaint.py,
            scripts/upscale.py and evaluate.py take it as run=
critics=    dis_<iteration>.pt that belongs to gen_<iteration>.pt
"""
_UNKNOWN_LENGTH = "the file tells no images: images_seen is not known and stands at 0"
_STRIPS = ("module.", "netG.")  # of networks that were saved in a wrapper

State = dict[str, Tensor]


def read_state(path: Path, option: str) -> dict[str, Any]:
    """What a checkpoint file holds; nothing but tensors and plain containers is unpacked.

    Raises:
        ValueError: no such file, or something else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{option}={path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"{option}={path}: not a checkpoint of tensors alone ({reason})") from error
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{option}={path}: holds a {type(found).__name__}, not a state dict")
    return dict(found)


def bare(state: Mapping[str, Any]) -> State:
    """The tensors without the prefix that a wrapper around the network gave all of them."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for prefix in _STRIPS:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def settings_of(state: State, file: Path) -> list[str]:
    """The configuration of the network that a state dict belongs to, as Hydra overrides.

    Raises:
        ValueError: it belongs to neither of the two.
    """
    if "coarse_generator.conv1.conv.weight" in state:
        width = state["coarse_generator.conv1.conv.weight"].shape[0]
        return ["model=inpainting", f"model.net.width={width}"]
    if {"SEM.down_sample_1.0.weight", "head.0.0.weight", "tail.0.weight"} <= set(state):
        channels = state["head.0.0.weight"].shape[0]
        depth = state["tail.0.weight"].shape[1] // channels
        twice = any(key.startswith("SEM.multi_source_projection_2.") for key in state)
        scale = 4 if twice else {6: 2, 9: 3}.get(state["SEM.down_sample_1.0.weight"].shape[-1], 2)
        sizes = [f"model.net.channels={channels}", f"model.net.depth={depth}"]
        return ["model=superres", f"model.scale={scale}", *sizes]
    some = ", ".join(sorted(state)[:3]) or "no tensors"
    raise ValueError(
        f"weights={file}: neither a generator of contextual attention (coarse_generator...) nor a CSNLN (SEM...); it "
        f"holds {some} ..."
    )


def import_checkpoint(weights: Path, out: Path, *, critics: Path | None = None) -> Path:
    """Write config.yaml, weights.pt and result.json into a new folder.

    Args:
        weights: of the generator.
        out: the new folder.
        critics: of an inpainting network.

    Raises:
        ValueError: `out` exists, or a file that does not hold such weights; names the file, and what does not fit.
    """
    from saccade.run.train import describe

    target = RunFolder(out)
    if target.path.exists():
        raise ValueError(f"{target.path} exists already; import into a new folder")
    state = bare(read_state(weights, "weights"))
    overrides = settings_of(state, weights)
    networks = {"generator": state}
    if critics is not None:
        networks["discriminator"], more = _critics(critics, overrides[0])
        overrides += more
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=[*overrides, "attention=full", "data.source=files"])
    config.runtime = OmegaConf.structured(Runtime)
    if "skip" in config.model.net:
        config.model.net.skip = "none"  # ours; released networks have none
    _check_fit(config, "net", state, weights)
    if critics is not None:
        _check_fit(config, "discriminator", networks["discriminator"], critics)
    files = [weights] if critics is None else [weights, critics]
    with new_folder(target.path) as partial:
        torch.save({**networks, "images_seen": torch.tensor(0)}, partial / "weights.pt")
        folder = RunFolder(partial)
        folder.write_config(config)
        folder.write_result(
            {
                "status": "imported",
                **describe(config, target.path.name, [_UNKNOWN_LENGTH]),
                "images_seen": 0,
                "released_step": _step(weights),
                "files": [{"file": file.name, "sha256": sha256(file)} for file in files],
            }
        )
    return target.path


def _critics(path: Path, model: str) -> tuple[State, list[str]]:
    """The critics' weights under the keys that they have here, and their configuration."""
    found = read_state(path, "critics")
    if model != "model=inpainting" or not {"localD", "globalD"} <= set(found):
        what = ", ".join(map(str, list(found)[:3]))
        raise ValueError(f"critics={path}: the critics of an inpainting network are localD and globalD; it has {what}")
    if not all(isinstance(found[name], Mapping) for name in ("localD", "globalD")):
        raise ValueError(f"critics={path}: localD and globalD must be state dicts")
    parts = {ours: bare(found[theirs]) for ours, theirs in (("local", "localD"), ("whole", "globalD"))}
    first, linear = "dis_conv_module.conv1.conv.weight", "linear.weight"
    if not all({first, linear} <= set(part) for part in parts.values()):
        raise ValueError(f"critics={path}: localD and globalD must hold {first} and {linear}")
    width = parts["local"][first].shape[0]
    # four halvings lead to 4 * width channels on a square map
    sides = {name: 16 * round((part[linear].shape[1] / (4 * width)) ** 0.5) for name, part in parts.items()}
    settings = [f"model.hole=[{sides['local']},{sides['local']}]", f"model.discriminator.width={width}"]
    settings.append(f"model.image_size=[{sides['whole']},{sides['whole']}]")
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}, settings


def _check_fit(config: DictConfig, node: str, state: State, file: Path) -> None:
    """Raise ValueError unless the weights are exactly those of the network that the configuration builds."""
    with torch.device("meta"), constructing():
        network = instantiate(config.model[node], _convert_="all")
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [f"{key} is missing" for key in wanted if key not in found]
    wrong += [f"{key} is unknown" for key in found if key not in wanted]
    wrong += [f"{k} is {found[k]}, not {wanted[k]}" for k in wanted if k in found and found[k] != wanted[k]]
    if wrong:
        more = f" ... and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{file}: not the weights of {config.model[node]._target_}: {'; '.join(wrong[:3])}{more}")


def _step(file: Path) -> int | None:
    """The training step in a name like gen_00430000.pt."""
    found = re.search(r"_(\d{3,})$", file.stem)
    return None if found is None else int(found[1])


def _work(arguments: Sequence[str]) -> list[str]:
    options = read_options(arguments, required=("weights", "out"), optional=("critics",), usage=USAGE)
    path = import_checkpoint(
        Path(options["weights"]).expanduser(),
        Path(options["out"]).expanduser(),
        critics=Path(options["critics"]).expanduser() if "critics" in options else None,
    )
    config = RunFolder(path).read_config()
    scale = f" x{config.model.scale}" if config.model.name == "superres" else ""
    return [f"{path}: {config.model.name}{scale}; use it with run={path}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/import_editing.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
