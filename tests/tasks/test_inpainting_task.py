"""InpaintingTask: its terms in closed form, whose turn it is, and that it can be stopped and shared out."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_gan import same, trainer
from tiny_inpainting import HOLE, SIDE, Critics, Data, Fixed, Generator, Linear, inpainting_task, sgd
from torch import Tensor

from saccade.callbacks.checkpoint import ResumePoint
from saccade.data.masks import CentredHole, FreeFormHoles, Holes, RectangularHoles
from saccade.geometry import Size
from saccade.losses.discounted import discount_weights
from saccade.tasks.inpainting import GENERATOR_TERMS, WEIGHTS, InpaintingTask


def holes_of(count: int, shrink: int = 0) -> Holes:
    holes = CentredHole(HOLE).draw(Size(SIDE, SIDE), range(count), seed=0)
    if shrink:
        start, end = (SIDE - HOLE) // 2, (SIDE + HOLE) // 2
        holes.masks.zero_()[..., start + shrink : end - shrink, start + shrink : end - shrink] = 1
    return holes


def fit(module: InpaintingTask, folder: Path, batch: int = 4, callbacks: Any = None, **options: Any) -> pl.Trainer:
    runner = trainer(folder, callbacks, **{"limit_val_batches": 0, **options})
    runner.fit(module, datamodule=Data(batch))
    return runner


# ---------------------------------------------------------------------- loss terms


def test_terms_of_the_port_in_closed_form() -> None:
    module = inpainting_task(Fixed(0.5, -0.25), Critics(Linear(HOLE, 0.1), Linear(SIDE, 0.2)))
    images, holes = torch.zeros(2, 3, SIDE, SIDE), holes_of(2, shrink=1)
    terms = module.generator_terms(images, module.complete(module.generator, images, holes), holes)
    assert tuple(terms) == ("l1_coarse", "ae_coarse", "l1_fine", "ae_fine", "gan_local", "gan_whole")
    # the box's rim is known: pasted, it is without error
    inner = float(discount_weights(Size(HOLE, HOLE))[..., 1:-1, 1:-1].sum()) / HOLE**2
    missing = (HOLE - 2) ** 2
    known = 1 - missing / SIDE**2
    wanted = {
        "l1_coarse": 0.5 * inner,
        "l1_fine": 0.25 * inner,
        "ae_coarse": 0.5 * known,
        "ae_fine": 0.25 * known,
        "gan_local": 0.25 * 0.1 * 3 * missing,
        "gan_whole": 0.25 * 0.2 * 3 * missing,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(wanted, rel=1e-5)


def test_terms_of_the_authors_code_in_closed_form() -> None:
    critics = Critics(Linear(HOLE, 0.1), Linear(SIDE, 0.2))
    module = inpainting_task(Fixed(0.5, -0.25), critics, recipe="tensorflow")
    images, holes = torch.zeros(2, 3, SIDE, SIDE), holes_of(2, shrink=1)
    output = module.complete(module.generator, images, holes)
    terms = module.generator_terms(images, output, holes)
    whole = float(discount_weights(Size(HOLE, HOLE)).mean())
    wanted = {"l1_coarse": 0.5 * whole, "l1_fine": 0.25 * whole, "ae_coarse": 0.5, "ae_fine": 0.25}
    assert {name: terms[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-5)
    found = module.critic_terms(critics, images, output.completed.detach(), holes, torch.rand(2, 2))
    norms = {"local": 0.1 * (3 * (HOLE - 2) ** 2) ** 0.5, "whole": 0.2 * (3 * (HOLE - 2) ** 2) ** 0.5}  # of the hole
    for name, norm in norms.items():
        assert found[f"penalty_{name}"].item() == pytest.approx((norm - 1) ** 2, rel=1e-5)


def test_critic_terms_in_closed_form() -> None:
    critics = Critics(Linear(HOLE, 0.1), Linear(SIDE, 0.2))
    module = inpainting_task(Fixed(), critics)
    images, holes = torch.ones(2, 3, SIDE, SIDE), holes_of(2)
    completed = holes.paste(torch.zeros_like(images), images)
    terms = module.critic_terms(critics, images, completed, holes, torch.rand(2, 2))
    wanted = {
        "critic_local": -0.1 * 3 * HOLE**2,
        "critic_whole": -0.2 * 3 * HOLE**2,
        "penalty_local": (0.1 * (3 * HOLE**2) ** 0.5 - 1) ** 2,
        "penalty_whole": (0.2 * (3 * SIDE**2) ** 0.5 - 1) ** 2,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(wanted, rel=1e-4)


def test_released_weights_and_changed_ones() -> None:
    assert inpainting_task().weights == WEIGHTS
    assert WEIGHTS["l1_coarse"] == pytest.approx(1.2 * 1.2)
    changed = inpainting_task(weights={"gan_local": 0.0}).weights
    assert changed == {**WEIGHTS, "gan_local": 0.0}


def test_what_a_hole_hides_reaches_no_network() -> None:
    module = inpainting_task(Generator())
    images, holes = torch.rand(2, 3, SIDE, SIDE) + 0.1, holes_of(2)
    output = module.complete(module.generator, images, holes)
    other = module.complete(module.generator, holes.paste(torch.full_like(images, torch.nan), images), holes)
    assert torch.equal(output.fine, other.fine)
    assert float((module.generator.seen * holes.masks).abs().max()) == 0


# ---------------------------------------------------------------------- steps


class Watch(pl.Callback):
    """Weights after every step, and what was logged."""

    def __init__(self) -> None:
        self.generators: list[Tensor] = []
        self.critics: list[Tensor] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, runner: pl.Trainer, module: Any, *_: Any) -> None:
        self.generators.append(torch.cat([p.detach().flatten().clone() for p in module.generator.parameters()]))
        if module.discriminator is not None:
            self.critics.append(torch.cat([p.detach().flatten().clone() for p in module.discriminator.parameters()]))
        self.logged.append({name: float(value) for name, value in runner.callback_metrics.items()})


def moves(states: list[Tensor]) -> list[bool]:
    return [not torch.equal(one, other) for one, other in pairwise(states)]


def test_every_fifth_critic_step_is_a_generator_step_too(tmp_path: Path) -> None:
    watch, module = Watch(), inpainting_task(critics=Critics, images=44, ema_half_life=10)
    fit(module, tmp_path, callbacks=[watch])
    assert int(module.images_seen) == 44
    assert (int(module.steps), int(module.generator_steps)) == (11, 2)
    assert moves(watch.generators) == [step in (4, 9) for step in range(1, 11)]
    assert all(moves(watch.critics))
    assert [row["generator_steps"] for row in watch.logged] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    assert watch.logged[-1]["critic_steps"] == 11
    assert [f"loss/{GENERATOR_TERMS[0]}" in row for row in watch.logged] == [False] * 4 + [True] * 7
    assert watch.logged[4]["loss/gan_whole"] == watch.logged[8]["loss/gan_whole"] != watch.logged[9]["loss/gan_whole"]
    averaged = torch.cat([p.flatten() for p in module.ema.network.parameters()])
    assert not torch.equal(averaged, watch.generators[-1])


def test_without_critics_every_step_is_the_generators(tmp_path: Path) -> None:
    watch, module = Watch(), inpainting_task(images=16)
    fit(module, tmp_path, callbacks=[watch])
    assert (int(module.steps), int(module.generator_steps)) == (4, 4)
    assert all(moves(watch.generators))
    assert "critic_steps" not in watch.logged[-1]
    assert {name for name in watch.logged[-1] if name.startswith("loss/")} == {
        f"loss/{stage}_{part}" for stage in ("l1", "ae") for part in ("coarse", "fine")
    }


def test_a_step_by_hand(tmp_path: Path) -> None:
    """Critics first, on what the generator made; then the generator on the same pictures, judged by the new critics."""
    module = inpainting_task(critics=Critics, images=4, critic_steps=1, weights={"gan_local": 0.5, "gan_whole": 0.2})
    generator, critics = copy.deepcopy(module.generator), copy.deepcopy(module.discriminator)
    runner = fit(module, tmp_path)
    hand = inpainting_task(generator, critics, weights=module.weights)
    hand.trainer = runner
    batch = Data().batch(0, 4)
    holes = hand.training_holes(batch)
    output = hand.complete(generator, batch.images, holes)
    terms = hand.critic_terms(critics, batch.images, output.completed.detach(), holes, hand._mix(4))
    sum(hand.weights[name] * term for name, term in terms.items()).backward()
    sgd(critics.parameters(), 0.01).step()
    terms = hand.generator_terms(batch.images, output, holes)
    sum(hand.weights[name] * term for name, term in terms.items()).backward()
    sgd(generator.parameters()).step()
    for mine, theirs in ((module.generator, generator), (module.discriminator, critics)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[name], value, msg=name)


def test_it_learns_what_the_holes_hide(tmp_path: Path) -> None:
    module = inpainting_task(
        Fixed(),
        images=600,
        holes=RectangularHoles(HOLE, shrink=2),
        generator_optimiser=lambda p: torch.optim.Adam(p, 0.02),
    )
    runner = trainer(tmp_path, limit_val_batches=0)
    runner.fit(module, datamodule=Data(alike=True))
    (metrics,) = runner.test(module, datamodule=Data(alike=True), verbose=False)
    assert metrics["eval/l2_hole_ratio_to_mean_fill"] < 0.05
    assert metrics["eval/psnr_hole_gain_over_mean_fill"] > 10


def test_a_resumed_run_ends_as_one_that_went_through(tmp_path: Path) -> None:
    watch, again = Watch(), Watch()
    straight = inpainting_task(critics=Critics, images=56, ema_half_life=20)
    fit(straight, tmp_path, callbacks=[watch])
    stopped = inpainting_task(critics=Critics, images=28, ema_half_life=20)  # between two generator steps
    fit(stopped, tmp_path, callbacks=[ResumePoint(tmp_path / "last.ckpt", every_images=1000)])
    resumed, data = inpainting_task(critics=Critics, images=56, ema_half_life=20), Data()
    data.set_position(28)
    trainer(tmp_path, [again], limit_val_batches=0).fit(
        resumed, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert int(resumed.generator_steps) == 2
    assert again.logged == watch.logged[7:]  # the generator's values too, which its last step left
    assert "gradient_norm/generator" in again.logged[0]
    assert same(straight, resumed)


# ---------------------------------------------------------------------- several ranks

RANKS: dict[str, Any] = {"strategy": "ddp_fork_find_unused_parameters_true", "devices": 2, "precision": "64-true"}


@pytest.mark.slow
def test_two_ranks_do_what_one_does_with_the_doubled_batch(tmp_path: Path) -> None:
    one, two = (inpainting_task(critics=Critics, images=48, critic_steps=2).double() for _ in range(2))
    start = copy.deepcopy(one.state_dict())
    fit(one, tmp_path, 8, precision="64-true")
    fit(two, tmp_path, 4, **RANKS)
    assert int(two.generator_steps) == 3
    for name, value in one.state_dict().items():
        if name != "last_terms":  # each rank logs its own
            torch.testing.assert_close(two.state_dict()[name], value, msg=name, rtol=1e-9, atol=1e-12)
    still = {name for name, value in one.named_parameters() if torch.equal(start[name], value)}
    assert still == {f"discriminator.{name}.last.bias" for name in ("local", "whole")}  # real and fake cancel there


# ---------------------------------------------------------------------- evaluation and pictures


def test_scores_do_not_depend_on_batches(tmp_path: Path) -> None:
    module = inpainting_task(test_holes=FreeFormHoles(8))
    runner = trainer(tmp_path)
    (one,), (other,) = (runner.test(module, datamodule=Data(eval_batch_size=n), verbose=False) for n in (4, 1))
    assert one.keys() == other.keys()
    assert {k: v for k, v in one.items() if k.startswith("eval/")} == pytest.approx(
        {k: v for k, v in other.items() if k.startswith("eval/")}
    )
    assert module.headline == "l2_hole_ratio_to_mean_fill"
    ratio = one["eval/l2_hole_percent"] / one["eval/l2_hole_percent_mean_fill"]
    assert one[f"eval/{module.headline}"] == pytest.approx(ratio)


def test_the_averaged_network_is_scored(tmp_path: Path) -> None:
    module = inpainting_task(Fixed(), ema_half_life=5)
    module.ema.network.fine.data.fill_(1.0)
    batch = Data().batch(0, 2)
    rows = module.score(batch)
    assert set(rows) == {"0.png", "1.png"}
    target = ((batch.images[0, :, 3:9, 3:9] + 1) * 127.5).round() / 255
    assert rows["0.png"]["l1_box_percent"] == pytest.approx(100 * float((1 - target).mean()), rel=1e-5)


def test_pictures_show_input_both_stages_and_the_truth() -> None:
    module = inpainting_task(Fixed(0.25, 5.0))
    batch = Data().batch(0, 2)
    (sample,) = module.samples(batch).values()
    assert list(sample) == ["input", "coarse", "completed", "target"]
    mask = holes_of(2).masks.expand(-1, 3, -1, -1) > 0.5
    for name, value in (("input", 1.0), ("coarse", 0.25), ("completed", 1.0)):
        assert torch.equal(sample[name][~mask], batch.images[~mask])
        assert set(sample[name][mask].tolist()) == {value}
    assert torch.equal(sample["target"], batch.images)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator_optimiser": None, "critics": Critics()}, "critics need an optimiser"),
        ({"critic_steps": 0}, "critic_steps is 1 or more; got 0"),
        ({"gamma": 0.0}, "gamma is above 0"),
        ({"recipe": "keras"}, "recipe=keras is unknown; valid: pytorch, tensorflow"),
        ({"weights": {"l1": 1.0}}, "weights names l1, but the terms are l1_coarse"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inpainting_task(**options)


def test_a_hole_larger_than_the_pictures_is_refused_at_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RectangularHoles: a hole of 16x16 does not fit pictures of 12x12"):
        fit(inpainting_task(holes=RectangularHoles(16, shrink=0)), tmp_path)
