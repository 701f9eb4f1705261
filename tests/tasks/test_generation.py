from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_gan import CLASSES, LATENT, Data, Discriminator, Generator, Proxy, same, task, trainer
from torch import Tensor, nn

from saccade.callbacks.checkpoint import ResumePoint
from saccade.layers.latents import latents_at
from saccade.tasks.base import Ema, NonFiniteTraining
from saccade.tasks.generation import GenerationTask, GeneratorInputs
from saccade.tasks.optimisers import adam


def fit(module: GenerationTask, folder: Path, data: Data | None = None, **options: Any) -> pl.Trainer:
    runner = trainer(folder, **options)
    runner.fit(module, datamodule=data or Data())
    return runner


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


PLAIN = {"norm": False, "spectral": False}


# ---------------------------------------------------------------------- the step


def test_trains_both_networks_and_says_how(tmp_path: Path) -> None:
    module, before = task(images=32), task()
    metrics = fit(module, tmp_path, logger=False).callback_metrics
    assert int(module.images_seen) == 32
    assert int(module.steps) == 4
    for mine, other in ((module.generator, before.generator), (module.discriminator, before.discriminator)):
        assert all(not torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    assert {"loss/d_real", "loss/d_fake", "loss/gan", "sigma/up.4"} <= metrics.keys()
    assert {"gradient_norm/generator", "gradient_norm/discriminator", "eval/frechet_proxy_val"} <= metrics.keys()
    assert float(metrics["sigma/up.4"]) == float(module.generator.block.sigma.detach())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_updates_the_discriminator_then_the_generator_on_other_noise(tmp_path: Path, precision: str) -> None:
    options = {"networks": PLAIN, "generator_optimiser": sgd, "discriminator_optimiser": sgd, "discriminator_steps": 2}
    module, mine = task(images=8, **options), task(images=8, **options)
    fit(module, tmp_path, precision=precision)

    def cast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")

    mine.trainer = trainer(tmp_path)
    noise, other = mine.draw(8, purpose=0), mine.draw(4, purpose=1)
    assert not torch.equal(noise.latents[:4], other.latents)
    generator, discriminator = mine.generator, mine.discriminator
    for start in (0, 4):
        real, given = Data().batch(start, 4), noise.part(start, 4)
        with cast():
            fake = generator(given.latents, given.labels).detach()
        with cast():
            logits = discriminator(real.images, real.labels), discriminator(fake, given.labels)
        descend(discriminator, torch.relu(1 - logits[0].float()).mean() + torch.relu(1 + logits[1].float()).mean())
    with cast():
        judged = discriminator(generator(other.latents, other.labels), other.labels)
    descend(generator, -judged.float().mean())
    for name, value in mine.state_dict().items():
        if name.startswith(("generator", "discriminator")):
            loose = {} if precision == "32-true" else {"atol": 1e-3, "rtol": 0.0}
            torch.testing.assert_close(module.state_dict()[name], value, msg=name, **loose)


def descend(network: nn.Module, loss: Tensor) -> None:
    """One step of `sgd`."""
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= 0.1 * gradient


def test_micro_batches_sum_to_the_whole_batch(tmp_path: Path) -> None:
    options = {"networks": PLAIN, "generator_optimiser": sgd, "discriminator_optimiser": sgd, "images": 24}
    whole, split = task(**options), task(accumulate=4, **options)
    one, other = fit(whole, tmp_path), fit(split, tmp_path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value, msg=name)
    for name in ("loss/d_real", "loss/d_fake", "loss/gan"):
        torch.testing.assert_close(one.callback_metrics[name], other.callback_metrics[name])


def test_several_discriminator_steps_share_the_batch_out(tmp_path: Path) -> None:
    module = task(images=8, discriminator_steps=2, accumulate=2)
    seen: list[int] = []
    module.discriminator.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    stepped: list[str] = []
    original = module.guarded_step
    module.guarded_step = lambda name, *rest: (stepped.append(name), original(name, *rest))  # type: ignore[method-assign,func-returns-value,assignment]
    fit(module, tmp_path)
    assert stepped == ["discriminator", "discriminator", "generator"]
    assert seen == [2] * (2 * 2 * 2 + 2)  # real and fake of 2 x 2 parts, then the generator's 2
    with pytest.raises(ValueError, match=r"batch of 8 .* choose a multiple of 6"):
        fit(task(discriminator_steps=2, accumulate=3), tmp_path)


def test_draws_are_slices_of_one_global_batch(tmp_path: Path) -> None:
    module = task()
    module.trainer = Ranks(1, 0)  # type: ignore[assignment]
    whole = module.draw(8, purpose=0)
    for rank in (0, 1):
        module.trainer = Ranks(2, rank)  # type: ignore[assignment]
        part = module.draw(4, purpose=0)
        assert torch.equal(part.latents, whole.latents[rank * 4 : rank * 4 + 4])
        assert torch.equal(part.labels, whole.labels[rank * 4 : rank * 4 + 4])
    module.images_seen += 8
    assert not torch.equal(module.draw(4, purpose=0).latents, part.latents)


class Ranks:
    """As much of a trainer as `draw` asks for."""

    def __init__(self, world_size: int, rank: int) -> None:
        self.world_size, self.global_rank = world_size, rank
        self.strategy = self


def test_a_poisoned_batch_leaves_the_weights_and_many_stop_the_run(tmp_path: Path) -> None:
    class Poisoned(Data):
        def batch(self, start: int, count: int) -> Any:
            found = super().batch(start, count)
            found.images[0] = torch.nan
            return found

    module, before = task(images=8, networks={"norm": False}), task(networks={"norm": False})
    fit(module, tmp_path, Poisoned())
    assert module.nonfinite_steps == 1
    for name, value in module.discriminator.named_parameters():
        assert torch.equal(value, before.discriminator.get_parameter(name))
    # the generator's steps between are finite
    with pytest.raises(NonFiniteTraining, match=r"discriminator: .* 3 steps in a row, at image 16"):
        fit(task(images=800, networks={"norm": False}, max_nonfinite=3), tmp_path, Poisoned())


def test_without_classes_nothing_asks_for_labels(tmp_path: Path) -> None:
    module = task(images=16, networks={"classes": None})
    fit(module, tmp_path)
    assert module.draw(4, purpose=0).labels is None
    assert module.samples(module.picture_batch()).keys() == {"samples"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": "wasserstein"}, "hinge, logistic"),
        ({"accumulate": 0}, "accumulate"),
        ({"truncation": -1.0}, "truncation"),
    ],
)
def test_wrong_options_name_the_valid_ones(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task(**options)


def test_classes_must_agree(tmp_path: Path) -> None:
    options = {"generator_optimiser": sgd, "discriminator_optimiser": sgd, "images": 8, "seed": 0}
    with pytest.raises(ValueError, match="one number of classes; got 3, None"):
        GenerationTask(Generator(3), Discriminator(None), scores=Proxy(), **options)
    with pytest.raises(ValueError, match="needs a discriminator"):
        GenerationTask(Generator(3), None, scores=Proxy(), **options)
    with pytest.raises(ValueError, match="networks have 5 classes, the data 3"):
        fit(task(networks={"classes": 5}), tmp_path)


# ---------------------------------------------------------------------- resume


class Stop(pl.Callback):
    """A crash after so many images, in a training step or in an evaluation."""

    def __init__(self, at: int, hook: str) -> None:
        self.at = at
        setattr(self, hook, self._crash)

    def _crash(self, runner: pl.Trainer, module: Any, *args: Any) -> None:
        if int(module.images_seen) >= self.at:
            raise KeyError("crash")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_end", "on_train_end"])
@pytest.mark.parametrize("half_life", [0.0, 20.0])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, hook: str, half_life: float) -> None:
    options = {"images": 48, "ema_half_life": half_life, "ema_from": 16.0, "score_start": True, "accumulate": 2}
    whole, history = task(**options), Evaluations()
    trainer(tmp_path, [history, ResumePoint(tmp_path / "whole.ckpt", every_images=24)]).fit(whole, datamodule=Data())
    path, again = tmp_path / "last.ckpt", Evaluations()
    stop = Stop(48 if hook == "on_train_end" else 32, hook)
    with pytest.raises(KeyError):
        trainer(tmp_path, [again, stop, ResumePoint(path, every_images=24)]).fit(task(**options), datamodule=Data())
    resumed, data = task(**options), Data()
    data.set_position(int(torch.load(path, weights_only=True)["state_dict"]["images_seen"]))
    trainer(tmp_path, [again, ResumePoint(path, every_images=24)]).fit(
        resumed, datamodule=data, ckpt_path=path, weights_only=True
    )
    assert same(whole, resumed)
    assert sorted(set(again.seen)) == history.seen  # an evaluation that was cut short is made up for


def test_a_resumed_run_knows_what_its_start_was_scored_by(tmp_path: Path) -> None:
    path, options = tmp_path / "last.ckpt", {"images": 40, "score_start": True}  # ends between two evaluations
    fit(task(**options), tmp_path, callbacks=[ResumePoint(path, every_images=24)])
    resumed, runner = task(**options), trainer(tmp_path, [ResumePoint(path, every_images=24)])
    runner.fit(resumed, datamodule=Data(), ckpt_path=path, weights_only=True)
    runner.test(resumed, datamodule=Data(), verbose=False)
    assert resumed.headline == "frechet_proxy_val_ratio_to_start"


class Evaluations(pl.Callback):
    """Which evaluations came to an end, with their score."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, runner: pl.Trainer, module: Any) -> None:
        self.seen.append((int(module.images_seen), module.evaluation["frechet_proxy_val"]))


# ---------------------------------------------------------------------- average


def test_no_half_life_is_the_network_itself() -> None:
    module = task(ema_half_life=0.0)
    assert module.ema.network is module.generator
    copied = task(ema_half_life=8.0)
    assert copied.ema.network is not copied.generator
    state = module.state_dict()
    assert all(
        torch.equal(state[f"ema.network.{name}"], value) for name, value in module.generator.state_dict().items()
    )


def test_an_average_follows_until_its_start() -> None:
    source = nn.Linear(1, 1, bias=False)
    ema = Ema(source, half_life=100, rampup=None, start=50)
    nn.init.zeros_(source.weight)
    ema.update(source, images_seen=48, images_step=4)
    assert float(ema.network.weight.detach()) == 0.0
    nn.init.ones_(source.weight)
    ema.update(source, images_seen=100, images_step=100)
    assert float(ema.network.weight.detach()) == 0.5
    with pytest.raises(ValueError, match="half_life and start"):
        Ema(source, half_life=-1)


# ---------------------------------------------------------------------- evaluation


def test_latents_and_labels_belong_to_positions(tmp_path: Path) -> None:
    module = task(evaluation_seed=3)
    module.trainer = trainer(tmp_path)
    found = module.inputs_at(torch.tensor([5, 0, 7]))
    assert torch.equal(found.latents, latents_at(3, [5, 0, 7], LATENT))
    assert torch.equal(module.inputs_at(torch.tensor([7])).latents[0], found.latents[2])
    labels = module.inputs_at(torch.arange(300)).labels
    counts = torch.bincount(labels, minlength=CLASSES)
    assert len(counts) == CLASSES
    assert int(counts.min()) > 70
    assert torch.equal(labels[[5, 0, 7]], found.labels)


def test_truncated_latents_stay_within_the_limit(tmp_path: Path) -> None:
    module = task(truncation=0.5)
    module.trainer = trainer(tmp_path)
    assert float(module.inputs_at(torch.arange(200)).latents.abs().max()) <= 0.5


def test_headline_is_the_ratio_to_the_start_where_that_is_scored(tmp_path: Path) -> None:
    module = task(images=32, score_start=True)
    history = Evaluations()
    runner = trainer(tmp_path, [history, ResumePoint(tmp_path / "last.ckpt", every_images=1000)])
    runner.fit(module, datamodule=Data())
    assert [seen for seen, _ in history.seen] == [0, 16, 32]
    start, end = history.seen[0][1], history.seen[-1][1]
    (metrics,) = runner.test(module, datamodule=Data(), verbose=False)
    assert module.headline == "frechet_proxy_val_ratio_to_start"
    assert metrics[f"eval/{module.headline}"] == pytest.approx(end / start)
    # another count is another protocol: no ratio of the two, and no place among the best
    module.scores.suffix = "_other"
    (metrics,) = runner.test(module, datamodule=Data(), verbose=False)
    assert module.headline == "frechet_proxy_val_other"
    assert not any("ratio" in name for name in metrics)
    plain = task(images=16)
    fit(plain, tmp_path)
    assert plain.headline == plain.selection == "frechet_proxy_val"
    assert not any("ratio" in name for name in plain.evaluation)


def test_scoring_the_start_changes_no_weight(tmp_path: Path) -> None:
    scored, plain = task(images=16, score_start=True), task(images=16)
    trainer(tmp_path, [ResumePoint(tmp_path / "last.ckpt", every_images=1000)]).fit(scored, datamodule=Data())
    fit(plain, tmp_path)
    assert same(scored.generator, plain.generator)
    assert same(scored.discriminator, plain.discriminator)


def test_an_unknown_metric_to_select_by_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="select=fid is not computed; valid: inception_score, frechet_proxy_val"):
        fit(task(select="fid"), tmp_path)


def test_pictures_have_a_row_a_class_and_a_column_a_latent() -> None:
    module = task()
    inputs = module.picture_batch()
    sample = module.samples(inputs)["classes"]
    assert sample["generated"].shape == (CLASSES * 8, 3, 8, 8)
    assert sample["labels"].tolist() == [label for label in range(CLASSES) for _ in range(8)]
    assert torch.equal(inputs.latents[:8], inputs.latents[8:16])


def test_inputs_are_cut_and_moved_together() -> None:
    inputs = GeneratorInputs(torch.arange(8.0)[:, None], torch.arange(8))
    part = inputs.part(2, 3).to("cpu")
    assert (len(part), part.labels.tolist(), part.latents[:, 0].tolist()) == (3, [2, 3, 4], [2.0, 3.0, 4.0])


def test_both_losses_are_at_hand() -> None:
    logits: Tensor = torch.tensor([0.5, -2.0])
    assert task(loss="logistic").generator_loss(logits)["gan"] > 0
    assert float(task(loss="hinge").generator_loss(logits)["gan"]) == 0.75


def test_adam_as_the_papers_have_it() -> None:
    optimiser = adam(nn.Linear(1, 1).parameters(), lr=1e-4, beta1=0.0, beta2=0.999)
    assert optimiser.param_groups[0]["betas"] == (0.0, 0.999)
    assert optimiser.param_groups[0]["eps"] == 1e-8
