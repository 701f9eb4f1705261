"""The frame of report.html: one style sheet, no script, nothing fetched from anywhere."""

from __future__ import annotations

STYLE = """
:root { --ink:#20242c; --faint:#667085; --line:#e4e7ec; --paper:#ffffff; --ground:#f6f7f9; --accent:#2563a8; }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; }
main { max-width:1120px; margin:0 auto; padding:28px 24px 72px; }
header .brand { color:var(--accent); font-weight:600; letter-spacing:.06em; text-transform:uppercase;
font-size:.8rem; } h1 { font-size:2rem; line-height:1.2; margin:.2rem 0 .3rem; font-weight:650; }
header p { margin:0; color:var(--faint); }
h2 { font-size:1.25rem; margin:2.4rem 0 .3rem; font-weight:650; }
h3 { font-size:1rem; margin:1.4rem 0 .3rem; font-weight:650; }
p.lead { margin:.1rem 0 .9rem; color:var(--faint); max-width:96ch; }
.banner { margin:1.3rem 0 0; padding:.9rem 1.1rem; border-radius:10px; background:#fff4e5; border:1px solid #f0b45c;
  border-left:6px solid #d97706; }
.banner.bad { background:#fdecec; border-color:#eba2a2; border-left-color:#b3261e; }
.banner strong { display:block; text-transform:uppercase; letter-spacing:.04em; font-size:.88rem; }
.banner ul { margin:.35rem 0 0; padding-left:1.2rem; overflow-wrap:anywhere; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:12px; margin:1.3rem 0 0; }
.card { background:var(--paper); border:1px solid var(--line); border-radius:12px; padding:.85rem 1rem; }
.card.main { border-color:var(--accent); box-shadow:inset 4px 0 0 var(--accent); }
.card .value { font-size:1.7rem; font-weight:650; line-height:1.2; font-variant-numeric:tabular-nums; }
.card .label { color:var(--faint); font-size:.85rem; line-height:1.35; }
.sheet { background:var(--paper); border:1px solid var(--line); border-radius:12px; padding:14px; margin:0 0 14px;
  overflow-x:auto; }
.sheet img { display:block; max-width:100%; height:auto; margin:0 auto; }
figure { margin:0; }
.narrow { max-width:420px; }
.two { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr)); gap:14px; }
.two .sheet { margin:0; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:600; color:var(--faint); border-bottom:1px solid var(--line); padding:.4rem .7rem; }
td { border-bottom:1px solid var(--line); padding:.42rem .7rem; vertical-align:top; }
tr:last-child td { border-bottom:0; }
td.n, th.n { text-align:right; white-space:nowrap; }
td.name, code, pre { font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.86rem; } td.what { color:var(--faint); }
.good { color:#1a7f4b; font-weight:600; } .poor { color:#b3261e; font-weight:600; }
.tag { display:inline-block; border-radius:6px; padding:0 .45em; font-size:.78rem; background:#fff4e5; color:#8a5207;
  font-family:inherit; white-space:nowrap; }
pre { background:#f1f3f6; border:1px solid var(--line); border-radius:10px; padding:.8rem 1rem; overflow-x:auto;
margin:.5rem 0; } details { background:var(--paper); border:1px solid var(--line); border-radius:12px; padding:.6rem
1rem; margin:0 0 14px; } summary { cursor:pointer; font-weight:600; }
details[open] summary { margin-bottom:.7rem; }
svg.chart { width:100%; height:auto; display:block; font-family:inherit; }
svg .chart-title { font-size:14px; font-weight:600; fill:#20242c; }
svg .tick, svg .legend { font-size:11.5px; fill:#667085; } svg .legend { fill:#20242c; }
svg .rule { stroke:#e9ecf0; stroke-width:1; }
.shipped { border-top:3px solid var(--line); margin-top:3rem; padding-top:.2rem; }
footer { margin-top:3rem; color:var(--faint); font-size:.85rem; }
@media print { body { background:#fff; } .sheet, .card, details { break-inside:avoid; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; `title` and `body` are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
