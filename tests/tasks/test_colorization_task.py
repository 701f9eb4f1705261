"""The colourisation task: its loss and scores in closed form, its training, its evaluation twice and on two ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from saccade.attention import PatchBasedStochasticAttention, SlotPolicy
from saccade.attention.reference_block import ReferenceBlock
from saccade.data.editing_batches import FramePairBatch, FramePairSample, collate_frame_pairs
from saccade.models.colorization import ColorizationNet
from saccade.tasks.colorization import ColorizationTask, grey_of, squared_error
from saccade.tasks.optimisers import adam

SIDE = 20
DISTANCES = (1, -1, 3, -3, 5, -5, 10, -10)


class Pairs(Dataset[FramePairSample]):
    """A coloured ramp and the same a little further on."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> FramePairSample:
        distance = DISTANCES[index % len(DISTANCES)]
        generator = torch.Generator().manual_seed(index // len(DISTANCES))
        wide = torch.randint(0, 256, (3, SIDE, SIDE + 24), generator=generator, dtype=torch.uint8)
        target, reference = (wide[..., 12 + at : 12 + at + SIDE] for at in (0, distance))
        return FramePairSample(target, reference, f"{index}", distance)


class Data(pl.LightningDataModule):
    def __init__(self, batch: int = 2, test: int = 8) -> None:
        super().__init__()
        self.batch, self.test = batch, test

    def loader(self, count: int) -> DataLoader[Any]:
        return DataLoader(Pairs(count), batch_size=self.batch, collate_fn=collate_frame_pairs)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(16)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.test)

    test_dataloader = val_dataloader

    def preview(self, count: int) -> FramePairBatch:
        return collate_frame_pairs([Pairs(count)[index] for index in range(min(count, self.test))])


class Constant(nn.Module):
    """Paints everything in one learnt colour."""

    def __init__(self, *colour: float) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.tensor(colour))

    def forward(self, grey: Tensor, reference: Tensor) -> Tensor:
        self.seen = grey, reference
        return self.colour.view(3, 1, 1).expand_as(grey)


def task(network: nn.Module, **options: Any) -> ColorizationTask:
    factory = partial(adam, lr=0.05, beta1=0.9, beta2=0.999)
    return ColorizationTask(network, generator_optimiser=factory, **{"images": 16, "seed": 0, **options})


def real(**options: Any) -> ColorizationTask:
    torch.manual_seed(0)
    policy = SlotPolicy(
        lambda spec: PatchBasedStochasticAttention(spec, matches=3, patch_size=3, iterations=1),
        exact_up_to=0,
        block=ReferenceBlock,
    )
    return task(ColorizationNet(image_size=SIDE, attention=policy), **options)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **quiet,
        **options,
    )


def batch_of(target: Tensor, reference: Tensor, *distances: int) -> FramePairBatch:
    return FramePairBatch([f"{d}" for d in distances], target, reference, torch.tensor(distances))


def test_squared_error_leaves_the_sides_out() -> None:
    target = torch.zeros(2, 3, 16, 18)
    painted = target.clone()
    painted[0, :, 7:9, 7:11] = 0.5  # all that the crop leaves
    painted[1, :, :7] = 9.0
    assert squared_error(painted, target, 7).tolist() == [0.25, 0.0]
    assert squared_error(painted, target, 0)[1] == pytest.approx(81 * 7 / 16)
    for wrong in (target[..., :14], target[:1]):
        with pytest.raises(ValueError, match="colorization: pictures of one size above 14 pixels"):
            squared_error(wrong, target, 7)
    with pytest.raises(ValueError, match="above 14 pixels"):
        squared_error(target[:, :, :14], target[:, :, :14], 7)


def test_grey_is_the_mean_of_the_colours() -> None:
    image = torch.tensor([0.0, 0.3, 0.9]).view(1, 3, 1, 1)
    torch.testing.assert_close(grey_of(image), torch.full((1, 3, 1, 1), 0.4))


def test_the_network_sees_grey_and_reference_in_its_own_range() -> None:
    network = Constant(0.0, 0.0, 0.0)
    target = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    task(network).loss_terms(batch_of(target, -torch.ones(1, 3, SIDE, SIDE), 3))
    grey, reference = network.seen
    torch.testing.assert_close(grey, torch.full((1, 3, SIDE, SIDE), 0.5))
    assert torch.equal(reference, torch.zeros(1, 3, SIDE, SIDE))


def test_loss_and_scores_in_closed_form() -> None:
    """Unit colours 0, 0.5 and 1 against one painted colour; a bright frame at the border counts in `mse` alone."""
    colour = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    unit = colour.expand(3, 3, SIDE, SIDE).clone()
    unit[0, :, 0] = 1.0  # one row of the first picture
    batch = batch_of(2 * unit - 1, torch.zeros_like(unit), 1, -1, 10)
    module = task(Constant(0.0, 0.5, 0.4))
    wanted = 0.6**2 / 3
    torch.testing.assert_close(module.loss_terms(batch)["mse"], torch.tensor(wanted))
    found = module.summary(module.score(batch))
    border = ((1 + 0.25 + 0.36) / 3 - wanted) / SIDE
    assert found == pytest.approx(
        {
            "mse_crop7": wanted,
            "mse": wanted + border / 3,
            "mse_crop7_grey": 0.5 / 3,
            "mse_crop7_reference": 0.5 / 3,
            "mse_crop7_distance1": wanted,
            "mse_crop7_distance10": wanted,
            "mse_crop7_ratio": wanted / (0.5 / 3),
        }
    )
    assert module.headline in found


def test_each_distance_has_its_own_mean() -> None:
    target = torch.zeros(4, 3, SIDE, SIDE)
    target[2:] = 1.0
    found = (module := task(Constant(0.5, 0.5, 0.5), crop=2)).summary(
        module.score(batch_of(target, target, 1, -1, 3, -10))
    )
    assert found["mse_crop2_distance1"] == 0.0
    assert found["mse_crop2_distance3"] == found["mse_crop2_distance10"] == 0.25
    assert found["mse_crop2"] == 0.125


def test_training_lowers_the_loss_and_records_the_scores() -> None:
    module = real(images=64)
    fitting = trainer()
    fitting.fit(module, train_dataloaders=Data().train_dataloader())
    assert int(module.images_seen) == 64
    trained = fitting.test(module, datamodule=Data(), verbose=False)[0]
    start = trainer().test(real(), datamodule=Data(), verbose=False)[0]
    assert trained["eval/mse_crop7_ratio"] < start["eval/mse_crop7_ratio"]
    assert {f"eval/mse_crop7_distance{d}" for d in (1, 3, 5, 10)} <= set(trained)


def test_an_evaluation_repeats_its_searches() -> None:
    """PSAL draws at random; the same weights have the same scores, whatever was drawn before."""
    module = real()
    first = trainer().test(module, datamodule=Data(), verbose=False)[0]
    torch.manual_seed(99)
    assert trainer().test(module, datamodule=Data(), verbose=False)[0] == first


def test_two_ranks_train_and_score_like_one() -> None:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)

    def built() -> ColorizationTask:
        module = task(Constant(0.1, 0.2, 0.3), images=8)
        module.generator_optimiser = sgd
        return module

    one, two = built(), built()
    trainer(limit_val_batches=0).fit(one, train_dataloaders=Halves(4).train_dataloader())
    ranks: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2}
    trainer(limit_val_batches=0, **ranks).fit(two, datamodule=Halves(2))
    torch.testing.assert_close(two.generator.colour, one.generator.colour)
    assert not torch.allclose(one.generator.colour, built().generator.colour)
    found = trainer(**ranks).test(two, datamodule=Halves(2), verbose=False)[0]
    torch.testing.assert_close(found, trainer().test(one, datamodule=Halves(8), verbose=False)[0])


class Halves(Data):
    """Each rank takes its own half of every global batch."""

    def loader(self, count: int) -> DataLoader[Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        chunks = [list(range(at, min(at + self.batch, 8))) for at in range(0, 8, self.batch)]
        return DataLoader(Pairs(8), batch_sampler=chunks[rank::world], collate_fn=collate_frame_pairs)


def test_samples_are_pictures() -> None:
    module = real()
    batch = Data().preview(3)
    shown = module.samples(batch)["colorization"]
    assert list(shown) == ["grey", "reference", "colorized", "target"]
    assert all(picture.shape == (3, 3, SIDE, SIDE) for picture in shown.values())
    assert all(float(picture.min()) >= -1 and float(picture.max()) <= 1 for picture in shown.values())
    torch.testing.assert_close(shown["grey"], grey_of(batch.target))


def test_pictures_that_are_not_finite_are_named() -> None:
    pictures = torch.zeros(1, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="colorization scores: 3 was made with values that are not finite"):
        task(Constant(0.0, float("nan"), 0.0)).score(batch_of(pictures, pictures, 3))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"weights names gan, but the terms are mse"):
        task(Constant(0.0, 0.0, 0.0), weights={"gan": 1.0})
    with pytest.raises(ValueError, match=r"trains without a discriminator; set task\.adversarial=false"):
        task(Constant(0.0, 0.0, 0.0), discriminator=nn.Identity())
    with pytest.raises(ValueError, match="crop is a number of pixels, 0 or more; got -1"):
        task(Constant(0.0, 0.0, 0.0), crop=-1)
