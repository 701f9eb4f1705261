"""Feature extractors of the Frechet distances: which network, which weights, which resizing.

The same images score differently under each, so each has a name of its own, and another one when its weights are not
the canonical file. All take uint8, as if read from PNG. Every constructor takes ``weights`` (``pretrained`` or
``random``), ``weights_dir`` (searched first) and ``download``, raises ValueError for another mode, and WeightsError
when pretrained weights are not to be had.
"""

from __future__ import annotations

import io
import itertools
import os
from abc import ABC, abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade import weights as weight_files

_INCEPTION_SIDE = 299
_INCEPTION_CHANNELS = 2048
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "")
_BODY = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")


class FeatureExtractor(ABC):
    """Images to feature vectors, under a name that says how.

    Attributes:
        name: of the Frechet distance over these features: ``fid_...`` only with canonical weights.
        weight_file: name of the needed file in ``saccade.weights``, or None.
        channels: length of a feature vector.
        resize: how images reach the network's size.
        weights_sha256: of the file, or ``random-seed<n>``: part of the key of cached statistics.
    """

    name: str
    weight_file: str | None = None
    channels: int
    resize: str
    weights_sha256: str
    _network: nn.Module

    def __call__(self, images: Tensor) -> Tensor:
        """Features of (B, 3, Y, X) uint8 RGB: (B, channels) float32, on the images' device.

        Raises:
            ValueError: not uint8 RGB.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name}: needs (B, 3, Y, X) uint8; got {tuple(images.shape)} {images.dtype}")
        self._network.to(images.device)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self._features(images).float()

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor: ...

    @property
    def provenance(self) -> dict[str, str | int]:
        """JSON-ready record of what computed the features."""
        return {"resize": self.resize, "weights": self.weights_sha256, "channels": self.channels}


class TFInceptionFeatures(FeatureExtractor):
    """TensorFlow's 2015 FID Inception through torch-fidelity, resized as TensorFlow 1 does: the original FID.

    ``classes`` is the number of its logits: ImageNet's 1000 and eight that training never used.
    """

    weight_file = "inception_tf"
    channels = _INCEPTION_CHANNELS
    classes = 1008
    resize = "bilinear 299, TensorFlow 1 corners, (x-128)/128"

    def __init__(
        self,
        weights: str = "pretrained",
        *,
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        mode = weight_files.check_mode("tf inception", weights)
        self.name = "fid_tf_inception" if mode == "pretrained" else "frechet_random_tf_inception"
        self._network, self.weights_sha256 = _tf_inception(mode, weights_dir, download)
        self._last = cast(nn.Linear, self._network.get_submodule("fc"))

    def logits(self, features: Tensor) -> Tensor:
        """The network's 1008 logits of its own features, so that one pass gives both: (B, 2048) -> (B, 1008) float32.

        They lack the last layer's bias, as in OpenAI's Inception score and in torch-fidelity's `logits_unbiased`;
        torch-fidelity's `logits` are these plus `bias`.
        """
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self._last.weight.to(features.device))

    @property
    def bias(self) -> Tensor:
        """(1008,) float32, of the last layer."""
        return self._last.bias.detach()

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self._network(images)[0]
        return features


class PytorchFIDFeatures(FeatureExtractor):
    """The same network with the resizing of the pytorch-fid package: half-pixel bilinear on [0, 1], then 2x-1."""

    weight_file = "inception_tf"
    channels = _INCEPTION_CHANNELS
    resize = "bilinear 299, half-pixel corners, 2x-1"

    def __init__(
        self,
        weights: str = "pretrained",
        *,
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        mode = weight_files.check_mode("pytorch-fid inception", weights)
        self.name = "fid_pytorch_fid" if mode == "pretrained" else "frechet_random_pytorch_fid"
        self._network, self.weights_sha256 = _tf_inception(mode, weights_dir, download)

    def _features(self, images: Tensor) -> Tensor:
        return _walk(self._network, 2 * _resized(images) - 1)


class TorchvisionInceptionFeatures(FeatureExtractor):
    """torchvision's ImageNet Inception v3 as GFLA's script feeds it; DIOR, DPTN, PISE and CFLD follow.

    [0, 1] RGB is resized, then passed through x*(std/.5) + (mean-.5)/.5, a transform that is meant for images already
    normalised by ImageNet's statistics. Published numbers carry this quirk. Their reference is the whole training set.
    """

    weight_file = "inception_torchvision"
    channels = _INCEPTION_CHANNELS
    resize = "bilinear 299, half-pixel corners, x*(std/.5)+(mean-.5)/.5 on [0,1]"

    def __init__(
        self,
        weights: str = "pretrained",
        *,
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        mode = weight_files.check_mode("torchvision inception", weights)
        self.name = "fid_torchvision_gfla" if mode == "pretrained" else "frechet_random_torchvision_gfla"
        from torchvision.models import inception_v3

        with torch.random.fork_rng(devices=[]):
            network: nn.Module = inception_v3(weights=None, init_weights=False, aux_logits=True)
        if mode == "pretrained":
            state, found = weight_files.load_state_dict("inception_torchvision", weights_dir, download=download)
            _load_all(network, state, found.path)
            self.weights_sha256 = found.sha256
        else:
            self.weights_sha256 = _randomise(network)
        self._network = network.requires_grad_(False).eval()

    def _features(self, images: Tensor) -> Tensor:
        x = _resized(images)
        std = x.new_tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
        mean = x.new_tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
        return _walk(self._network, x * (std / 0.5) + (mean - 0.5) / 0.5)


class RandomConvFeatures(FeatureExtractor):
    """A small random convolutional network: a proxy for demos and tests, at the images' own size, never called FID.

    Four 3x3 layers of stride 2 (8, 16, 32, 32 channels), He-initialised from a fixed seed, leaky ReLU; the features
    are spatial mean and standard deviation of the last layer: 64 numbers, so a few hundred images give a covariance.
    """

    name = "frechet_proxy_random_conv"
    channels = 64
    resize = "none"

    def __init__(self, seed: int = 0) -> None:
        widths = (3, 8, 16, 32, 32)
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            for before, after in itertools.pairwise(widths):
                layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, device="cpu"), nn.LeakyReLU(0.2)]
        network = nn.Sequential(*layers)
        self.weights_sha256 = _randomise(network, seed)
        self._network = network.requires_grad_(False).eval()

    def _features(self, images: Tensor) -> Tensor:
        maps = self._network(images.float() / 127.5 - 1).flatten(2)
        # (B, 32, positions)
        return torch.cat([maps.mean(2), maps.std(2, correction=0)], 1)


def _tf_inception(mode: str, folder: str | os.PathLike[str] | None, download: bool) -> tuple[nn.Module, str]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):  # type: ignore[misc]
        # torch-fidelity builds its network only from a file; this one accepts an empty one
        def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
            super().load_state_dict(state_dict, strict=False)

    if mode == "random":
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        with torch.random.fork_rng(devices=[]):
            network: nn.Module = Untrained("inception", ["2048"], feature_extractor_weights_path=empty)
        return network.requires_grad_(False).eval(), _randomise(network)
    # Read first by us, weights only: torch-fidelity itself would run code that a file carries.
    _, found = weight_files.load_state_dict("inception_tf", folder, download=download)
    try:
        with torch.random.fork_rng(devices=[]):
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(found.path))
    except RuntimeError as error:
        raise weight_files.WeightsError(f"tf inception: {found.path} does not fit the network: {error}") from error
    return network.requires_grad_(False).eval(), found.sha256


def _load_all(network: nn.Module, state: dict[str, Tensor], path: os.PathLike[str]) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise weight_files.WeightsError(f"inception: {os.fspath(path)} does not fit the network: {error}") from error


def _randomise(network: nn.Module, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return f"random-seed{seed}"


def _resized(images: Tensor) -> Tensor:
    return F.interpolate(
        images.float() / 255, size=(_INCEPTION_SIDE, _INCEPTION_SIDE), mode="bilinear", align_corners=False
    )


def _walk(network: nn.Module, x: Tensor) -> Tensor:
    # Both Inceptions name their layers alike; an empty name is the pooling between them.
    for name in _STEM:
        x = getattr(network, name)(x) if name else F.max_pool2d(x, kernel_size=3, stride=2)
    for name in _BODY:
        x = getattr(network, f"Mixed_{name}")(x)
    return x.mean((2, 3))
