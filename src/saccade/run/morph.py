"""`scripts/morph.py`: repaint the person of one's own picture in another pose (Fig. 10 of GPA, arXiv 2107.03742)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from saccade.data.images import SIDES, Box, Side, crop, place
from saccade.geometry import Size
from saccade.run.arguments import read_choice, read_options, run_command

USAGE = """usage: python scripts/morph.py run=<run folder> source=<image> source_pose=<json> target_pose=<json or key>
                               [target_size=<rows>x<cols>] [out=<file.png>] [upscale=true|false]

run=          folder of a trained run, or of shipped weights
source=       picture of one person, any size and aspect
source_pose=  its keypoints in its own pixels: OpenPose-18 (or BODY_25) or COCO-17, as JSON
target_pose=  the wanted pose, as such a JSON in the pixels of a picture of target_size (default: the source's size);
              or a picture's name, or a pair's key <from>___<to>, of the run's data
out=          the morph [<source>-morph.png in the current folder]; beside it go <out>-attention.png, where each point
              looks, and <out>-sheet.png, source, poses and result in one picture
upscale=      whether a picture smaller than the network's may be enlarged [true]
"""
_REQUIRED = ("run", "source", "source_pose", "target_pose")
_OPTIONAL = ("target_size", "out", "upscale")


@dataclass(frozen=True)
class Request:
    """What was asked for, with defaults filled in; see USAGE."""

    run: Path
    source: Path
    source_pose: Path
    target_pose: str
    target_size: Size | None
    out: Path
    upscale: bool


@dataclass(frozen=True)
class Written:
    """The files of a morph; attention is None for a network that attends nowhere."""

    morph: Path
    attention: Path | None
    sheet: Path


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or missing key, or a wrong value.
    """
    options = read_options(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    source = Path(options["source"]).expanduser()
    out = Path(options.get("out", f"{source.stem}-morph.png")).expanduser()
    if out.suffix.lower() != ".png":
        raise ValueError(f"out={out}: the morph is written as PNG, so its name ends in .png")
    return Request(
        run=Path(options["run"]).expanduser(),
        source=source,
        source_pose=Path(options["source_pose"]).expanduser(),
        target_pose=options["target_pose"],
        target_size=_size(options["target_size"]) if "target_size" in options else None,
        out=out,
        upscale=read_choice(options, "upscale", ("true", "false")) == "true",
    )


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"target_size={text}: give rows and columns in pixels, as in 512x352")
    return Size.of([int(match[1]), int(match[2])])


# ---------------------------------------------------------------------- the target pose


def _is_file(text: str) -> bool:
    return text.lower().endswith(".json") or Path(text).expanduser().is_file()


def pose_of_key(config: DictConfig, key: str) -> tuple[Tensor, Box]:
    """The pose of a picture of the run's data, by its name or by the key of a pair that ends in it.

    Returns:
        (1, 18, 3) on the network's canvas, and where that data's pictures lie on the canvas.

    Raises:
        ValueError: the data has no such picture (the nearest names are listed), or nobody was found in it.
    """
    from saccade.data.deepfashion import DeepFashionModule
    from saccade.run.build import build_data

    config = config.copy()
    if OmegaConf.select(config, "data.module.load_in_memory"):
        config.data.module.load_in_memory = False
    data = build_data(config)
    if not isinstance(data, DeepFashionModule):
        raise ValueError(f"target_pose={key} is no JSON file, and the data {config.data.name} has no poses by name")
    data.prepare_data()
    wanted = Path(key.rpartition("___")[2]).stem
    stems: list[str] = []
    for split in ("test", "train"):
        rows = data.lists.splits[split].annotations.rows
        found = next((name for name in rows if Path(name).stem == wanted), None)
        if found is not None:
            points = data.dataset(split).keypoints(found)
            if not bool((points[:, 2] > 0).any()):
                raise ValueError(f"target_pose={key}: nobody was found in {found}, so it has no pose")
            return points.unsqueeze(0), data.content
        stems += [Path(name).stem for name in rows]
    near = difflib.get_close_matches(wanted, stems, n=3, cutoff=0.3) or stems[:3]
    raise ValueError(
        f"target_pose={key} is neither a JSON file nor a picture of {data.data_root}. Nearest names: {', '.join(near)}"
    )


def _target(request: Request, config: DictConfig, source: Size, canvas: Size, side: Side) -> tuple[Tensor, Box]:
    from saccade.data.own_pictures import load_pose

    if not _is_file(request.target_pose):
        return pose_of_key(config, request.target_pose)
    size = request.target_size or source
    pose = load_pose(Path(request.target_pose).expanduser(), size, canvas, side=side)
    return pose, place(size, canvas, side)


# ---------------------------------------------------------------------- the morph


def morph(request: Request) -> Written:
    """Load the run, repaint, and write the pictures.

    Raises:
        ValueError: no run folder, an unreadable picture or pose, a wrong key; the file or key is named.
        RuntimeError: the run cannot be loaded here.
    """
    from saccade.callbacks.attention_pictures import capture, draw_slot, find_blocks, finest, slot_title
    from saccade.data.own_pictures import load_picture
    from saccade.pictures.canvas import to_uint8, write_png
    from saccade.pictures.grid import sample_grid
    from saccade.run.load import load_task

    config, loaded = load_task(request.run)
    task = cast(Any, loaded)  # any task whose averaged network takes (image, source heatmaps, target heatmaps)
    if not hasattr(task, "ema") or not hasattr(task, "pose"):
        raise ValueError(f"run={request.run}: a {config.model.name} run does not morph poses; choose model=posemorph")
    canvas, side = _canvas(config)
    own = load_picture(request.source, request.source_pose, canvas, side=side, upscale=request.upscale)
    target, box = _target(request, config, own.size, canvas, side)
    with torch.no_grad(), capture(find_blocks(task.ema)) as seen:
        poses = (task.pose(points, own.image) for points in (own.keypoints, target))
        generated = task.ema.network(own.image, *poses).float().clamp(-1, 1)
    sample = {"source": own.image, "generated": generated, "source_keypoints": own.keypoints}
    sample["target_keypoints"] = target
    write_png(request.out, crop(to_uint8(generated[0]), box).copy())
    sheet = _beside(request.out, "sheet")
    write_png(sheet, sample_grid(sample, title=request.source.name))
    slots = finest(seen, 1)
    if not slots:
        return Written(request.out, None, sheet)
    picture = draw_slot(seen[slots[0]], sample, title=slot_title(slots[0], seen[slots[0]]))
    return Written(request.out, write_png(_beside(request.out, "attention"), picture), sheet)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}-{what}.png")


def _canvas(config: DictConfig) -> tuple[Size, Side]:
    """The network's image size, and the side on which its data lies."""
    size = OmegaConf.to_container(config, resolve=True)
    model: Mapping[str, Any] = cast(dict[str, Any], size)["model"]
    side = OmegaConf.select(config, "data.module.pad_side") or "centre"
    if side not in SIDES:
        raise ValueError(f"data.module.pad_side={side} is unknown; valid: {', '.join(SIDES)}")
    return Size.of(model["image_size"]), side


def _work(arguments: Sequence[str]) -> list[str]:
    written = morph(parse(arguments))
    return [
        f"morph:     {written.morph}",
        f"attention: {written.attention or 'none: this network attends nowhere'}",
        f"sheet:     {written.sheet}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/morph.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
