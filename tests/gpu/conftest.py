"""Tests marked gpu skip where there is no CUDA device; where one is demanded, nothing passes by being skipped."""

from __future__ import annotations

import os

import pytest
import torch

DEMANDED = "SACCADE_DEMAND_GPU"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    if os.environ.get(DEMANDED):
        pytest.exit(
            f"no CUDA device is visible to torch {torch.__version__}: the GPU tests would all be skipped. "
            "Run them on a machine with a GPU and a CUDA build of torch (constraints/cuda.txt).",
            returncode=1,
        )
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
