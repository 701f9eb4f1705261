"""Scores of a generator of images against the real sets of its data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from saccade import weights as weight_files
from saccade.metrics.generation import (
    PROXY,
    PROXY_METRICS,
    GenerationMetrics,
    checked_names,
    extractors,
    required_weights,
)
from saccade.metrics.reference import RealStatistics, ReferenceSet, real_statistics

SPLITS = ("val", "train")


class GenerationData(Protocol):
    """What scores ask of a data module: its real sets."""

    def reference(self, split: str) -> tuple[ReferenceSet, Callable[[], Iterable[Tensor]]]:
        """A split and its images, as `saccade.metrics.reference.real_statistics` takes them."""


class GenerationScores:
    """`GenerationMetrics` with names and real sets chosen for the data.

    One pass of TensorFlow's Inception over the generated images gives, with ``names=[fid_tf_inception,
    is_tf_inception, precision_recall_tf_inception]``, ``splits=[val]`` and 50,000 images:

    - ``fid_tf_inception_val_50000``;
    - ``is_tf_inception_1008_50000``, in one go over all 1008 logits without the last layer's bias (OpenAI), and
      ``is_tf_inception_1008_bias_50000`` with it. The paper scores in one go; whether the graph that TF-GAN
      downloads adds the bias is not written down in public, and it changes the score by 2 or 3 %;
    - ``is_tf_inception_1008_50000_10splits`` and its ``_std``: OpenAI's mean over ten parts, in order of position;
    - ``precision_k3_tf_inception_val_10000`` and ``recall_...``, of as many generated as real images.

    Truncated latents add ``_truncated2``. Under torch.distributed all processes are gathered; each must call `begin`
    and `compute`. Neither the order nor the batches in which images come matters, beyond rounding.

    Args:
        names: of `saccade.metrics.generation.GENERATION_METRICS`. None takes those without weights: the Frechet
            distance in the space of a small random network, and precision and recall there.
        weights: of the Inception, `pretrained` or `random`; `auto` is resolved with the run's identity: what its
            weights are missing for is left out and replaced by the proxy.
        splits: real sets to compare with. The paper's row needs `val`.
        count: at most so many generated images are scored, the first positions; None takes all that come.
        neighbours: at most so many generated and real images enter precision and recall (their cost is quadratic).

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        *,
        names: Sequence[str] | None = None,
        weights: str = "pretrained",
        splits: Sequence[str] = ("val",),
        count: int | None = None,
        neighbours: int = 10_000,
    ) -> None:
        self.names = checked_names(PROXY_METRICS if names is None else names)
        if required_weights(self.names):
            weight_files.check_mode("scores", weights)
        unknown = [split for split in splits if split not in SPLITS]
        if not splits or unknown or len(set(splits)) != len(splits):
            raise ValueError(f"scores: splits must be some of {', '.join(SPLITS)}, each once; got {list(splits)}")
        if count is not None and count < 2:
            raise ValueError(f"scores: count must be 2 or more, or null for all that come; got {count}")
        if neighbours < 0:
            raise ValueError(f"scores: neighbours must be 0 or more; got {neighbours}")
        self.weights, self.splits, self.count, self.neighbours = weights, tuple(splits), count, neighbours
        self._metrics: GenerationMetrics | None = None
        self._begun: tuple[Any, ...] = ()

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Leave out, and say so, what `weights: auto` cannot have on this machine; `pretrained` must be here."""
        names, weights = options.get("names"), options.get("weights", "pretrained")
        needed = [] if names is None else required_weights(names)
        if names is None or not needed:
            return ({"weights": "pretrained"} if weights == "auto" else {}), []
        resolution = weight_files.resolve_mode(weights, needed, runtime.get("weights_dir"))
        if weights != "auto":
            return {}, [resolution.notice] if resolution.notice else []
        if resolution.mode == "pretrained":
            return {"weights": "pretrained"}, []
        kept = [name for name in names if not required_weights([name])]
        gone = [name for name in names if name not in kept]
        notice = (
            f"NOT COMPUTED for want of their network's weights: {', '.join(gone)} "
            f"(`python scripts/fetch_weights.py {' '.join(needed)}`, or runtime.weights_dir=<folder>); "
            f"{PROXY} stands in"
        )
        return {"names": list(dict.fromkeys([*kept, *PROXY_METRICS])), "weights": "pretrained"}, [notice]

    def begin(self, data: GenerationData, device: torch.device | str, *, truncation: float | None = None) -> None:
        """Start over, for the real sets of a data module. Their statistics are read, or computed on the device, once.

        Args:
            data: offers `reference(split)`.
            device: where images will come from.
            truncation: threshold in standard deviations beyond which latents are drawn again; None where they are not.
        """
        now = (data, torch.device(device), truncation)
        if self._metrics is None or now != self._begun:
            self._metrics, self._begun = self._metrics_for(*now), now
        self._metrics.reset()

    def update(self, images: Tensor, positions: Tensor) -> None:
        """Add (B, 3, Y, X) images in [-1, 1] at (B,) evaluation positions."""
        self._ready().update(images, positions)

    def compute(self) -> dict[str, float]:
        """Every score under the name of its protocol."""
        return self._ready().compute()

    def provenance(self) -> dict[str, Any]:
        """Networks, weights and sets behind the numbers."""
        return dict(self._metrics.provenance) if self._metrics is not None else {}

    def _ready(self) -> GenerationMetrics:
        if self._metrics is None:
            raise RuntimeError("scores: begin(data) comes before update and compute")
        return self._metrics

    def _metrics_for(self, data: GenerationData, device: torch.device, truncation: float | None) -> GenerationMetrics:
        spaces = extractors(self.names, self.weights)
        keep = self.neighbours if any(name.startswith("precision_recall") for name in self.names) else 0
        real: dict[str, dict[str, RealStatistics]] = {space.name: {} for space in spaces}
        folder = os.environ.get("SACCADE_CACHE")
        cache = Path(folder) / "statistics" if folder else None
        for split in self.splits:
            reference, images = data.reference(split)
            if reference.count < 2:
                raise ValueError(
                    f"scores: the {split} split has {reference.count} picture, and a distance needs 2 or more; hold "
                    "out more (data.module.held_out), or score against others (task.module.scores.splits=[train])"
                )
            for space in spaces:
                real[space.name][split] = real_statistics(space, reference, images, cache, keep=keep, device=device)
        suffix = "" if truncation is None else f"_truncated{truncation:g}"
        return GenerationMetrics(spaces, self.names, real, limit=self.count, keep=keep, suffix=suffix, device=device)
