"""GAN losses: logistic with R1 penalty as in StyleGAN2 (Karras et al. 2020, section 2 and appendix B), and hinge.

The hinge loss is that of Lim and Ye (arXiv 1705.02894) as SAGAN has it (Zhang et al., arXiv 1805.08318, eq. 4).

Every value is computed in float32 or wider, whatever the precision of the logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nonsaturating_generator(fake_logits: Tensor) -> dict[str, Tensor]:
    """Generator's loss: mean softplus(-D(fake)).

    Args:
        fake_logits: the discriminator's raw output for generated images, any shape.
    """
    return {"gan": F.softplus(-_wide(fake_logits)).mean()}


def logistic_discriminator(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Discriminator's loss in two terms: mean softplus(-D(real)) and mean softplus(D(fake)).

    Args:
        real_logits: raw output for real images, any shape.
        fake_logits: raw output for generated (detached) images.
    """
    return {
        "d_real": F.softplus(-_wide(real_logits)).mean(),
        "d_fake": F.softplus(_wide(fake_logits)).mean(),
    }


def hinge_generator(fake_logits: Tensor) -> dict[str, Tensor]:
    """Generator's hinge loss: mean -D(fake).

    Args:
        fake_logits: the discriminator's raw output for generated images, any shape.
    """
    return {"gan": -_wide(fake_logits).mean()}


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
    """Discriminator's hinge loss in two terms: mean max(0, 1 - D(real)) and mean max(0, 1 + D(fake)).

    Args:
        real_logits: raw output for real images, any shape.
        fake_logits: raw output for generated (detached) images.
    """
    return {
        "d_real": F.relu(1 - _wide(real_logits)).mean(),
        "d_fake": F.relu(1 + _wide(fake_logits)).mean(),
    }


def r1_penalty(real_logits: Tensor, real_images: Tensor, *, gamma: float = 10.0) -> dict[str, Tensor]:
    """R1 (Mescheder et al. 2018): gamma/2 times the batch mean of the squared norm of dD/dimage on real images.

    StyleGAN2 applies it every 16th step and multiplies it by 16 (lazy regularisation): the caller's business. In fp16
    it underflows: call it on a forward pass that ran in fp32. The graph is kept: the result can be differentiated.

    Args:
        real_logits: D(real_images), computed with gradients. Any shape whose first axis is the batch.
        real_images: (B, ...), the leaf that was given to D, with ``requires_grad``.
        gamma: StyleGAN2's default at 256x256 is 10.

    Raises:
        ValueError: ``real_images`` does not require a gradient, or D's output does not depend on it.
    """
    if not real_images.requires_grad:
        raise ValueError("r1: the real images must require a gradient before they enter the discriminator")
    if not real_logits.requires_grad:
        raise ValueError("r1: the discriminator's output has no graph; run it with gradients switched on")
    with torch.autocast(real_images.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(
            outputs=_wide(real_logits).sum(), inputs=real_images, create_graph=True, allow_unused=True
        )
        if gradient is None:
            raise ValueError("r1: the discriminator's output does not depend on the given images")
        squared = _wide(gradient).square().flatten(1).sum(1)
        # (B,)
        return {"r1": squared.mean() * (gamma / 2)}


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
