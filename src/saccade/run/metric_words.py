"""One line on each metric, for people who read a report: what the number is, and which way is better."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", ""]
START = "_ratio_to_start"


@dataclass(frozen=True)
class MetricWords:
    """What a metric is, and which way is better."""

    what: str
    better: Better


@dataclass(frozen=True)
class Baseline:
    """What a metric is compared with: the same metric of something trivial, whose name ends in `suffix`."""

    suffix: str
    what: str
    told: str


BASELINES = (
    Baseline("_unchanged", "source unchanged", "handing the source image back as it is"),
    Baseline("_mean_fill", "mean fill", "filling the hole with the mean colour of the rest of the picture"),
    Baseline("_bicubic", "bicubic", "enlarging by bicubic interpolation"),
    Baseline("_grey", "left grey", "leaving the picture grey"),
)
_PERCENT = "in percent of the range"
_AT = {"hole": "over the hole", "box": "over the box of the hole", "image": "over the whole image"}

_L1 = "mean absolute error, images in [-1, 1]"
# The first entry whose prefix fits the metric's name without its group decides; longer prefixes stand first.
_WORDS: tuple[tuple[str, MetricWords], ...] = (
    ("l2_hole_ratio", MetricWords("squared error in the hole, over that of filling it with the mean colour", "lower")),
    ("psnr_hole_gain", MetricWords("peak signal-to-noise ratio in the hole, over mean fill's, dB", "higher")),
    *((f"l1_{at}_", MetricWords(f"mean absolute error {where}, {_PERCENT}", "lower")) for at, where in _AT.items()),
    *((f"l2_{at}_", MetricWords(f"mean squared error {where}, {_PERCENT}", "lower")) for at, where in _AT.items()),
    *((f"tv_{at}_", MetricWords(f"total variation {where}, {_PERCENT}", "")) for at, where in _AT.items()),
    *((f"psnr_{at}", MetricWords(f"signal-to-noise ratio {where}, dB", "higher")) for at, where in _AT.items()),
    ("psnr_y_shave", MetricWords("peak signal-to-noise ratio of the luma without a margin, 8 bits, dB", "higher")),
    ("ssim_y_shave", MetricWords("SSIM of the luma without a margin, 8 bits, gaussian window of 11", "higher")),
    ("psnr_rgb_shave", MetricWords("peak signal-to-noise ratio of RGB without a margin, 8 bits, dB", "higher")),
    ("mse_y_shave", MetricWords("error of the luma over bicubic's, geometric mean over pictures", "lower")),
    ("mse_crop7_ratio", MetricWords("squared error without a margin, over that of leaving the picture grey", "lower")),
    ("mse_crop", MetricWords("mean squared error in [0, 1] without a margin of so many pixels", "lower")),
    ("mse", MetricWords("mean squared error in [0, 1], whole image", "lower")),
    ("ratio_figure", MetricWords("error inside the figure, over that of leaving the source unchanged", "lower")),
    ("ratio", MetricWords("error over the whole image, over that of leaving the source unchanged", "lower")),
    ("l1_figure", MetricWords(f"{_L1}, inside the figure (mask drawn from the pose)", "lower")),
    ("l1", MetricWords(f"{_L1}, whole image", "lower")),
    ("psnr", MetricWords("peak signal-to-noise ratio, dB", "higher")),
    ("ssim_patn", MetricWords("SSIM of the pose-transfer literature: 256x256, white borders, gaussian", "higher")),
    ("ssim_window51", MetricWords("SSIM, uniform window of 51, as GFLA also reports", "higher")),
    ("ssim_gaussian", MetricWords("SSIM, gaussian window of 11, no re-padding", "higher")),
    ("ssim_default", MetricWords("SSIM, scikit-image's defaults: uniform window of 7", "higher")),
    ("ssim", MetricWords("structural similarity; window and region as in the name", "higher")),
    ("lpips_alex_random", MetricWords("LPIPS with random weights: comparable with no published LPIPS", "lower")),
    ("lpips_vgg_random", MetricWords("LPIPS with random weights: comparable with no published LPIPS", "lower")),
    ("lpips_alex", MetricWords("LPIPS, AlexNet", "lower")),
    ("lpips_vgg", MetricWords("LPIPS, VGG16", "lower")),
    ("lpips", MetricWords("learned perceptual distance; backbone as in the name", "lower")),
    ("fid_tf_inception", MetricWords("Fréchet distance, TF-Inception of torch-fidelity", "lower")),
    ("fid_pytorch_fid", MetricWords("Fréchet distance as pytorch-fid computes it", "lower")),
    ("fid_torchvision", MetricWords("Fréchet distance, torchvision-Inception (the GFLA family)", "lower")),
    ("fid", MetricWords("Fréchet Inception distance; protocol as in the name", "lower")),
    ("is_tf_inception", MetricWords("Inception score, 1008 logits of TF-Inception, all images at once", "higher")),
    ("is_random", MetricWords("Inception score over random logits: comparable with nothing published", "higher")),
    ("precision_k3", MetricWords("share of generated images among the real ones, in that feature space", "higher")),
    ("recall_k3", MetricWords("share of real images among the generated ones, in that feature space", "higher")),
    ("diversity_to_real", MetricWords("how far samples differ from each other, over what real images do", "")),
    ("class_diversity_to_real", MetricWords("the same within a class", "")),
    ("frechet_random", MetricWords("Fréchet distance over random features: comparable with no published FID", "lower")),
    ("frechet_proxy", MetricWords("Fréchet distance over a small random network: a proxy, not FID", "lower")),
    ("coverage", MetricWords("share of full attention's mass that the selected keys hold", "higher")),
)  # fmt: skip


# What stands at the end of a name, before the truncation, says that the number is not the metric itself.
_ENDINGS: tuple[tuple[str, str, Better | None], ...] = (
    ("_10splits_std", "spread over ten parts of the set: ", ""),
    ("_10splits", "mean over ten parts of the set: ", None),
    (START, "over its value before training: ", None),
)


def words(name: str) -> MetricWords:
    """What is known of a metric by its name; empty words for a name that nobody described."""
    stem = without_baseline(name.rsplit("/", 1)[-1]) if is_baseline(name) else name.rsplit("/", 1)[-1]
    known = next((found for prefix, found in _WORDS if stem.startswith(prefix)), MetricWords("", ""))
    for ending, told, better in _ENDINGS:
        if known.what and ending in stem:
            return MetricWords(told + known.what, known.better if better is None else better)
    return known


def is_spread(name: str) -> bool:
    """Whether a number tells how far another one scatters."""
    return "_std" in name


def is_ratio_to_start(name: str) -> bool:
    """Whether a metric is divided by its value before training."""
    return name.endswith(START)


def baseline_of(name: str, names: Container[str]) -> Baseline | None:
    """What a metric is compared with, if that is among the metrics' names."""
    return next((baseline for baseline in BASELINES if name + baseline.suffix in names), None)


def is_baseline(name: str) -> bool:
    """Whether a metric is that of something trivial."""
    compares = "ratio_to" in name or "gain_over" in name
    return not compares and any(name.endswith(baseline.suffix) for baseline in BASELINES)


def without_baseline(name: str) -> str:
    """The name of the metric that a baseline belongs to."""
    return next((name.removesuffix(b.suffix) for b in BASELINES if name.endswith(b.suffix)), name)


def is_random(name: str) -> bool:
    """Whether a metric rests on random features and so compares with nothing published."""
    return "random" in name or "proxy" in name
