"""LPIPS 0.1 (Zhang et al. 2018): the lpips package's linear heads on a backbone whose file we check ourselves."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType

import lpips
import torch
from torch import Tensor

from saccade import weights as weight_files

BACKBONES: Mapping[str, str] = MappingProxyType({"alex": "alexnet", "vgg": "vgg16"})
"""Backbone to the name of its weight file in ``saccade.weights``."""
_SMALLEST = 32


class LPIPSDistance:
    """LPIPS of image pairs. With random backbone weights it is another measure and is named so.

    Args:
        backbone: ``alex`` (what the pose-transfer papers report) or ``vgg``.
        weights: ``pretrained`` or ``random``.
        weights_dir: folder searched first for the backbone's file.
        download: whether a missing file may be fetched.

    Attributes:
        name: ``lpips_alex``, or ``lpips_alex_random_weights``.
        provenance: JSON-ready.

    Raises:
        ValueError: unknown backbone or mode.
        WeightsError: pretrained weights that are not to be had.
    """

    def __init__(
        self,
        backbone: str,
        weights: str = "pretrained",
        *,
        weights_dir: str | os.PathLike[str] | None = None,
        download: bool = True,
    ) -> None:
        if backbone not in BACKBONES:
            raise ValueError(f"lpips: backbone {backbone!r}; valid: {', '.join(BACKBONES)}")
        mode = weight_files.check_mode("lpips", weights)
        self.name = f"lpips_{backbone}" if mode == "pretrained" else f"lpips_{backbone}_random_weights"
        self.provenance: dict[str, str | int] = {"weights": mode, "heads": f"lpips {version('lpips')} v0.1"}
        state: dict[str, Tensor] = {}
        if mode == "pretrained":
            state, found = weight_files.load_state_dict(BACKBONES[backbone], weights_dir, download=download)
            self.provenance |= {"file": found.path.name, "sha256": found.sha256}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # torchvision warns about the argument by which lpips asks for an untrained backbone
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            torch.manual_seed(0)
            self._network = lpips.LPIPS(net=backbone, version="0.1", pnet_rand=True, verbose=False)
        if state:
            trunk = self._network.net
            # slice3.7.weight of lpips is features.7.weight of torchvision
            names = {key: "features." + key.split(".", 1)[1] for key in trunk.state_dict()}
            lost = sorted(set(names.values()) - set(state))
            if lost:
                raise weight_files.WeightsError(f"lpips: {self.provenance['file']} lacks {', '.join(lost)}")
            trunk.load_state_dict({key: state[name] for key, name in names.items()})
        self._network.requires_grad_(False).eval()

    def per_image(self, generated: Tensor, target: Tensor) -> Tensor:
        """Distance of each pair: (B, 3, Y, X) in [-1, 1] twice -> (B,) float32.

        Raises:
            ValueError: images smaller than 32x32.
        """
        if min(generated.shape[2:]) < _SMALLEST:
            raise ValueError(f"lpips: images of at least {_SMALLEST}x{_SMALLEST}; got {tuple(generated.shape[2:])}")
        network = self._network.to(generated.device)
        with torch.no_grad(), torch.autocast(generated.device.type, enabled=False):
            distance: Tensor = network(generated.float(), target.float())
        return distance.flatten()
