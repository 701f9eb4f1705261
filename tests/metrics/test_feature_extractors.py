"""Feature extractors: names that tell the truth, the right resizing, the real loading path with made-up weights."""

import dataclasses
import hashlib

import pytest
import torch
import torch.nn.functional as F

from saccade import weights
from saccade.metrics.features import (
    PytorchFIDFeatures,
    RandomConvFeatures,
    TFInceptionFeatures,
    TorchvisionInceptionFeatures,
)


def photos(count=2, rows=40, cols=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, rows, cols), dtype=torch.uint8, generator=generator)


def pretend_published(monkeypatch, folder, name, state):
    """Save a state dict where, and as, the published file would be; its checksum becomes the known one."""
    torch.save(state, folder / "raw")
    digest = hashlib.sha256((folder / "raw").read_bytes()).hexdigest()
    entry = dataclasses.replace(weights.KNOWN[name], sha256_prefix=digest[:8])
    monkeypatch.setitem(weights.KNOWN, name, entry)
    (folder / "raw").rename(folder / entry.file)
    return digest


def test_proxy_is_small_reproducible_and_named_a_proxy():
    before = torch.get_rng_state()
    extractor = RandomConvFeatures()
    assert torch.equal(before, torch.get_rng_state())
    features = extractor(photos(3, 32, 32))
    assert features.shape == (3, extractor.channels)
    assert torch.equal(features, RandomConvFeatures()(photos(3, 32, 32)))
    assert not torch.equal(features, RandomConvFeatures(seed=1)(photos(3, 32, 32)))
    assert "fid" not in extractor.name
    assert extractor.provenance["weights"] == "random-seed0"


def test_proxy_sees_blur():
    sharp = photos(16, 32, 32)
    blurred = F.avg_pool2d(sharp.float(), 3, 1, 1).to(torch.uint8)
    extractor = RandomConvFeatures()
    spread = (extractor(sharp) - extractor(sharp).mean(0)).norm(dim=1).mean()
    assert (extractor(sharp).mean(0) - extractor(blurred).mean(0)).norm() > spread


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 32, 32), torch.zeros(3, 32, 32, dtype=torch.uint8)])
def test_only_uint8_batches(bad):
    with pytest.raises(ValueError, match=r"needs \(B, 3, Y, X\) uint8"):
        RandomConvFeatures()(bad)


@pytest.mark.parametrize("kind", [TFInceptionFeatures, PytorchFIDFeatures, TorchvisionInceptionFeatures])
def test_canonical_names_need_the_file(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    with pytest.raises(weights.WeightsError, match=weights.KNOWN[kind.weight_file].file):
        kind("pretrained", weights_dir=tmp_path, download=False)
    with pytest.raises(ValueError, match="pretrained, random"):
        kind("auto")


def test_random_tf_inception_is_renamed_and_both_resizings_agree_at_299():
    tensorflow, pytorch_fid = TFInceptionFeatures("random"), PytorchFIDFeatures("random")
    assert tensorflow.name == "frechet_random_tf_inception"
    assert pytorch_fid.name == "frechet_random_pytorch_fid"
    native = photos(1, 299, 299)
    # no resizing is left; (x-128)/128 and x/127.5-1 still differ a little
    near = (tensorflow(native) - pytorch_fid(native)).norm() / pytorch_fid(native).norm()
    small = photos(1)
    far = (tensorflow(small) - pytorch_fid(small)).norm() / pytorch_fid(small).norm()
    assert 0 < near < 0.03
    assert far > 2 * near
    assert tensorflow(small).shape == (1, 2048)


@pytest.mark.slow
def test_tf_inception_through_the_real_loading_path(tmp_path, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    made = TFInceptionFeatures("random")
    digest = pretend_published(monkeypatch, tmp_path, "inception_tf", made._network.state_dict())
    loaded = TFInceptionFeatures("pretrained", weights_dir=tmp_path, download=False)
    assert loaded.name == "fid_tf_inception"
    assert loaded.weights_sha256 == digest
    file = str(tmp_path / weights.KNOWN["inception_tf"].file)
    oracle = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=file)
    assert torch.equal(loaded(photos()), oracle(photos())[0])
    assert torch.equal(loaded(photos()), made(photos()))
    fid = PytorchFIDFeatures("pretrained", weights_dir=tmp_path, download=False)
    resized = F.interpolate(photos().float() / 255, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    assert fid.name == "fid_pytorch_fid"
    assert torch.equal(fid(photos()), _walked(fid._network, resized))


@pytest.mark.slow
def test_torchvision_inception_through_the_real_loading_path(tmp_path, monkeypatch):
    from torchvision.models import inception_v3

    made = TorchvisionInceptionFeatures("random")
    assert made.name == "frechet_random_torchvision_gfla"
    pretend_published(monkeypatch, tmp_path, "inception_torchvision", made._network.state_dict())
    loaded = TorchvisionInceptionFeatures("pretrained", weights_dir=tmp_path, download=False)
    assert loaded.name == "fid_torchvision_gfla"
    # torchvision's own input transform is the one GFLA applies
    oracle = inception_v3(weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    oracle.load_state_dict(made._network.state_dict())
    oracle.fc = torch.nn.Identity()
    with torch.no_grad():
        resized = F.interpolate(photos().float() / 255, (299, 299), mode="bilinear", align_corners=False)
        wanted = oracle(resized)
    assert torch.allclose(loaded(photos()), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    pretend_published(monkeypatch, tmp_path, "inception_tf", {"layer": torch.ones(1)})
    pretend_published(monkeypatch, tmp_path, "inception_torchvision", {"layer": torch.ones(1)})
    for kind in (TFInceptionFeatures, TorchvisionInceptionFeatures):
        with pytest.raises(weights.WeightsError, match="does not fit the network"):
            kind("pretrained", weights_dir=tmp_path, download=False)


def _walked(network, x):
    with torch.no_grad():
        for name, module in network.named_children():
            if name == "fc":
                break
            x = module(x)
    return x.mean((2, 3))
