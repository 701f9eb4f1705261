"""All metrics of generated images against their targets, fed batch by batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from saccade import weights as weight_files
from saccade.geometry import Size
from saccade.metrics.features import (
    FeatureExtractor,
    PytorchFIDFeatures,
    RandomConvFeatures,
    TFInceptionFeatures,
    TorchvisionInceptionFeatures,
)
from saccade.metrics.frechet import FeatureMoments, frechet_distance
from saccade.metrics.pixels import l1_per_image, masked_l1_per_image, psnr_per_image, to_uint8
from saccade.metrics.rows import column_means, gathered_rows
from saccade.metrics.ssim import SSIM_PROTOCOLS

PIXEL_METRICS = ("psnr", "l1", "l1_figure")
LPIPS_METRICS: Mapping[str, str] = MappingProxyType({"lpips_alex": "alex", "lpips_vgg": "vgg"})
INCEPTIONS: Mapping[str, Callable[..., FeatureExtractor]] = MappingProxyType(
    {
        "fid_tf_inception": TFInceptionFeatures,
        "fid_pytorch_fid": PytorchFIDFeatures,
        "fid_torchvision_gfla": TorchvisionInceptionFeatures,
    }
)
PROXY = RandomConvFeatures.name
METRIC_NAMES = (*SSIM_PROTOCOLS, *PIXEL_METRICS, *LPIPS_METRICS, *INCEPTIONS, PROXY)
"""Everything that can be asked for."""
PLAIN_METRICS = (*SSIM_PROTOCOLS, *PIXEL_METRICS)
"""What needs no network: the default."""
_WEIGHT_FILES = {
    "lpips_alex": "alexnet",
    "lpips_vgg": "vgg16",
    "fid_tf_inception": "inception_tf",
    "fid_pytorch_fid": "inception_tf",
    "fid_torchvision_gfla": "inception_torchvision",
}


def required_weights(names: Iterable[str]) -> list[str]:
    """The weight files (names of ``saccade.weights``) that metrics need, for ``resolve_mode`` before a run."""
    return list(dict.fromkeys(_WEIGHT_FILES[name] for name in _checked(names) if name in _WEIGHT_FILES))


def fitting_names(size: Size, names: Iterable[str] = PLAIN_METRICS) -> tuple[list[str], dict[str, str]]:
    """Split metric names into those defined at an image size, and the others with the reason against each.

    Raises:
        ValueError: an unknown name.
    """
    asked = list(_checked(names))
    reasons = {name: reason for name in asked if (reason := _reason_against(name, size))}
    return [name for name in asked if name not in reasons], reasons


class ImagePairMetrics:
    """SSIM protocols, PSNR, L1, LPIPS and Frechet distances of generated images against targets.

    ``compute`` gives one number a metric under its full label: windows and networks add the image size, networks
    without canonical weights are renamed, Frechet distances name their reference
    (``fid_tf_inception_vs_targets_256x256``: the targets of the pairs, as often as they occur).
    Not an ``nn.Module``: nothing of it enters a state dict; networks follow the device of the images.

    Under torch.distributed, ``per_image`` and ``compute`` gather all processes (each must call them). Rows are joined
    by key, so images that a sampler repeats to fill up count once, except in Frechet distances.

    Args:
        size: size of the images that will come.
        names: which metrics (``METRIC_NAMES``). Default: ``PLAIN_METRICS`` as far as the size allows.
        skip_unfit: leave metrics that the size does not allow out, and say so in ``left_out``, in place of raising.
        weights: ``auto``, ``pretrained`` or ``random`` for the networks, or one of them for each metric by name;
            ``auto`` takes the pretrained where they are to be had, network by network.
        weights_dir: folder searched first for weight files.
        download: whether missing files may be fetched.

    Attributes:
        notices: what must be told to the user (random features).
        left_out: metric name to the reason why it is not computed.

    Raises:
        ValueError: unknown names, or metrics that the size does not allow (all of them in one message).
        WeightsError: ``pretrained`` and a file is missing.
    """

    def __init__(
        self,
        size: Size | Sequence[int],
        names: Sequence[str] | None = None,
        *,
        skip_unfit: bool = False,
        weights: str | Mapping[str, str] = "auto",
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        self.size = Size.of(size)
        fitting, reasons = fitting_names(self.size, PLAIN_METRICS if names is None else names)
        if names is not None and reasons and not skip_unfit:
            raise ValueError(f"metrics: {'; '.join(reasons.values())}. Valid here: {', '.join(_valid(self.size))}")
        self.notices: list[str] = []
        self.left_out = reasons
        self._names = fitting
        self._needs_mask = names is not None and "l1_figure" in fitting
        self._ssim = [SSIM_PROTOCOLS[name] for name in fitting if name in SSIM_PROTOCOLS]
        self._lpips = []
        self._frechet: list[_Frechet] = []
        for name in fitting:
            if name in LPIPS_METRICS:
                from saccade.metrics.lpips_distance import LPIPSDistance

                mode = self._mode(name, _mode_of(name, weights), weights_dir, download)
                backbone = LPIPS_METRICS[name]
                self._lpips.append(LPIPSDistance(backbone, mode, weights_dir=weights_dir, download=download))
            elif name in INCEPTIONS:
                mode = self._mode(name, _mode_of(name, weights), weights_dir, download)
                extractor = INCEPTIONS[name](mode, weights_dir=weights_dir, download=download)
                self._frechet.append(_Frechet(name, extractor))
            elif name == PROXY:
                self._frechet.append(_Frechet(name, RandomConvFeatures()))
        self._rows: dict[str, dict[str, float]] = {}

    def set_reference(self, name: str, moments: FeatureMoments, reference: str) -> None:
        """Compare a Frechet metric with a fixed real set in place of the targets (GFLA: the whole training set).

        Args:
            name: the metric as it was asked for.
            moments: of that set, by the same extractor (``reference_moments(metrics.extractor(name), ...)``).
            reference: the set's name, which enters the label.

        Raises:
            ValueError: the metric was not asked for, or the moments are of other features.
        """
        metric = self._frechet_metric(name)
        if moments.total.numel() != metric.extractor.channels:
            raise ValueError(
                f"metrics: {name} has {metric.extractor.channels} channels, the reference {moments.total.numel()}"
            )
        metric.reference, metric.fixed = reference, moments

    def extractor(self, name: str) -> FeatureExtractor:
        """The feature extractor of a Frechet metric.

        Raises:
            ValueError: the metric was not asked for.
        """
        return self._frechet_metric(name).extractor

    def reset(self) -> None:
        """Forget all images; references that were set stay."""
        self._rows = {}
        for metric in self._frechet:
            metric.reset()

    @torch.no_grad()
    def update(
        self, generated: Tensor, target: Tensor, mask: Tensor | None = None, keys: Sequence[str] | None = None
    ) -> None:
        """Add a batch.

        Args:
            generated: (B, 3, Y, X) in [-1, 1] (clamped).
            target: the same shape.
            mask: (B, 1, Y, X) bool, the figure; needed for ``l1_figure``.
            keys: a unique name for each pair. Default: running numbers.

        Raises:
            ValueError: wrong shapes, a value that is not finite, a missing mask, a wrong number of keys.
        """
        keys = self._checked_batch(generated, target, mask, keys)
        generated, target = generated.float().clamp(-1, 1), target.float().clamp(-1, 1)
        levels, wanted = to_uint8(generated), to_uint8(target)
        columns = self._pixel_columns(generated, target, mask, levels, wanted)
        for distance in self._lpips:
            columns[f"{distance.name}_{self.size}"] = distance.per_image(generated, target).tolist()
        pictures = levels.permute(0, 2, 3, 1).cpu().numpy(), wanted.permute(0, 2, 3, 1).cpu().numpy()
        # (B, Y, X, 3)
        for protocol in self._ssim:
            columns[protocol.label(self.size)] = [protocol.score(*pair) for pair in zip(*pictures, strict=True)]
        for metric in self._frechet:
            metric.update(levels, wanted)
        for index, key in enumerate(keys):
            self._rows[key] = {label: float(values[index]) for label, values in columns.items()}

    def per_image(self) -> list[dict[str, Any]]:
        """One row per pair: ``key`` and every per-image metric under its label, in the order in which keys came."""
        return [{"key": key, **row} for key, row in gathered_rows(self._rows).items()]

    def compute(self) -> dict[str, float]:
        """Mean over images of each metric, and the Frechet distances.

        A figure's L1 leaves images without a figure out. A Frechet distance of fewer than two images is left out.

        Raises:
            ValueError: no images yet.
        """
        rows = list(gathered_rows(self._rows).values())
        if not rows:
            raise ValueError("metrics: no images were added")
        results = column_means(rows)
        for metric in self._frechet:
            distance = metric.compute()
            if distance is not None:
                results[metric.label(self.size)] = distance
        return results

    @property
    def provenance(self) -> dict[str, dict[str, Any]]:
        """JSON-ready: for each label that rests on a network, what network, weights and reference."""
        record: dict[str, dict[str, Any]] = {}
        for distance in self._lpips:
            record[f"{distance.name}_{self.size}"] = dict(distance.provenance)
        for metric in self._frechet:
            record[metric.label(self.size)] = metric.provenance
        return record

    def _mode(self, name: str, weights: str, folder: str | os.PathLike[str] | None, download: bool) -> str:
        resolved = weight_files.resolve_mode(weights, [_WEIGHT_FILES[name]], folder, download=download)
        if resolved.notice:
            self.notices.append(f"{name}: {resolved.notice}")
        return resolved.mode

    def _frechet_metric(self, name: str) -> _Frechet:
        for metric in self._frechet:
            if metric.name == name:
                return metric
        asked = ", ".join(metric.name for metric in self._frechet) or "none"
        raise ValueError(f"metrics: {name} is not among the Frechet distances asked for ({asked})")

    def _pixel_columns(
        self, generated: Tensor, target: Tensor, mask: Tensor | None, levels: Tensor, wanted: Tensor
    ) -> dict[str, list[float]]:
        columns: dict[str, list[float]] = {}
        if "l1" in self._names:
            columns["l1"] = l1_per_image(generated, target).tolist()
        if "l1_figure" in self._names and mask is not None:
            columns["l1_figure"] = masked_l1_per_image(generated, target, mask).tolist()
        if "psnr" in self._names:
            columns["psnr"] = psnr_per_image(levels, wanted).tolist()
        return columns

    def _checked_batch(
        self, generated: Tensor, target: Tensor, mask: Tensor | None, keys: Sequence[str] | None
    ) -> list[str]:
        batch = generated.shape[0]
        wanted = (batch, 3, self.size.rows, self.size.cols)
        if tuple(generated.shape) != wanted or tuple(target.shape) != wanted:
            raise ValueError(
                f"metrics: images must be (B, 3, {self.size.rows}, {self.size.cols}); got {tuple(generated.shape)} and "
                f"{tuple(target.shape)}"
            )
        if mask is None and self._needs_mask:
            raise ValueError("metrics: l1_figure was asked for and needs the figure's mask")
        if mask is not None and tuple(mask.shape) != (batch, 1, *self.size):
            raise ValueError(f"metrics: mask must be {(batch, 1, *self.size)}; got {tuple(mask.shape)}")
        if keys is None:
            keys = [f"{_rank()}-{len(self._rows) + index:06d}" for index in range(batch)]
        if len(set(keys)) != batch:
            raise ValueError(f"metrics: {batch} images need {batch} different keys; got {list(keys)}")
        for name, images in (("generated", generated), ("target", target)):
            finite = torch.isfinite(images).flatten(1).all(1).tolist()
            if not all(finite):
                raise ValueError(f"metrics: {name} image {keys[finite.index(False)]} holds values that are not finite")
        return list(keys)


class _Frechet:
    """One Frechet distance: its extractor, the generated set, and the real set it is compared with."""

    def __init__(self, name: str, extractor: FeatureExtractor) -> None:
        self.name = name
        self.extractor = extractor
        self.reference = "targets"
        self.fixed: FeatureMoments | None = None
        self.reset()

    def reset(self) -> None:
        self.generated = FeatureMoments(self.extractor.channels)
        self.targets = FeatureMoments(self.extractor.channels)

    def update(self, generated: Tensor, target: Tensor) -> None:
        self.generated.update(self.extractor(generated))
        if self.fixed is None:
            self.targets.update(self.extractor(target))

    def compute(self) -> float | None:
        generated = self.generated.over_processes()
        real = self.targets.over_processes() if self.fixed is None else self.fixed
        if min(generated.count, real.count) < 2:
            return None
        return frechet_distance(generated, real)

    def label(self, size: Size) -> str:
        return f"{self.extractor.name}_vs_{self.reference}_{size}"

    @property
    def provenance(self) -> dict[str, Any]:
        real = self.targets if self.fixed is None else self.fixed
        counts = {"generated_count": self.generated.count, "reference": self.reference, "reference_count": real.count}
        return {**self.extractor.provenance, **counts, "images": "uint8"}


def _mode_of(name: str, weights: str | Mapping[str, str]) -> str:
    if isinstance(weights, str):
        return weights
    if name not in weights:
        raise ValueError(f"metrics: weights names no mode for {name}; it has {', '.join(weights) or 'nothing'}")
    return weights[name]


def _checked(names: Iterable[str]) -> list[str]:
    asked = list(names)
    unknown = [name for name in asked if name not in METRIC_NAMES]
    if unknown or len(set(asked)) != len(asked):
        raise ValueError(f"metrics: unknown or repeated names {unknown or asked}; known: {', '.join(METRIC_NAMES)}")
    return asked


def _reason_against(name: str, size: Size) -> str | None:
    smallest = 32 if name in LPIPS_METRICS else 1
    if min(size) < smallest:
        return f"{name} needs sides of at least {smallest}, these are {size}"
    return SSIM_PROTOCOLS[name].reason_against(size) if name in SSIM_PROTOCOLS else None


def _valid(size: Size) -> list[str]:
    return [name for name in METRIC_NAMES if not _reason_against(name, size)]


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
