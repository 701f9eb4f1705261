"""Scores of a set of generated images against a set of real ones: Frechet distance, Inception score, precision, recall.

A label holds the protocol: feature space, split of the real set, number of generated images, and the truncation of the
latents where there is one: ``fid_tf_inception_val_50000``, ``is_tf_inception_1008_50000_truncated2``. Real images come
as uint8, and generated ones are quantised to uint8 as if written to PNG and read again (TF-GAN, which "Your Local GAN"
used, scores them as floats).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from saccade.metrics.features import FeatureExtractor, RandomConvFeatures, TFInceptionFeatures
from saccade.metrics.frechet import FeatureMoments, frechet_distance, several_processes
from saccade.metrics.inception_score import SPLITS, inception_score, inception_score_of_parts
from saccade.metrics.pixels import to_uint8
from saccade.metrics.precision_recall import NEIGHBOURS, precision_recall
from saccade.metrics.reference import RealStatistics

FID = "fid_tf_inception"
INCEPTION_SCORE = "is_tf_inception"
PROXY = RandomConvFeatures.name
_PRECISION_RECALL = "precision_recall_"
PROXY_METRICS = (PROXY, f"{_PRECISION_RECALL}proxy_random_conv")
"""What needs no weights: the default."""
GENERATION_METRICS = (FID, INCEPTION_SCORE, f"{_PRECISION_RECALL}tf_inception", *PROXY_METRICS)
"""Everything that can be asked for."""
_WEIGHT_FILES: Mapping[str, str] = MappingProxyType(
    {name: "inception_tf" for name in GENERATION_METRICS if name.endswith("tf_inception")}
)


def checked_names(names: Iterable[str]) -> list[str]:
    """The names, if each is known and there once.

    Raises:
        ValueError: none, unknown or repeated names.
    """
    asked = list(names)
    unknown = [name for name in asked if name not in GENERATION_METRICS]
    if not asked or unknown or len(set(asked)) != len(asked):
        raise ValueError(
            f"scores: no, unknown or repeated names {unknown or asked}; known: {', '.join(GENERATION_METRICS)}"
        )
    return asked


def required_weights(names: Iterable[str]) -> list[str]:
    """The weight files (names of ``saccade.weights``) that metrics need."""
    return list(dict.fromkeys(_WEIGHT_FILES[name] for name in checked_names(names) if name in _WEIGHT_FILES))


def extractors(names: Sequence[str], weights: str) -> list[FeatureExtractor]:
    """The feature spaces of metrics, each once: TF Inception first.

    Raises:
        ValueError: `weights` is neither ``pretrained`` nor ``random``.
        WeightsError: ``pretrained``, and the file is missing.
    """
    found: list[FeatureExtractor] = []
    if required_weights(names):
        found.append(TFInceptionFeatures(weights))
    if any(name in PROXY_METRICS for name in names):
        found.append(RandomConvFeatures())
    return found


class GeneratedSet:
    """The generated images in one feature space: moments, and the vectors that not every score can be summed from.

    Memory for 50,000 images in the space of TF Inception: 32 MiB of moments on the device; on the host 192 MiB of
    logits where the Inception score is asked for, and 78 MiB of features where 10,000 are kept for precision and
    recall. Computing brings the two to the device for a moment.

    Args:
        extractor: the feature space.
        names: the metrics asked for, of which those of this space are computed.
        keep: of how many images the features are kept, the first ones.
        device: where moments lie and scores are computed.
    """

    def __init__(
        self, extractor: FeatureExtractor, names: Sequence[str], *, keep: int, device: torch.device | str = "cpu"
    ) -> None:
        self.extractor = extractor
        self.space = extractor.name.removeprefix("fid_").removeprefix("frechet_")
        self.inception = extractor if isinstance(extractor, TFInceptionFeatures) else None
        own = FID if self.inception else PROXY
        space = own.removeprefix("fid_").removeprefix("frechet_")
        self.frechet = own in names
        self.keep = keep if f"{_PRECISION_RECALL}{space}" in names else 0
        self.moments = FeatureMoments(extractor.channels, device)
        self.features = _Table(extractor.channels, device)
        scored = self.inception is not None and INCEPTION_SCORE in names
        self.logits = _Table(TFInceptionFeatures.classes, device) if scored else None

    def update(self, levels: Tensor, positions: Tensor) -> None:
        """Add (B, 3, Y, X) uint8 images at (B,) positions."""
        features = self.extractor(levels)
        self.moments.update(features)
        kept = positions < self.keep
        self.features.add(positions[kept], features[kept])
        if self.inception is not None and self.logits is not None:
            self.logits.add(positions, self.inception.logits(features))

    def compute(self, real: Mapping[str, RealStatistics], count: int, suffix: str) -> dict[str, float]:
        """Every score of the images at positions 0..count-1 under its label, against the real set of each split."""
        results: dict[str, float] = {}
        moments = self.moments.over_processes()
        if self.frechet:
            for split, statistics in real.items():
                results[f"{self.extractor.name}_{split}_{count}{suffix}"] = frechet_distance(
                    moments, statistics.moments
                )
        if self.inception is not None and self.logits is not None:
            results |= self._inception_scores(self.inception, self.logits.joined(count), suffix)
        if self.keep:
            results |= self._precision_recall(real, self.features.joined(min(count, self.keep)), suffix)
        return results

    def _inception_scores(self, inception: TFInceptionFeatures, logits: Tensor, suffix: str) -> dict[str, float]:
        stem, count = f"is_{self.space}_{inception.classes}", len(logits)
        results = {f"{stem}_{count}{suffix}": inception_score(logits)}
        if count >= SPLITS:
            mean, spread = inception_score_of_parts(logits)
            parts = f"{stem}_{count}_{SPLITS}splits"
            results |= {f"{parts}{suffix}": mean, f"{parts}_std{suffix}": spread}
        biased = inception_score(logits, bias=inception.bias)
        return results | {f"{stem}_bias_{count}{suffix}": biased}

    def _precision_recall(self, real: Mapping[str, RealStatistics], features: Tensor, suffix: str) -> dict[str, float]:
        results: dict[str, float] = {}
        for split, statistics in real.items():
            known = len(statistics.features)
            same = min(len(features), known)
            if same <= NEIGHBOURS:
                continue
            spread = torch.arange(same) * known // same
            precision, recall = precision_recall(features[:same], statistics.features[spread])
            stem = f"k{NEIGHBOURS}_{self.space}_{split}_{same}{suffix}"
            results |= {f"precision_{stem}": precision, f"recall_{stem}": recall}
        return results


class GenerationMetrics:
    """All scores of one set of generated images, fed batch by batch in any order and from any process.

    Args:
        spaces: the feature spaces (`extractors`).
        names: of `GENERATION_METRICS`.
        real: for each space, by its name, the statistics of each split.
        limit: images at positions from here on are left out; None takes all.
        keep: of how many generated images features are kept for precision and recall.
        suffix: at the end of every label.
        device: where scores are computed.
    """

    def __init__(
        self,
        spaces: Sequence[FeatureExtractor],
        names: Sequence[str],
        real: Mapping[str, Mapping[str, RealStatistics]],
        *,
        limit: int | None = None,
        keep: int,
        suffix: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        self.spaces, self.names, self.real = spaces, names, real
        self.limit, self.keep, self.suffix, self.device = limit, keep, suffix, device
        self.count = 0
        self.reset()

    def reset(self) -> None:
        """Forget all generated images."""
        self.sets = [GeneratedSet(space, self.names, keep=self.keep, device=self.device) for space in self.spaces]
        self.positions: list[Tensor] = []

    @torch.no_grad()
    def update(self, images: Tensor, positions: Tensor) -> None:
        """Add a batch.

        Args:
            images: (B, 3, Y, X) in [-1, 1] (clamped).
            positions: (B,) long, the images' places in the set.

        Raises:
            ValueError: wrong shapes, or a value that is not finite.
        """
        if images.dim() != 4 or images.shape[1] != 3 or positions.shape != images.shape[:1]:
            raise ValueError(
                f"scores: needs (B, 3, Y, X) images and (B,) positions; got {tuple(images.shape)} and "
                f"{tuple(positions.shape)}"
            )
        positions = positions.to(images.device, torch.long)
        if self.limit is not None:
            images, positions = images[positions < self.limit], positions[positions < self.limit]
        if not len(positions):
            return
        finite = torch.isfinite(images).flatten(1).all(1)
        if not bool(finite.all()):
            raise ValueError(
                f"scores: the generated image at position {int(positions[~finite][0])} holds values that are not finite"
            )
        levels = to_uint8(images)
        for generated in self.sets:
            generated.update(levels, positions)
        self.positions.append(positions.to(self.device))

    def compute(self) -> dict[str, float]:
        """Every score under its label; every process must call it.

        Raises:
            ValueError: fewer than two images, or positions that are not 0, 1, 2, ... each once: a label's number would
                not be that of the images.
        """
        self.count = self._count()
        results: dict[str, float] = {}
        for generated in self.sets:
            results |= generated.compute(self.real[generated.extractor.name], self.count, self.suffix)
        return results

    def _count(self) -> int:
        ours = torch.cat([torch.zeros(0, dtype=torch.long, device=self.device), *self.positions])
        count = torch.full((1,), -1, dtype=torch.long, device=self.device)
        count = torch.cat([count, ours]).max() + 1
        if several_processes():
            torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX)
        times = (torch.bincount(ours.cpu(), minlength=int(count))).to(self.device)
        if several_processes():
            torch.distributed.all_reduce(times)
        wrong = (times != 1).nonzero().flatten()
        if len(wrong):
            raise ValueError(
                f"scores: positions must be 0..{int(count) - 1}, each once; {len(wrong)} are not (position "
                f"{int(wrong[0])} came {int(times[wrong[0]])} times)"
            )
        if int(count) < 2:
            raise ValueError(f"scores: at least 2 generated images are needed; got {int(count)}")
        return int(count)

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """JSON-ready: for each feature space, its network and the sets that were compared in it last."""
        record: dict[str, dict[str, Any]] = {}
        for generated in self.sets:
            sizes = {split: found.moments.count for split, found in self.real[generated.extractor.name].items()}
            record[generated.extractor.name] = {
                **generated.extractor.provenance,
                "generated_count": self.count,
                "real_count": sizes,
                "images": "uint8",
            }
        return record


class _Table:
    """Vectors at positions, put together over all processes at the end; until then the host holds them."""

    def __init__(self, channels: int, device: torch.device | str) -> None:
        self.channels, self.device = channels, device
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, positions: Tensor, vectors: Tensor) -> None:
        """(B,) positions and (B, channels) vectors."""
        self.parts.append((positions.cpu(), vectors.cpu()))

    def joined(self, count: int) -> Tensor:
        """(count, channels): row i is the vector at position i, whichever process has it."""
        table = torch.zeros(count, self.channels)
        for positions, vectors in self.parts:
            table[positions] = vectors
        table = table.to(self.device)
        if several_processes():
            torch.distributed.all_reduce(table)
        return table
