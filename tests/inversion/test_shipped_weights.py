"""The weights that ship with the project find their own samples again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.inversion import METHODS, invert
from saccade.inversion.samples import own_samples
from saccade.run.load import load_task

SHIPPED = Path(__file__).resolve().parents[2] / "demo" / "sagan_ylg"


@pytest.mark.slow
def test_own_samples_are_found_again_and_twice_alike() -> None:
    _, task = load_task(SHIPPED)
    generator, discriminator = task.ema.network, task.discriminator
    own = own_samples(generator, 2, torch.tensor([2, 5]), seed=0)
    method = METHODS["paper"].but(steps=150, seeds=2)
    found, again = (invert(generator, discriminator, own.images, own.labels, method, seed=0) for _ in range(2))
    assert found.pixel_ratio().median() < 0.2
    assert torch.equal(found.z, again.z)
    assert torch.equal(found.losses, again.losses)
