"""report.html of a run: one file with everything in it, to be opened, mailed or printed."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from saccade.files import write_text
from saccade.pictures.charts import line_chart
from saccade.run.metric_words import (
    BASELINES,
    Baseline,
    baseline_of,
    is_baseline,
    is_random,
    is_ratio_to_start,
    is_spread,
    without_baseline,
    words,
)
from saccade.run.report_leads import leads
from saccade.run.report_parts import DASH, TIMES, card, duration, embedded, number, section, table
from saccade.run.report_style import page
from saccade.run.run_record import Curves, RunRecord, read_run

_EARLIER = 3
_SERIES = 8
_LAYER = re.compile(r"_?(relu|conv|layer)\w*$")
_FAMILIES = {"FID": ("fid_tf",), "Inception score": ("is_",), "precision and recall": ("precision_k", "recall_k")}


def write_report(run_folder: Path, extra_runs: Sequence[Path] = ()) -> Path:
    """Write `<run folder>/report.html` from what the folder holds.

    Args:
        run_folder: of a run, finished or not.
        extra_runs: folders of shipped results (result.json beside pictures), shown in sections of their own.

    Returns:
        The path of the page.

    Raises:
        ValueError: a folder is no run folder, or a file in it cannot be read; it is named.
        OSError: the page cannot be written.
    """
    run = read_run(Path(run_folder))
    parts = [
        _header(run),
        _warnings(run.result),
        _cards(run.result),
        _samples(run, "What it makes"),
        _attention(run),
        _curves(run),
        _metrics(run.result),
        _memory(run.result),
        _ledger(run.result),
        _again(run),
        _settings(run),
        *(_shipped(read_run(Path(folder))) for folder in extra_runs),
        _footer(run.result),
    ]
    path = Path(run_folder) / "report.html"
    title = escape(str(run.result.get("name", Path(run_folder).name)))
    write_text(path, page(title, "\n".join(part for part in parts if part)))
    return path


# ---------------------------------------------------------------------- sections


def _header(run: RunRecord) -> str:
    result = run.result
    model, attention = result.get("model", "?"), result.get("attention", "?")
    facts = [
        f"task {result['task']}" if "task" in result else "",
        f"data {result['data']}" if "data" in result else "",
        f"budget {result['budget']}" if "budget" in result else "",
        f"{result['numerics']}" if "numerics" in result else "",
        f"seed {result['seed']}" if "seed" in result else "",
        f"signature {result['signature']}" if "signature" in result else "",
    ]
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    with_ = f"{model} with {attention} attention" if attention != "none" else f"{model}, attention=none"
    heading = escape(with_ if result else run.folder.name)
    return f'<header><div class="brand">Saccade</div><h1>{heading}</h1><p>{line}</p></header>'


def _warnings(result: Mapping[str, Any]) -> str:
    notices = [str(notice) for notice in result.get("warnings", [])]
    parts = []
    if notices:
        items = "".join(f"<li>{escape(notice)}</li>" for notice in notices)
        parts.append(
            f'<div class="banner"><strong>Not comparable with published numbers</strong><ul>{items}</ul></div>'
        )
    if result.get("nonfinite_steps"):
        parts.append(
            f'<div class="banner bad"><strong>{int(result["nonfinite_steps"])} training steps were not finite</strong>'
            "They were skipped.</div>"
        )
    if result.get("passed") is False:
        told = escape(str(result.get("failure") or "Its headline number ended above the bar that its budget sets."))
        parts.append(f'<div class="banner bad"><strong>This run failed its bar</strong>{told}</div>')
    if result.get("status") != "complete":
        parts.append('<div class="banner bad"><strong>This run is not finished</strong>What there is so far.</div>')
    return "\n".join(parts)


def _cards(result: Mapping[str, Any]) -> str:
    cards = []
    metrics, headline = result.get("metrics", {}), result.get("headline")
    if headline in metrics:
        value = metrics[headline]
        ratio = "ratio" in str(headline) and isinstance(value, float) and math.isfinite(value)
        shown = f"{value:.2f}{TIMES}" if ratio else number(value)
        cards.append(card(words(str(headline)).what or str(headline), shown, main=True))
    if "images_seen" in result:
        cards.append(card("images seen in training", number(int(result["images_seen"]))))
    if "seconds" in result:
        cards.append(card("training time", duration(float(result["seconds"]))))
    memory = result.get("memory") or {}
    train = memory.get("phases", {}).get("train")
    if train:
        cards.append(card("peak memory of a training step, MiB", number(float(train["peak_allocated_mib"]))))
    blocks = memory.get("attention_blocks") or {}
    if blocks.get("total_mib") is not None and "total_mib" in blocks:
        cards.append(card("the attention blocks alone, MiB (batch 1)", number(float(blocks["total_mib"]))))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _samples(run: RunRecord, title: str) -> str:
    content = "".join(_grids(name, paths) for name, paths in run.samples.items())
    if not content:
        return ""
    return section(title, leads(str(run.result.get("model"))).samples, content)


def _grids(name: str, paths: Sequence[Path]) -> str:
    """The newest grid of one kind of sample, and a few earlier ones folded away."""
    content = embedded(paths[-1], alt=f"samples, {name}")
    earlier = paths[:-1]
    if earlier:
        step = max(1, math.ceil(len(earlier) / _EARLIER))
        shown = "".join(embedded(path) for path in earlier[::step])
        content += f"<details><summary>Earlier in training</summary>{shown}</details>"
    return content


def _attention(run: RunRecord) -> str:
    if not run.attention:
        return ""
    pictures = "".join(
        embedded(path, alt=f"attention, slot {path.stem.removeprefix('attention-')}") for path in run.attention
    )
    lead = leads(str(run.result.get("model"))).attention
    return section("Where it looks", lead, f'<div class="two">{pictures}</div>')


def _charts_of(title: str, curves: Curves, marks: Mapping[str, float] | None = None) -> list[str]:
    """One chart for each eight series; none for series without a finite value."""
    alive = {n: line for n, line in curves.items() if any(math.isfinite(y) for y in line[1])}
    names = list(alive)
    groups = [names[start : start + _SERIES] for start in range(0, len(names), _SERIES)]
    return [line_chart(title, {name: alive[name] for name in group}, marks=marks) for group in groups]


def _short(curves: Curves) -> Curves:
    """Without the group in front, where that leaves the names different."""
    short = [name.rsplit("/", 1)[-1] for name in curves]
    return dict(zip(short if len(set(short)) == len(short) else curves, curves.values(), strict=True))


def _chart_family(name: str) -> str:
    """Evaluation metrics that share an axis: all L1, all ratios, all SSIM, ..., each of the others alone."""
    stem = name.rsplit("/", 1)[-1]
    group = name.rpartition("/")[0]
    if is_ratio_to_start(stem):
        return name
    for family, beginnings in _FAMILIES.items():
        if stem.startswith(beginnings):
            return family
    for family in ("ratio", "l1", "ssim", "lpips", "psnr"):
        if stem.startswith(family):
            return f"{group} {family}".strip()
    return name


def _curves(run: RunRecord) -> str:
    charts: list[str] = []
    families: dict[str, Curves] = {}
    for name, line in run.evaluation.items():
        if not is_baseline(name) and not is_spread(name):
            families.setdefault(_chart_family(name), {})[name] = line
    for family in sorted(families, key=lambda name: ("ratio" not in name, name)):
        curves = families[family]
        marks = {}
        for name in curves:
            baseline = baseline_of(name, run.evaluation)
            if baseline is not None:
                marks[f"{name.rsplit('/', 1)[-1]}, {baseline.what}"] = run.evaluation[name + baseline.suffix][1][-1]
        if is_ratio_to_start(family):
            marks["before training"] = 1.0
        elif "ratio" in family:
            marks[_compared(run.evaluation).what] = 1.0
        charts += _charts_of(f"held-out: {family.replace('/', ' ')}", _short(curves), marks)
    losses = {name: line for name, line in run.training.items() if name.startswith("loss/")}
    layers = {name: line for name, line in losses.items() if _LAYER.search(name)}
    charts += _charts_of("training losses", _short({n: line for n, line in losses.items() if n not in layers}))
    for prefix in dict.fromkeys(_LAYER.sub("", name) for name in layers):
        curves = {name: line for name, line in layers.items() if _LAYER.sub("", name) == prefix}
        charts += _charts_of(f"{prefix.rsplit('/', 1)[-1]} by layer", _short(curves))
    sigmas = {name: line for name, line in run.training.items() if name.startswith("sigma/")}
    charts += _charts_of("weight of each attention layer (sigma)", _short(sigmas))
    norms = {name: line for name, line in run.training.items() if name.startswith("gradient_norm/")}
    charts += _charts_of("gradient norms", _short(norms))
    if not charts:
        return ""
    lead = (
        "Against images seen. Training losses are those of single steps; held-out values are of the averaged network."
    )
    sheets = "".join(f'<div class="sheet">{chart}</div>' for chart in charts)
    return section("Curves", lead, f'<div class="two">{sheets}</div>')


def _compared(names: Collection[str]) -> Baseline:
    """What the metrics of a run are compared with; the source unchanged where they say nothing."""
    found = (baseline_of(name, names) for name in names)
    return next((baseline for baseline in found if baseline is not None), BASELINES[0])


def _metrics(result: Mapping[str, Any]) -> str:
    metrics: dict[str, Any] = result.get("metrics", {})
    rows = []
    paired = any(baseline_of(name, metrics) for name in metrics)
    compared = _compared(metrics)
    for name, value in metrics.items():
        if is_baseline(name) and without_baseline(name) in metrics:
            continue
        told = words(name)
        tag = ' <span class="tag">random features</span>' if is_random(name) else ""
        better = f" ({told.better} is better)" if told.better else ""
        row = [("name", escape(name) + tag), ("n", number(value))]
        if paired:
            row += _beside(value, metrics.get(name + compared.suffix), told.better)
        rows.append([*row, ("what", escape(told.what + better))])
    if not rows:
        return ""
    head = [("", "metric"), ("n", "value")]
    if paired:
        head += [("n", compared.what), ("n", "ratio")]
    lead = f"A name holds its protocol. “{compared.what.capitalize()}” is the same metric for {compared.told}."

    return section(
        "Metrics", lead if paired else "A name holds its protocol.", table([*head, ("", "what it is")], rows)
    )


def _beside(value: Any, baseline: Any, better: str) -> list[tuple[str, str]]:
    """The baseline and the ratio, green where the run beats it and red where not."""
    numbers = isinstance(value, (int, float)) and isinstance(baseline, (int, float)) and math.isfinite(baseline)
    if not numbers or baseline == 0:
        return [("n", number(baseline)), ("n", DASH)]
    ratio = value / baseline
    wins = {"lower": ratio < 1.0, "higher": ratio > 1.0}.get(better)
    kind = "n" if wins is None else f"n {'good' if wins else 'poor'}"
    return [("n", number(baseline)), (kind, f"{ratio:.3f}{TIMES}")]


def _memory(result: Mapping[str, Any]) -> str:
    memory = result.get("memory") or {}
    parts = []
    phases = memory.get("phases", {})
    if phases:
        rows = [
            [
                ("name", escape(name)),
                ("n", number(phase["peak_allocated_mib"])),
                ("n", number(phase["held_before_mib"])),
                ("n", number(phase.get("peak_reserved_mib"))),
                ("n", number(phase.get("steps"))),
            ]
            for name, phase in phases.items()
        ]
        names = ("peak allocated, MiB", "of it held before the step", "peak reserved", "steps measured")
        parts.append(table([("", "phase"), *(("n", name) for name in names)], rows))
    blocks = memory.get("attention_blocks") or {}
    if blocks.get("slots_mib"):
        rows = [[("name", escape(name)), ("n", number(value))] for name, value in blocks["slots_mib"].items()]
        rows.append([("name", "<b>all slots at once</b>"), ("n", f"<b>{number(blocks['total_mib'])}</b>")])
        parts.append("<h3>Attention blocks alone</h3>")
        parts.append(f'<p class="lead">{escape(str(blocks.get("protocol", "")))}</p>')
        parts.append(table([("", "slot"), ("n", "peak, MiB")], rows, narrow=True))
    if blocks.get("failed"):
        parts.append(f"<p>Attention blocks were not measured: {escape(str(blocks['failed']))}</p>")
    if not parts:
        return ""
    return section("Memory", f"Measured by: {escape(str(memory.get('method') or 'unknown'))}.", "\n".join(parts))


def _ledger(result: Mapping[str, Any]) -> str:
    entries = result.get("ledger", [])
    if not entries:
        return ""
    rows = []
    for entry in entries:
        skipped = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in entry.get("skipped", {}).items())
        rows.append(
            [
                ("name", escape(str(entry.get("op", "")))),
                ("name", escape(str(entry.get("kernel", "")))),
                ("name", escape(str(entry.get("asked", "")))),
                ("n", number(entry.get("calls"))),
                ("what", escape(skipped) or "none was preferred to it"),
            ]
        )
    head = [
        ("", "operation"),
        ("", "kernel that ran"),
        ("", "asked for"),
        ("n", "calls"),
        ("", "why not the faster ones"),
    ]
    return section("Which kernels ran", "", table(head, rows))


def command_of(result: Mapping[str, Any]) -> str:
    """The command line that starts this run again: as recorded, else from the names of its parts."""
    if result.get("command"):
        return str(result["command"])
    groups = ("model", "attention", "task", "data", "budget", "numerics")
    chosen = [f"{group}={result[group]}" for group in groups if group in result]
    return " ".join(["python train.py", *chosen, *([f"seed={result['seed']}"] if "seed" in result else [])])


def _from_here(folder: Path) -> Path:
    """The folder as one types it in the folder where the run was started."""
    resolved = folder.resolve()
    return resolved.relative_to(Path.cwd()) if resolved.is_relative_to(Path.cwd()) else resolved


def _again(run: RunRecord) -> str:
    if not run.result:
        return ""
    folder = _from_here(run.folder)
    own = [command.format(run=folder) for command in leads(str(run.result.get("model"))).commands]
    lines = [command_of(run.result), f"python evaluate.py run={folder}", *own]
    lead = "Train it again (a finished run is skipped; config.yaml holds it in full), evaluate it, try it on your own."
    return section("Run it again", lead, "<pre>" + escape("\n".join(lines)) + "</pre>")


def _settings(run: RunRecord) -> str:
    parts = []
    provenance = run.result.get("provenance") or {}
    machine = run.result.get("machine") or {}
    rows = [
        [("name", escape(str(key))), ("what", escape(_flat(value)))] for key, value in {**machine, **provenance}.items()
    ]
    if rows:
        listed = table([("", "what"), ("", "value")], rows)
        parts.append(f"<details><summary>Machine and weights</summary>{listed}</details>")
    if run.config:
        text = f"<details><summary>config.yaml</summary><pre>{escape(run.config)}</pre></details>"
        parts.append(text)
    return section("Set-up", "", "\n".join(parts)) if parts else ""


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_flat(item) for item in value) or "none"
    return number(value)


def _shipped(run: RunRecord) -> str:
    """A run that came with the project: its headline, pictures and metrics, under its own banner."""
    result = run.result
    name = (
        f"{result.get('model', run.folder.name)}, {result.get('attention', '?')} attention, {result.get('task', '?')}"
    )
    return "\n".join(
        [
            f'<div class="shipped"><h2>Shipped with the project: {escape(name)}</h2>',
            f'<p class="lead">budget {escape(str(result.get("budget", "?")))}, made by the train.py of the project; '
            f"its files lie in {escape(run.folder.name)}/.</p>",
            _warnings(result),
            _cards(result),
            _samples(run, "What it makes"),
            _attention(run),
            _metrics(result),
            "</div>",
        ]
    )


def _footer(result: Mapping[str, Any]) -> str:
    parts = [f"Saccade {result['version']}" if "version" in result else "Saccade", str(result.get("finished", ""))]
    return f"<footer>{escape(' · '.join(part for part in parts if part))}</footer>"
