"""Families of cells: what `--suites` names. Each says which comparison it serves and where its settings come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attention_bench.cells import COUNT, RUN, Case, Cell

Line = tuple[str, str, dict[str, Any]]  # label, backend, options

# PSAL's Table 1 (arXiv 2202.03163): 7x7 patches, 16 channels, squares of these sides.
TABLE1_SIDES = (64, 128, 256, 512)
TABLE1_PATCH, TABLE1_CHANNELS = 7, 16
PIXEL_SIDES, PIXEL_CHANNELS = (32, 64, 128, 256), 64

# The two approximate levels of GPA's pivot model, GPA1024_12_64, at 256x256 (Table 2 of arXiv 2107.03742):
# side, channels, pooling factor.
GPA_LEVELS = ((128, 320, 2), (256, 160, 4))


@dataclass(frozen=True)
class Wish:
    """What the command line may change in a suite; None leaves the suite's own choice."""

    sides: Sequence[int] | None = None
    channels: int | None = None
    patch_size: int | None = None
    modes: Sequence[str] | None = None
    inputs: Sequence[str] | None = None
    scores: Sequence[str] | None = None
    quick: bool = False

    def pick(self, own: Sequence[int], quick: Sequence[int]) -> Sequence[int]:
        return self.sides or (quick if self.quick else own)


def gpa(wish: Wish) -> Iterator[Cell]:
    """GPA against the released layer's cost and exact attention, one head, noise, both scores."""
    levels = ((16, 8, 2), (32, 8, 4)) if wish.quick else GPA_LEVELS
    cells, kappa = ((4, 4), 3) if wish.quick else ((32, 32), 12)
    for side, channels, factor in levels:
        if side not in wish.pick([side], [side]):
            continue
        case = Case.square(side, wish.channels or channels, "noise")
        coarse = (side // factor, side // factor)
        for score in wish.scores or ("dot", "l2"):
            grid = {"coarse": coarse, "cells": cells, "keys_per_cell": kappa, "score": score}
            for mode in wish.modes or ("forward", "forward+backward"):
                slow = mode != "forward" and side > 64
                yield Cell("gpa", "gpa", "gpa", grid, case, mode)
                yield Cell("gpa", "released-gpa", "released-gpa", grid, case, mode)
                yield Cell("gpa", "full", "full", {"score": score}, case, mode, heavy=slow)


def patch_lines(side: int, patch: int, scale: float | None, *, window: int, landmarks: int) -> list[Line]:
    """Every backend that compares patches, at one temperature: scale 1 is PSAL's T = 1, None 1 / sqrt(C p p)."""
    soft: dict[str, Any] = {"scale": scale, "patch_size": patch}
    coarse = max(2, min(64, side // 2))
    grid = {"coarse": coarse, "cells": max(1, coarse // 2), "keys_per_cell": 12}
    matching = {"patch_size": patch, "scale": 1.0 if scale is None else scale, "seed": 0}
    return [
        ("full", "full", {"score": "l2", **soft}),
        ("gpa", "gpa", {**grid, "score": "l2", **soft}),
        ("local", "local", {"window": window, "score": "l2", **soft}),
        ("linear", "linear", {"patch_size": patch}),
        ("performer", "performer", {"score": "l2", **soft}),
        ("reformer", "reformer", {**soft, "seed": 0}),
        ("nystromformer", "nystromformer", {"landmarks": landmarks, "score": "l2", **soft}),
        ("psal-3", "psal", {"matches": 3, "iterations": 5, **matching}),
        ("psal-aggregate", "psal", {"matches": 1, "iterations": 5, "readout": "aggregate", **matching}),
    ]


# The largest side at which a line is run on a CPU without --heavy, forward and with backward: seconds, not minutes.
LAYER_LIMITS = {
    "full": (128, 64),
    "gpa": (256, 256),
    "local": (256, 128),
    "performer": (256, 128),
    "reformer": (256, 128),
    "nystromformer": (512, 256),
}
PIXEL_LIMITS = {"full": (128, 128), "peer-sdpa": (128, 128), "peer-nystrom": (256, 128), "peer-reformer": (128, 64)}
PIXEL_LIMITS |= {"peer-natten": (64, 0)}  # all pairs on a CPU, and no backward pass
# Both cores of a small machine, as a user would run it; a call above so many seconds is timed once, cold.
SHARED: dict[str, Any] = {"threads": 2, "cell_seconds": 6.0}


def _heavy(limits: dict[str, tuple[int, int]], label: str, mode: str, side: int) -> bool:
    return side > limits.get(label, (512, 512))[mode != "forward"]


def layers(wish: Wish) -> Iterator[Cell]:
    """PSAL's Table 1 setting: 7x7 patches, 16 channels, T = 1, time, products and error on features of a photograph."""
    patch, channels = wish.patch_size or TABLE1_PATCH, wish.channels or TABLE1_CHANNELS
    if wish.quick:
        patch, channels = wish.patch_size or 3, wish.channels or 4
    for inputs in wish.inputs or ("photograph-raw", "noise"):
        for side in wish.pick(TABLE1_SIDES if inputs != "noise" else TABLE1_SIDES[:1], (16,)):
            case = Case.square(side, channels, inputs)
            lines = patch_lines(side, patch, 1.0, window=min(50, side), landmarks=min(256, side * side // 4))
            for mode in wish.modes or (("forward",) if inputs == "noise" else ("forward", "forward+backward")):
                for label, backend, options in lines:
                    measures = ("error",) if inputs == "noise" else ("time", "memory", "flops")
                    if mode == "forward" and side <= 256 and inputs != "noise":
                        measures += ("error",)
                    heavy = _heavy(LAYER_LIMITS, label, mode, side)
                    yield Cell("layers", label, backend, options, case, mode, measures=measures, heavy=heavy, **SHARED)


def pixels(wish: Wish) -> Iterator[Cell]:
    """Attention as in a transformer: pixels, 64 channels, scale 1 / sqrt(channels), dot scores, and the peers."""
    channels, patch = wish.channels or (8 if wish.quick else PIXEL_CHANNELS), wish.patch_size or 1
    for inputs in wish.inputs or ("photograph", "noise"):
        for side in wish.pick(PIXEL_SIDES if inputs != "noise" else (64,), (16,)):
            case = Case.square(side, channels, inputs)
            landmarks = min(256, side * side // 4)
            lines = patch_lines(side, patch, None, window=min(15, side), landmarks=landmarks)
            lines = [(label, backend, _dotted(backend, options, channels)) for label, backend, options in lines]
            lines = [line for line in lines if line[0] != "psal-aggregate"]
            if patch == 1:
                lines.append(("ylg", "ylg", {"heads": 8, "scale": (channels / 8) ** -0.5}))
            peers: list[Line] = [
                ("peer-sdpa", "peer-sdpa", {"patch_size": patch}),
                ("peer-performer", "peer-performer", {"patch_size": patch}),
                ("peer-reformer", "peer-reformer", {"patch_size": patch}),
                ("peer-nystrom", "peer-nystrom", {"landmarks": landmarks, "patch_size": patch}),
                ("peer-local", "peer-local", {"window": min(15, side), "patch_size": patch}),
                ("peer-natten", "peer-natten", {"window": min(15, side), "patch_size": patch}),
            ]
            for mode in wish.modes or (("forward",) if inputs == "noise" else ("forward", "forward+backward")):
                for label, backend, options in lines + ([] if inputs == "noise" else peers):
                    measures = ("error",) if inputs == "noise" else ("time", "memory", "flops")
                    if mode == "forward" and inputs != "noise" and label not in ("peer-reformer", "peer-local"):
                        measures += ("error",)
                    heavy = _heavy(PIXEL_LIMITS, label, mode, side)
                    yield Cell("pixels", label, backend, options, case, mode, measures=measures, heavy=heavy, **SHARED)


def _dotted(backend: str, options: dict[str, Any], channels: int) -> dict[str, Any]:
    """The options with the dot score where one can choose; PSAL's search compares by distance, scaled alike."""
    if backend == "psal":
        return {**options, "scale": (channels * options["patch_size"] ** 2) ** -0.5}
    return {**options, "score": "dot"} if "score" in options else options


def ratios(wish: Wish) -> Iterator[Cell]:
    """Forms that are computed really sparsely, or never unrolled, against the forms that papers write down."""
    # YLG: one class of the published networks has 8 heads of 4 channels for q and k, 16 for v (arXiv 1911.12287).
    grids = ((32, 16, 4), (64, 32, 2), (128, 64, 1)) if not wish.quick else ((16, 8, 1),)
    for q_side, k_side, batch in grids:
        case = Case((q_side, q_side), (k_side, k_side), 32, 128, batch)
        for label, kernel in (("ylg", "auto"), ("ylg-masked-dense", "reference")):
            yield Cell("ratios", label, "ylg", {"heads": 8, "kernel": kernel}, case, "forward")
    patch, channels = (3, 4) if wish.quick else (TABLE1_PATCH, TABLE1_CHANNELS)
    window = 6 if wish.quick else 50
    for side in (16,) if wish.quick else (64, 128, 256):
        case = Case.square(side, channels, "photograph-raw")
        for label in ("linear", "unfolded-linear"):
            yield Cell("ratios", label, label, {"patch_size": patch}, case, "forward")
    side = 12 if wish.quick else 64
    case = Case.square(side, channels, "photograph-raw")
    options = {"window": window // 2, "patch_size": patch, "scale": 1.0}  # half Table 1's: the unrolled form is slow
    yield Cell("ratios", "local", "local", {**options, "score": "l2"}, case, "forward")
    yield Cell("ratios", "unfolded-local", "unfolded-local", options, case, "forward")
    yield from psal_searches(wish, patch, channels)


# The paper's search (N = 5 rounds of jumps) and ours: serial sweeps, and a start from an exact search on pooled maps.
SEARCHES: dict[str, dict[str, Any]] = {
    "psal-jump": {"search": "jump", "iterations": 5},
    "psal-sweep": {"search": "sweep", "iterations": 4},
    "psal-coarse-4": {"search": "sweep", "iterations": 3, "coarse_start": 4},
    "psal-coarse-8": {"search": "sweep", "iterations": 2, "coarse_start": 8},
}


def psal_searches(wish: Wish, patch: int, channels: int) -> Iterator[Cell]:
    """One match by each search on two threads, with the mean cost of what it found."""
    for side in (16,) if wish.quick else (256, 512):
        case = Case.square(side, channels, "photograph-raw")
        for label, search in SEARCHES.items():
            options = {"matches": 1, "patch_size": patch, "seed": 0, **search}
            yield Cell(
                *("ratios", label, "psal", options, case, "forward"),
                threads=1 if wish.quick else 2,
                measures=("time", "memory", "match"),
                cell_seconds=40.0,
            )


# The largest side at which a line is weighed on a CPU without --heavy.
MEMORY_LIMITS = {"full": 128, "local": 256, "performer": 256, "reformer": 256}


def memory(wish: Wish) -> Iterator[Cell]:
    """Peak memory alone, forward and backward: PSAL's Table 1, and the memory axis of GPA's Figure 5."""
    patch, channels = (3, 4) if wish.quick else (TABLE1_PATCH, TABLE1_CHANNELS)
    for side in wish.pick(TABLE1_SIDES, (16,)):
        case = Case.square(side, channels, "photograph-raw")
        lines = patch_lines(side, patch, 1.0, window=min(50, side), landmarks=min(256, side * side // 4))
        materialised = {"score": "l2", "scale": 1.0, "patch_size": patch, "kernel": "reference"}
        lines.insert(1, ("full-materialised", "full", materialised))
        for label, backend, options in lines:
            if label == "full" and side > 256:
                continue  # half an hour
            how, slow = _how(label, side), side > MEMORY_LIMITS.get(label, 512)
            mode = "forward+backward"
            yield Cell(
                "memory", label, backend, options, case, mode, measures=("memory",), how=how, heavy=slow, threads=2
            )
        if side == 256 or wish.quick:
            yield Cell("memory", *lines[0], case, "forward", measures=("memory",), threads=2)
    yield from figure5(wish)


def _how(label: str, side: int) -> str:
    """Run what takes seconds, or looks at values; count the rest, exact but for temporaries inside operators."""
    limits = {"full-materialised": 0, "performer": 64}
    return RUN if side <= limits.get(label, 512) else COUNT


FIGURE5: dict[str, dict[str, Any]] = {
    "NO": {"mixer": "none", "exact_up_to": 64},
    "GPA1024_12_32": {"mixer": "gpa", "with": {"coarse": 32}, "exact_up_to": 32},
    "GPA1024_12_64": {"mixer": "gpa", "with": {"coarse": 64}, "exact_up_to": 64},
    "GPA1024_12_128": {"mixer": "gpa", "with": {"coarse": 128}, "exact_up_to": 128},
    **{
        f"NYF {rank}": {"mixer": "nystromformer", "with": {"landmarks": rank}, "exact_up_to": 64} for rank in (512, 768)
    },
    **{f"PER {rank}": {"mixer": "performer", "with": {"features": rank}, "exact_up_to": 64} for rank in (512, 768)},
    "full": {"mixer": "full", "exact_up_to": 64},
    "full, as stored by the paper": {
        "mixer": "full",
        "with": {"kernel": "reference"},
        "exact": {"kernel": "reference"},
        "exact_up_to": 64,
    },
}


def figure5(wish: Wish) -> Iterator[Cell]:
    """The six attention levels of GPA's network under each filling; exact attention at 256x256 would take minutes."""
    for label, options in FIGURE5.items():
        if wish.quick and label not in ("NO", "GPA1024_12_64", "full"):
            continue
        how = COUNT if label.startswith("full") else RUN
        changed = {**options, "levels": [(8, 16), (128, 8)]} if wish.quick else options
        case = Case.square(8, 8, "noise")  # a placeholder: the levels make their own inputs
        yield Cell(
            "memory", label, "levels", changed, case, "forward+backward", measures=("memory",), how=how, threads=2
        )


SUITES: dict[str, Callable[[Wish], Iterator[Cell]]] = {
    "gpa": gpa,
    "layers": layers,
    "pixels": pixels,
    "ratios": ratios,
    "memory": memory,
}
