"""The search: it finds, it repeats itself, and no start knows of another."""

import copy
import dataclasses

import pytest
import torch
from tiny import networks

from saccade.inversion import METHODS, invert, own_samples
from saccade.inversion.samples import held

SHORT = {"steps": 8, "seeds": 3, "patience": 0}
RELEASED = {"heads": (0, 1)}


@pytest.fixture(scope="module")
def pair():
    generator, discriminator = networks()
    for _ in range(30):  # running statistics of batch norm that fit
        generator(torch.randn(16, 6, dtype=torch.float64), torch.randint(0, 3, (16,)))
    return generator, discriminator


@pytest.fixture(scope="module")
def target(pair):
    return own_samples(pair[0], 2, seed=3)


def options(name):
    return METHODS[name].but(**SHORT, **(RELEASED if name == "released" else {}))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_lowers_its_loss_and_keeps_its_best_start(pair, target, name):
    found = invert(*pair, target.images, target.labels, options(name).but(steps=25), seed=1)
    assert found.history.shape == (2, 3, 26)
    assert (found.losses < 0.8 * found.start_losses).all()
    assert torch.equal(found.losses, found.history.amin(2))
    assert torch.equal(found.start_losses, found.history[:, :, 0])
    assert torch.equal(found.best, found.losses.argmin(1))
    with torch.no_grad(), held(*pair):
        images = pair[0](found.kept(found.z), target.labels)
    torch.testing.assert_close(found.images, images)
    torch.testing.assert_close(found.kept(found.pixel_errors), ((images - target.images) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(found.pixel_ratio(), found.kept(found.pixel_errors / found.start_pixel_errors))


def test_the_papers_method_finds_the_generators_own_samples(pair, target):
    found = invert(*pair, target.images, target.labels, METHODS["paper"].but(steps=120, seeds=2), seed=1)
    assert (found.pixel_ratio() < 0.1).all()
    begun = (found.kept(found.starts) - target.z).square().mean(1).sqrt()
    assert (found.z_error(target.z) < 0.5 * begun).all()


@pytest.mark.parametrize("name", METHODS)
def test_run_twice_gives_the_same(pair, target, name):
    once, twice = (invert(*pair, target.images, target.labels, options(name), seed=5) for _ in range(2))
    for field in dataclasses.fields(once):
        first, second = getattr(once, field.name), getattr(twice, field.name)
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    other = invert(*pair, target.images, target.labels, options(name), seed=6)
    assert not torch.equal(other.starts, once.starts)


@pytest.mark.parametrize("name", METHODS)
def test_a_start_does_not_depend_on_the_others(pair, target, name):
    many = invert(*pair, target.images, target.labels, options(name), seed=1)
    alone = invert(*pair, target.images[:1], target.labels[:1], options(name).but(seeds=1), seed=1)
    torch.testing.assert_close(alone.starts[0, 0], many.starts[0, 0], rtol=0, atol=0)
    torch.testing.assert_close(alone.history[0, 0], many.history[0, 0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alone.z[0, 0], many.z[0, 0], rtol=1e-6, atol=1e-7)
    in_groups = invert(*pair, target.images, target.labels, options(name), seed=1, at_once=3)
    torch.testing.assert_close(in_groups.history, many.history, rtol=1e-6, atol=1e-9)
    assert torch.equal(in_groups.best, many.best)


def test_starts_of_the_coupled_form_do_depend_on_each_other(pair, target):
    method = options("released").but(coupled=True)
    many = invert(*pair, target.images, target.labels, method, seed=1)
    alone = invert(*pair, target.images, target.labels, method.but(seeds=1), seed=1)
    assert (alone.history[:, 0, -1] - many.history[:, 0, -1]).abs().min() > 1e-6


def test_starts_are_truncated_normals_and_never_the_target(pair, target):
    found = invert(*pair, target.images, target.labels, options("pixel").but(steps=1, seeds=32), seed=3)
    assert found.starts.abs().max() <= 2
    assert float(found.starts.std()) == pytest.approx(0.8796, abs=0.09)  # of a normal cut at 2 sigma
    assert (found.starts - target.z.unsqueeze(1)).abs().amax(2).min() > 0.1


def test_a_start_that_stands_still_stops_and_the_others_walk_on_unchanged(pair, target):
    method = options("pixel").but(steps=60)
    free = invert(*pair, target.images, target.labels, method, seed=1)
    found = invert(*pair, target.images, target.labels, method.but(patience=10, gain=0.4), seed=1)
    assert len(set(found.taken.flatten().tolist())) > 1
    assert (found.taken < 60).any()
    for image, start in ((i, s) for i in range(2) for s in range(3)):
        steps = int(found.taken[image, start])
        assert found.history[image, start, :steps].isfinite().all()
        assert found.history[image, start, steps + 1 :].isnan().all()
        torch.testing.assert_close(
            found.history[image, start, :steps], free.history[image, start, :steps], rtol=1e-6, atol=1e-9
        )


def test_networks_are_left_as_they_were(pair, target):
    before = [copy.deepcopy(network.state_dict()) for network in pair]
    pair[1].linear.weight.requires_grad_(False)
    invert(*pair, target.images, target.labels, options("paper"))
    for network, state in zip(pair, before, strict=True):
        assert network.training
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
    learning = [name for name, parameter in pair[1].named_parameters() if not parameter.requires_grad]
    assert learning == ["linear.weight"]
    pair[1].linear.weight.requires_grad_(True)


def test_the_target_is_computed_once(pair, target, monkeypatch):
    counts = []
    features = type(pair[1]).features
    monkeypatch.setattr(type(pair[1]), "features", lambda self, x: counts.append(len(x)) or features(self, x))
    invert(*pair, target.images, target.labels, options("paper"))
    assert counts == [2] + [6] * 9


def test_a_generator_without_classes_takes_no_labels():
    generator, discriminator = networks(classes=None)
    samples = own_samples(generator, 2)
    assert samples.labels is None
    found = invert(generator, discriminator, samples.images, None, options("paper"))
    assert (found.losses < found.start_losses).all()
    with pytest.raises(ValueError, match="knows no classes"):
        invert(generator, discriminator, samples.images, torch.zeros(2, dtype=torch.long), options("paper"))


def test_own_samples_are_normal_and_named_by_their_seed(pair):
    samples = own_samples(pair[0], 100, seed=4)
    assert samples.z.abs().max() > 2.5
    assert samples.labels.tolist()[:4] == [0, 1, 2, 0]
    assert torch.equal(own_samples(pair[0], 5, seed=4).z, samples.z[:5])
    assert own_samples(pair[0], 100, seed=4, truncation=2.0).z.abs().max() <= 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, "16x16 images; got 8x8"),
        ({"images": torch.zeros(0, 3, 16, 16)}, "one at least"),
        ({"images": torch.full((2, 3, 16, 16), float("nan"))}, "not finite"),
        ({"labels": None}, "has 3 classes"),
        ({"labels": torch.tensor([0, 3])}, "labels are 0 to 2"),
        ({"labels": torch.tensor([0])}, r"labels are \(2,\) long"),
    ],
)
def test_wrong_input_is_refused(pair, target, changes, words):
    given = {"images": target.images, "labels": target.labels, **changes}
    with pytest.raises(ValueError, match=words):
        invert(*pair, given["images"], given["labels"], options("paper"))


def test_broken_weights_are_told():
    generator, discriminator = networks()
    samples = own_samples(generator, 2)
    with torch.no_grad():
        generator.to_rgb.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="image 0: no start has a finite loss"):
        invert(generator, discriminator, samples.images, samples.labels, options("pixel"))
