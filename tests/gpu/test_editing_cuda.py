"""The editing networks on CUDA: as on the CPU in fp32, finite under fp16; with PSAL by the same matches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

from saccade.run.config import CONF, register

MODELS = ("colorization", "inpainting", "superres")


def network(model: str, attention: str) -> nn.Module:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = [f"model={model}", f"attention={attention}", "budget=smoke"]
        options += ["attention.mixer.seed=0"] if attention == "psal" else []
        config = compose("train", overrides=options)
    torch.manual_seed(0)
    return instantiate(config.model.net, _convert_="all")


def inputs(model: str) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(1)
    if model == "colorization":
        return torch.rand(2, 3, 32, 32, generator=random), torch.rand(2, 3, 32, 32, generator=random)
    if model == "superres":
        return (torch.rand(2, 3, 16, 16, generator=random),)
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, 4:20, 8:24] = mask[1, :, 12:28, 2:14] = 1
    return torch.rand(2, 3, 32, 32, generator=random) * 2 - 1, mask


def step(model: str, attention: str, place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output and all gradients of one step, in float64 on the CPU."""
    given = [place(x) for x in inputs(model)]
    net = network(model, attention).to(given[0])
    made = net(*given)
    picture = made.completed if model == "inpainting" else made
    picture.square().mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    return [x.detach().double().cpu() for x in (picture, *gradients)]


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("attention", ["full", "psal"])
def test_a_step_on_cuda_is_the_step_on_the_cpu(model: str, attention: str) -> None:
    truth = step(model, attention, lambda x: x.double())
    plain = step(model, attention, lambda x: x)
    cuda = step(model, attention, lambda x: x.cuda())
    largest = max(float(true.abs().max()) for true in truth)
    for true, on_cpu, on_cuda in zip(truth, plain, cuda, strict=True):
        allowed = 20 * (on_cpu - true).abs().max() + 1e-5 * largest
        assert (on_cuda - true).abs().max() <= allowed


@pytest.mark.gpu
@pytest.mark.parametrize("model", MODELS)
def test_half_precision_stays_finite(model: str) -> None:
    net = network(model, "psal").cuda()
    with torch.autocast("cuda", torch.float16):
        made = net(*(x.cuda() for x in inputs(model)))
    picture = made.completed if model == "inpainting" else made
    picture.float().square().mean().backward()
    assert picture.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
