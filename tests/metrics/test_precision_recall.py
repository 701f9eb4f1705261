"""Precision and recall: loops as the oracle, torch-fidelity as another, and what they must say of known sets."""

import pytest
import torch

from saccade.metrics import precision_recall as module
from saccade.metrics.precision_recall import precision_recall


def by_loops(generated, real, neighbours):
    def distance(a, b):
        return float((a.double() - b.double()).square().sum()) ** 0.5

    def radius(points, index):
        others = sorted(distance(points[index], other) for i, other in enumerate(points) if i != index)
        return others[neighbours - 1]

    def inside(points, centres):
        radii = [radius(centres, index) for index in range(len(centres))]
        hits = [any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(hits) / len(hits)

    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_loops_agree(neighbours):
    generated, real = torch.randn(23, 4) * 0.7 + 0.3, torch.randn(31, 4)
    assert precision_recall(generated, real, neighbours=neighbours) == by_loops(generated, real, neighbours)


def test_torch_fidelity_agrees():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generated, real = torch.randn(120, 16) * 0.8, torch.randn(150, 16)
    wanted = calculate_precision_recall_full(generated.double(), real.double(), 3)
    assert precision_recall(generated, real) == pytest.approx(wanted, abs=1e-6)


def test_slices_do_not_change_the_result(monkeypatch):
    generated, real = torch.randn(60, 8), torch.randn(50, 8) + 0.5
    whole = precision_recall(generated, real)
    monkeypatch.setattr(module, "_SLICE_ELEMENTS", 170)
    assert precision_recall(generated, real) == whole


def test_it_says_what_is_wrong_with_a_set():
    real = torch.randn(200, 6)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real + 50, real) == (0.0, 0.0)
    # one mode only: what is made is real, little of what is real is made
    precision, recall = precision_recall(torch.randn(200, 6) * 0.2, real)
    assert precision > 0.95
    assert recall < 0.2
    # a set that reaches too far: the other way round
    precision, recall = precision_recall(torch.randn(200, 6) * 5, real)
    assert precision < 0.2
    assert recall > 0.8


def test_far_from_the_origin_no_digit_is_lost():
    generated, real = torch.randn(40, 5).double(), torch.randn(40, 5).double()
    assert precision_recall(generated + 1e6, real + 1e6) == precision_recall(generated, real)


def test_wrong_sets_are_refused():
    with pytest.raises(ValueError, match=r"\(N, C\) and \(M, C\)"):
        precision_recall(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="3 neighbours need at least 4 points in each set; got 9 generated and 3 real"):
        precision_recall(torch.randn(9, 2), torch.randn(3, 2))
