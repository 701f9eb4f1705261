"""SAGAN's networks on CUDA: as on the CPU in fp32, finite under fp16 with loss scaling."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from saccade.losses.adversarial import hinge_discriminator, hinge_generator
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention

CHANNELS = (64, 64, 64, 64)


def networks(attention: str = "ylg") -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    options = {"image_size": 32, "channels": CHANNELS, "attention_at": 16, "classes": 5}
    generator = SaganGenerator(latent=16, attention=sagan_attention(attention), **options)
    discriminator = SaganDiscriminator(attention=sagan_attention(attention), **options)
    for network in (generator, discriminator):
        for block in network.attention_blocks.values():
            nn.init.constant_(block.sigma, 0.7)
    return generator, discriminator


def step(generator: nn.Module, discriminator: nn.Module, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Losses and all gradients of one step of each network, in float64 on the CPU."""
    random = torch.Generator().manual_seed(1)
    z = torch.randn(4, 16, generator=random).to(device, dtype)
    labels = torch.randint(5, (4,), generator=random).to(device)
    real = torch.randn(4, 3, 32, 32, generator=random).clamp(-1, 1).to(device, dtype)
    with torch.no_grad():
        fake = generator(z, labels)
    judged = sum(hinge_discriminator(discriminator(real, labels), discriminator(fake, labels)).values())
    judged.backward()
    made = hinge_generator(discriminator(generator(z, labels), labels))["gan"]
    made.backward()
    gradients = [p.grad for network in (generator, discriminator) for p in network.parameters()]
    return [x.detach().double().cpu() for x in (judged, made, *gradients)]


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["ylg", "full"])
def test_a_step_on_cuda_is_the_step_on_the_cpu(attention):
    truth = step(*(network.double() for network in networks(attention)), "cpu", torch.float64)
    plain = step(*networks(attention), "cpu", torch.float32)
    cuda = step(*(network.cuda() for network in networks(attention)), "cuda", torch.float32)
    largest = max(float(true.abs().max()) for true in truth)  # a bias before batch norm has gradient 0 but for rounding
    for true, on_cpu, on_cuda in zip(truth, plain, cuda, strict=True):
        allowed = 20 * (on_cpu - true).abs().max() + 1e-5 * largest
        assert (on_cuda - true).abs().max() <= allowed


@pytest.mark.gpu
def test_mixed_fp16_steps_stay_finite():
    generator, discriminator = (network.cuda() for network in networks())
    before = copy.deepcopy(generator.state_dict())
    scaler = torch.amp.GradScaler("cuda")
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.0, 0.999))
    labels = torch.arange(4, device="cuda")
    for _ in range(20):
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = hinge_generator(discriminator(generator(torch.randn(4, 16, device="cuda"), labels), labels))["gan"]
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
    state = generator.state_dict()
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert any(not torch.equal(state[name], before[name]) for name in dict(generator.named_parameters()))
