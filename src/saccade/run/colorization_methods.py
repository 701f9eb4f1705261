"""The attentions of PSAL's colourisation tables (arXiv 2202.03163, Tables 4, 5 and 8), and what the paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Rows and columns between the keys of Full, by side: of the training script at 256, of Table 3 at the other sizes.
FULL_STRIDES: Mapping[int, int] = {64: 1, 128: 2, 256: 3, 512: 10}
TABLE_4: Mapping[str, float] = {
    "psal1": 0.00832,
    "psal3": 0.00228,
    "psal7": 0.00234,
    "psal15": 0.00237,
    "psal31": 0.00232,
    "aggregate": 0.001939,
}
TABLE_5: Mapping[str, float] = {"dot": 0.0064, "full": 0.0024}


@dataclass(frozen=True)
class Swap:
    """A row of Table 8: trained with one attention, tested with another; squared error, GFLOPs and memory in GiB."""

    trained: str
    tested: str
    error: float
    gflops: float
    memory: float


TABLE_8: Sequence[Swap] = (
    Swap("psal1", "psal1", 0.0083, 30, 0.05),
    Swap("aggregate", "aggregate", 0.0019, 37, 0.74),
    Swap("aggregate", "psal1", 0.0023, 30, 0.05),
    Swap("psal3", "psal3", 0.0023, 36, 0.08),
    Swap("psal3", "psal1", 0.0023, 30, 0.05),
    Swap("full", "full", 0.0024, 1173, 9.32),
    Swap("full", "psal1", 0.0024, 30, 0.045),
)
SWAPPED_TO = "psal1"


@dataclass(frozen=True)
class Method:
    """An attention of the study: its label in the tables, its group of the configuration, and the mixer's options."""

    name: str
    label: str
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def overrides(self, side: int, full_stride: int | None = None) -> dict[str, Any]:
        """Changes to the configuration, by dotted key.

        Args:
            side: of the pictures.
            full_stride: rows and columns between the keys of Full; None is the paper's for the side.
        """
        options = dict(self.options)
        if self.attention == "full":
            nearest = min(FULL_STRIDES, key=lambda known: abs(known - side))
            options["key_stride"] = stride = full_stride or FULL_STRIDES[nearest]
            # of patches that fit into memory as vectors "auto" takes SDPA, whose backward pass is several times slower
            options["kernel"] = "boxes" if stride == 1 else "chunked"
        return {f"attention.mixer.{key}": value for key, value in options.items()}


def _psal(matches: int) -> Method:
    return Method(f"psal{matches}", f"PSAL {matches}", "psal", {"matches": matches})


_PATCHES = {"scale": 1.0, "patch_size": 7, "keys": "inside"}
METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("full", "Full, l2", "full", {"score": "l2", **_PATCHES}),
        Method("dot", "Full, dot product", "full", {"score": "dot", **_PATCHES}),
        *(_psal(matches) for matches in (1, 3, 7, 15, 31)),
        Method("aggregate", "PSAL Aggreg.", "psal", {"matches": 1, "readout": "aggregate"}),
        Method("local", "Local, w = 50", "local", {"score": "l2", "scale": 1.0, "patch_size": 7, "window": 50}),
        Method("linear", "Linear", "linear", {"patch_size": 7}),
        Method("performer", "Performer", "performer", {"patch_size": 7}),
        Method("reformer", "Reformer", "reformer", {"patch_size": 7, "bucket_size": 64, "hashes": 8}),
    )
}
DEFAULT = ("full", "dot", "psal1", "psal3", "aggregate")


def methods_named(names: Sequence[str]) -> list[Method]:
    """Methods in the order given.

    Raises:
        ValueError: an unknown or repeated name, or none.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names or len(set(names)) != len(names):
        raise ValueError(
            f"methods={','.join(names)}: {', '.join(unknown) or 'each may be named once'}; choose among "
            f"{', '.join(METHODS)}"
        )
    return [METHODS[name] for name in names]
