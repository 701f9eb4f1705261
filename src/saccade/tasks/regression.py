"""RegressionTask: one network, named loss terms, one optimiser, and scores by picture. Nothing adversarial."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.metrics.rows import Rows, column_means, gathered_rows
from saccade.tasks.base import Ema, OptimiserFactory, Task, step_seed

Terms = dict[str, Tensor]
PICTURES = 8
_EVALUATION_SEED = 0xE7A1


class RegressionTask(Task):
    """Train a network by named loss terms against known pictures, and score its pictures one by one.

    A subclass names its `terms` and its `headline`, and gives `loss_terms`, `score` and `samples`. Scores and samples
    should come from `self.ema.network`, which is the trained network itself where nothing is averaged.

    Args:
        generator: the network to train.
        discriminator: None; there is no opponent here.
        generator_optimiser: factory of the optimiser.
        weights: weight of each named term; one that is not named counts 1, a weight of 0 leaves it out.
        ema_half_life, ema_rampup, ema_from: of the averaged network, in images; see `Ema`. 0 averages nothing.
        base: the arguments of `Task`.

    Raises:
        ValueError: a discriminator, or a weight of a term that does not exist.
    """

    terms: tuple[str, ...]

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None = None,
        *,
        generator_optimiser: OptimiserFactory,
        weights: Mapping[str, float] | None = None,
        ema_half_life: float = 0.0,
        ema_rampup: float | None = None,
        ema_from: float = 0.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if discriminator is not None:
            raise ValueError("task: this task trains without a discriminator; set task.adversarial=false")
        given = dict(weights or {})
        unknown = [name for name in given if name not in self.terms]
        if unknown:
            raise ValueError(f"task: weights names {', '.join(unknown)}, but the terms are {', '.join(self.terms)}")
        self.weights = {name: float(given.get(name, 1.0)) for name in self.terms}
        self.generator = generator
        self.ema = Ema(generator, half_life=ema_half_life, rampup=ema_rampup, start=ema_from)
        self.generator_optimiser = generator_optimiser
        self._rows: Rows = {}

    # ------------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def loss_terms(self, batch: Any) -> Terms:
        """The loss of a batch in named scalar terms; those of weight 0 may be missing."""

    @abstractmethod
    def score(self, batch: Any) -> Rows:
        """Metrics of each picture of a test batch by the picture's key: one key a picture of the whole test set."""

    def summary(self, rows: Rows) -> dict[str, float]:
        """The metrics of an evaluation from the rows of all its pictures: by default the mean of each column."""
        return column_means(rows.values())

    # ------------------------------------------------------------------ training

    def configure_optimizers(self) -> Any:
        return self.with_initial_lr(self.generator_optimiser(self.generator.parameters()))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.begin_step(len(batch))
        finite = self.backward_terms(self.loss_terms(batch), self.weights)
        self.guarded_step("generator", self._optimisers()[0], list(self.generator.parameters()), finite)
        images = self.end_step(len(batch))
        self.ema.update(self.generator, images_seen=int(self.images_seen), images_step=images)

    # ------------------------------------------------------------------ evaluation

    def on_validation_epoch_start(self) -> None:
        self._rows = {}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(step_seed(_EVALUATION_SEED, batch_idx))  # random attention: the same weights, the same scores
        self._rows.update(self.score(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_evaluation(self.summary(gathered_rows(self._rows)))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    # ------------------------------------------------------------------ pictures

    def picture_batch(self) -> Any:
        """The same few test items every time."""
        return self.trainer.datamodule.preview(PICTURES)  # type: ignore[attr-defined]
