"""Which garments are worn together, of which fabrics, and how long they are; weights are ours.

Fractions along torso, arm and leg as in garments.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saccade.data.standin import fabrics
from saccade.data.standin.fabrics import Fabric

TOP_WEIGHTS = {
    "plain": 3.8, "stripes": 2.4, "bretton": 1.0, "pinstripes": 0.8, "diagonal": 0.7, "gingham": 1.2, "tartan": 1.1,
    "argyle": 0.7, "dots": 1.2, "chevron": 0.8, "blocks": 1.3, "camouflage": 0.5, "flowers": 1.1, "stars": 0.6,
    "letters": 0.5, "photograph": 0.9,
}  # fmt: skip
BOTTOM_WEIGHTS = {
    "plain": 5.0, "stripes": 0.5, "pinstripes": 0.8, "gingham": 0.7, "tartan": 0.8, "dots": 0.6, "chevron": 0.3,
    "camouflage": 0.5, "flowers": 0.7, "diagonal": 0.3,
}  # fmt: skip
SLEEVES = {"none": 0.0, "cap": 0.20, "short": 0.36, "elbow": 0.52, "three": 0.76, "long": 0.98}


@dataclass(frozen=True)
class Plan:
    """The choices that shape an outfit before anything is cut."""

    kind: str  # dress, skirt, trousers, shorts, jumpsuit
    top: Fabric
    bottom: Fabric
    sleeve: str
    neckline: str
    hem: float  # where the top ends; beyond the skirt for a dress
    waist: float  # where the lower garment begins
    skirt_end: float
    leg_end: float
    leg_cut: str
    jacket: bool


def sample_plan(rng: np.random.Generator, female: bool) -> Plan:
    """Draw the garments, their fabrics and where each ends."""
    kinds = ["dress", "skirt", "trousers", "shorts", "jumpsuit"]
    chance = [0.27, 0.20, 0.33, 0.12, 0.08] if female else [0.0, 0.0, 0.72, 0.28, 0.0]
    kind = str(rng.choice(kinds, p=chance))
    top = fabrics.sample_fabric(rng, TOP_WEIGHTS)
    if kind in ("dress", "jumpsuit"):
        bottom = top
    elif kind in ("trousers", "shorts") and rng.random() < 0.40:
        bottom = fabrics.denim(rng)
    elif rng.random() < 0.45:
        bottom = fabrics.plain(rng, fabrics.NEUTRALS)
    else:
        weights = BOTTOM_WEIGHTS if top.pattern in ("plain", "blocks") else {"plain": 1.0}
        bottom = fabrics.sample_fabric(rng, weights, avoid=top.colours[0])
    sleeves = ["none", "cap", "short", "elbow", "three", "long"]
    sleeve = str(
        rng.choice(sleeves, p=[0.22, 0.08, 0.28, 0.07, 0.08, 0.27] if female else [0.07, 0.03, 0.48, 0.04, 0.04, 0.34])
    )
    if sleeve == "none":
        neckline = str(rng.choice(["tank", "strapless", "crew", "v", "boat"], p=[0.45, 0.15, 0.15, 0.15, 0.10]))
        neckline = neckline if female or neckline != "strapless" else "tank"
    else:
        chance = [0.40, 0.24, 0.20, 0.16] if female else [0.72, 0.18, 0.06, 0.04]
        neckline = str(rng.choice(["crew", "v", "scoop", "boat"], p=chance))
    if neckline == "crew" and sleeve == "long" and rng.random() < 0.4:
        neckline = "turtle"
    tucked = kind == "skirt" or (female and rng.random() < 0.4)
    hem = (
        9.0 if kind in ("dress", "jumpsuit") else float(rng.uniform(0.64, 0.70) if tucked else rng.uniform(0.80, 0.91))
    )
    if kind in ("trousers", "skirt") and female and rng.random() < 0.12:
        hem = float(rng.uniform(0.50, 0.58))  # cropped
    skirt_end = 1.0
    if kind in ("dress", "skirt"):
        skirt_end = float(
            rng.choice(
                [rng.uniform(1.22, 1.50), rng.uniform(1.50, 1.72), rng.uniform(1.80, 2.15)], p=[0.45, 0.35, 0.20]
            )
        )
    leg_end = {"trousers": 0.985, "jumpsuit": 0.985, "shorts": float(rng.uniform(0.16, 0.46))}.get(kind, 0.0)
    if kind == "trousers" and rng.random() < 0.2:
        leg_end = float(rng.uniform(0.74, 0.90))
    cuts = ["skinny", "straight", "wide", "flared"]
    cut = str(rng.choice(cuts, p=[0.4, 0.3, 0.15, 0.15] if female else [0.25, 0.6, 0.15, 0.0]))
    jacket = kind != "jumpsuit" and rng.random() < 0.13
    waist = float(rng.uniform(0.62, 0.68)) if female else float(rng.uniform(0.74, 0.80))
    return Plan(kind, top, bottom, sleeve, neckline, hem, waist, skirt_end, leg_end, cut, jacket)


def category(plan: Plan, female: bool) -> str:
    """The category that DeepFashion would file the outfit under."""
    if plan.jacket:
        return "Jackets_Coats" if female else "Jackets_Vests"
    if plan.kind == "dress":
        return "Dresses"
    if plan.kind == "jumpsuit":
        return "Rompers_Jumpsuits"
    if plan.kind == "skirt":
        return "Skirts"
    if plan.bottom.denim:
        return "Denim"
    if plan.kind == "shorts":
        return "Shorts"
    if plan.sleeve == "long":
        return "Sweaters"
    return "Tees_Tanks"
