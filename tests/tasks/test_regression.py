"""What RegressionTask adds to Task: weighted terms, an average of the network, rows of scores."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saccade.metrics.rows import Rows, column_means
from saccade.tasks.base import Ema
from saccade.tasks.optimisers import adam
from saccade.tasks.regression import RegressionTask, Terms


class Line(RegressionTask):
    """Fit y = 2 x, with a second term that holds the weight at 0."""

    terms = ("fit", "hold")
    headline = "error"

    def loss_terms(self, batch: Tensor) -> Terms:
        return {
            "fit": (self.generator(batch) - 2 * batch).square().mean(),
            "hold": self.generator.weight.square().sum(),
        }

    def score(self, batch: Tensor) -> Rows:
        errors = (self.ema.network(batch) - 2 * batch).abs().flatten().tolist()
        return {f"{x:.6f}": {"error": error} for x, error in zip(batch.flatten().tolist(), errors, strict=True)}

    def samples(self, batch: Any) -> dict[str, dict[str, Tensor]]:
        return {"line": {"x": batch}}


def line(**options: Any) -> Line:
    torch.manual_seed(0)
    factory = partial(adam, lr=0.1, beta1=0.9, beta2=0.999)
    return Line(nn.Linear(1, 1, bias=False), generator_optimiser=factory, **{"images": 400, "seed": 0, **options})


def trainer() -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=-1, logger=False, num_sanity_val_steps=0, **quiet)


def batches() -> DataLoader[Any]:
    return DataLoader([torch.linspace(-1, 1, 4)[:, None] for _ in range(8)], batch_size=None)


def test_the_weights_of_the_terms_decide_what_is_learnt() -> None:
    free, held = line(weights={"hold": 0.0}), line()
    for module in (free, held):
        trainer().fit(module, train_dataloaders=batches())
    assert float(free.generator.weight) == pytest.approx(2, abs=0.05)
    square = float(torch.linspace(-1, 1, 4).square().mean())
    assert float(held.generator.weight) == pytest.approx(2 * square / (square + 1), abs=0.05)


def test_without_a_half_life_the_average_is_the_network() -> None:
    module = line()
    assert module.ema.network is module.generator
    assert sum(p.numel() for p in module.parameters()) == 1


def test_the_average_follows_the_network_and_is_what_is_scored() -> None:
    module = line(weights={"hold": 0.0}, ema_half_life=40, images=20)
    start = copy.deepcopy(module.generator)
    wanted = Ema(start, half_life=40, rampup=None)
    trained: list[nn.Module] = []
    module.on_train_batch_end = lambda *_: trained.append(copy.deepcopy(module.generator))  # type: ignore[method-assign]
    fitting = trainer()
    fitting.fit(module, train_dataloaders=batches())
    for index, network in enumerate(trained):
        wanted.update(network, images_seen=4 * (index + 1), images_step=4)
    torch.testing.assert_close(module.ema.network.weight, wanted.network.weight)
    found = fitting.test(module, batches(), verbose=False)[0]["eval/error"]
    error = abs(float(module.ema.network.weight) - 2) * float(torch.linspace(-1, 1, 4).abs().mean())
    assert found == pytest.approx(error, rel=1e-5)
    assert not torch.allclose(module.ema.network.weight, module.generator.weight)


def test_rows_are_forgotten_between_evaluations() -> None:
    module, tester = line(), trainer()
    first = tester.test(module, batches(), verbose=False)[0]["eval/error"]
    only = DataLoader([torch.zeros(1, 1)], batch_size=None)
    assert tester.test(module, only, verbose=False)[0]["eval/error"] == 0.0
    assert tester.test(module, batches(), verbose=False)[0]["eval/error"] == first > 0


def test_means_of_columns_leave_out_what_is_missing_or_infinite() -> None:
    rows = [{"a": 1.0, "b": 4.0}, {"a": 3.0}, {"a": float("inf"), "b": 6.0, "c": float("nan")}]
    assert column_means(rows) == {"a": 2.0, "b": 5.0}
