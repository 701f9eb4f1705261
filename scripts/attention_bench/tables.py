"""The papers' layouts with our figures beside theirs: PSAL's Table 1 and the memory axis of GPA's Figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention_bench.counting import COUNTED
from attention_bench.published import TABLE1_COMPLEXITY, TABLE1_COMPUTED, TABLE1_GIB, TABLE1_NAMES
from attention_bench.suites import FIGURE5, TABLE1_SIDES
from attention_bench.verdicts import BOTH, figure, side

Row = dict[str, Any]


def published_beside_measured(rows: Sequence[Row]) -> str:
    """Both tables as Markdown, with the conditions and what is counted or computed."""
    own = [row for row in rows if row["suite"] == "memory"]
    if not own:
        return "No rows of the suite `memory`: nothing to set beside the papers' figures."
    first = own[0]
    where = f"{first['device_name']}, torch {first['torch']}, {first['dtype']}, batch 1"
    return "\n\n".join(["# Memory, published beside measured", f"Ours: {where}.", table1(own), figure5(own)])


def table1(rows: Sequence[Row]) -> str:
    """PSAL's Table 1: methods by side of the map, GiB."""
    cells = {(row["label"], side(row)): row for row in rows if row["mode"] == BOTH and row["backend"] != "levels"}
    labels = [*TABLE1_GIB, *dict.fromkeys(label for label, _ in cells if label not in TABLE1_GIB)]
    head = ["Method", "Complexity", *(f"{s}x{s} paper | ours" for s in TABLE1_SIDES)]
    body = []
    for label in labels:
        words = [TABLE1_NAMES.get(label, f"({label})"), TABLE1_COMPLEXITY.get(label, "")]
        for s in TABLE1_SIDES:
            words.append(f"{_published(label, s)} | {_ours(cells.get((label, s)))}")
        body.append(words)
    lines = [
        "## PSAL, Table 1 (arXiv 2202.03163): memory of one layer in GiB, 7x7 patches, 16 channels",
        *_markdown(head, body),
        "",
        "paper: `c` marks entries that fit a formula exactly, H W (H - 6)^2 4 bytes for 7x7 keys inside the map:",
        "computed, not measured. The paper names neither device nor mode; its other figures fit forward and backward.",
        "`*` (complexity): patches unrolled to vectors. Rows in brackets are not in the paper's table.",
        "ours: forward and backward, peak above q, k and v, output and all gradients included. `n`: counted on tensors",
        f"without data ({COUNTED.split(': ')[1]}). `-`: not run.",
    ]
    return "\n".join(lines)


def _published(label: str, s: int) -> str:
    value = TABLE1_GIB.get(label, {}).get(s)
    return "" if value is None else f"{value:.2f}{' c' if (label, s) in TABLE1_COMPUTED else ''}"


def _ours(row: Row | None) -> str:
    peak = figure(row, "peak_new_mib")
    if row is None or peak is None:
        return "-" if row is None or row["status"].startswith("skipped") else str(row["status"])
    gib = peak / 1024
    words = f"{gib:.4f}" if gib < 0.1 else f"{gib:.3f}" if gib < 10 else f"{gib:.2f}"
    return words + (" n" if row["memory_method"] == COUNTED else "")


def figure5(rows: Sequence[Row]) -> str:
    """The memory axis of GPA's Figure 5: the attention levels of each configuration, MiB."""
    cells = {row["label"]: row for row in rows if row["backend"] == "levels"}
    peaks = {label: figure(cells.get(label), "peak_new_mib") for label in FIGURE5}
    pivot = peaks.get("GPA1024_12_64")
    body = []
    for label, peak in peaks.items():
        ratio = "-" if peak is None or pivot is None else f"{peak / pivot:.2f}"
        mark = " n" if peak is not None and cells[label]["memory_method"] == COUNTED else ""
        body.append([label, "-" if peak is None else f"{peak:,.0f}{mark}", ratio, STATED.get(label, "")])
    lines = [
        "## GPA, Figure 5 (arXiv 2107.03742), memory axis: the six attention levels of the 256x256 network alone",
        *_markdown(["Configuration", "ours, MiB", "to the pivot", "said by the paper (it prints no figure)"], body),
        "",
        "Protocol of the paper: attention blocks alone, batch 1, one forward and one backward pass, peak allocated",
        "memory, weights and inputs included; levels 8 to 64: 640 channels, 128: 320, 256: 160. Exact up to 64x64",
        "unless the name's last number says 32 or 128; exact attention and GPA here are ours, linear in the pixels.",
        "`full, as stored by the paper` holds every score matrix. `n`: counted on tensors without data.",
    ]
    return "\n".join(lines)


STATED = {
    "GPA1024_12_32": "more than the pivot",
    "GPA1024_12_64": "the pivot: less than NYF and PER",
    "GPA1024_12_128": "more than the pivot: batch 2, not 3",
}


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """An aligned Markdown table. A head or cell with " | " inside is two columns."""
    rows = [" | ".join(row).split(" | ") for row in (head, *body)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
