"""Task: what every training shares. Images seen as the clock, stateless randomness, EMA, and steps that must be finite.

Randomness inside a training step is a function of (seed, images seen, rank): the global generator is seeded at the
start of each step. A resumed run therefore continues bit for bit without any generator state in its checkpoint.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from saccade.losses.terms import weighted_sum
from saccade.tasks.collapse import CollapseGuard
from saccade.tasks.optimisers import Schedule

OptimiserFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class NonFiniteTraining(RuntimeError):
    """Too many steps in a row had a loss or gradient that was not finite."""


def step_seed(seed: int, images_seen: int, rank: int = 0) -> int:
    """A 63-bit seed that differs for every (seed, images seen, rank): splitmix64 of the three."""
    mixed = (seed * 0x9E3779B97F4A7C15 + images_seen * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1


class Ema(nn.Module):
    """Exponential moving average of a network, with its half-life in images.

    Args:
        network: copied; its buffers are copied at every update, not averaged.
        half_life: images after which an old weight counts half (StyleGAN2: 10,000). 0 averages nothing: `network` is
            then the trained network itself and no copy.
        rampup: the half-life is at most this share of the images seen so far (StyleGAN3: 0.05); None switches it off.
        start: images before which the copy just follows (BigGAN: the images of 2,000 or 20,000 steps).

    Raises:
        ValueError: a negative half-life or start.
    """

    def __init__(
        self, network: nn.Module, *, half_life: float, rampup: float | None = 0.05, start: float = 0.0
    ) -> None:
        super().__init__()
        if half_life < 0 or start < 0:
            raise ValueError(f"ema: half_life and start are images, 0 or more; got {half_life} and {start}")
        self.averages = half_life > 0
        self.network = copy.deepcopy(network).requires_grad_(False).eval() if self.averages else network
        self.half_life, self.rampup, self.start = half_life, rampup, start

    @torch.no_grad()
    def update(self, source: nn.Module, *, images_seen: int, images_step: int) -> None:
        """Move towards `source` by one step of `images_step` images."""
        if not self.averages:
            return
        half_life = self.half_life if self.rampup is None else min(self.half_life, self.rampup * images_seen)
        decay = 0.5 ** (images_step / max(half_life, 1e-8)) if images_seen >= self.start else 0.0
        ours: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(source.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)
        buffers = list(self.network.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(source.buffers()))


class Task(pl.LightningModule):
    """Base of all tasks: manual optimisation on the clock of images seen.

    Args:
        images: length of the run in images seen.
        seed: of all randomness inside training steps.
        schedule: learning-rate factor over the run.
        max_nonfinite: non-finite steps of one network in a row after which training stops with a diagnosis.
    """

    images_seen: Tensor
    headline: str | None = None  # the metric that sweeps minimise and a budget may limit
    selection: str | None = None  # the metric, lower is better, by which the best checkpoint is kept; None keeps none
    collapse: CollapseGuard | None = None  # decides that nothing more can be expected of a training; None: nothing does
    attention_views: tuple[str, str] | None = None  # samples that show keys and queries; None: images of one kind
    exported: tuple[str, ...] = ("generator",)  # what leaves with a run's weights; the generator is the averaged one

    def __init__(self, *, images: int, seed: int, schedule: Schedule | None = None, max_nonfinite: int = 50) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.images, self.seed, self.max_nonfinite = images, seed, max_nonfinite
        self.schedule = schedule or Schedule()
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.evaluation: dict[str, float] = {}  # the metrics of the last evaluation
        self.gradient_norms: dict[str, float] = {}  # of each network's last step
        self.nonfinite_steps = 0
        self._nonfinite_runs: dict[str, int] = {}  # of each network: one that goes on hides no other
        self._base_lr: dict[int, list[float]] = {}

    # ------------------------------------------------------------------ what a task says of itself

    @abstractmethod
    def picture_batch(self) -> Any:
        """The fixed batch of the sample pictures."""

    @abstractmethod
    def samples(self, batch: Any) -> dict[str, dict[str, Tensor]]:
        """Named pictures of a batch for the sample grids, by what they show; the main kind first."""

    def sample(self, batch: Any) -> dict[str, Tensor]:
        """The main kind of `samples`."""
        return next(iter(self.samples(batch).values()))

    def provenance(self) -> dict[str, Any]:
        """Which outside weights the losses and metrics used: for the record of the run."""
        return {}

    # ------------------------------------------------------------------ one step

    def on_train_start(self) -> None:
        """A run that was stopped between its last step and its record trains no further."""
        if int(self.images_seen) >= self.images:
            self.trainer.should_stop = True

    def begin_step(self, batch_size: int) -> None:
        """Seed this step's randomness and set the learning rates."""
        now = int(self.images_seen)
        torch.manual_seed(step_seed(self.seed, now, self.global_rank))
        factor = self.schedule(min(1.0, now / max(1, self.images)))
        for optimiser in self._optimisers():
            base = self._base_lr.setdefault(id(optimiser), [group["initial_lr"] for group in optimiser.param_groups])
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * factor

    def end_step(self, batch_size: int) -> int:
        """Count the images of this step over all ranks; the trainer stops once the run is complete."""
        images = batch_size * self.trainer.world_size
        self.images_seen += images
        self.log("images_seen", self.images_seen.double())
        if int(self.images_seen) >= self.images:
            self.trainer.should_stop = True
        return images

    def backward_terms(
        self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: float = 1.0, *, log: bool = True
    ) -> bool:
        """Weigh, log and sum named loss terms and run their backward pass.

        Returns:
            Whether the loss was finite; if not, no backward pass ran. With several ranks it runs all the same, so that
            none waits for another, and the gradients of all of them are not finite.
        """
        total = scale * weighted_sum(terms, {name: weights[name] for name in terms})
        if log:
            self.log_dict({f"loss/{name}": term.detach().float() for name, term in terms.items()})
        finite = bool(torch.isfinite(total))
        if not finite and self.trainer.world_size > 1:
            total = total * torch.nan  # an infinite loss can have finite gradients, which the other ranks would step by
        if finite or self.trainer.world_size > 1:
            self.manual_backward(total)
        return finite

    def guarded_step(self, name: str, optimiser: Any, parameters: list[nn.Parameter], finite: bool) -> None:
        """Step unless the loss or the gradient is not finite; count such steps, stop after too many in a row.

        Raises:
            NonFiniteTraining: `max_nonfinite` in a row, naming the network and the likely cures.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        scaled = self._uses_loss_scaling()
        if scaled and not finite and gradients:
            gradients[0].fill_(torch.inf)  # or the scaler would step by the passes that were finite
        if finite and gradients:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
            finite = bool(torch.isfinite(norm))
            if finite and not scaled:
                self.gradient_norms[name] = float(norm)
                self.log(f"gradient_norm/{name}", norm)
        if gradients and (finite or scaled):
            optimiser.step()  # with loss scaling, the scaler itself skips the step and lowers its scale
        optimiser.zero_grad(set_to_none=True)
        self._nonfinite_runs[name] = run = 0 if finite else self._nonfinite_runs.get(name, 0) + 1
        self.nonfinite_steps += not finite
        if not finite and run >= self.max_nonfinite:
            raise NonFiniteTraining(
                f"{name}: loss or gradient was not finite in {run} steps in a row, at image "
                f"{int(self.images_seen)}. The last checkpoint is intact. Try a lower learning rate (task.module."
                f"{name}_optimiser.lr), numerics=fp32, or look for broken images in the data."
            )

    def log_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Log under eval/, on the clock of images seen."""
        self.evaluation = dict(metrics)
        self.log_dict({f"eval/{name}": value for name, value in metrics.items()}, rank_zero_only=True)
        self.log("images_seen", self.images_seen.double(), rank_zero_only=True)

    def _uses_loss_scaling(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def _optimisers(self) -> list[Any]:
        found = self.optimizers()
        return list(found) if isinstance(found, list) else [found]

    @staticmethod
    def with_initial_lr(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Record the configured learning rate in the optimiser's groups, where resume finds it again."""
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
        return optimiser
