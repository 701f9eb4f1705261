"""Inception score: closed forms, parts as OpenAI's code cuts them, torch-fidelity as the oracle."""

import math

import pytest
import torch

from saccade.metrics import inception_score as module
from saccade.metrics.features import TFInceptionFeatures
from saccade.metrics.inception_score import inception_score, inception_score_of_parts


def certain(labels, classes):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), classes).double() * 1e4


def test_certain_and_balanced_predictions_score_the_number_of_classes():
    assert inception_score(certain([0, 1, 2, 3] * 5, 4)) == pytest.approx(4, rel=1e-12)
    assert inception_score(certain([0, 1], 1008)) == pytest.approx(2, rel=1e-12)


def test_the_same_prediction_for_all_scores_one():
    assert inception_score(torch.randn(1, 20).expand(30, 20)) == pytest.approx(1, abs=1e-12)


def test_two_known_distributions():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    q = [0.55, 0.45]
    kl = sum(float(p[i, c]) * math.log(float(p[i, c]) / q[c]) for i in (0, 1) for c in (0, 1)) / 2
    assert inception_score(p.log() + 5) == pytest.approx(math.exp(kl), rel=1e-13)


@pytest.mark.parametrize("count", [40, 47])
def test_torch_fidelity_agrees_in_one_go_and_in_parts(count):
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(count, 1008) * 3
    assert inception_score(logits) == pytest.approx(
        isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"], rel=1e-12
    )
    parts = isc_features_to_metric(logits, splits=10, shuffle=False)
    mean, spread = inception_score_of_parts(logits)
    assert mean == pytest.approx(parts["inception_score_mean"], rel=1e-12)
    assert spread == pytest.approx(parts["inception_score_std"], rel=1e-9)
    assert mean < inception_score(logits)


def test_slices_do_not_change_the_result(monkeypatch):
    logits = torch.randn(60, 12)
    whole = inception_score(logits)
    monkeypatch.setattr(module, "_SLICE", 7)
    assert inception_score(logits) == pytest.approx(whole, rel=1e-13)


def test_a_bias_is_added_to_every_row():
    logits, bias = torch.randn(30, 12), torch.randn(12)
    assert inception_score(logits, bias=bias) == pytest.approx(inception_score(logits + bias), rel=1e-6)
    assert inception_score(logits, bias=bias) != pytest.approx(inception_score(logits), rel=1e-3)


def test_one_pass_gives_features_and_both_kinds_of_logits():
    extractor = TFInceptionFeatures("random")
    extractor._network.fc.bias.copy_(torch.randn(1008))
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    features = extractor(images)
    # torch-fidelity's own outputs of the same network
    extractor._network.features_list = ["2048", "logits_unbiased", "logits"]
    oracle = extractor._network(images)
    assert torch.equal(features, oracle[0])
    assert torch.allclose(extractor.logits(features), oracle[1], rtol=1e-5, atol=1e-5)
    assert torch.allclose(extractor.logits(features) + extractor.bias, oracle[2], rtol=1e-5, atol=1e-5)
    assert extractor.logits(features).shape == (2, extractor.classes)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="10 splits need at least as many images; got 9"):
        inception_score_of_parts(torch.zeros(9, 4))
    for wrong in (torch.zeros(0, 4), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"logits must be \(N, classes\)"):
            inception_score(wrong)
