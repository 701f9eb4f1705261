"""Wasserstein GAN losses with gradient penalty (Gulrajani et al., arXiv 1704.00028, algorithm 1).

Every value is computed in float32 or wider, whatever the precision of the critic's output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def wasserstein_critic(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Critic's loss, `critic`: mean C(fake) - mean C(real).

    Args:
        real, fake: the critic's raw output for real and for generated (detached) images, any shape.
    """
    return {"critic": _wide(fake).mean() - _wide(real).mean()}


def wasserstein_generator(fake: Tensor) -> dict[str, Tensor]:
    """Generator's loss, `gan`: - mean C(fake).

    Args:
        fake: the critic's raw output for generated images, any shape.
    """
    return {"gan": -_wide(fake).mean()}


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """`penalty`: the mean over images of (|dC/dx| - 1)^2 at x between a real and a generated image.

    The norm is that of each image's own gradient. The graph is kept: the result trains the critic. Call it in float32:
    in half precision the norms overflow.

    Args:
        critic: images to one value an image; all its parts must be differentiable twice.
        real, fake: (B, C, Y, X).
        mix: (B,) share of the real image in x, uniform in [0, 1).
        mask: (B, 1, Y, X), weight of each pixel of the gradient; None weighs all by 1.

    Raises:
        ValueError: the shapes do not fit, or the critic's output does not depend on the images.
    """
    if real.shape != fake.shape or mix.shape != real.shape[:1]:
        raise ValueError(
            f"gradient penalty: real and fake of one shape (B, ...) and mix (B,); got {tuple(real.shape)}, "
            f"{tuple(fake.shape)} and {tuple(mix.shape)}"
        )
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        share = mix.to(real.dtype).reshape(-1, *[1] * (real.dim() - 1))
        between = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
        values = _wide(critic(between))
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), between, create_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError("gradient penalty: the critic's output does not depend on the images")
        weighted = _wide(gradient) if mask is None else _wide(gradient) * mask
        norms: Tensor = torch.linalg.vector_norm(weighted.flatten(1), dim=1)
        # (B,)
        return {"penalty": (norms - 1).square().mean()}


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
