"""Latent vectors: functions of seed and position, truncated by drawing again; ways between two of them."""

import math

import pytest
import torch
from scipy import stats

from saccade.layers.latents import check_truncation, latents_at, point_between, position_generator, truncated_normal


def test_a_position_is_the_same_whatever_else_is_asked_for():
    z = latents_at(3, range(20), 8, truncation=2.0)
    assert torch.equal(latents_at(3, [17, 4], 8, truncation=2.0), z[[17, 4]])
    assert torch.equal(latents_at(3, torch.tensor([5]), 8, truncation=2.0), z[[5]])
    assert not torch.equal(latents_at(4, [4], 8, truncation=2.0), z[[4]])
    assert latents_at(3, [], 8).shape == (0, 8)


def test_seed_and_position_do_not_trade_places():
    drawn = {tuple(latents_at(seed, [position], 2)[0].tolist()) for seed in range(8) for position in range(8)}
    assert len(drawn) == 64


@pytest.mark.parametrize("limit", [1.0, 2.0])
def test_truncation_gives_the_truncated_normal_distribution(limit):
    z = truncated_normal(200, 200, truncation=limit, generator=torch.Generator().manual_seed(0))
    assert z.abs().max() <= limit
    expected = stats.truncnorm(-limit, limit)
    assert z.std().item() == pytest.approx(expected.std(), rel=0.02)
    assert (z.abs() < limit / 2).double().mean().item() == pytest.approx(2 * expected.cdf(limit / 2) - 1, abs=0.01)


def test_components_within_the_limit_are_kept():
    plain = truncated_normal(5, 50, generator=torch.Generator().manual_seed(1))
    cut = truncated_normal(5, 50, truncation=1.5, generator=torch.Generator().manual_seed(1))
    within = plain.abs() <= 1.5
    assert not bool(within.all())
    assert torch.equal(cut[within], plain[within])


def test_without_truncation_large_components_stay():
    assert latents_at(0, range(100), 128).abs().max() > 3


@pytest.mark.parametrize("wrong", [0.0, -1.0, 0.05, math.inf, math.nan])
def test_wrong_limits_are_refused(wrong):
    with pytest.raises(ValueError, match="truncation"):
        check_truncation(wrong)
    with pytest.raises(ValueError, match="truncation"):
        latents_at(0, [0], 4, truncation=wrong)


def test_negative_seeds_and_positions_are_refused():
    for seed, position in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="0 or more"):
            position_generator(seed, position)


@pytest.mark.parametrize("spherical", [False, True])
def test_a_way_has_its_ends_exactly(spherical):
    one, other = latents_at(0, [0, 1], 16), latents_at(0, [2, 3], 16)
    assert torch.equal(point_between(one, other, torch.zeros(2), spherical=spherical), one)
    assert torch.equal(point_between(one, other, torch.ones(2), spherical=spherical), other)


def test_the_straight_way():
    one, other = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    assert torch.allclose(point_between(one, other, torch.tensor([0.25])), torch.tensor([[1.0, 1.5]]))


def test_the_spherical_way_turns_evenly_and_changes_length_evenly():
    one, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    way = point_between(one, other, torch.tensor([1 / 3]), spherical=True)
    expected = (2 + 2 / 3) * torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    assert torch.allclose(way, expected)


def test_parallel_vectors_have_a_straight_way():
    one = torch.tensor([[1.0, 2.0]])
    for other in (2 * one, one, -one):
        way = point_between(one, other, torch.tensor([0.5]), spherical=True)
        assert torch.allclose(way, (one + other) / 2, atol=1e-6)


def test_ends_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="both ends"):
        point_between(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1))
