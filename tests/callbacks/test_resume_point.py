"""A resume point remembers on how many devices its run trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from saccade.callbacks.checkpoint import ResumePoint


def start(point: ResumePoint, ranks: int) -> None:
    trainer, task = SimpleNamespace(world_size=ranks), SimpleNamespace(images_seen=8)
    point.on_train_start(cast(Any, trainer), cast(Any, task))
    point._finish()


def test_another_number_of_devices_is_refused(tmp_path: Path) -> None:
    first = ResumePoint(tmp_path / "last.ckpt", every_images=8)
    start(first, 2)
    second = ResumePoint(tmp_path / "last.ckpt", every_images=8)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="began on 2 devices and has come back on 4"):
        start(second, 4)
    start(second, 2)


def test_a_checkpoint_from_before_that_was_kept_goes_on(tmp_path: Path) -> None:
    point = ResumePoint(tmp_path / "last.ckpt", every_images=8)
    point.load_state_dict({"seconds": 3.0})
    start(point, 4)
    assert point.state_dict()["ranks"] == 4
