"""`scripts/draw_curves.py`: scores of one or several runs against steps, as Fig. 4 of "Your Local GAN"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from saccade.pictures.curves import Curve, Panel, draw_curves
from saccade.run.arguments import read_choice, read_options, run_command
from saccade.run.folder import RunFolder
from saccade.run.metric_words import is_spread, words
from saccade.run.run_record import Curves, read_curves

USAGE = """usage: python scripts/draw_curves.py runs=<folder>[,<folder>...] [metric=<name>[,<name>...]] [out=curves.png]
                                     [x=steps|images] [labels=<label>[,<label>...]]

runs=    run folders, finished or not: their metrics/eval.csv is drawn, all runs in one chart
metric=  names of metrics, or how exactly one begins: a panel each. Without it: the Frechet distances and the Inception
         score that all runs have
out=     PNG to write [curves.png]
x=       steps (updates of the generator: images seen over the images of a step, all ranks together), or images [steps]
labels=  of the runs, in order [their attention, or their folder's name where that does not tell them apart]
"""
_UNITS = ("steps", "images")
_DRAWN = re.compile(r"(?!.*_ratio_to_start)(fid_|frechet_|is_(?!.*_10splits)(?!.*_bias_))")


@dataclass(frozen=True)
class Scored:
    """A run with its evaluation curves, and the images of a step."""

    folder: Path
    config: DictConfig
    curves: Curves
    step_images: int | None


def read_scored(folder: Path) -> Scored:
    """A run folder's evaluation.

    Raises:
        ValueError: no run folder, or it holds no evaluation yet.
    """
    config = RunFolder(folder).read_config()
    file = folder / "metrics" / "eval.csv"
    curves = read_curves(file)
    if not curves:
        raise ValueError(f"curves: {file} holds no evaluation yet; one is written every budget.eval_every images")
    return Scored(folder, config, curves, _step_images(config))


def _step_images(config: DictConfig) -> int | None:
    batch = OmegaConf.select(config, "data.module.batch_size")
    devices, nodes = (OmegaConf.select(config, f"runtime.{key}") for key in ("devices", "num_nodes"))
    if not isinstance(batch, int):
        return None
    return batch * max(1, int(devices or 1)) * max(1, int(nodes or 1))


def find_metric(asked: str, runs: Sequence[Scored]) -> str:
    """The one metric that every run has under this name or beginning.

    Raises:
        ValueError: a run lacks it, or it is the beginning of several; the message lists what there is.
    """
    common = [name for name in runs[0].curves if all(name in run.curves for run in runs)]
    if asked in common:
        return asked
    hits = [name for name in common if name.startswith(asked) or name.rsplit("/", 1)[-1].startswith(asked)]
    hits = [name for name in hits if not is_spread(name)] or hits
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise ValueError(f"curves: metric={asked} is the beginning of several: {', '.join(hits)}")
    for run in runs:
        if not any(name.startswith(asked) or name.rsplit("/", 1)[-1].startswith(asked) for name in run.curves):
            raise ValueError(f"curves: {run.folder} has no metric {asked}; it has {', '.join(run.curves)}")
    raise ValueError(
        f"curves: the runs have no metric {asked} in common, and other protocols cannot share a chart; in common: "
        f"{', '.join(common) or 'nothing'}"
    )


def default_metrics(runs: Sequence[Scored]) -> list[str]:
    """Frechet distances and the Inception score that all runs have.

    Raises:
        ValueError: there is none.
    """
    common = [name for name in runs[0].curves if all(name in run.curves for run in runs)]
    found = [name for name in common if _DRAWN.match(name.rsplit("/", 1)[-1])]
    if not found:
        raise ValueError(
            f"curves: the runs have no Frechet distance and no Inception score in common; choose with metric=: "
            f"{', '.join(common) or 'they have no metric in common'}"
        )
    return found


def labels_of(runs: Sequence[Scored], given: Sequence[str] | None) -> list[str]:
    """One label a run.

    Raises:
        ValueError: another number of labels than of runs, or two alike.
    """
    if given is not None:
        if len(given) != len(runs) or len(set(given)) != len(given):
            raise ValueError(f"curves: {len(runs)} runs need as many different labels; got {', '.join(given)}")
        return list(given)
    by_attention = [str(OmegaConf.select(run.config, "attention.name")) for run in runs]
    return by_attention if len(set(by_attention)) == len(runs) else [str(run.folder) for run in runs]


def draw(
    folders: Sequence[Path],
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    x: str = "steps",
    labels: Sequence[str] | None = None,
) -> list[Panel]:
    """Draw the runs' scores into a PNG and return what was drawn.

    Raises:
        ValueError: a run without evaluation, a metric that the runs do not share, or an unknown `x`.
    """
    if x not in _UNITS:
        raise ValueError(f"curves: x={x} is unknown; valid: {', '.join(_UNITS)}")
    runs = [read_scored(folder) for folder in folders]
    names = default_metrics(runs) if metrics is None else [find_metric(name, runs) for name in metrics]
    step_images = [run.step_images for run in runs]
    if x == "steps" and None in step_images:
        raise ValueError(f"curves: {runs[step_images.index(None)].folder} does not tell its batch size; use x=images")
    panels = []
    for name in dict.fromkeys(names):
        told = words(name)
        curves = []
        for run, label in zip(runs, labels_of(runs, labels), strict=True):
            xs, ys = run.curves[name]
            scale = (run.step_images or 1) if x == "steps" else 1
            curves.append(Curve(label, [seen / scale for seen in xs], ys))
        panels.append(Panel(name, told.what, told.better, curves))
    sizes = sorted({size for size in step_images if size})
    of = f"steps of {sizes[0]} images" if len(sizes) == 1 else f"steps (of {' or '.join(map(str, sizes))} images)"
    draw_curves(out, panels, x_label=of if x == "steps" else "images seen")
    return panels


def _work(arguments: Sequence[str]) -> list[str]:
    options = read_options(arguments, required=("runs",), optional=("metric", "out", "x", "labels"), usage=USAGE)
    unit = read_choice(options, "x", _UNITS)
    out = Path(options.get("out", "curves.png"))
    if out.suffix.lower() != ".png":
        raise ValueError(f"curves: out must end in .png; got {out}, nearest: {out.with_suffix('.png')}")
    panels = draw(
        [Path(folder).expanduser() for folder in options["runs"].split(",")],
        out,
        metrics=_list(options, "metric"),
        x=unit,
        labels=_list(options, "labels"),
    )
    lines = [
        f"{panel.metric}  {curve.label}: {_summary(panel, curve, unit)}" for panel in panels for curve in panel.curves
    ]
    return [*lines, f"wrote {out}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/draw_curves.py; returns the exit code."""
    return run_command(arguments, USAGE, _work)


def _summary(panel: Panel, curve: Curve, unit: str) -> str:
    last = f"{curve.ys[-1]:.4g} at {curve.xs[-1]:,.0f} {unit}"
    best = curve.best(panel.better) if panel.better else None
    return last if best is None else f"best {best[1]:.4g} at {best[0]:,.0f} {unit}, last {last}"


def _list(options: Mapping[str, str], key: str) -> list[str] | None:
    return options[key].split(",") if key in options else None
