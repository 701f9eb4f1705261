"""Scores of generated pictures against true ones, on the part of the canvas that the pictures cover."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saccade import weights as weight_files
from saccade.data.deepfashion import DeepFashionModule
from saccade.geometry import Size
from saccade.metrics.pairs import PLAIN_METRICS, PROXY, ImagePairMetrics, fitting_names, required_weights
from saccade.metrics.reference import ReferenceSet, reference_moments

_BATCH = 32


class TransferScores:
    """`ImagePairMetrics` of the pictures without their padding, with references and names chosen for the data.

    Args:
        names: metrics (`saccade.metrics.pairs.METRIC_NAMES`); those that the pictures' size does not allow are left
            out. None takes those without networks and the Frechet proxy.
        weights: of the metrics' networks, `pretrained` or `random`; `auto` is resolved with the run's identity:
            metrics whose weights are not to be had are left out and replaced by the proxy.
        train_reference: Frechet metrics that compare with the whole training set (GFLA) in place of the targets.
    """

    def __init__(
        self, *, names: Sequence[str] | None = None, weights: str = "pretrained", train_reference: Sequence[str] = ()
    ) -> None:
        self.names = list(names) if names is not None else [*PLAIN_METRICS, PROXY]
        self.weights, self.train_reference = weights, tuple(train_reference)
        required_weights(self.names)
        self._metrics: ImagePairMetrics | None = None
        self._data: DeepFashionModule | None = None

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Leave out, and say so, what `weights: auto` cannot have on this machine."""
        names = options.get("names")
        if options.get("weights") != "auto" or names is None:
            return {}, []
        kept: list[str] = []
        gone: list[str] = []
        for name in names:
            resolution = weight_files.resolve_mode("auto", required_weights([name]), runtime.get("weights_dir"))
            (kept if resolution.mode == "pretrained" else gone).append(name)
        if not gone:
            return {"weights": "pretrained"}, []
        notice = (
            f"NOT COMPUTED for want of their networks' weights: {', '.join(gone)} "
            f"(`python scripts/fetch_weights.py`, or runtime.weights_dir=<folder>); {PROXY} stands in"
        )
        reference = [name for name in options.get("train_reference", ()) if name in kept]
        return {"names": [*kept, PROXY], "weights": "pretrained", "train_reference": reference}, [notice]

    def begin(self, data: DeepFashionModule, device: torch.device) -> None:
        """Start over, for the pictures of a data module. References are read, or computed on the device, once."""
        if self._metrics is None or data is not self._data:
            self._data = data
            size = Size(data.content.rows, data.content.cols)
            names, _ = fitting_names(size, self.names)
            self._metrics = ImagePairMetrics(size, names, weights=self.weights)
            for name in self.train_reference:
                self._set_train_reference(name, self._metrics, data, device)
        self._metrics.reset()

    def update(self, generated: Tensor, target: Tensor, mask: Tensor, keys: Sequence[str]) -> None:
        """Add a batch of canvases in [-1, 1] with their figures' masks."""
        self._ready().update(self._crop(generated), self._crop(target), self._crop(mask).bool(), keys)

    def compute(self) -> dict[str, float]:
        """Every metric under the name of its protocol."""
        return self._ready().compute()

    def per_image(self) -> list[dict[str, Any]]:
        """One row a pair."""
        return self._ready().per_image()

    def provenance(self) -> dict[str, Any]:
        """Networks, weights and references behind the numbers."""
        return dict(self._metrics.provenance) if self._metrics is not None else {}

    def _ready(self) -> ImagePairMetrics:
        if self._metrics is None:
            raise RuntimeError("scores: begin(data) comes before update and compute")
        return self._metrics

    def _crop(self, images: Tensor) -> Tensor:
        if self._data is None:
            raise RuntimeError("scores: begin(data) comes before update and compute")
        box = self._data.content
        return images[..., box.top : box.top + box.rows, box.left : box.left + box.cols]

    def _set_train_reference(
        self, name: str, metrics: ImagePairMetrics, data: DeepFashionModule, device: torch.device
    ) -> None:
        dataset = data.dataset("train")
        files = [dataset.images / picture for picture in dataset.names]
        box = data.content
        size = Size(box.rows, box.cols)
        canvas = f"cropped from {data.image_size}, {data.pad_side}"
        reference = ReferenceSet.of_files("train", files, dataset.images, size, padding=canvas)

        def images() -> Iterator[Tensor]:
            for start in range(0, len(dataset.names), _BATCH):
                pictures = [dataset.picture(name) for name in dataset.names[start : start + _BATCH]]
                yield self._crop(torch.stack(pictures)).to(device)

        cache = os.environ.get("SACCADE_CACHE")
        folder = Path(cache) / "statistics" if cache else None
        metrics.set_reference(name, reference_moments(metrics.extractor(name), reference, images, folder), "train")
