"""Memory of PSAL above its inputs, counted by allocation: forward and backward, float32, 16 channels, patch 7."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from saccade.ops.psal import psal_attention

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from attention_bench.measure import cpu_peak_bytes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kernel", "options", "size", "megabytes"),
    [
        ("auto", {"matches": 3}, 256, 40),
        ("torch", {"matches": 3}, 256, 40),
        ("auto", {"matches": 3}, 512, 160),
        ("auto", {"matches": 1, "readout": "aggregate"}, 256, 60),
        ("auto", {"matches": 1, "readout": "aggregate"}, 512, 240),
        ("auto", {"matches": 1, "readout": "fold"}, 256, 60),
    ],
)
def test_memory_grows_with_the_pixels_alone(kernel, options, size, megabytes):
    q, k, v, upstream = (torch.randn(1, 1, 16, size, size) for _ in range(4))
    maps = [x.requires_grad_() for x in (q, k, v)]

    def call():
        out = psal_attention(*maps, patch_size=7, iterations=1, scale=0.01, kernel=kernel, **options)
        out.backward(upstream.clone())

    assert cpu_peak_bytes(call) <= megabytes * 1e6
