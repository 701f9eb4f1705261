"""Frechet distance against closed forms; streaming and merging of moments."""

import numpy as np
import pytest
import scipy.linalg
import torch

from saccade.metrics.frechet import FeatureMoments, frechet_distance


def gaussian(mean, covariance, count=100):
    return FeatureMoments.of(torch.as_tensor(mean).double(), torch.as_tensor(covariance).double(), count)


def moments_of(features):
    moments = FeatureMoments(features.shape[1])
    moments.update(features)
    return moments


def rotation(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]


def test_one_dimension():
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[25.0]])) == pytest.approx(9 + 9, rel=1e-12)


def test_covariances_that_commute():
    turn = rotation(6)
    one, two = torch.tensor([1.0, 4, 9, 16, 25, 0.01]), torch.tensor([4.0, 4, 1, 36, 0.25, 7])
    distance = frechet_distance(
        gaussian(torch.zeros(6), turn @ torch.diag(one).double() @ turn.T),
        gaussian(torch.full((6,), 0.5), turn @ torch.diag(two).double() @ turn.T),
    )
    assert distance == pytest.approx(6 * 0.25 + (one.sqrt() - two.sqrt()).square().sum().item(), rel=1e-6)


def test_covariances_that_do_not_commute_equal_scipys_square_root():
    torch.manual_seed(0)
    a, b = torch.randn(200, 12).double(), (torch.randn(300, 12) @ torch.randn(12, 12)).double()
    first, second = moments_of(a), moments_of(b)
    ca, cb = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(ca) + np.trace(cb) - 2 * np.trace(root)
    assert frechet_distance(first, second) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("count", [20, 500])
def test_equal_sets_are_at_distance_zero_even_if_singular(count):
    torch.manual_seed(0)
    features = torch.randn(count, 64) * torch.logspace(-3, 2, 64)
    moments = moments_of(features)
    assert frechet_distance(moments, moments) < 1e-6 * moments.covariance.trace().item()


def test_rank_one_sets():
    # both sets vary along one direction each, at an angle of 60 degrees: tr (C1 C2)^(1/2) = s1 s2 |cos|
    u = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    v = torch.tensor([0.5, 3**0.5 / 2, 0], dtype=torch.float64)
    distance = frechet_distance(gaussian([0, 0, 0], 4 * torch.outer(u, u)), gaussian([0, 0, 0], 9 * torch.outer(v, v)))
    assert distance == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.5, rel=1e-9)


def test_sets_without_spread():
    flat = gaussian([0.0, 0.0], torch.zeros(2, 2))
    assert frechet_distance(flat, gaussian([3.0, 4.0], torch.eye(2))) == pytest.approx(25 + 2)
    assert frechet_distance(flat, flat) == 0


def test_moments_do_not_depend_on_batches():
    torch.manual_seed(0)
    features = torch.randn(101, 16) * 3 + 50
    whole = moments_of(features)
    parts = FeatureMoments(16)
    for batch in features.split(7):
        parts.update(batch)
    merged = moments_of(features[:40])
    merged.merge(moments_of(features[40:]))
    wide = features.double()
    for moments in (whole, parts, merged):
        assert moments.count == 101
        assert torch.allclose(moments.mean, wide.mean(0), rtol=1e-12)
        assert torch.allclose(moments.covariance, wide.T.cov(), rtol=1e-9, atol=1e-9)


def test_moments_survive_mean_and_covariance():
    torch.manual_seed(0)
    moments = moments_of(torch.randn(50, 5))
    again = FeatureMoments.of(moments.mean, moments.covariance, moments.count)
    again.merge(moments_of(torch.randn(30, 5, generator=torch.Generator().manual_seed(1))))
    moments.merge(moments_of(torch.randn(30, 5, generator=torch.Generator().manual_seed(1))))
    assert torch.allclose(again.covariance, moments.covariance, rtol=1e-12)


def test_wrong_input():
    moments = FeatureMoments(4)
    with pytest.raises(ValueError, match="no features"):
        _ = moments.mean
    with pytest.raises(ValueError, match=r"must be \(B, 4\)"):
        moments.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(torch.full((2, 4), float("inf")))
    assert moments.count == 0
    moments.update(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="at least 2 images"):
        _ = moments.covariance
    with pytest.raises(ValueError, match="4 and 5 channels"):
        frechet_distance(FeatureMoments(4), FeatureMoments(5))
    with pytest.raises(ValueError, match="count of 2"):
        FeatureMoments.of(torch.zeros(2), torch.eye(2), 1)
