"""SAGAN's networks, small: 16x16 images of three classes, attention from 8x8 queries to 4x4 keys."""

import torch

from saccade.attention import YourLocalAttention
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention

HEADS = ("rtl1", "rtl2", "ltr1", "ltr2")


def ylg(spec):
    return YourLocalAttention(spec, heads=4, patterns=HEADS)


def networks(mixer=ylg, *, dtype=torch.float64, classes=3, init="orthogonal"):
    """A generator whose attention is at work (sigma 0.5) and a discriminator, in training mode."""
    torch.manual_seed(0)
    options = {"image_size": 16, "channels": [32, 32, 32], "attention_at": 8, "classes": classes, "init": init}
    options["attention"] = sagan_attention(mixer)
    generator = SaganGenerator(**options, latent=6).to(dtype)
    discriminator = SaganDiscriminator(**options).to(dtype)
    with torch.no_grad():
        for network in (generator, discriminator):
            for block in network.attention_blocks.values():
                block.sigma.fill_(0.5)
    return generator, discriminator
