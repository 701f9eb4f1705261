"""Figures that the papers print, as data."""

from __future__ import annotations

# PSAL, arXiv 2202.03163, Table 1: memory of one layer on 7x7 patches and 16 channels, by side of a square map. The
# paper writes GB; its figures fit GiB (Full at 256 and 512 are H * W * (H - 6)^2 * 4 bytes exactly, in GiB).
TABLE1_GIB: dict[str, dict[int, float]] = {
    "full": {64: 0.30, 128: 4.98, 256: 15.26, 512: 250.04},
    "local": {64: 0.19, 128: 0.64, 256: 3.23, 512: 13.12},
    "linear": {64: 0.11, 128: 0.46, 256: 1.85, 512: 7.47},
    "performer": {64: 0.71, 128: 2.84, 256: 11.55, 512: 17.68},
    "reformer": {64: 0.47, 128: 1.86, 256: 7.42, 512: 21.47},
    "psal-3": {64: 0.01, 128: 0.01, 256: 0.04, 512: 0.18},
    "psal-aggregate": {64: 0.05, 128: 0.19, 256: 0.74, 512: 2.95},
}
TABLE1_NAMES = {
    "full": "Full Attention",
    "local": "Local Attention, w = 50",
    "linear": "Linear Attention",
    "performer": "Performer, M = 5224",
    "reformer": "Reformer",
    "psal-3": "PSAL 3",
    "psal-aggregate": "PSAL Aggreg.",
}
TABLE1_COMPLEXITY = {
    "full": "n^2",
    "local": "w^2 n",
    "linear": "n *",
    "performer": "n d log d *",
    "reformer": "128 n *",
    "psal-3": "3 n",
    "psal-aggregate": "p^2 n",
}
# Entries that the paper computed from a formula instead of measuring them.
TABLE1_COMPUTED = {("full", 256), ("full", 512)}
