"""`scripts/upscale.py`: enlarge a picture by CSNLN, with PSAL in its place or any other attention across scales.

Source: PSAL, arXiv 2202.03163, section 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from saccade.attention.block import SlotBlock
from saccade.attention.free_memory import free_bytes
from saccade.data.edit_files import read_picture, to_pixels, write_picture
from saccade.geometry import Size
from saccade.layers.tiling import ENSEMBLE, Chop, tiles
from saccade.layers.tiling import upscale as run_network
from saccade.run.arguments import read_choice, run_command
from saccade.run.tool_progress import StepProgress
from saccade.run.tools import (
    SHARED_USAGE,
    Clock,
    Loaded,
    Shared,
    grown,
    inference,
    load_network,
    notes_of,
    read_shared,
    split_arguments,
)

SCALES = ("2", "3", "4")
DEMO = "superres_x{scale}_psal"
CHOICES = ("auto", "released", "none")
USAGE = f"""usage: python scripts/upscale.py image=<picture> [scale=2|3|4] [<option>=<value> ...]

image=      the picture to enlarge, of any size
scale=      how much; a network makes one scale only, and the shipped one 2 [that of run=, or 2]
chop=       released: in overlapping parts of about 60x60, as CSNLN's published scores were measured, so that nothing
            farther away is looked at; none: the picture as a whole; auto: as a whole where the memory allows and the
            attention does not cost more than twice what it costs in parts [auto]
self_ensemble=  true|false: the mean over the picture's eight mirrorings and turns: better, and takes eight times as
            long [false]
{SHARED_USAGE.format(demo="demo/superres_x<scale>_psal", suffix="-x<scale>")}"""
_OPTIONAL = ("scale", "chop", "self_ensemble")
# Ours, measured: large maps of all channels that exist at once in a pass without gradients, with a margin.
_MAPS = 16
_DEAREST = 2.0
_LEAST = 16  # pixels of a side that the network is given (ours)


@dataclass(frozen=True)
class Request:
    """What was asked for; see USAGE."""

    image: Path
    scale: int
    chop: str
    self_ensemble: bool
    shared: Shared


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: a wrong key or value, or a file that must not be written.
    """
    options, changes = split_arguments(arguments, required=("image",), optional=_OPTIONAL, usage=USAGE)
    image = Path(options["image"]).expanduser()
    scale = read_choice(options, "scale", SCALES)
    if "scale" not in options and "run" in options:
        scale = _scale_of(Path(options["run"]).expanduser())
    return Request(
        image=image,
        scale=int(scale),
        chop=read_choice(options, "chop", CHOICES),
        self_ensemble=read_choice(options, "self_ensemble", ("false", "true")) == "true",
        shared=read_shared(options, changes, image=image, suffix=f"-x{scale}", demo=DEMO.format(scale=scale)),
    )


def _scale_of(run: Path) -> str:
    """The scale of a run, as its result is called by it; that of another model is refused when it is loaded."""
    from saccade.run.folder import RunFolder

    return str(RunFolder(run).read_config().model.get("scale", SCALES[0]))


def upscale(request: Request) -> list[str]:
    """Enlarge the picture, write the result, and tell what was done, in lines.

    Raises:
        ValueError: an unreadable picture, no such run, a run of another scale; the file or key is named.
        RuntimeError: the network cannot be loaded or used here.
    """
    clock, shared = Clock(), request.shared
    picture = read_picture(request.image)
    loaded = load_network(shared, "superres")
    network = cast(Any, loaded.network)
    if network.scale != request.scale:
        raise ValueError(f"run={shared.run} enlarges by {network.scale}, and scale={request.scale} was asked for")
    with inference(shared):
        chop = chosen_chop(loaded, picture.size, request, shared)
        larger = Size(*(request.scale * side for side in picture.size))
        high = _enlarge(loaded, grown(picture.unit(), _LEAST), request, chop)[:, :, : larger.rows, : larger.cols]
        pixels = to_pixels(high, picture.depth)
    write_picture(shared.out, pixels, picture, alpha=picture.alpha_at(larger))
    parts = len(tiles(picture.size, request.scale, chop))
    lines = [
        f"enlarged:  {shared.out}, from {picture.size} to {larger} (rows x cols)",
        f"network:   {loaded.told}",
        f"parts:     {'the whole picture at once' if chop == 'none' else f'{parts} (chop=released)'}"
        + (f", {ENSEMBLE} times (self_ensemble=true)" if request.self_ensemble else ""),
    ]
    if picture.grey:
        lines.append("note:      the picture is grey, and so is the result: the lightness of what the network made")
    return [*lines, *notes_of(picture), f"took:      {clock.told()}"]


def _enlarge(loaded: Loaded, low: Tensor, request: Request, chop: Chop) -> Tensor:
    network, shared = cast(Any, loaded.network), request.shared
    turns = ENSEMBLE if request.self_ensemble else 1
    size = Size(*low.shape[2:])
    parts = len(tiles(size, request.scale, chop)) + len(tiles(Size(size.cols, size.rows), request.scale, chop))
    steps = parts * turns // 2 if turns > 1 else len(tiles(size, request.scale, chop))
    steps *= network.depth * len(network.attention_blocks)
    with StepProgress("enlarging", steps, shared.progress) as progress, progress.following(network, (SlotBlock,)):
        return run_network(
            network, low.to(shared.device), request.scale, chop=chop, self_ensemble=request.self_ensemble
        )


def chosen_chop(loaded: Loaded, size: Size, request: Request, shared: Shared) -> Chop:
    """What `chop` stands for with a picture of this size; see USAGE."""
    if request.chop != "auto":
        return "released" if request.chop == "released" else "none"
    network = cast(Any, loaded.network)
    size = Size(*(max(side, _LEAST) for side in size))  # as `grown` makes it
    needed = _MAPS * network.channels * request.scale**2 * size.area * 4
    free = free_bytes(shared.device)
    if free is not None and needed > free // 2:
        return "released"
    parts = tiles(size, request.scale, "released")
    in_parts = sum(_attention_cost(network, Size(*(b - a for a, b in tile.seen))) for tile in parts)
    return "none" if _attention_cost(network, size) <= _DEAREST * in_parts else "released"


def _attention_cost(network: Any, size: Size) -> int:
    """Operations of one round of attention over a low-resolution picture of this size."""
    total = 0
    blocks: dict[str, SlotBlock] = network.attention_blocks
    for block in blocks.values():
        shape = block.shape()
        q_size, kv_size = (
            Size(
                *(max(1, -(-own * side // trained)) for own, side, trained in zip(of, size, network.size, strict=True))
            )
            for of in (shape.q_size, shape.kv_size)
        )
        total += block.mixer.cost(replace(shape, q_size=q_size, kv_size=kv_size)).forward_flops
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/upscale.py; returns the exit code."""
    return run_command(arguments, USAGE, lambda given: upscale(parse(given)))
