"""SuperResolutionTask: loss in [0, 1], scores of 8-bit pictures beside bicubic's, parts and mirrorings as asked for."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from saccade.data.bicubic import matlab_resize
from saccade.data.editing_batches import ResolutionBatch
from saccade.metrics.superres import scores
from saccade.tasks.optimisers import adam
from saccade.tasks.superres import SuperResolutionTask, bicubic


class Shifted(nn.Module):
    """Pixels repeated, with one learnt offset, in [0, 1]."""

    def __init__(self, scale: int = 2, offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.offset = scale, nn.Parameter(torch.tensor(offset))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, low: Tensor) -> Tensor:
        self.seen.append(tuple(low.shape[-2:]))
        return low.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2) + self.offset


def batch(scale: int = 2, rows: int = 20, cols: int = 24, seed: int = 0) -> ResolutionBatch:
    random = torch.Generator().manual_seed(seed)
    low = torch.randint(40, 200, (2, 3, rows, cols), generator=random, dtype=torch.uint8)
    high = torch.randint(40, 200, (2, 3, scale * rows, scale * cols), generator=random, dtype=torch.uint8)
    return ResolutionBatch([f"a{seed}", f"b{seed}"], low.float() * 2 / 255 - 1, high.float() * 2 / 255 - 1)


def task(network: Shifted | None = None, **options: Any) -> SuperResolutionTask:
    factory = partial(adam, lr=0.01, beta1=0.9, beta2=0.999)
    given = {"generator_optimiser": factory, "images": 200, "seed": 0, **options}
    return SuperResolutionTask(network or Shifted(), **given)


def trainer() -> pl.Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=-1, logger=False, num_sanity_val_steps=0, **quiet)


def loader(*batches: ResolutionBatch) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def test_the_loss_is_in_units_of_0_to_1() -> None:
    given = batch()
    given.high = given.low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert float(task(Shifted(offset=0.25)).loss_terms(given)["l1"].detach()) == pytest.approx(0.25)


def test_training_moves_towards_the_target() -> None:
    given = batch()
    given.high = given.low.repeat_interleave(2, -1).repeat_interleave(2, -2) + 0.1
    module = task()
    trainer().fit(module, train_dataloaders=loader(*[given] * 30))
    assert float(module.generator.offset.detach()) == pytest.approx(0.05, abs=0.01)


def test_scores_are_of_8_bit_pictures_and_stand_beside_bicubics() -> None:
    """An offset below half a level changes nothing; clamping and rounding come before the score."""
    given = batch()
    rows = task(Shifted(offset=0.4 / 255)).score(given)
    low = ((given.low + 1) * 127.5).round().to(torch.uint8)
    high = ((given.high + 1) * 127.5).round().to(torch.uint8)
    repeated = low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    plain = torch.stack([torch.from_numpy(matlab_resize(p.permute(1, 2, 0).numpy(), 2)).permute(2, 0, 1) for p in low])
    assert list(rows) == ["a0", "b0"]
    for name, values in scores(repeated, high, 2).items():
        assert [rows[key][name] for key in rows] == pytest.approx(values.tolist())
    for name, values in scores(plain, high, 2).items():
        assert [rows[key][f"{name}_bicubic"] for key in rows] == pytest.approx(values.tolist())
    assert torch.equal(bicubic(given.low, 2), plain)
    white = task(Shifted(offset=5.0)).enlarged(given.low)
    assert torch.equal(white, torch.ones_like(white))
    with pytest.raises(ValueError, match="super-resolution scores: a0 was made with values that are not finite"):
        task(Shifted(offset=math.nan)).score(given)


def test_the_evaluation_is_the_mean_over_pictures_and_its_headline_the_gain() -> None:
    module = task()
    batches = [batch(seed=seed) for seed in range(2)]
    found = trainer().test(module, loader(*batches), verbose=False)[0]
    rows = [row for given in batches for row in task().score(given).values()]
    for name in ("psnr_y_shave2", "ssim_y_shave2", "psnr_rgb_shave8", "psnr_y_shave2_bicubic"):
        assert found[f"eval/superres/{name}"] == pytest.approx(sum(row[name] for row in rows) / 4, rel=1e-5)
    gains = [row["psnr_y_shave2"] - row["psnr_y_shave2_bicubic"] for row in rows]
    assert module.headline == "superres/mse_y_shave2_ratio"
    ratio = math.prod(10 ** (-gain / 10) for gain in gains) ** (1 / 4)
    assert found[f"eval/{module.headline}"] == pytest.approx(ratio, rel=1e-5)
    assert ratio > 1  # repeating pixels is worse than bicubic


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"chop": "none"}, [(70, 64)]),
        ({"chop": "released"}, [(46, 44)] * 4),
        ({"chop": "none", "self_ensemble": True}, [(70, 64)] * 4 + [(64, 70)] * 4),
    ],
)
def test_parts_and_mirrorings_are_as_asked_for(options: dict[str, Any], seen: list[tuple[int, int]]) -> None:
    network = Shifted()
    module = task(network, **options)
    given = batch(rows=70, cols=64)
    plain = given.low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(module.enlarged(given.low), plain)
    assert network.seen == seen


def test_sample_pictures_are_of_one_size() -> None:
    given = batch(scale=3)
    shown = task(Shifted(3)).samples(given)["superres"]
    assert list(shown) == ["low", "bicubic", "network", "target"]
    assert {tuple(images.shape) for images in shown.values()} == {(2, 3, 60, 72)}
    assert all(-1 <= float(images.min()) <= float(images.max()) <= 1 for images in shown.values())
    assert torch.equal(shown["low"][..., ::3, ::3], given.low)


def test_data_of_another_scale_and_wrong_options_are_refused() -> None:
    class Data(pl.LightningDataModule):
        scale = 3

        def test_dataloader(self) -> DataLoader[Any]:
            return loader(batch())

    with pytest.raises(ValueError, match=r"enlarges 2 times, the data are for 3 times; set data\.module\.scale=2"):
        trainer().test(task(), datamodule=Data(), verbose=False)
    with pytest.raises(ValueError, match="chop=auto is unknown; valid: released, none"):
        task(chop="auto")
    with pytest.raises(ValueError, match="weights names l2, but the terms are l1"):
        task(weights={"l2": 1.0})
