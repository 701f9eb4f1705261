"""What a report says of its pictures and offers to try, which differs from model to model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Leads:
    """Sentences of a report.

    Attributes:
        samples: beneath the heading of the sample pictures.
        attention: beneath that of the attention pictures.
        commands: to try the run with; `{run}` stands for its folder.
    """

    samples: str
    attention: str
    commands: tuple[str, ...]


_MORPH = Leads(
    samples=(
        "Pictures held out from training: the source is repainted in the target pose; the last two columns judge it."
    ),
    attention=(
        "Chosen points of the generated figure and the source positions they copy from. The opacity of a line is its "
        "affinity, relative to the strongest of the same point; the small pictures show all of it, with the share of "
        "the strongest key."
    ),
    commands=(
        "python scripts/morph.py run={run} \\\n"
        "    source=<image> source_pose=<json> target_pose=<json or a sample's key>",
    ),
)
_SAGAN = Leads(
    samples=(
        "Made from noise, the same at every evaluation: a row is a class, a column one latent vector (without classes, "
        "every picture has its own)."
    ),
    attention=(
        "Chosen points of generated pictures and where in the same picture they look. The opacity of a line is its "
        "affinity, relative to the strongest of the same point."
    ),
    commands=(
        "python scripts/sample.py run={run}",
        "python scripts/invert.py checkpoint={run} images=self:8",
    ),
)
_COLORIZATION = Leads(
    samples=(
        "Test frames painted in the colours of another frame of the same video; the network sees the target in grey."
    ),
    attention=(
        "Chosen points of a grey frame and the points of the coloured one that they read. The opacity of a line is its "
        "affinity, relative to the strongest of the same point."
    ),
    commands=("python scripts/colorize.py run={run} image=<grey picture> reference=<coloured picture>",),
)
_INPAINTING = Leads(
    samples="Pictures held out from training, with a hole; only the hole is painted, in two stages.",
    attention=(
        "Chosen points of the refinement's features and where they look. The opacity of a line is its affinity, "
        "relative to the strongest of the same point."
    ),
    commands=("python scripts/inpaint.py run={run} image=<picture> mask=<picture, white where to paint>",),
)
_SUPERRES = Leads(
    samples="Pictures held out from training: the small one, enlarged by bicubic interpolation and by the network.",
    attention=(
        "Chosen points of the features and where they look: in a smaller copy of the same features (cross-scale) or "
        "among themselves (in-scale). The opacity of a line is its affinity, relative to the strongest of the same "
        "point."
    ),
    commands=("python scripts/upscale.py run={run} image=<picture>",),
)
_LEADS: Mapping[str, Leads] = MappingProxyType(
    {"sagan": _SAGAN, "colorization": _COLORIZATION, "inpainting": _INPAINTING, "superres": _SUPERRES}
)


def leads(model: str) -> Leads:
    """The sentences for a model."""
    return _LEADS.get(model, _MORPH)
