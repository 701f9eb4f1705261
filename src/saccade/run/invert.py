"""`scripts/invert.py`: the latent vectors behind images, found through a GAN's attention (arXiv 1911.12287).

Facts and constants of the methods are in `saccade.inversion`.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from saccade.inversion import METHODS, NORMALISERS, Inversion, Method, Normaliser, invert, method_named
from saccade.inversion.losses import Discriminator, make_target
from saccade.inversion.samples import held
from saccade.run.arguments import read_choice, read_options, read_whole, run_command
from saccade.run.invert_inputs import SELF, Networks, Request, Targets, find_targets, load_networks
from saccade.run.load import WEIGHTS, Weights

USAGE = f"""usage: python scripts/invert.py checkpoint=<run folder> images=<file|folder|self:8> [label=<class>]
                                [method=all|<names>] [count=8] [seeds=] [steps=] [lr=] [patience=] [head=] [normaliser=]
                                [noise=0] [points=<row>,<col>;...] [seed=0] [device=auto|cpu|cuda]
                                [weights=last|best] [out=<folder>]

checkpoint=  folder of a trained GAN, or of shipped weights with their discriminator
images=      a picture, a folder of pictures (the largest centred square is taken), or self:8, eight of the generator's
             own samples, whose latent vectors are known
label=       the class to generate, by number or name; several with commas, one an image [needed for pictures if the GAN
             has classes; self: the classes in turn]
method=      {", ".join(METHODS)}; several with commas, or all [paper]
count=       pictures of a folder, the first by name [8]
seeds=       starts of an image [as the method: {", ".join(f"{name} {m.seeds}" for name, m in METHODS.items())}]
steps=       of the optimiser [as the method: {", ".join(f"{name} {m.steps}" for name, m in METHODS.items())}]
lr=          of Adam [as the method: {", ".join(f"{name} {m.lr}" for name, m in METHODS.items())}]
patience=    steps without a fall of the loss by 1 % after which a start stops; 0 never [as the method: 200, released 0]
head=        heads of the discriminator's saliency: all, or numbers with commas [paper all, released 0,1,2,3]
normaliser=  of the saliency: {", ".join(NORMALISERS)} [paper queries, released attending, pictures attending]
noise=       standard deviation of noise on the images, whose values run from -1 to 1 [0; the released option has 0.2]
points=      places whose attention in the generator is drawn, as shares of height and width [0,0;0.5,0.5;0.75,0.3]
seed=        of starts, samples and noise [0]
device=      cuda where there is one [auto]
weights=     of the run's last checkpoint, or of its best by the run's own score [last]
out=         a new folder [<images>-inversion]: inversion.png, originals beside inversions; saliency-discriminator.png
             and saliency-generator.png, what each head finds salient; queries/, where single points of an image look;
             images/, every picture by itself; inversion.json, losses, errors, latent vectors and settings
"""
_REQUIRED = ("checkpoint", "images")
_OPTIONAL = (
    "label", "method", "count", "seeds", "steps", "lr", "patience", "head", "normaliser", "noise", "points", "seed",
    "device", "weights", "out",
)  # fmt: skip
_POINTS = "0,0;0.5,0.5;0.75,0.3"  # ours; the paper shows the corner and two on its objects
_SAY_EVERY = 10.0  # seconds from one line of progress to the next


def parse(arguments: Sequence[str]) -> Request:
    """Read key=value arguments.

    Raises:
        ValueError: an argument that is not key=value, an unknown, repeated or missing key, or a wrong value.
    """
    options = read_options(arguments, required=_REQUIRED, optional=_OPTIONAL, usage=USAGE)
    images = options["images"]
    if images.startswith("self") and not Path(images).exists() and not SELF.fullmatch(images):
        raise ValueError(f"images={images}: the generator's own samples are self:<how many>, as in self:8")
    stem = images.replace(":", "-") if images.startswith("self:") else Path(images).stem
    return Request(
        checkpoint=Path(options["checkpoint"]).expanduser(),
        images=images,
        label=options.get("label"),
        methods=_methods(options),
        heads_chosen="head" in options,
        normaliser=cast("Normaliser | None", options.get("normaliser")),
        count=read_whole(options, "count", 8, least=1),
        noise=_number(options, "noise", least=0.0) or 0.0,
        points=_points(options.get("points", _POINTS)),
        seed=read_whole(options, "seed", 0, least=0),
        device=read_choice(options, "device", ("auto", "cpu", "cuda")),
        weights=cast(Weights, read_choice(options, "weights", WEIGHTS)),
        out=Path(options.get("out", f"{stem}-inversion")).expanduser(),
    )


def _methods(options: dict[str, str]) -> tuple[Method, ...]:
    asked = options.get("method", "paper")
    names = list(METHODS) if asked == "all" else list(dict.fromkeys(asked.split(",")))
    head = options.get("head")
    changes: dict[str, Any] = {
        "normaliser": options.get("normaliser"),
        "lr": _number(options, "lr", least=0.0),
        **{key: read_whole(options, key, 0, least=0) for key in ("seeds", "steps", "patience") if key in options},
    }
    if head is not None and head != "all":
        if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", head):
            raise ValueError(f"head={head}: give all, or numbers with commas between, as in 0,2,7")
        changes["heads"] = tuple(int(one) for one in head.split(","))
    if options.get("normaliser", "queries") not in NORMALISERS:
        raise ValueError(f"normaliser={options['normaliser']}: choose {', '.join(NORMALISERS)}")
    methods = [method_named(name).but(**changes) for name in names]
    if head == "all":
        methods = [Method(**{**vars(method), "heads": None}) for method in methods]
    return tuple(methods)


def _number(options: dict[str, str], key: str, *, least: float) -> float | None:
    if key not in options:
        return None
    try:
        value = float(options[key])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{key}={options[key]}: give a number of {least:g} or more")
    return value


def _points(text: str) -> tuple[tuple[float, float], ...]:
    share = r"(?:0|1|0?\.\d+|1\.0+|0\.0+)"
    if not re.fullmatch(rf"{share},{share}(;{share},{share})*", text):
        raise ValueError(f"points={text}: give row,col as shares of the image's sides from 0 to 1, as in 0.5,0.5;0,0")
    pairs = (one.split(",") for one in text.split(";"))
    return tuple((float(row), float(col)) for row, col in pairs)


# ---------------------------------------------------------------------- the inversions


@dataclass(frozen=True)
class Found:
    """What each method made of the images, how long it took in seconds, and why others could not run."""

    inversions: tuple[Inversion, ...]
    seconds: tuple[float, ...]
    left_out: tuple[tuple[str, str], ...]


def choose_methods(request: Request, networks: Networks, targets: Targets) -> tuple[list[Method], dict[str, str]]:
    """The methods that these networks can serve; of several, the others are left out, with the reason.

    Raises:
        ValueError: heads asked for that the discriminator's layer does not have, or the only method has such heads.
        RuntimeError: no method can be served.
    """
    can: list[Method] = []
    left_out: dict[str, str] = {}
    mendable = RuntimeError if request.heads_chosen else (RuntimeError, ValueError)
    with held(networks.generator, networks.discriminator):
        for method in request.methods:
            try:
                make_target(targets.images[:1], cast("Discriminator | None", networks.discriminator), method)
            except mendable as error:
                if len(request.methods) == 1:
                    raise
                left_out[method.name] = str(error)
            else:
                can.append(method)
    if not can:
        raise RuntimeError("\n".join(left_out.values()))
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    return can, left_out


def run_methods(request: Request, networks: Networks, targets: Targets) -> Found:
    """Invert by each method in turn.

    Raises:
        ValueError: heads that are not there.
        RuntimeError: the networks serve no method asked for, or an image has no finite loss.
    """
    methods, left_out = choose_methods(request, networks, targets)
    inversions: list[Inversion] = []
    seconds: list[float] = []
    for method in methods:
        started = time.monotonic()
        found = invert(
            networks.generator,
            networks.discriminator,
            targets.images,
            targets.labels,
            method,
            seed=request.seed,
            progress=_progress(method, len(targets.images)),
        )
        inversions.append(found)
        seconds.append(time.monotonic() - started)
    return Found(tuple(inversions), tuple(seconds), tuple(left_out.items()))


def _progress(method: Method, count: int) -> Callable[[int, int, int, float], None]:
    said = time.monotonic()

    def say(done: int, step: int, running: int, loss: float) -> None:
        nonlocal said
        if time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            where = f"from image {done + 1} of {count}, " if done else ""
            print(
                f"{method.name}: {where}step {step} of {method.steps}, {running} starts running, best loss {loss:.4g}",
                file=sys.stderr,
                flush=True,
            )

    return say


def run(request: Request) -> tuple[Path, Found]:
    """Load, invert, and write the folder.

    Raises:
        ValueError: no run folder, wrong images, labels or heads, or a folder that exists; all before the search.
        RuntimeError: the run cannot be loaded here, or its networks serve no method asked for.
    """
    from saccade.run.invert_pictures import write_all

    if request.out.exists():
        raise ValueError(f"out={request.out} exists already; name a new folder")
    if request.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: there is no CUDA device here; choose cpu or auto")
    use_cuda = request.device == "cuda" or (request.device == "auto" and torch.cuda.is_available())
    networks = load_networks(request, torch.device("cuda" if use_cuda else "cpu"))
    targets = find_targets(request, networks)
    found = run_methods(request, networks, targets)
    return write_all(request, networks, targets, found), found


def _work(arguments: Sequence[str]) -> list[str]:
    out, found = run(parse(arguments))
    lines = []
    for inversion, seconds in zip(found.inversions, found.seconds, strict=True):
        ratio = inversion.pixel_ratio()
        share = f"{float(ratio.median()):.1%} of the start's (median of {len(ratio)})"
        lines.append(f"{inversion.method.name}: pixel error {share}, {seconds:.0f} s")
    return [*lines, f"written to {out}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/invert.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)
