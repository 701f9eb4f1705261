"""What `scripts/reconstruct.py` is asked for: its options, their defaults, and what speaks against them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast, get_args

import torch

from saccade.callbacks.progress import STYLES, Style
from saccade.geometry import Size
from saccade.run.arguments import read_choice, read_options, read_whole
from saccade.run.reconstruct_methods import (
    FIXED,
    Method,
    Settings,
    backend_options,
    method_named,
    method_of_backend,
    refusals,
)
from saccade.run.reconstruct_pairs import Wanted
from saccade.run.reconstruct_study import Plan, check_margin

USAGE = f"""usage: python scripts/reconstruct.py target=<picture> reference=<picture> [methods=psal3] [out=]
       python scripts/reconstruct.py data=davis|frames=<folder> [methods=] [sizes=512,256,128,64] [out=<folder>]

target=      the picture to rebuild, and the one whose pixels to use: writes <target>-reconstructed.png beside it, at
reference=   the target's own size; with sizes= measures these two as below instead
data=        davis: the middle frame of every sequence of a split from the frame distance= away, as the paper
frames=      the same for a folder of numbered frames (pairs spread over it), or of such folders (a pair each)
methods=     with commas: {", ".join(FIXED)},
             psal<K>, exact<K>, aggregate<K> (K matches a pixel); psal3@64+128 only at these sizes
             [own pictures: psal3; else: full,local,linear,psal1,psal3,aggregate]
attention=   any backend, with any of its options as <option>=<value>, beside methods= or alone:
             attention=psal matches=7 search=sweep
sizes=       sides of the squares that frames are resized to, aspect ignored; or native [512,256,128,64]
temperature= T of the weights exp(-|q - k|^2 / T); several with commas [1]
patch_size=  of the patches that are compared [7]
iterations=  of PSAL's search [10]
stride=      of Full's keys [the paper's: 1, 2, 5, 10 at 64, 128, 256, 512]
window=      of Local, and what motion is compared with, pixels [50]
seed=        of searches, hashes and features [0]
source=      of data=davis: auto takes the files if they are there, else the stand-in; files; standin [auto]
split=       test, or the name of a list of the data set [test]
distance=    frames between target and reference [10]
pairs=       at most so many [30]
crop=        margin that an error leaves out, pixels [7; own pictures: 0]
memory=      true weighs each method in one more call [true; own pictures: false]
pictures=    so many pairs are drawn [3]
zooms=       parts of each that are enlarged: their number, where methods differ most, or places as shares of height,
             width and side: 0.2,0.3,0.15;0.6,0.5,0.15 [2]
device=      cuda where there is one [auto]
threads=     of the CPU [as PyTorch chooses]
data_dir=    folder that holds davis/ [data]
cache_dir=   where the stand-in is kept [$SACCADE_CACHE or ~/.cache/saccade]
out=         folder of tables.md, cells.csv, pairs.csv and pictures/; the same command goes on with what is there
             [reconstruction]; of own pictures the file to write, or a folder for it [beside the target]
overwrite=   whether what is there already may be replaced; a study begins anew [false]
progress=    auto|bar|lines|off [auto: a bar on a terminal, lines elsewhere]
"""
_OPTIONAL = (
    "target", "reference", "data", "frames", "methods", "attention", "sizes", "temperature", "patch_size", "iterations",
    "stride", "window", "seed", "source", "split", "distance", "pairs", "crop", "memory", "pictures", "zooms", "device",
    "threads", "data_dir", "cache_dir", "out", "overwrite", "progress",
)  # fmt: skip
STUDIED = "full,local,linear,psal1,psal3,aggregate"
SIZES = "512,256,128,64"
_BELONG_TO_DAVIS = ("source", "split", "data_dir", "cache_dir")
Places = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Request:
    """What was asked for, with defaults filled in; see `USAGE`.

    Attributes:
        sides: of the squares; None is the native size.
        zooms: a number, or places as shares (top, left, side).
        out: the folder of a study; None writes a picture beside the target, or where `picture` says.
    """

    target: Path | None
    reference: Path | None
    frames: Path | None
    source: Wanted
    split: str
    distance: int
    pairs: int
    data_dir: Path
    cache_dir: Path | None
    methods: tuple[Method, ...]
    sides: tuple[int | None, ...]
    temperatures: tuple[float, ...]
    plan: Plan
    pictures: int
    zooms: int | Places
    threads: int | None
    out: Path | None
    picture: str | None
    overwrite: bool
    progress: Style


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or contradicting key, or a wrong value.
    """
    backend = next((a.partition("=")[2] for a in arguments if a.startswith("attention=")), "")
    schema = [key for key in backend_options(backend) if key not in _OPTIONAL] if backend else []
    options = read_options(arguments, required=(), optional=(*_OPTIONAL, *schema), usage=USAGE)
    own = _check_what(options)
    folder = None if own and "sizes" not in options else options.get("out", "reconstruction")
    weigh = read_choice(options, "memory", ("false", "true") if folder is None else ("true", "false")) == "true"
    return Request(
        target=_path(options, "target"),
        reference=_path(options, "reference"),
        frames=_path(options, "frames"),
        source=cast(Wanted, read_choice(options, "source", get_args(Wanted))),
        split=options.get("split", "test"),
        distance=read_whole(options, "distance", 10, least=1),
        pairs=read_whole(options, "pairs", 30, least=1),
        data_dir=Path(options.get("data_dir", "data")).expanduser(),
        cache_dir=_path(options, "cache_dir"),
        methods=_methods(options, "psal3" if folder is None else STUDIED, schema),
        sides=_sides(options.get("sizes", "native" if folder is None else SIZES)),
        temperatures=_temperatures(options.get("temperature", "1")),
        plan=Plan(
            crop=read_whole(options, "crop", 0 if folder is None else 7, least=0),
            device=_device(options),
            memory=weigh,
            window=read_whole(options, "window", 50, least=1),
        ),
        pictures=read_whole(options, "pictures", 3, least=0),
        zooms=_zooms(options.get("zooms", "2")),
        threads=read_whole(options, "threads", 1, least=1) if "threads" in options else None,
        out=None if folder is None else Path(folder).expanduser(),
        picture=options.get("out") if folder is None else None,
        overwrite=read_choice(options, "overwrite", ("false", "true")) == "true",
        progress=cast(Style, read_choice(options, "progress", STYLES)),
    )


def _check_what(options: dict[str, str]) -> bool:
    """Whether a person's own two pictures are meant.

    Raises:
        ValueError: nothing is named to reconstruct, or two things; a key that belongs elsewhere.
    """
    named = [key for key in ("target", "data", "frames") if key in options]
    if len(named) != 1 or ("target" in options) != ("reference" in options):
        raise ValueError(f"give target= and reference=, or data=davis, or frames=<folder>; one of them\n\n{USAGE}")
    if options.get("data", "davis") != "davis":
        raise ValueError(f"data={options['data']}: davis is the only data set with pairs of frames; or frames=<folder>")
    if "data" not in options:
        wrong = next((key for key in _BELONG_TO_DAVIS if key in options), None)
        if wrong:
            raise ValueError(f"{wrong}= belongs to data=davis")
    if "target" in options and ("distance" in options or "pairs" in options):
        raise ValueError("distance= and pairs= belong to data=davis and frames=<folder>")
    return "target" in options


def _path(options: dict[str, str], key: str) -> Path | None:
    return Path(options[key]).expanduser() if key in options else None


def _methods(options: dict[str, str], default: str, schema: Sequence[str]) -> tuple[Method, ...]:
    settings = Settings(
        patch_size=read_whole(options, "patch_size", 7, least=1),
        iterations=read_whole(options, "iterations", 10, least=0),
        stride=read_whole(options, "stride", 1, least=1) if "stride" in options else None,
        window=read_whole(options, "window", 50, least=1),
        seed=read_whole(options, "seed", 0, least=0),
    )
    names = options.get("methods", "" if "attention" in options else default)
    methods = [method_named(name.strip(), settings) for name in names.split(",") if name.strip()]
    if "attention" in options:
        given = {key: value for key, value in options.items() if key in schema}
        methods.append(method_of_backend(options["attention"], given, settings))
    twice = next(
        (method.name for i, method in enumerate(methods) if method.name in [m.name for m in methods[:i]]), None
    )
    if not methods or twice:
        raise ValueError(f"methods={names}: {f'{twice} is given twice' if twice else 'name one method or more'}")
    return tuple(methods)


def _sides(text: str) -> tuple[int | None, ...]:
    if text == "native":
        return (None,)
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4})*", text):
        raise ValueError(f"sizes={text}: give whole numbers with commas between, as in 256,128, or native")
    return tuple(dict.fromkeys(map(int, text.split(","))))


def _temperatures(text: str) -> tuple[float, ...]:
    found = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"temperature={text}: give numbers above 0 with commas between, as in 1 or 1,0.3,0.1")
        found.append(value)
    return tuple(dict.fromkeys(found))


def _zooms(text: str) -> int | Places:
    if re.fullmatch(r"\d", text):
        return int(text)
    share = r"(?:0|1|[01]?\.\d+|[01]\.0*)"
    if not re.fullmatch(rf"{share},{share},{share}(;{share},{share},{share})*", text):
        raise ValueError(
            f"zooms={text}: give a number from 0 to 9, or top,left,side as shares: 0.2,0.3,0.15;0.6,0.5,0.1"
        )
    places = [tuple(map(float, one.split(","))) for one in text.split(";")]
    return tuple((top, left, side) for top, left, side in places)


def _device(options: dict[str, str]) -> str:
    chosen = read_choice(options, "device", ("auto", "cpu", "cuda"))
    there = torch.cuda.is_available()
    if chosen == "cuda" and not there:
        raise ValueError("device=cuda: there is no CUDA device here; choose cpu or auto")
    return "cuda" if there and chosen != "cpu" else "cpu"


class Sizes(NamedTuple):
    """Of the pictures of a pair as they are."""

    queries: Size
    keys: Size


def check_methods(request: Request, native: Sizes | None) -> None:
    """Raise ValueError, all reasons together, where a method cannot serve a size or a margin leaves nothing.

    Args:
        native: sizes of the pictures, for sizes=native; None leaves that unchecked.
    """
    reasons: list[str] = []
    for side in request.sides:
        sizes = native if side is None else Sizes(Size(side, side), Size(side, side))
        if sizes is not None:
            check_margin(sizes.queries, request.plan.crop)
            meant = [m for m in request.methods if not m.sizes or side in m.sizes]
            reasons += refusals(meant, keys=sizes.keys, queries=sizes.queries)
    if reasons:
        raise ValueError("\n".join(dict.fromkeys(reasons)))
