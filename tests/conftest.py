"""Shared by all tests: one thread, no W&B, and a small stand-in data set that is drawn once a session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "disabled"
os.environ["SACCADE_OFFLINE"] = "1"

import pytest
import torch

import saccade  # noqa: F401  (the torchvision guard must run before anything imports torchvision)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
