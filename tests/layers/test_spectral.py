"""Spectral normalisation against the singular values, its vector from use to use, and its gradient."""

import copy

import pytest
import torch
from torch.nn import functional as F

from saccade.layers import spectral
from saccade.layers.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear, spectral_pointwise

MAKERS = {
    "conv": lambda **options: SpectralConv2d(5, 7, 3, padding=1, **options),
    "linear": lambda **options: SpectralLinear(12, 9, **options),
    "embedding": lambda **options: SpectralEmbedding(10, 6, **options),
}
ARGUMENTS = {
    "conv": lambda: torch.randn(2, 5, 4, 6),
    "linear": lambda: torch.randn(3, 12),
    "embedding": lambda: torch.arange(4),
}


def largest(weight):
    return torch.linalg.svdvals(weight.detach().flatten(1))[0]


def scaled(layer, sigma):
    """The layer with a weight whose largest singular value is `sigma`."""
    with torch.no_grad():
        layer.weight.mul_(sigma / largest(layer.weight))
    return layer


def settle(layer, uses=300):
    for _ in range(uses):
        layer.normalised()
    return layer


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("before", [0.3, 3.0])
def test_both_forms_are_those_of_the_svd(kind, before):
    equal = settle(scaled(MAKERS[kind](form="equal"), before))
    assert equal.sigma().item() == pytest.approx(before, rel=1e-4)
    assert largest(equal.normalised()).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(equal.normalised() * largest(equal.weight), equal.weight, rtol=1e-4, atol=1e-5)
    bounded = settle(scaled(MAKERS[kind](form="bounded"), before))
    assert largest(bounded.normalised()).item() == pytest.approx(min(before, 1), abs=1e-4)
    if before < 1:
        assert torch.equal(bounded.normalised(), bounded.weight)


@pytest.mark.parametrize("kind", MAKERS)
def test_layers_apply_the_normalised_weight(kind):
    x = ARGUMENTS[kind]()
    layer = scaled(MAKERS[kind](form="bounded"), 2.0).eval()
    weight = layer.normalised()
    expected = {
        "conv": lambda: F.conv2d(x, weight, layer.bias, padding=1),
        "linear": lambda: F.linear(x, weight, layer.bias),
        "embedding": lambda: weight[x],
    }[kind]()
    torch.testing.assert_close(layer(x), expected)
    plain = scaled(MAKERS[kind](form="none"), 2.0)
    assert torch.equal(plain.normalised(), plain.weight)
    assert torch.equal(plain.u, copy.deepcopy(plain).u)


def test_one_round_a_use_and_the_vector_lies_on_the_input_side():
    layer = SpectralConv2d(5, 7, 3, form="equal").double()
    assert layer.u.shape == (45,)
    assert set(layer.state_dict()) == {"weight", "bias", "u"}
    assert SpectralEmbedding(10, 6).u.shape == (6,)
    before = layer.u.clone()
    matrix = layer.weight.detach().flatten(1)
    left = matrix @ before
    left = left / left.norm()
    right = matrix.T @ left
    expected = right.norm()
    right = right / right.norm()
    torch.testing.assert_close(layer.sigma().detach(), expected)
    torch.testing.assert_close(layer.u, right)


def test_evaluation_starts_from_the_stored_vector_and_leaves_it():
    layer = SpectralLinear(12, 9, form="equal")
    stored = layer.u.clone()
    layer.eval()
    assert layer.sigma() == layer.sigma()
    assert torch.equal(layer.u, stored)
    layer.train()
    first, second = layer.sigma(), layer.sigma()
    assert second > first  # every round comes nearer, from below
    assert not torch.equal(layer.u, stored)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(("form", "before"), [("equal", 0.5), ("bounded", 3.0), ("bounded", 0.5)])
def test_gradient_flows_through_sigma_but_not_through_the_vectors(kind, form, before):
    layer = scaled(MAKERS[kind](form=form).double(), before).eval()
    matrix = layer.weight.detach().flatten(1)
    left = F.normalize(matrix @ layer.u, dim=0)
    right = F.normalize(matrix.T @ left, dim=0)
    cotangent = torch.randn_like(matrix)
    (layer.normalised().flatten(1) * cotangent).sum().backward()
    sigma = left @ matrix @ right
    divided = form == "equal" or sigma > 1
    expected = cotangent
    if divided:
        expected = (cotangent - (cotangent * matrix / sigma).sum() * torch.outer(left, right)) / sigma
    torch.testing.assert_close(layer.weight.grad.flatten(1), expected)


@pytest.mark.parametrize("form", ["equal", "bounded"])
def test_second_gradients_and_mixed_kernels(form):
    layer = scaled(SpectralConv2d(2, 3, 3, form=form).double(), 2.0).eval()
    mixing = torch.randn(9, 16, dtype=torch.float64)
    twice = (layer.normalised().flatten(2) @ mixing).unflatten(2, (4, 4))
    torch.testing.assert_close(layer.mixed(mixing), twice)
    cotangent = torch.randn_like(twice)
    found = torch.autograd.grad(layer.mixed(mixing), layer.weight, cotangent)
    torch.testing.assert_close(found, torch.autograd.grad(twice, layer.weight, cotangent))
    # the vectors are constants to the gradient, so they have to stay put for the differences
    u, v, _ = layer._iterate()

    def divided(weight, mixing):
        sigma = (v @ weight.flatten(1) @ u).detach()
        return spectral._divided(weight, u, v, sigma, form == "bounded", mixing)

    for use in (None, mixing):
        assert torch.autograd.gradcheck(lambda weight, use=use: divided(weight, use), layer.weight)
        assert torch.autograd.gradgradcheck(lambda weight, use=use: divided(weight, use), layer.weight)


def test_several_uses_before_one_backward():
    layer = scaled(SpectralConv2d(5, 7, 3), 2.0)
    x = ARGUMENTS["conv"]()
    (layer(x).sum() + layer(x.flip(2)).square().sum()).backward()
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_sigma_and_vector_in_full_precision(dtype):
    layer = scaled(SpectralLinear(64, 48, form="equal"), 2.0)
    twin = copy.deepcopy(layer)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(torch.randn(3, 64))
        sigma = layer.sigma()
    assert out.dtype == dtype
    assert sigma.dtype == torch.float32
    twin.sigma()
    assert torch.equal(sigma, twin.sigma())
    assert torch.equal(layer.u, twin.u)


def test_projections_of_the_attention():
    layer = spectral_pointwise(6, 3)
    assert (layer.form, layer.bias, layer.weight.shape) == ("equal", None, (3, 6, 1, 1))


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match=r"SpectralConv2d: form is one of bounded, equal, none; got 'max'"):
        SpectralConv2d(2, 2, 1, form="max")
