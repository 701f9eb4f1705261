"""`scripts/colorize.py`: give a grey picture the colours of a reference (PSAL, arXiv 2202.03163, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.attention.block import SlotBlock
from saccade.data.edit_files import read_picture, to_pixels, write_picture
from saccade.geometry import Size
from saccade.run.arguments import read_choice, read_whole, run_command
from saccade.run.tool_progress import StepProgress, outermost
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
from saccade.tasks.colorization import grey_of

SUFFIX, DEMO = "-colorized", "colorization_psal"
USAGE = f"""usage: python scripts/colorize.py image=<picture> reference=<coloured picture> [<option>=<value> ...]

image=      the picture to colour; of a coloured one only the grey is used, the mean of red, green and blue
reference=  where the colours come from: a picture of the same things, as another frame of the same video. Any size
size=       longer side, in pixels, at which the network sees either picture, or native for their own [256, as the
            paper]; larger takes longer and shows the network finer detail than it was trained on. Smaller pictures
            stay as they are
result=     full: the picture at its own size, its lightness unchanged, with the network's colours enlarged to it;
            working: what the network itself made, at the size at which it saw the picture [full]
{SHARED_USAGE.format(demo=f"demo/{DEMO}", suffix=SUFFIX)}"""
_REQUIRED = ("image", "reference")
_OPTIONAL = ("size", "result")
_LEAST = 16  # pixels of a side of the reference that the network is given (ours)
# Pixels by which the picture goes on at each side, mirrored: within 7 of its rim (a 7x7 patch, 3x3 convolutions) a
# network sees zeros from outside, and the paper's loss leaves that rim out.
_RIM = 8
_LIMIT = 1e-6


@dataclass(frozen=True)
class Request:
    """What was asked for; see USAGE. `size` is None for native."""

    image: Path
    reference: Path
    size: int | None
    full: bool
    shared: Shared


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: a wrong key or value, or a file that must not be written.
    """
    options, changes = split_arguments(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    image, reference = (Path(options[key]).expanduser() for key in _REQUIRED)
    native = options.get("size") == "native"
    return Request(
        image=image,
        reference=reference,
        size=None if native else read_whole(options, "size", 256, least=1),
        full=read_choice(options, "result", ("full", "working")) == "full",
        shared=read_shared(options, changes, image=image, suffix=SUFFIX, demo=DEMO, beside=[reference]),
    )


def colorize(request: Request) -> list[str]:
    """Colour the picture, write the result, and tell what was done, in lines.

    Raises:
        ValueError: an unreadable picture, no such run; the file or key is named.
        RuntimeError: the network cannot be loaded or used here.
    """
    clock, shared = Clock(), request.shared
    picture, reference = read_picture(request.image), read_picture(request.reference, "reference")
    loaded = load_network(shared, "colorization")
    with inference(shared):
        grey = grey_of(picture.unit())
        seen, source = fitted(grey, request.size), fitted(reference.unit(), request.size)
        painted = _paint(loaded, seen, source, shared)
        result = transfer(grey, painted) if request.full else painted
        pixels = to_pixels(result, picture.depth)
    write_picture(shared.out, pixels, picture, grey=False, alpha=picture.alpha_at(Size(*pixels.shape[:2])))
    lines = [f"colorized: {shared.out}", f"network:   {loaded.told}"]
    lines.append(f"seen at:   {Size(*seen.shape[2:])}, the reference at {Size(*source.shape[2:])} (rows x cols)")
    if request.full and seen.shape != grey.shape:
        lines.append(f"result:    {picture.size}: its own lightness with the network's colours enlarged to it")
    if reference.grey:
        lines.append(f"note:      {reference.path.name} holds no colours, so there are none to give")
    return [*lines, *notes_of(picture, reference), f"took:      {clock.told()}"]


def _paint(loaded: Loaded, grey: Tensor, reference: Tensor, shared: Shared) -> Tensor:
    kinds = (SlotBlock, nn.Conv2d)
    steps = len(outermost(loaded.network, kinds))
    widened = F.pad(grey, (_RIM,) * 4, mode="reflect" if min(grey.shape[2:]) > _RIM else "replicate")
    with StepProgress("colorizing", steps, shared.progress) as progress, progress.following(loaded.network, kinds):
        painted: Tensor = loaded.network(widened.to(shared.device), grown(reference, _LEAST).to(shared.device))
    return painted[..., _RIM:-_RIM, _RIM:-_RIM].float().cpu().clamp(0, 1)


def fitted(images: Tensor, longest: int | None) -> Tensor:
    """Pictures (B, 3, Y, X) in [0, 1], shrunk so that neither side exceeds `longest`; None leaves them."""
    rows, cols = images.shape[2:]
    if longest is None or max(rows, cols) <= longest:
        return images
    scale = longest / max(rows, cols)
    return _resized(images, Size(max(1, round(rows * scale)), max(1, round(cols * scale))))


def transfer(grey: Tensor, painted: Tensor) -> Tensor:
    """A picture's own grey with the colours of a smaller one (ours: the paper's pictures are all of one size).

    Colour is the difference to grey, the mean of red, green and blue. It is enlarged bicubically, and weakened where it
    would leave [0, 1], so that the grey of the result is the picture's own.

    Args:
        grey: (B, 3, Y, X) in [0, 1], three equal channels.
        painted: (B, 3, y, x) in [0, 1].

    Returns:
        (B, 3, Y, X) in [0, 1].
    """
    colour = painted - grey_of(painted)
    if colour.shape != grey.shape:
        colour = F.interpolate(colour, size=grey.shape[2:], mode="bicubic", align_corners=False)
        colour = colour - grey_of(colour)
    room = torch.where(colour > 0, 1 - grey, grey) / colour.abs().clamp(min=_LIMIT)
    return (grey + colour * room.amin(1, keepdim=True).clamp(max=1)).clamp(0, 1)


def _resized(images: Tensor, size: Size) -> Tensor:
    return F.interpolate(images, size=tuple(size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/colorize.py; returns the exit code."""
    return run_command(arguments, USAGE, lambda given: colorize(parse(given)))
