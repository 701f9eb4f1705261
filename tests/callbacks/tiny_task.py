"""The smallest task that the callbacks can watch: one attention block that learns to copy."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from saccade.attention.block import AttentionBlock
from saccade.attention.full import FullAttention
from saccade.attention.none import NoAttention
from saccade.geometry import Size, SlotSpec

SIZE = Size(8, 8)


class Pictures(Dataset[Tensor]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Tensor:
        return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(index)) * 2 - 1


class Network(nn.Module):
    def __init__(self, attends: bool) -> None:
        super().__init__()
        spec = SlotSpec("up.8", 3, 3, 3, SIZE, SIZE)
        self.block = AttentionBlock(spec, FullAttention(spec) if attends else NoAttention(spec))
        self.drop = nn.Dropout(0.1)

    @property
    def attention_blocks(self) -> dict[str, AttentionBlock]:
        return {"up.8": self.block}

    def forward(self, image: Tensor) -> Tensor:
        return self.drop(self.block(image, image))


class TinyTask(pl.LightningModule):
    headline = "copy/ratio"
    attention_views = ("source", "generated")

    def __init__(self, attends: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.generator = Network(attends)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.weights = {"l1": 1.0, "unused": 0.0}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.generator.parameters(), lr=1e-3)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.images_seen += len(batch)
        loss = (self.generator(batch) - batch).abs().mean()
        self.log_dict({"loss/unused": loss * 0, "loss/l1": loss})
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("eval/copy/ratio", (self.generator(batch) - batch).abs().mean())

    test_step = validation_step

    def picture_batch(self) -> Tensor:
        return torch.stack([Pictures()[index] for index in range(3)])

    def samples(self, batch: Tensor) -> dict[str, dict[str, Tensor]]:
        points = torch.rand(len(batch), 18, 3) * 8  # consumes random numbers, which must not show in training
        points[..., 2] = 1
        sample = {"source": batch, "generated": self.generator(batch), "target": batch}
        return {"copy": {**sample, "source_keypoints": points, "target_keypoints": points}}


def fit(task: TinyTask, callbacks: list[pl.Callback], *, steps: int = 4, logger: object = False) -> pl.Trainer:
    torch.manual_seed(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=2,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    loader = DataLoader(Pictures(), batch_size=4)
    trainer.fit(task, loader, DataLoader(Pictures(), batch_size=8))
    return trainer
