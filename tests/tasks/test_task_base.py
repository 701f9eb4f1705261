from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saccade.tasks.adversarial import AdversarialTask, Terms
from saccade.tasks.base import Ema, NonFiniteTraining, step_seed
from saccade.tasks.optimisers import Schedule, adam


class Line(AdversarialTask):
    """Fit y = x with one weight; a batch of NaN is a poisoned one."""

    terms = ("fit",)

    def generator_passes(self, batch: Tensor) -> Iterator[Callable[[], Terms]]:
        yield lambda: {"fit": (self.generator(batch) - batch).square().mean()}

    def discriminator_inputs(self, batch: Any) -> Any:
        raise RuntimeError("there is none")

    def picture_batch(self) -> Any:
        return None

    def samples(self, batch: Any) -> dict[str, dict[str, Tensor]]:
        return {}


def line(images: int = 64, **options: Any) -> Line:
    torch.manual_seed(1)
    return Line(
        nn.Linear(1, 1, bias=False),
        None,
        generator_optimiser=lambda p: adam(p, lr=0.1, beta1=0.9, beta2=0.99),
        weights={"fit": 1.0},
        images=images,
        seed=0,
        **options,
    )


def fit(task: Line, batches: list[Tensor]) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return trainer


def test_stops_at_the_images_of_the_run_and_learns() -> None:
    task = line(images=64)
    fit(task, [torch.randn(4, 1) for _ in range(8)])
    assert int(task.images_seen) == 64
    assert int(task.steps) == 16
    assert abs(float(task.generator.weight.detach()) - 1) < abs(float(line().generator.weight.detach()) - 1)


def test_a_poisoned_batch_is_skipped_and_counted() -> None:
    task = line(images=16)
    clean = [torch.randn(4, 1) for _ in range(3)]
    fit(task, [clean[0], torch.full((4, 1), torch.nan), *clean[1:]])
    assert task.nonfinite_steps == 1
    assert bool(torch.isfinite(task.generator.weight).all())
    other = line(images=12)
    fit(other, clean)
    # the skipped step differs from no step in the learning rate's clock alone, which is constant here
    assert torch.equal(task.generator.weight, other.generator.weight)


def test_nan_after_nan_stops_with_a_diagnosis() -> None:
    task = line(images=400, max_nonfinite=3)
    with pytest.raises(NonFiniteTraining, match=r"generator: .*3 steps in a row, at image 8.*generator_optimiser\.lr"):
        fit(task, [torch.full((4, 1), torch.nan)] * 5)


def test_unknown_weight_names_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"no loss term is called fits; valid in weights: fit"):
        Line(nn.Linear(1, 1), None, generator_optimiser=adam, weights={"fits": 1.0}, images=1, seed=0)  # type: ignore[arg-type]


def test_ema_halves_an_old_weight_over_its_half_life() -> None:
    source = nn.Linear(1, 1, bias=False)
    nn.init.ones_(source.weight)
    ema = Ema(source, half_life=100, rampup=None)
    nn.init.zeros_(source.weight)
    for _ in range(25):
        ema.update(source, images_seen=10_000, images_step=4)
    assert float(ema.network.weight) == pytest.approx(0.5, rel=1e-5)
    ramped = Ema(source, half_life=1e9, rampup=0.05)
    before = copy.deepcopy(source)
    nn.init.ones_(source.weight)
    ramped.update(source, images_seen=80, images_step=4)
    assert float(ramped.network.weight) == pytest.approx(0.5, rel=1e-5)
    assert float(before.weight) == 0.0


def test_lazy_adam_is_corrected_as_stylegan2_does() -> None:
    optimiser = adam(nn.Linear(1, 1).parameters(), lr=0.002, beta1=0.0, beta2=0.99, lazy_interval=16)
    ratio = 16 / 17
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.002 * ratio)
    assert optimiser.param_groups[0]["betas"] == pytest.approx((0.0, 0.99**ratio))


def test_schedule() -> None:
    schedule = Schedule(warmup=0.1, decay_from=0.5, final=0.1)
    assert [schedule(p) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)] == pytest.approx([0, 0.5, 1, 1, 0.55, 0.1])
    assert Schedule()(1.0) == 1.0
    with pytest.raises(ValueError, match="warmup"):
        Schedule(warmup=0.5, decay_from=0.2)


def test_a_schedule_halves_at_its_milestones() -> None:
    schedule = Schedule(milestones=(0.2, 0.6))
    assert [schedule(progress) for progress in (0.1, 0.2, 0.5, 0.6, 1.0)] == [1.0, 0.5, 0.5, 0.25, 0.25]
    for wrong in ((0.6, 0.2), (0.0,), (1.5,)):
        with pytest.raises(ValueError, match="milestones"):
            Schedule(milestones=wrong)


def test_step_seeds_differ_and_fit_a_generator() -> None:
    seeds = {step_seed(seed, images, rank) for seed in range(4) for images in range(0, 80, 4) for rank in range(2)}
    assert len(seeds) == 4 * 20 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
