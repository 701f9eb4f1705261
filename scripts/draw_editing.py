#!/usr/bin/env python3
"""Draw the pictures of docs/editing.md: each tool once, with the shipped weights, on pictures held out from training.

    python scripts/draw_editing.py [--out docs] [--cache <folder>]

The pictures are those of the stand-ins: photographs that ship inside scikit-image, moved or laid together, and a drawn
facade. The tools run as their commands do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.data.bicubic import crop_to_multiple, degrade, matlab_resize
from saccade.data.davis import DavisModule
from saccade.data.places2 import Places2Module
from saccade.data.standin.facades import render_facade
from saccade.geometry import Size
from saccade.pictures.canvas import Picture, to_uint8, write_png
from saccade.pictures.grid import Column, grid
from saccade.run import colorize, inpaint, reconstruct, upscale

TILE = 256


def run(tool: Callable[[Sequence[str]], int], *arguments: str) -> None:
    """Call a tool as its command would be."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = tool([*arguments, "progress=off"])
    if code:
        raise RuntimeError(f"{tool.__module__} ended with {code}")


def read(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB"))


def save(path: Path, pixels: Picture) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def sheet(rows: Sequence[dict[str, Picture]], title: str) -> Picture:
    """A row an example, a column a kind of picture."""
    return grid([Column(name, [row[name] for row in rows]) for name in rows[0]], tile=TILE, title=title)


def frame_pairs(cache: Path, work: Path) -> list[tuple[Path, Path]]:
    """Two pairs of frames, square."""
    videos = DavisModule(root=cache / "none", cache=cache, source="standin", standin_train=2, standin_test=6)
    videos.prepare_data()
    pairs = []
    for number, pair in enumerate(videos.reconstruction_pairs("test")[:6:3]):
        names = [work / f"{number}-{what}.png" for what in ("target", "reference")]
        for name, path in zip(names, (pair.target, pair.reference), strict=True):
            Image.open(path).convert("RGB").resize((TILE, TILE)).save(name)
        pairs.append((names[0], names[1]))
    return pairs


def colorized(pairs: Sequence[tuple[Path, Path]], work: Path) -> Picture:
    rows = []
    for target, reference in pairs:
        grey = work / f"{target.stem}-grey.png"
        Image.open(target).convert("L").save(grey)
        run(colorize.main, f"image={grey}", f"reference={reference}", f"out={work / 'made.png'}", "overwrite=true")
        made = read(work / "made.png")
        rows.append({"image": read(grey), "reference": read(reference), "colorized": made, "true": read(target)})
    return sheet(rows, "scripts/colorize.py, demo/colorization_psal, stand-in videos")


def reconstructed(pairs: Sequence[tuple[Path, Path]], work: Path) -> Picture:
    rows = []
    for target, reference in pairs:
        run(
            reconstruct.main, f"target={target}", f"reference={reference}", f"out={work / 'made.png'}", "overwrite=true"
        )
        rows.append({"target": read(target), "reference": read(reference), "reconstructed": read(work / "made.png")})
    return sheet(rows, "scripts/reconstruct.py, PSAL 3, no training")


def inpainted(cache: Path, work: Path) -> Picture:
    scenes = Places2Module(
        root=cache / "none", cache=cache, source="standin", image_size=TILE, standin_train=4, standin_test=12
    )
    scenes.prepare_data()
    rows = []
    for picture in list(to_uint8(scenes.preview(12).images))[:12:6]:
        mask = np.zeros((TILE, TILE), dtype=np.uint8)
        mask[40:88, 48:112] = mask[150:206, 140:190] = 255
        image, holes = save(work / "scene.png", picture), save(work / "holes.png", mask)
        run(inpaint.main, f"image={image}", f"mask={holes}", f"out={work / 'made.png'}", "overwrite=true")
        shown = np.where(mask[..., None] > 0, np.uint8(255), picture)
        rows.append({"image and holes": shown, "inpainted": read(work / "made.png"), "true": picture})
    return sheet(rows, "scripts/inpaint.py, demo/inpainting_psal, stand-in scenes")


def upscaled(work: Path) -> Picture:
    rows = []
    for seed in (7, 11):
        high = crop_to_multiple(render_facade(np.random.default_rng([seed, 2023]), Size(192, 192)), 2)
        low = degrade(high, 2)
        run(upscale.main, f"image={save(work / 'small.png', low)}", f"out={work / 'made.png'}", "overwrite=true")
        rows.append({"bicubic": matlab_resize(low, 2), "upscaled": read(work / "made.png"), "true": high})
    return sheet(rows, "scripts/upscale.py scale=2, demo/superres_x2_psal, drawn facades")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--out", type=Path, default=Path("docs"))
    cli.add_argument("--cache", type=Path, help="folder in which the stand-ins are drawn and kept")
    options = cli.parse_args()
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        cache = options.cache or work / "cache"
        pairs = frame_pairs(cache, work)
        for name, picture in (
            ("upscale", upscaled(work)),
            ("colorize", colorized(pairs, work)),
            ("reconstruct", reconstructed(pairs, work)),
            ("inpaint", inpainted(cache, work)),
        ):
            path = options.out / f"editing_{name}.png"
            write_png(path, picture)
            print(path)


if __name__ == "__main__":
    sys.exit(main())
