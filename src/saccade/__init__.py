"""Saccade: image attention that scales, as layers and as the experiments of the papers that introduced them."""

from saccade._torchvision import prepare_torchvision

prepare_torchvision()
del prepare_torchvision

__version__ = "0.1.0"
