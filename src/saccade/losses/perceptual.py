"""L1 distance of VGG-19 features: the perceptual loss of the pose-transfer literature.

The GPA paper (arXiv 2107.03742) names no layers, weights or distance. The default here is NTED's recipe (Ren et al.
2022): torchvision's VGG-19, relu1_1 to relu5_1, ImageNet normalisation, L1, every layer weighted 1. pose-with-style
(AlBahar et al. 2021) uses the same layers with 1/32, 1/16, 1/8, 1/4, 1 (``LAYER_WEIGHTS_INCREASING``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from saccade import weights as weight_files

LAYERS: Mapping[str, int] = MappingProxyType({"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 20, "relu5_1": 29})
"""Layer names and their index in torchvision's ``vgg19().features``."""
LAYER_WEIGHTS_EQUAL: Mapping[str, float] = MappingProxyType(dict.fromkeys(LAYERS, 1.0))
LAYER_WEIGHTS_INCREASING: Mapping[str, float] = MappingProxyType(
    dict(zip(LAYERS, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0), strict=True))
)

_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512)
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_SMALLEST = 16


def vgg19_features(width: float = 1.0, last: int = 29) -> nn.Sequential:
    """VGG-19's convolutions up to index ``last`` of torchvision's numbering, without values of its own (see ``fill``).

    Args:
        width: factor on the channel counts; 1 is VGG-19.
    """
    layers: list[nn.Module] = []
    channels = 3
    for planned in _PLAN:
        if planned == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            wider = max(1, round(planned * width))
            layers += [nn.Conv2d(channels, wider, 3, padding=1, device="cpu"), nn.ReLU(inplace=True)]
            channels = wider
    return nn.Sequential(*layers[: last + 1])


class VGGPerceptual(nn.Module):
    """Named L1 terms between the VGG-19 features of a generated and a target image.

    The network is frozen and kept outside the module's registry: it is in no state dict, checkpoint, EMA copy or
    optimiser, and follows the device of its input. Only the generated image receives a gradient.

    Args:
        weights: ``pretrained`` or ``random`` (``weights.resolve_mode`` turns ``auto`` into one of them). Random
            features are He-initialised, which keeps the activations' scale; seed, width and layers determine them.
        layer_weights: layer name to weight; the layers that are named are computed. Default: all five, 1 each.
        width: factor on the channel counts, for cheap random features. 1 with pretrained weights.
        seed: of the random features.
        weights_dir: folder searched first for the weight file.
        download: whether a missing file may be fetched.
        autocast: True lets the features run in the surrounding autocast precision; False keeps them in float32.

    Attributes:
        term_weights: ``vgg_<layer>`` to weight, to be given to ``weighted_sum`` with this module's terms.
        provenance: JSON-ready: network, layers, weights, SHA-256 or seed.

    Raises:
        ValueError: unknown layer or mode, or width other than 1 with pretrained weights.
        WeightsError: pretrained weights that are not to be had.
    """

    def __init__(
        self,
        weights: str = "pretrained",
        *,
        layer_weights: Mapping[str, float] | None = None,
        width: float = 1.0,
        seed: int = 0,
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        chosen = dict(LAYER_WEIGHTS_EQUAL if layer_weights is None else layer_weights)
        unknown = sorted(set(chosen) - set(LAYERS))
        if unknown or not chosen:
            raise ValueError(f"vgg: layers {unknown or 'none'} given; valid: {', '.join(LAYERS)}")
        mode = weight_files.check_mode("vgg", weights)
        if width <= 0 or (mode == "pretrained" and width != 1.0):
            raise ValueError(f"vgg: width {width} with weights={mode}; valid: 1 if pretrained, above 0 if random")
        self.term_weights: dict[str, float] = {f"vgg_{name}": float(chosen[name]) for name in LAYERS if name in chosen}
        self._taps = {LAYERS[name]: f"vgg_{name}" for name in LAYERS if name in chosen}
        self._autocast = autocast
        self.provenance: dict[str, str | int | float] = {
            "name": f"vgg19 {' '.join(name for name in LAYERS if name in chosen)}",
            "weights": mode,
        }
        with torch.random.fork_rng(devices=[]):  # building layers draws numbers that other weights would miss
            network = vgg19_features(width, max(self._taps))
        if mode == "pretrained":
            state, found = weight_files.load_state_dict("vgg19", weights_dir, download=download)
            self._fill(network, state, str(found.path))
            self.provenance |= {"file": found.path.name, "sha256": found.sha256}
        else:
            _randomise(network, seed)
            self.provenance |= {"seed": seed, "width": width}
        network.requires_grad_(False).eval()
        # A plain list hides the network from nn.Module's registry.
        self._hidden = [network]

    @classmethod
    def resolve_auto(cls, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What ``weights: auto`` becomes on this machine, for the identity of a run: (changed options, notices)."""
        mode = str(options.get("weights", "pretrained"))
        resolution = weight_files.resolve_mode(mode, ["vgg19"], runtime.get("weights_dir"))
        return {"weights": resolution.mode}, [resolution.notice] if resolution.notice else []

    def forward(self, generated: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Compare two batches.

        Args:
            generated: (B, 3, Y, X) in [-1, 1], sides of at least 16.
            target: the same shape; no gradient goes into it.

        Returns:
            ``{"vgg_relu1_1": mean absolute difference, ...}``, unweighted float32 scalars.

        Raises:
            ValueError: wrong shapes.
        """
        if generated.shape != target.shape or generated.dim() != 4 or generated.shape[1] != 3:
            raise ValueError(
                f"vgg: images must be (B, 3, Y, X) of one shape; got {tuple(generated.shape)}, {tuple(target.shape)}"
            )
        if min(generated.shape[2:]) < _SMALLEST:
            raise ValueError(f"vgg: images of at least {_SMALLEST}x{_SMALLEST}; got {tuple(generated.shape[2:])}")
        enabled = self._autocast and torch.is_autocast_enabled(generated.device.type)
        with torch.autocast(generated.device.type, enabled=enabled):
            with torch.no_grad():
                wanted = self._features(target)
            found = self._features(generated)
        return {name: (found[name].float() - wanted[name].float()).abs().mean() for name in self.term_weights}

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        network = self._network(images.device)
        mean = images.new_tensor(_MEAN, dtype=torch.float32).view(1, 3, 1, 1)
        std = images.new_tensor(_STD, dtype=torch.float32).view(1, 3, 1, 1)
        x = ((images.float() + 1) / 2 - mean) / std
        taps: dict[str, Tensor] = {}
        for index, layer in enumerate(network):
            x = layer(x)
            if index in self._taps:
                taps[self._taps[index]] = x
        return taps

    def _network(self, device: torch.device) -> nn.Sequential:
        network = self._hidden[0]
        if next(network.parameters()).device != device:
            network.to(device)
        return network

    @staticmethod
    def _fill(network: nn.Sequential, state: Mapping[str, Tensor], where: str) -> None:
        wanted = network.state_dict()
        missing = [key for key in wanted if f"features.{key}" not in state]
        if missing:
            raise weight_files.WeightsError(f"vgg: {where} lacks features.{missing[0]} and {len(missing) - 1} more")
        network.load_state_dict({key: state[f"features.{key}"] for key in wanted})


def _randomise(network: nn.Sequential, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
