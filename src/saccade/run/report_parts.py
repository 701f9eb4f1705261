"""The pieces that report.html is put together from: numbers in words, tables, cards, embedded pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_LARGE_PNG = 1_500_000  # bytes; above it a picture is embedded as JPEG


def number(value: Any) -> str:
    """A metric as people read it: four significant digits, integers in full, a dash where there is none."""
    if isinstance(value, bool) or value is None:
        return DASH if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "not finite"
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def duration(seconds: float) -> str:
    """42 s, 6 min 05 s, 3 h 20 min, 6 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[tuple[str, str]]], *, narrow: bool = False) -> str:
    """A table; every cell is (CSS class, HTML): n for numbers, name for identifiers, what for explanations."""
    top = "".join(f'<th class="{kind}">{text}</th>' for kind, text in head)
    body = "".join("<tr>" + "".join(f'<td class="{kind}">{text}</td>' for kind, text in row) + "</tr>" for row in rows)
    kind = "sheet narrow" if narrow else "sheet"
    return f'<div class="{kind}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def section(title: str, lead: str, content: str) -> str:
    """A headed part of the page; all three are HTML."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section>\n<h2>{title}</h2>\n{intro}\n{content}\n</section>"


def embedded(path: Path, *, alt: str = "") -> str:
    """A picture inside the page itself; a large one as JPEG."""
    data, kind = path.read_bytes(), "png"
    if len(data) > _LARGE_PNG:
        buffer = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(buffer, format="JPEG", quality=90)
        data, kind = buffer.getvalue(), "jpeg"
    text = base64.b64encode(data).decode("ascii")
    return (
        f'<figure class="sheet"><img alt="{escape(alt or path.stem)}" src="data:image/{kind};base64,{text}"></figure>'
    )


def card(label: str, value: str, main: bool = False) -> str:
    """One number with its meaning below."""
    kind = "card main" if main else "card"
    return f'<div class="{kind}"><div class="value">{escape(value)}</div><div class="label">{escape(label)}</div></div>'
