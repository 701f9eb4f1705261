"""`scripts/sample.py`: images of a trained generator: class grids, interpolations, single files for others to score.

Latent vectors are functions of the seed and of their position (`saccade.layers.latents`), so that a JSON of the two
redraws every image. Truncation as in "Your Local GAN" (arXiv 1911.12287): 2 sigma for pictures, 1 sigma for
interpolation, none where images are to be scored.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from saccade.files import write_text
from saccade.layers.latents import check_truncation
from saccade.run.arguments import read_choice, read_options, read_whole, run_command
from saccade.run.folder import RunFolder
from saccade.run.load import WEIGHTS, Weights, load_task
from saccade.run.sample_images import Mode, Planned, Request, Way, draw, plan

USAGE = """usage: python scripts/sample.py run=<run folder> [mode=grid|interpolate|files] [classes=<list>|all]
                                [count=<number>] [truncation=<sigma>|none] [seed=0] [path=linear|spherical|classes]
                                [steps=8] [weights=last|best] [out=<file.png or folder>] [overwrite=false|true]

run=         folder of a trained run, or of shipped weights
mode=        grid: a picture with a row a class, the same latent vector down each column
             interpolate: a picture whose rows lead from one latent vector to another, or from one class to another
             files: every image as a PNG of its own in a folder, for other people's scores
classes=     numbers or names with commas between: 0,3,7 or tench,goldfish [grid: ten spread over the list;
             interpolate: the first one, or the first two with path=classes; files: all]
count=       grid: columns (without classes: images in all) [8]; interpolate: rows a class [1; 4 with path=classes];
             files: images a class [8]
truncation=  latent components beyond so many sigma are drawn again [grid: 2; interpolate: 1; files: none]
seed=        of the latent vectors [0]
path=        interpolate: straight from z to z; along the circle between their directions; or at one z from class to
             class, by way of the gains and offsets of their batch norms [linear]
steps=       interpolate: images from one end to the other, both included [8]
weights=     the last checkpoint of the run, or its best by the run's own score [last]
out=         [samples-<mode>.png; files: the folder samples]; beside a picture goes a .json, into a folder samples.json:
             run, weights, seed, and class and position of every image
overwrite=   whether what is there already may be replaced [false]
"""
_REQUIRED = ("run",)
_OPTIONAL = ("mode", "classes", "count", "truncation", "seed", "path", "steps", "weights", "out", "overwrite")
_FILE = re.compile(r"(class\d{4}-)?\d+\.png")  # what mode=files writes
_ONLY = {"path": "interpolate", "steps": "interpolate"}
_TRUNCATION: Mapping[Mode, float | None] = {"grid": 2.0, "interpolate": 1.0, "files": None}
_COUNT: Mapping[Mode, int] = {"grid": 8, "interpolate": 1, "files": 8}


@dataclass(frozen=True)
class Written:
    """The picture or the folder, and the record of its images."""

    out: Path
    record: Path
    images: int


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or missing key, or a wrong value.
    """
    options = read_options(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    mode = cast(Mode, read_choice(options, "mode", get_args(Mode)))
    for key, only in _ONLY.items():
        if key in options and mode != only:
            raise ValueError(f"{key}= belongs to mode={only}; got mode={mode}")
    way = cast(Way, read_choice(options, "path", get_args(Way)))
    default = 4 if way == "classes" else _COUNT[mode]
    out = Path(options.get("out", "samples" if mode == "files" else f"samples-{mode}.png")).expanduser()
    if mode != "files" and out.suffix.lower() != ".png":
        raise ValueError(f"out={out}: the picture is written as PNG, so its name ends in .png")
    truncation = options.get("truncation")
    return Request(
        run=Path(options["run"]).expanduser(),
        mode=mode,
        classes=options.get("classes"),
        count=read_whole(options, "count", default, least=1),
        truncation=_TRUNCATION[mode] if truncation is None else _truncation(truncation),
        seed=read_whole(options, "seed", 0, least=0),
        path=way,
        steps=read_whole(options, "steps", 8, least=2),
        weights=cast(Weights, read_choice(options, "weights", WEIGHTS)),
        out=out,
        overwrite=read_choice(options, "overwrite", ("false", "true")) == "true",
    )


def _truncation(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return check_truncation(float(text))
    except ValueError as error:
        raise ValueError(f"truncation={text}: give a limit in sigma, as in 2.0, or none ({error})") from error


# ---------------------------------------------------------------------- classes


def read_classes(text: str | None, names: Sequence[str] | None, classes: int | None) -> list[int] | None:
    """Labels from numbers and names; None if none were given.

    A name is that of a class, or one of the synonyms in it that commas separate, whatever its case.

    Raises:
        ValueError: a number that is no label, a name that no class has (the nearest are listed) or that several have.
    """
    if text is None:
        return None
    if classes is None:
        raise ValueError(f"classes={text}: this run is unconditional, it has no classes to choose")
    if text == "all":
        return list(range(classes))
    known: dict[str, list[int]] = {}
    for label, name in enumerate(names or ()):
        for word in {_plain(name), *map(_plain, name.split(","))}:
            known.setdefault(word, []).append(label)
    return [_label(entry.strip(), known, classes) for entry in text.split(",")]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")


def _label(entry: str, known: Mapping[str, list[int]], classes: int) -> int:
    if re.fullmatch(r"\d+", entry):
        if int(entry) >= classes:
            raise ValueError(f"classes={entry}: labels are 0 to {classes - 1}")
        return int(entry)
    if not known:
        raise ValueError(f"classes={entry}: this run's data tells no names here; give labels, 0 to {classes - 1}")
    found = known.get(_plain(entry), [])
    if not found:
        near = difflib.get_close_matches(_plain(entry), known, n=3, cutoff=0.3) or list(known)[:3]
        raise ValueError(f"classes={entry}: no class is called that. Nearest: {', '.join(near)}")
    if len(found) > 1:
        raise ValueError(f"classes={entry}: {len(found)} classes are called that; give a label: {found}")
    return found[0]


def class_names(config: DictConfig, classes: int) -> list[str] | None:
    """What the run's data calls its classes; None if it is not here, not packed, or has another number of them.

    Names are a courtesy, so nothing is downloaded, drawn or packed for them.
    """
    from hydra.errors import InstantiationException

    from saccade.run.build import build_data

    if OmegaConf.select(config, "data.source") == "standin":
        from saccade.data.standin.objects import KINDS  # loads OpenCV

        names = [kind.name for kind in KINDS]
    elif OmegaConf.select(config, "data.module") is None:
        return None
    else:
        try:
            data: Any = build_data(config)
            names = [] if getattr(data, "packed", None) is None else [str(name) for name in data.class_names]
        except (InstantiationException, ValueError, RuntimeError, OSError):
            return None
    return names if len(names) == classes else None


# ---------------------------------------------------------------------- pictures and their record


def sample(request: Request) -> Written:
    """Load the run, make the images, and write them with their record.

    Raises:
        ValueError: no run folder, wrong classes, or something that would be replaced; all before an image is made.
        RuntimeError: the run cannot be loaded here.
    """
    record = request.out / "samples.json" if request.mode == "files" else request.out.with_suffix(".json")
    _refuse_to_replace(request, record)
    config, loaded = load_task(request.run, weights=request.weights)
    task = cast(Any, loaded)  # any task whose averaged network takes (latents, labels)
    generator: Any = getattr(getattr(task, "ema", None), "network", None)
    if not hasattr(generator, "latent"):
        raise ValueError(f"run={request.run}: a {config.model.name} run makes no images from noise; choose model=sagan")
    names = None if generator.classes is None else class_names(config, generator.classes)
    labels = read_classes(request.classes, names, generator.classes)
    rows = plan(request, labels, generator.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = draw(generator, request, rows, device)
    told = _told(request, config, int(task.images_seen))
    if request.mode == "files":
        _clear(request.out, record)
        made = list(_write_files(request.out, images, sum(map(len, rows))))
    else:
        made = _write_sheet(request, images, rows, names, told)
    shown = sorted({image.label for row in rows for image in row if image.label is not None})
    told["classes"] = {label: names[label] if names else None for label in shown}
    write_text(record, json.dumps({**told, "images": made}, indent=1) + "\n")
    return Written(request.out, record, len(made))


def _refuse_to_replace(request: Request, record: Path) -> None:
    folder = request.mode == "files"
    if request.out.exists() and request.out.is_dir() != folder:
        raise ValueError(f"out={request.out} is a {'file' if folder else 'folder'}; choose another name")
    there = [path for path in (request.out, record) if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if there and not request.overwrite:
        raise ValueError(f"{there[0]} exists already; choose another out= or say overwrite=true")


def _clear(folder: Path, record: Path) -> None:
    """Remove an earlier sampling's files; the record first, since it says that the folder is complete."""
    record.unlink(missing_ok=True)
    for path in folder.glob("*.png"):
        if _FILE.fullmatch(path.name):
            path.unlink()


def _told(request: Request, config: DictConfig, images_seen: int) -> dict[str, Any]:
    """What the images come from, for the record."""
    source = OmegaConf.select(config, "data.source")
    told = {
        "run": str(request.run),
        "weights": RunFolder(request.run).result().get("weights", request.weights),  # shipped ones say which they are
        "images_seen": images_seen,
        "model": config.model.name,
        "attention": config.attention.name,
        "data": f"{config.data.name}_standin" if source == "standin" else config.data.name,
        "mode": request.mode,
        "seed": request.seed,
        "truncation": request.truncation,
        "latents": "saccade.layers.latents.latents_at(seed, [position], latent, truncation=truncation)",
    }
    return {**told, "path": request.path, "steps": request.steps} if request.mode == "interpolate" else told


def _write_files(folder: Path, images: Iterable[tuple[Planned, Tensor]], total: int) -> Iterator[dict[str, Any]]:
    """Write every image as it is made; yields its entry of the record."""
    from saccade.pictures.canvas import to_uint8, write_png

    digits, counts = len(str(total)), Counter[int | None]()
    for number, (image, pixels) in enumerate(images, 1):
        start = "" if image.label is None else f"class{image.label:04d}-"
        file = f"{start}{counts[image.label]:0{digits}d}.png"
        counts[image.label] += 1
        write_png(folder / file, to_uint8(pixels))
        if sys.stderr.isatty() and (number % 100 == 0 or number == total):
            print(f"\r{number:,} of {total:,} images", end="\n" if number == total else "", file=sys.stderr)
        yield {"file": file, "label": image.label, "position": image.position}


def _write_sheet(
    request: Request,
    images: Iterable[tuple[Planned, Tensor]],
    rows: Sequence[Sequence[Planned]],
    names: Sequence[str] | None,
    told: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Write the picture; returns the entries of the record."""
    from saccade.pictures.canvas import to_uint8, write_png
    from saccade.pictures.class_grid import Row, class_grid

    def name(label: int | None) -> str:
        return "" if label is None else names[label].split(",")[0] if names else f"class {label}"

    between = request.mode == "interpolate" and request.path == "classes"
    pictures = (to_uint8(pixels) for _, pixels in images)
    lines = [Row("" if between else name(row[0].label), list(islice(pictures, len(row)))) for row in rows]
    ends = [{0.0: image.label, 1.0: image.towards}.get(image.share) for image in rows[0]]
    truncation = "none" if request.truncation is None else f"{request.truncation:g} sigma"
    sheet = class_grid(
        lines,
        headings=[name(label) for label in ends] if between else (),
        title=f"{told['model']} with {told['attention']} attention on {told['data']}, "
        f"{told['images_seen']:,} images seen",
        note=f"seed {request.seed}, truncation {truncation}, {told['weights']} weights",
    )
    write_png(request.out, sheet)
    return [
        {"row": number, "column": column, **asdict(image)}
        for number, row in enumerate(rows)
        for column, image in enumerate(row)
    ]


def _work(arguments: Sequence[str]) -> list[str]:
    written = sample(parse(arguments))
    return [f"images: {written.out} ({written.images:,})", f"record: {written.record}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/sample.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
