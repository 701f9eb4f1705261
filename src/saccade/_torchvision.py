"""A guard that lets torchvision import beside a torch that its compiled extension was not built for.

The registry's torchvision wheel links CUDA libraries. Beside a CPU build of torch its extension cannot be loaded, and
torchvision then fails on import with ``operator torchvision::nms does not exist``, because it registers fake kernels
for two operators that were never declared. lpips, torchmetrics and pytorch_lightning import torchvision when it is
installed, and fail with it. Declaring the two schemas first is enough for models, transforms and utils to work;
``torchvision.ops.nms`` and ``torchvision.io`` stay unavailable and say so when called.

Beside a matching build the extension loads here, a little earlier than torchvision would load it, and nothing changes.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


def prepare_torchvision() -> None:
    """Declare torchvision's operators if its extension cannot be loaded. Must run before torchvision is imported.

    Does nothing when torchvision is imported already, is not installed, or has a loadable extension. May be called
    any number of times. Does not import torchvision.
    """
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    extension = _extension_file(pathlib.Path(spec.submodule_search_locations[0]))
    if extension is None or _loads(extension):
        return
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            torch.library.define(f"torchvision::{operator}", _SCHEMA)


def _extension_file(package: pathlib.Path) -> pathlib.Path | None:
    found = sorted(path for pattern in ("_C*.so", "_C*.pyd") for path in package.glob(pattern))
    return found[0] if found else None


def _loads(extension: pathlib.Path) -> bool:
    try:
        torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True
