"""The VGG loss: the right layers, the right normalisation, frozen, hidden, reproducible."""

import copy
import dataclasses
import hashlib

import pytest
import torch

from saccade import weights
from saccade.losses import VGGPerceptual, weighted_sum
from saccade.losses.perceptual import LAYER_WEIGHTS_INCREASING, LAYERS, vgg19_features


@pytest.fixture(scope="module")
def small():
    return VGGPerceptual("random", width=0.125, seed=3)


def pair(side=32, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(batch, 3, side, side, generator=generator) * 2 - 1 for _ in range(2))


def test_plan_is_torchvisions_vgg19():
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):
        theirs = make_layers(cfgs["E"], batch_norm=False)
    ours = vgg19_features()
    wanted = {key: value.shape for key, value in theirs.state_dict().items() if int(key.split(".")[0]) <= 29}
    assert {key: value.shape for key, value in ours.state_dict().items()} == wanted
    assert [type(layer) for layer in ours] == [type(layer) for layer in theirs][:30]


def test_taps_are_the_first_relu_of_each_block():
    plan = vgg19_features()
    for name, index in LAYERS.items():
        pools = sum(isinstance(layer, torch.nn.MaxPool2d) for layer in plan[:index])
        assert pools == int(name[4]) - 1
        assert isinstance(plan[index], torch.nn.ReLU)
        assert index == 1 or isinstance(plan[index - 2], torch.nn.MaxPool2d)


def test_equals_a_plain_restatement(small):
    generated, target = pair()
    network = copy.deepcopy(small._hidden[0])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def taps(images):
        x = ((images * 0.5 + 0.5).permute(0, 2, 3, 1) - mean) / std
        x = x.permute(0, 3, 1, 2)
        found = []
        for index, layer in enumerate(network):
            x = torch.relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
            if index in LAYERS.values():
                found.append(x)
        return found

    terms = small(generated, target)
    assert list(terms) == [f"vgg_{name}" for name in LAYERS]
    for term, a, b in zip(terms.values(), taps(generated), taps(target), strict=True):
        assert term.item() == pytest.approx((a - b).abs().mean().item(), rel=1e-5)


def test_equal_images_cost_nothing_and_others_do(small):
    generated, target = pair()
    assert max(small(target, target).values()).item() == 0
    assert min(small(generated, target).values()).item() > 0


def test_only_the_generated_image_gets_a_gradient(small):
    generated, target = (image.requires_grad_() for image in pair())
    weighted_sum(small(generated, target), small.term_weights).backward()
    assert generated.grad.abs().sum() > 0
    assert target.grad is None
    assert all(parameter.grad is None for parameter in small._hidden[0].parameters())


def test_the_network_is_in_no_checkpoint(small):
    class Task(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.perceptual = small

    assert Task().state_dict() == {}
    assert list(Task().parameters()) == []
    small.train()
    assert not small._hidden[0].training


def test_random_features_depend_on_the_seed_alone():
    generated, target = pair()

    def value(seed):
        torch.manual_seed(torch.seed() % 1000)
        return VGGPerceptual("random", width=0.125, seed=seed)(generated, target)["vgg_relu3_1"].item()

    assert value(3) == value(3)
    assert value(3) != value(4)
    before = torch.get_rng_state()
    VGGPerceptual("random", width=0.03)
    # building layers draws from the global generator, so it must be put back
    assert torch.equal(before, torch.get_rng_state())


def test_random_features_keep_the_scale_of_activations():
    network = VGGPerceptual("random", width=0.5)
    with torch.no_grad():
        found = network._features(pair(64)[0])
    for name, value in found.items():
        assert 0.2 < value.square().mean().sqrt().item() < 10, name


def test_layer_weights_choose_layers_and_their_weights():
    chosen = VGGPerceptual("random", width=0.125, layer_weights={"relu2_1": 0.5})
    assert chosen.term_weights == {"vgg_relu2_1": 0.5}
    assert list(chosen(*pair())) == ["vgg_relu2_1"]
    assert len(chosen._hidden[0]) == LAYERS["relu2_1"] + 1, "nothing deeper is computed"
    assert list(LAYER_WEIGHTS_INCREASING.values()) == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1]


def test_autocast_is_kept_out_unless_asked_for():
    generated, target = pair(16, 1)
    kept = VGGPerceptual("random", width=0.03)
    plain = kept(generated, target)
    seen = {}
    for enabled in (False, True):
        network = VGGPerceptual("random", width=0.03, autocast=enabled)
        network._hidden[0][0].register_forward_hook(lambda m, i, o, key=enabled: seen.update({key: o.dtype}))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = network(generated, target)
        assert all(term.dtype == torch.float32 for term in terms.values())
        if not enabled:
            assert {name: term.item() for name, term in terms.items()} == {n: t.item() for n, t in plain.items()}
    assert seen == {False: torch.float32, True: torch.bfloat16}


@pytest.mark.parametrize(
    ("shape", "match"),
    [((1, 3, 8, 32), "at least 16x16"), ((1, 1, 32, 32), r"\(B, 3, Y, X\)"), ((3, 32, 32), "one shape")],
)
def test_wrong_images(small, shape, match):
    with pytest.raises(ValueError, match=match):
        small(torch.zeros(shape), torch.zeros(shape))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"relu9_9.*valid: relu1_1"):
        VGGPerceptual("random", layer_weights={"relu9_9": 1.0})
    with pytest.raises(ValueError, match=r"width 0\.5 with weights=pretrained"):
        VGGPerceptual("pretrained", width=0.5)
    with pytest.raises(ValueError, match="pretrained, random"):
        VGGPerceptual("auto")


def test_pretrained_weights_come_from_the_file(tmp_path, monkeypatch):
    state = {
        "features.0.weight": torch.randn(64, 3, 3, 3),
        "features.0.bias": torch.randn(64),
        "classifier": torch.ones(1),
    }
    torch.save(state, tmp_path / "raw")
    digest = hashlib.sha256((tmp_path / "raw").read_bytes()).hexdigest()
    entry = dataclasses.replace(weights.KNOWN["vgg19"], sha256_prefix=digest[:8])
    monkeypatch.setitem(weights.KNOWN, "vgg19", entry)
    (tmp_path / "raw").rename(tmp_path / entry.file)
    options = {"weights_dir": tmp_path, "download": False}
    network = VGGPerceptual("pretrained", layer_weights={"relu1_1": 1.0}, **options)
    assert torch.equal(network._hidden[0][0].weight, state["features.0.weight"])
    assert network.provenance["weights"] == "pretrained"
    assert network.provenance["sha256"] == digest
    with pytest.raises(weights.WeightsError, match=r"lacks features.2.weight"):
        VGGPerceptual("pretrained", layer_weights={"relu2_1": 1.0}, **options)


def test_pretrained_without_a_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    with pytest.raises(weights.WeightsError, match=r"vgg19-dcbb9e9d.pth \(575 MB"):
        VGGPerceptual("pretrained", weights_dir=tmp_path, download=False)


def test_auto_is_resolved_for_the_identity(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("SACCADE_OFFLINE", "1")
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    changes, notices = VGGPerceptual.resolve_auto({"weights": "auto"}, {"weights_dir": str(tmp_path)})
    assert changes == {"weights": "random"}
    assert "vgg19" in notices[0]
