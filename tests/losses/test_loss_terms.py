"""The sum of named terms."""

import pytest
import torch

from saccade.losses import weighted_sum


def test_sum_and_gradient():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = weighted_sum({"a": a, "b": b}, {"a": 0.5, "b": 2})
    total.backward()
    assert total.item() == 7.0
    assert (a.grad.item(), b.grad.item()) == (0.5, 2.0)


def test_half_precision_terms_are_summed_in_float32():
    terms = {"a": torch.tensor(60000.0, dtype=torch.float16), "b": torch.tensor(60000.0, dtype=torch.float16)}
    assert weighted_sum(terms, {"a": 1, "b": 1}).item() == pytest.approx(120000, rel=1e-3)


def test_a_weight_of_zero_leaves_the_graph_out():
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(float("nan"), requires_grad=True)
    total = weighted_sum({"a": a, "b": b}, {"a": 1, "b": 0})
    total.backward()
    assert total.item() == 2.0
    assert b.grad is None


@pytest.mark.parametrize(
    ("weights", "match"),
    [({"a": 1, "c": 1}, "without weight: .*b.*without term: .*c"), ({"a": 0, "b": 0}, "every weight is 0")],
)
def test_names_must_agree(weights, match):
    with pytest.raises(ValueError, match=match):
        weighted_sum({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, weights)


def test_no_terms():
    with pytest.raises(ValueError, match="terms: none"):
        weighted_sum({}, {})
