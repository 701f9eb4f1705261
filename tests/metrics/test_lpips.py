"""LPIPS: honest names, the package's heads on the backbone we load."""

import dataclasses
import hashlib

import pytest
import torch

from saccade import weights
from saccade.metrics.lpips_distance import LPIPSDistance


def pair(side=64, batch=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(batch, 3, side, side, generator=generator) * 2 - 1 for _ in range(2))


def test_random_backbone_is_renamed_and_reproducible():
    before = torch.get_rng_state()
    metric = LPIPSDistance("alex", "random")
    assert torch.equal(before, torch.get_rng_state())
    assert metric.name == "lpips_alex_random_weights"
    generated, target = pair()
    values = metric.per_image(generated, target)
    assert values.shape == (2,)
    assert (values > 0).all()
    assert metric.per_image(target, target).abs().max() == 0
    assert torch.equal(values, LPIPSDistance("alex", "random").per_image(generated, target))


def test_backbone_file_fills_every_layer(tmp_path, monkeypatch):
    from torchvision.models import alexnet

    torch.manual_seed(5)
    state = {key: value for key, value in alexnet(weights=None).state_dict().items() if key.startswith("features")}
    torch.save(state, tmp_path / "raw")
    digest = hashlib.sha256((tmp_path / "raw").read_bytes()).hexdigest()
    entry = dataclasses.replace(weights.KNOWN["alexnet"], sha256_prefix=digest[:8])
    monkeypatch.setitem(weights.KNOWN, "alexnet", entry)
    (tmp_path / "raw").rename(tmp_path / entry.file)
    metric = LPIPSDistance("alex", "pretrained", weights_dir=tmp_path, download=False)
    assert metric.name == "lpips_alex"
    assert metric.provenance["sha256"] == digest
    # in the order of the layers, which both follow
    held = list(metric._network.net.state_dict().values())
    assert len(held) == len(state)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(held, state.values(), strict=True))


def test_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    with pytest.raises(weights.WeightsError, match=r"vgg16-397923af.pth \(553 MB"):
        LPIPSDistance("vgg", "pretrained", weights_dir=tmp_path, download=False)
    with pytest.raises(ValueError, match="valid: alex, vgg"):
        LPIPSDistance("resnet", "random")
    with pytest.raises(ValueError, match="at least 32x32"):
        LPIPSDistance("alex", "random").per_image(*pair(16))


@pytest.mark.slow
def test_vgg_backbone():
    generated, target = pair(32)
    metric = LPIPSDistance("vgg", "random")
    assert metric.name == "lpips_vgg_random_weights"
    assert (metric.per_image(generated, target) > 0).all()
