from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_gan import Data, same, task, trainer
from torch import Tensor, nn

from saccade.callbacks.checkpoint import BestPoint, ResumePoint
from saccade.tasks.collapse import CollapseGuard, TrainingCollapsed, class_diversity, diversity


class Constant(nn.Module):
    """A generator whose images are all alike from a step on."""

    latent, classes = 4, 3

    def __init__(self, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.after = after

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if self.training:
            self.passes += 1
        varied = latents[:, :3, None, None].expand(-1, -1, 8, 8) if int(self.passes) < self.after else 0.0
        images: Tensor = torch.zeros(len(latents), 3, 8, 8) + varied + self.weight
        return images


def guarded(after: int, images: int = 800, **options: Any) -> Any:
    module = task(images=images, collapse=CollapseGuard(**{"loss_below": 0.0, "samples": 8, **options}))
    module.generator = Constant(after)
    module.ema.network = module.generator
    return module


def test_lost_variety_stops_the_run_with_everything_written(tmp_path: Path) -> None:
    module, best, seen = guarded(after=5), BestPoint(tmp_path / "best.ckpt"), []

    class Log(pl.Callback):
        def on_validation_end(self, runner: pl.Trainer, module: Any) -> None:
            seen.append((int(module.images_seen), module.evaluation["diversity_to_real"]))

    runner = trainer(tmp_path, [Log(), best, ResumePoint(tmp_path / "last.ckpt", every_images=8)])
    with pytest.raises(TrainingCollapsed, match=r"at image 48: .* 0\.000 of what real .* for 2 evaluations in a row\."):
        runner.fit(module, datamodule=Data())
    assert [at for at, _ in seen] == [16, 32, 48]
    assert seen[0][1] > 0.1 > seen[1][1]
    assert int(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["images_seen"]) == 48
    assert best.record()["images_seen"] in (16, 32, 48)


def test_a_generator_without_any_variety_gets_more_time(tmp_path: Path) -> None:
    with pytest.raises(TrainingCollapsed, match=r"at image 64: .* 4 evaluations in a row, the first ones included"):
        trainer(tmp_path).fit(guarded(after=0, diversity_patience=4), datamodule=Data())


class OneEach(Constant):
    """One image a class."""

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 8, 8) + self.weight


def test_one_image_a_class_is_no_variety(tmp_path: Path) -> None:
    module = guarded(after=0, diversity_patience=2)
    module.generator.__class__ = OneEach
    with pytest.raises(TrainingCollapsed, match=r"at image 32: the samples, or those of a class, differ by 0\.000"):
        trainer(tmp_path).fit(module, datamodule=Data())
    assert module.evaluation["diversity_to_real"] > 0.1 > module.evaluation["class_diversity_to_real"]


def test_thresholds_of_zero_never_stop(tmp_path: Path) -> None:
    module = guarded(after=0, images=64, diversity_below=0.0, diversity_patience=1)
    trainer(tmp_path).fit(module, datamodule=Data())
    assert int(module.images_seen) == 64


def test_a_discriminator_without_loss_stops_the_run_also_after_a_resume(tmp_path: Path) -> None:
    options: dict[str, Any] = {"images": 800, "collapse": CollapseGuard(loss_below=3.0, loss_steps=5, samples=8)}
    path = tmp_path / "last.ckpt"
    with pytest.raises(TrainingCollapsed, match=r"at image 40: .* below 3 in 5 steps in a row"):
        trainer(tmp_path, [ResumePoint(path, every_images=24)]).fit(task(**options), datamodule=Data())
    data = Data()
    data.set_position(int(torch.load(path, weights_only=True)["state_dict"]["images_seen"]))
    assert data.position == 32  # saved before the evaluation of that step
    with pytest.raises(TrainingCollapsed, match="at image 40"):
        trainer(tmp_path, [ResumePoint(path, every_images=24)]).fit(
            task(**options), datamodule=data, ckpt_path=path, weights_only=True
        )


def test_a_guard_changes_no_weight(tmp_path: Path) -> None:
    guarded_task, plain = task(images=32, collapse=CollapseGuard(samples=8)), task(images=32)
    for module in (guarded_task, plain):
        trainer(tmp_path).fit(module, datamodule=Data())
    assert same(guarded_task.generator, plain.generator)


def test_the_end_of_a_run_is_scored_whatever_its_variety(tmp_path: Path) -> None:
    module = guarded(after=0, images=16, diversity_patience=2)
    runner = trainer(tmp_path)
    runner.fit(module, datamodule=Data())
    for _ in range(3):
        runner.test(module, datamodule=Data(), verbose=False)
    assert module.evaluation["diversity_to_real"] == 0.0


@pytest.mark.parametrize(
    "options", [{"loss_below": -1.0}, {"loss_steps": 0}, {"samples": 1}, {"diversity_patience": 0}]
)
def test_wrong_thresholds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="collapse: "):
        CollapseGuard(**options)


def test_diversity_is_a_mean_distance_at_low_resolution() -> None:
    levels = torch.tensor([0.0, 1.0, 3.0])
    images = levels[:, None, None, None].expand(3, 3, 16, 16)
    assert diversity(images) == pytest.approx((1 + 3 + 2) / 3)
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert diversity(noise) < 0.3 * diversity(noise, size=64)
    with pytest.raises(ValueError, match="2 or more"):
        diversity(images[:1])
    assert class_diversity(images, torch.tensor([0, 5, 5])) == pytest.approx(2)
    assert class_diversity(torch.cat((images, images)), torch.arange(3).repeat(2)) == 0.0
    assert class_diversity(images, torch.arange(3)) == 0.0
