"""Find the z whose image is nearest to a given one (arXiv 1911.12287, section 5): many starts at once, best kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from saccade.inversion.lookahead import Lookahead
from saccade.inversion.losses import Discriminator, Target, errors, losses, make_target, objective
from saccade.inversion.method import Method
from saccade.inversion.samples import STARTS, check_labels, device_of, held, latent_of
from saccade.layers.latents import latents_at

# Ours: starts that go through the networks together, of all images; more images follow in groups.
AT_ONCE = 32
_LOOK_EVERY = 10  # steps from one look for starts that may stop to the next

Progress = Callable[[int, int, int, float], None]
"""Called every ten steps: images done, step, starts still running, mean over the images of the best loss so far."""


@dataclass(frozen=True)
class Inversion:
    """What was found for N images from R starts each; z has L entries. All tensors are detached.

    Attributes:
        method: with what was changed in it.
        images: (N, 3, Y, X), the generator's at the best z.
        best: (N,) long, the start that was kept: the one of the least loss.
        z: (N, R, L), where each start's loss was least; `starts` (N, R, L), where it began.
        losses, start_losses: (N, R), the method's own loss there.
        pixel_errors, start_pixel_errors: (N, R), mean squared error of a pixel's value (images in [-1, 1]) there.
        history: (N, R, steps + 1) losses before each step and after the last; NaN once a start has stopped.
        taken: (N, R) long, steps taken.
        saliency: (N, G, Yk, Xk) of the discriminator on the images, all heads; None where the method uses none.
    """

    method: Method
    images: Tensor
    best: Tensor
    z: Tensor
    starts: Tensor
    losses: Tensor
    start_losses: Tensor
    pixel_errors: Tensor
    start_pixel_errors: Tensor
    history: Tensor
    taken: Tensor
    saliency: Tensor | None

    def kept(self, values: Tensor) -> Tensor:
        """Of values (N, R, ...), those of the start that was kept: (N, ...)."""
        return values[torch.arange(len(self.best), device=self.best.device), self.best]

    def pixel_ratio(self) -> Tensor:
        """(N,) pixel error at the kept start's best z, over that where it began."""
        return self.kept(self.pixel_errors) / self.kept(self.start_pixel_errors)

    def z_error(self, z: Tensor) -> Tensor:
        """(N,) root mean squared difference of the kept z from the true one (N, L)."""
        return (self.kept(self.z) - z).square().mean(1).sqrt()


def invert(
    generator: nn.Module,
    discriminator: nn.Module | None,
    images: Tensor,
    labels: Tensor | None,
    method: Method,
    *,
    seed: int = 0,
    at_once: int = AT_ONCE,
    progress: Progress | None = None,
) -> Inversion:
    """Invert images.

    Starts do not depend on each other, nor on the number of images or starts, nor on the method: start r of image i is
    the same truncated normal vector for one seed. The networks run in evaluation mode and are left as they were.

    Args:
        generator: (z (B, latent), labels) -> images; has `.latent` and `.classes`.
        discriminator: has `.features` and `.attention_blocks`; may be None for methods in pixels.
        images: (N, 3, Y, X) in [-1, 1], the generator's size.
        labels: (N,) long, the class to generate for each image; None for a generator without classes.
        seed: of the starts.
        at_once: how many starts go through the networks together.

    Raises:
        ValueError: images of another size or not finite, labels that do not fit, heads that are not there.
        RuntimeError: the discriminator attends nowhere and the method needs it; or no start of an image has a finite
            loss.
    """
    images = _check_images(generator, images)
    labels = check_labels(generator, labels, len(images))
    size = max(1, at_once // method.seeds)
    parts = []
    with held(generator, discriminator):
        judge = cast("Discriminator | None", discriminator)
        for first in range(0, len(images), size):
            rows = torch.arange(first, min(first + size, len(images)), device=images.device)
            target = make_target(images[rows], judge, method)
            starts = _starts(method, rows.tolist(), latent_of(generator), seed, images)
            search = _Search(generator, judge, target, None if labels is None else labels[rows], method, starts)
            search.run(None if progress is None else _after(progress, first))
            parts.append(search.result(first))
    return _join(parts)


def _check_images(generator: nn.Module, images: Tensor) -> Tensor:
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"inversion: images are (N, 3, Y, X), one at least; got shape {tuple(images.shape)}")
    size = getattr(generator, "image_size", None)
    if size is not None and tuple(images.shape[2:]) != tuple(size):
        raise ValueError(
            f"inversion: the generator makes {size[0]}x{size[1]} images; got {images.shape[2]}x{images.shape[3]}"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError("inversion: images hold values that are not finite")
    return images.detach().to(device=device_of(generator), dtype=next(generator.parameters()).dtype)


def _starts(method: Method, images: list[int], latent: int, seed: int, like: Tensor) -> Tensor:
    """(N, R, L) truncated normal starts."""
    places = [(image + 1) * STARTS + start for image in images for start in range(method.seeds)]
    z = latents_at(seed, places, latent, truncation=method.truncation)
    return z.to(like).view(len(images), method.seeds, latent)


def _after(progress: Progress, done: int) -> Callable[[int, int, float], None]:
    return lambda step, running, loss: progress(done, step, running, loss)


class _Search:
    """One group of images, all their starts side by side; each start is a parameter of its own, so that one that has
    stopped has no gradient and is neither computed nor moved."""

    def __init__(
        self,
        generator: nn.Module,
        discriminator: Discriminator | None,
        target: Target,
        labels: Tensor | None,
        method: Method,
        starts: Tensor,
    ) -> None:
        self.generator, self.discriminator, self.target, self.method = generator, discriminator, target, method
        self.starts = starts
        count, seeds = starts.shape[:2]
        self.image_of = torch.arange(count, device=starts.device).repeat_interleave(seeds)
        self.labels = None if labels is None else labels[self.image_of]
        self.z = [nn.Parameter(start.clone()) for start in starts.flatten(0, 1)]
        self.running = torch.arange(len(self.z), device=starts.device)
        self.history = starts.new_full((len(self.z), method.steps + 1), float("nan"))
        self.best_loss = starts.new_full((len(self.z),), float("inf"))
        self.best_z = starts.flatten(0, 1).clone()
        self.mark, self.mark_step = self.best_loss.clone(), torch.zeros_like(self.image_of)
        self.taken = torch.zeros_like(self.image_of)

    def run(self, progress: Callable[[int, int, float], None] | None) -> None:
        method = self.method
        adam = torch.optim.Adam(self.z, lr=method.lr, betas=method.betas)
        optimiser: torch.optim.Optimizer = adam
        if method.lookahead is not None:
            optimiser = Lookahead(adam, k=method.lookahead[0], alpha=method.lookahead[1])
        for step in range(method.steps + 1):
            z = torch.stack([self.z[index] for index in self.running.tolist()])
            squares = errors(self._compared(z), self.target.of(self.image_of[self.running]))
            self._note(z.detach(), losses(squares.detach(), method), step)
            if progress is not None and step % _LOOK_EVERY == 0:
                progress(step, len(self.running), float(self.best_loss.view(self.starts.shape[:2]).amin(1).mean()))
            if step == method.steps:
                break
            optimiser.zero_grad()
            objective(squares, method, method.seeds).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            self.taken[self.running] += 1
            if step % _LOOK_EVERY == _LOOK_EVERY - 1 and method.patience and not self._keep_running(step):
                break

    def _compared(self, z: Tensor) -> Tensor:
        images = self._generate(z, self.running)
        if self.method.space == "pixels" or self.discriminator is None:
            return images
        return self.discriminator.features(images)

    def _generate(self, z: Tensor, rows: Tensor) -> Tensor:
        return cast(Tensor, self.generator(z, None if self.labels is None else self.labels[rows]))

    def _note(self, z: Tensor, values: Tensor, step: int) -> None:
        rows = self.running
        self.history[rows, step] = values
        better = values < self.best_loss[rows]
        self.best_loss[rows] = torch.where(better, values, self.best_loss[rows])
        self.best_z[rows] = torch.where(better.unsqueeze(1), z, self.best_z[rows])
        fallen = values < (1 - self.method.gain) * self.mark[rows]
        self.mark[rows] = torch.where(fallen, values, self.mark[rows])
        self.mark_step[rows] = torch.where(fallen, step, self.mark_step[rows])

    def _keep_running(self, step: int) -> bool:
        """Stop the starts that stand still; returns whether any goes on."""
        alive = step - self.mark_step[self.running] < self.method.patience
        self.running = self.running[alive]
        return len(self.running) > 0

    @torch.no_grad()
    def result(self, first: int) -> Inversion:
        """What was found; `first` is the number of this group's first image, for messages."""
        shape = self.starts.shape[:2]
        values = self.best_loss.view(shape)
        lost = (~torch.isfinite(values)).all(1).nonzero().flatten().tolist()
        if lost:
            raise RuntimeError(
                f"inversion, method {self.method.name}, image {first + lost[0]}: no start has a finite loss. The "
                "networks' weights or the image are broken."
            )
        every = torch.arange(len(self.z), device=self.starts.device)
        found, begun = (self._generate(z, every) for z in (self.best_z, self.starts.flatten(0, 1)))
        originals = self.target.images[self.image_of]
        kept = values.argmin(1)
        return Inversion(
            method=self.method,
            images=found.view(*shape, *found.shape[1:])[torch.arange(shape[0], device=kept.device), kept],
            best=kept,
            z=self.best_z.view(*shape, -1),
            starts=self.starts,
            losses=values,
            start_losses=self.history[:, 0].view(shape),
            pixel_errors=_pixel_error(found, originals).view(shape),
            start_pixel_errors=_pixel_error(begun, originals).view(shape),
            history=self.history.view(*shape, -1),
            taken=self.taken.view(shape),
            saliency=self.target.keys,
        )


def _pixel_error(generated: Tensor, images: Tensor) -> Tensor:
    return (generated - images).square().mean((1, 2, 3))


def _join(parts: list[Inversion]) -> Inversion:
    if len(parts) == 1:
        return parts[0]
    names = [name for name in Inversion.__dataclass_fields__ if name not in ("method", "saliency")]
    maps = [part.saliency for part in parts if part.saliency is not None]
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Inversion(method=parts[0].method, saliency=torch.cat(maps) if maps else None, **joined)
