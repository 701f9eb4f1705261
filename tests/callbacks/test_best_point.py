from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from saccade.callbacks.checkpoint import BestPoint


class Scored(pl.LightningModule):
    """A task as far as the best point looks at it."""

    selection: str | None = "fid_val"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.evaluation: dict[str, float] = {}

    def at(self, images: int, score: float) -> Scored:
        self.images_seen.fill_(images)
        self.weight.data.fill_(images)
        self.evaluation = {"is_val": 1.0, "fid_val": score}
        return self


class Runner:
    is_global_zero = True


@pytest.fixture
def best(tmp_path: Path) -> BestPoint:
    return BestPoint(tmp_path / "best.ckpt")


def consider(best: BestPoint, module: Any) -> None:
    best.consider(Runner(), module)  # type: ignore[arg-type]


def test_the_lowest_score_is_kept_with_its_weights_and_metrics(best: BestPoint) -> None:
    module = Scored()
    for images, score in ((8, 5.0), (16, 3.0), (24, 3.0), (32, 4.0), (40, float("nan"))):
        consider(best, module.at(images, score))
    metrics = {"is_val": 1.0, "fid_val": 3.0}
    assert best.record() == {"selected_by": "fid_val", "value": 3.0, "images_seen": 16, "metrics": metrics}
    state = torch.load(best.path, weights_only=True)["state_dict"]
    assert (float(state["weight"]), int(state["images_seen"])) == (16.0, 16)
    assert [path.name for path in best.path.parent.iterdir()] == ["best.ckpt"]


def test_a_later_session_goes_on_with_the_file_it_finds(best: BestPoint) -> None:
    consider(best, Scored().at(8, 2.0))
    again = BestPoint(best.path)
    consider(again, Scored().at(16, 3.0))
    assert again.record()["images_seen"] == 8
    consider(again, Scored().at(24, 1.0))
    assert again.record()["images_seen"] == 24


def test_another_protocol_replaces_nothing(best: BestPoint) -> None:
    module = Scored()
    consider(best, module.at(8, 5.0))
    module.selection = "is_val"
    consider(best, module.at(16, 6.0))
    assert best.record()["selected_by"] == "fid_val"
    assert best.record()["images_seen"] == 8


def test_a_task_that_chooses_nothing_keeps_nothing(best: BestPoint) -> None:
    module = Scored().at(8, 2.0)
    module.selection = None
    consider(best, module)
    consider(best, nn.Linear(1, 1))
    assert best.record() == {}
    assert not best.path.exists()


def test_other_ranks_write_nothing(best: BestPoint) -> None:
    runner = Runner()
    runner.is_global_zero = False
    best.consider(runner, Scored().at(8, 2.0))  # type: ignore[arg-type]
    assert not best.path.exists()
