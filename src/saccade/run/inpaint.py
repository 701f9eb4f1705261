"""`scripts/inpaint.py`: fill the holes of a picture at its own size (PSAL, arXiv 2202.03163, section 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from saccade.attention.block import SlotBlock
from saccade.data.edit_files import PictureFile, Pixels, read_picture, to_pixels, write_picture
from saccade.data.mask_files import read_mask
from saccade.data.masks import hole_boxes
from saccade.geometry import Size
from saccade.models.inpainting_layers import ConvBlock
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
    output_path,
    read_shared,
    split_arguments,
)

SUFFIX, DEMO = "-inpainted", "inpainting_psal"
USAGE = f"""usage: python scripts/inpaint.py image=<picture> mask=<picture> [<option>=<value> ...]

image=      the picture, of any size
mask=       a picture of the same size, white where the picture is to be filled, black where it is known, greys as the
            nearer of the two. Any number of holes of any shape; what the picture holds there is never looked at. Known
            pixels come back unchanged
invert=     true|false: black marks the holes in place of white [false]
offsets=    true|false: also write <name>{SUFFIX}-offsets.png, in whose colours every point tells in which direction,
            and how far away, lies what it attends to most: white is its own place. That looks at every point of the
            picture, which takes longer than filling the holes [false]
{SHARED_USAGE.format(demo=f"demo/{DEMO}", suffix=SUFFIX)}"""
_REQUIRED = ("image", "mask")
_OPTIONAL = ("invert", "offsets")
_LEAST = 32  # pixels of a side that the network is given (ours)


@dataclass(frozen=True)
class Request:
    """What was asked for; see USAGE. `offsets` is the file to write them to, or None."""

    image: Path
    mask: Path
    invert: bool
    offsets: Path | None
    shared: Shared


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: a wrong key or value, or a file that must not be written.
    """
    options, changes = split_arguments(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    image, mask = (Path(options[key]).expanduser() for key in _REQUIRED)
    shared = read_shared(options, changes, image=image, suffix=SUFFIX, demo=DEMO, beside=[mask])
    offsets = None
    if read_choice(options, "offsets", ("false", "true")) == "true":
        drawn = str(shared.out.with_name(f"{shared.out.stem}-offsets.png"))
        offsets = output_path(image, SUFFIX, drawn, overwrite=options.get("overwrite") == "true", beside=[mask])
    return Request(
        image=image,
        mask=mask,
        invert=read_choice(options, "invert", ("false", "true")) == "true",
        offsets=offsets,
        shared=shared,
    )


def inpaint(request: Request) -> list[str]:
    """Fill the holes, write the result, and tell what was done, in lines.

    Raises:
        ValueError: an unreadable picture, a mask of another size, no such run; the file or key is named.
        RuntimeError: the network cannot be loaded or used here, as exact attention on a large picture.
    """
    clock, shared = Clock(), request.shared
    picture = read_picture(request.image)
    mask = read_mask(request.mask, picture.size, invert=request.invert)
    loaded = load_network(shared, "inpainting")
    with inference(shared):
        output = _fill(loaded, picture, mask, request)
        fine = output.fine[:, :, : picture.size.rows, : picture.size.cols]
        filled = to_pixels((fine + 1) / 2, picture.depth)
    holes = mask[0, 0].numpy() > 0
    alpha = picture.alpha
    if alpha is not None:
        alpha = np.where(holes, np.iinfo(alpha.dtype).max, alpha).astype(alpha.dtype)  # what is filled can be seen
    write_picture(shared.out, _pasted(picture, filled, holes), picture, alpha=alpha)
    lines = [f"inpainted: {shared.out}"]
    if request.offsets is not None:
        lines.append(f"offsets:   {_write_offsets(request.offsets, output, picture.size, loaded)}")
    lines.append(f"holes:     {len(hole_boxes(mask[0]))}, {int(holes.sum()):,} of {holes.size:,} pixels")
    return [*lines, f"network:   {loaded.told}", *notes_of(picture), f"took:      {clock.told()}"]


def _fill(loaded: Loaded, picture: PictureFile, mask: Tensor, request: Request) -> Any:
    network, shared = cast(Any, loaded.network), request.shared
    images, holes = (grown(maps, _LEAST).to(shared.device) for maps in (picture.unit() * 2 - 1, mask))
    kinds, steps = (ConvBlock, SlotBlock), network.module_calls(Size(*images.shape[2:]))
    with StepProgress("inpainting", steps, shared.progress) as progress, progress.following(network, kinds):
        return network(images, holes, offsets=request.offsets is not None)


def _pasted(picture: PictureFile, filled: Pixels, holes: NDArray[np.bool_]) -> Pixels:
    pixels = picture.pixels.copy()
    pixels[holes] = filled[holes]
    return pixels


def _write_offsets(path: Path, output: Any, size: Size, loaded: Loaded) -> Path:
    from saccade.pictures.canvas import to_uint8, write_png
    from saccade.pictures.offsets import offsets_picture

    if output.offsets is None:
        raise ValueError("offsets=true: this network attends nowhere")
    multiple = cast(Any, loaded.network).multiple  # the map that attends is that of the padded picture
    padded = Size(*(side + -side % multiple for side in output.fine.shape[2:]))
    drawn = offsets_picture(output.offsets, padded)[0, :, : size.rows, : size.cols]
    return write_png(path, to_uint8(drawn))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/inpaint.py; returns the exit code."""
    return run_command(arguments, USAGE, lambda given: inpaint(parse(given)))
