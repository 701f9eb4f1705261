"""Two processes on the CPU do what one does with the doubled batch, batch normalisation included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from tiny_gan import Data, Discriminator, Generator, Proxy, task, trainer
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from saccade.callbacks.checkpoint import BestPoint, ResumePoint
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention
from saccade.tasks.generation import GenerationTask

RANKS: dict[str, Any] = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": 2}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)  # weights then differ by the gradients alone


def fit(module: GenerationTask, folder: Path, batch: int, callbacks: Any = None, **options: Any) -> None:
    trainer(folder, callbacks, limit_val_batches=0, **options).fit(module, datamodule=Data(batch))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_do_what_one_does_with_the_doubled_batch(tmp_path: Path, accumulate: int) -> None:
    # micro-batches of two ranks hold other images than those of one: with more than one, no batch statistics
    networks = {} if accumulate == 1 else {"norm": False, "spectral": False}
    options = {"images": 32, "networks": networks, "generator_optimiser": sgd, "discriminator_optimiser": sgd}
    start, one, two = task(**options), task(**options), task(accumulate=accumulate, **options)
    fit(one, tmp_path, 16)
    fit(two, tmp_path, 8, **RANKS)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, msg=name, rtol=1e-5, atol=1e-6)
    moved = [name for name, value in start.named_parameters() if not torch.equal(value, one.get_parameter(name))]
    assert len(moved) == len(list(one.parameters()))


def sagan(batch: int) -> tuple[GenerationTask, Data]:
    """The real networks, 32x32 and narrow, with attention that counts."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": 32, "channels": [16, 16, 16, 16], "attention_at": 16, "classes": 3}
    policy = sagan_attention("ylg", heads=2)
    networks = SaganGenerator(**options, latent=4, attention=policy), SaganDiscriminator(**options, attention=policy)
    for network in networks:
        for _, block in network.attention_blocks.items():
            torch.nn.init.constant_(block.sigma, 0.5)
    factories = {"generator_optimiser": sgd, "discriminator_optimiser": sgd}
    module = GenerationTask(*networks, **factories, scores=Proxy(), images=8, seed=0)
    return module.double(), Data(batch, side=32)


def test_two_ranks_of_sagan_have_the_gradients_of_one(tmp_path: Path) -> None:
    (one, data), (two, halves), (start, _) = sagan(8), sagan(4), sagan(8)
    options: dict[str, Any] = {"limit_val_batches": 0, "precision": "64-true"}
    trainer(tmp_path, **options).fit(one, datamodule=data)
    trainer(tmp_path, **options, **RANKS).fit(two, datamodule=halves)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-9, atol=1e-12, msg=name)
    before = dict(start.named_parameters())
    still = [name for name, value in one.named_parameters() if torch.equal(value, before[name])]
    assert still == []


class Counted(pl.Callback):
    """How many buckets of gradients the ranks exchange."""

    def on_fit_start(self, runner: pl.Trainer, module: pl.LightningModule) -> None:
        self.count = 0

        def hook(state, bucket):  # type: ignore[no-untyped-def]  # PyTorch wants annotations that are no strings
            self.count += 1
            return allreduce_hook(None, bucket)

        runner.strategy.model.register_comm_hook(None, hook)  # type: ignore[union-attr,operator]

    def on_train_end(self, runner: pl.Trainer, module: Any) -> None:
        module.start_score.fill_(self.count)  # the way back from the other process


def test_micro_batches_exchange_gradients_once(tmp_path: Path) -> None:
    counts = []
    for accumulate in (1, 4):
        module = task(images=16, accumulate=accumulate, networks={"norm": False})
        fit(module, tmp_path, 8, [Counted()], **RANKS)
        counts.append(int(module.start_score))
    assert counts[0] == counts[1] > 0


class PoisonedOnOne(Generator):
    """Not finite on the second rank, once."""

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        images = super().forward(latents, labels)
        return images * torch.nan if dist.is_initialized() and dist.get_rank() == 1 and self.training else images


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(tmp_path: Path) -> None:
    module, before = task(images=16, networks={"norm": False}), task(networks={"norm": False})
    module.generator.__class__ = PoisonedOnOne
    fit(module, tmp_path, 8, **RANKS)
    assert int(module.images_seen) == 16
    for name, value in module.named_parameters():
        assert torch.equal(value, before.get_parameter(name)), name


class InfiniteOnOne(Discriminator):
    """Of logits that are not finite on the second rank: the hinge loss is infinite, its gradients are not."""

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits = super().forward(images, labels)
        return logits - torch.inf if dist.is_initialized() and dist.get_rank() == 1 else logits


def test_an_infinite_loss_of_finite_gradients_is_skipped_on_all(tmp_path: Path) -> None:
    module, before = task(images=16, networks={"norm": False}), task(networks={"norm": False})
    module.discriminator.__class__ = InfiniteOnOne
    fit(module, tmp_path, 8, **RANKS)
    assert int(module.images_seen) == 16
    for name, value in module.named_parameters():
        assert torch.equal(value, before.get_parameter(name)), name


def test_resume_and_best_points_of_two_ranks(tmp_path: Path) -> None:
    best, last = BestPoint(tmp_path / "best.ckpt"), tmp_path / "last.ckpt"
    options = {"images": 64, "score_start": True}
    whole = task(**options)
    trainer(tmp_path, [best, ResumePoint(last, every_images=32)], **RANKS).fit(whole, datamodule=Data())
    assert best.record()["selected_by"] == "frechet_proxy_val"
    state = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in state.items())
