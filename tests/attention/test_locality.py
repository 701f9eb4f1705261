"""How local a mask is on the picture: closed cases, and the released mapping's figures at 32x32 on 16x16."""

import math

import pytest
import torch

from saccade.attention.locality import Locality, locality, pixel_distances
from saccade.geometry import Size
from saccade.ops.ylg.patterns import PATTERNS, key_cells, ylg_mask

QUERIES, KEYS = Size(32, 32), Size(16, 16)


def test_distances_lie_between_pixel_centres():
    found = pixel_distances(Size(2, 4), Size(1, 2)).reshape(2, 4, 2)
    assert found[0, 0].tolist() == pytest.approx([math.hypot(0.25, 0.25), math.hypot(0.25, 1.25)])
    assert found[1, 3].tolist() == pytest.approx([math.hypot(0.25, 1.25), math.hypot(0.25, 0.25)])


def test_own_cells_alone_are_as_local_as_can_be():
    size = Size(3, 5)
    assert locality(torch.eye(15, dtype=torch.bool), size, size) == Locality(0.0, 1.0)
    assert locality(~torch.eye(15, dtype=torch.bool), size, size).own == 0.0


def loops(mask: torch.Tensor, q_size: Size, kv_size: Size) -> tuple[float, float]:
    """The definition, pair by pair."""
    distances, own = [], 0
    for query in range(q_size.area):
        row, col = divmod(query, q_size.cols)
        place = (row + 0.5) * kv_size.rows / q_size.rows, (col + 0.5) * kv_size.cols / q_size.cols
        for key in range(kv_size.area):
            if mask[query, key]:
                distances.append(math.dist(place, (key // kv_size.cols + 0.5, key % kv_size.cols + 0.5)))
                own += (int(place[0]), int(place[1])) == divmod(key, kv_size.cols)
    return sum(distances) / len(distances), own / q_size.area


@pytest.mark.parametrize("mapping", ["released", "tile", "nearest"])
def test_it_is_the_mean_over_allowed_pairs(mapping):
    q_size, kv_size = Size(8, 6), Size(4, 3)
    mask = ylg_mask("ltr2", q_size, kv_size, mapping=mapping)
    found = locality(mask, q_size, kv_size)
    assert (found.distance, found.own) == pytest.approx(loops(mask, q_size, kv_size))


@pytest.mark.parametrize(
    ("mapping", "step", "own", "distance"),
    [
        ("released", 1, 0.050, 7.36),
        ("released", 2, 0.065, 7.81),
        ("tile", 1, 0.049, 7.14),
        ("tile", 2, 0.065, 7.78),
        ("nearest", 1, 1.0, 4.83),
        ("nearest", 2, 1.0, 7.46),
    ],
)
def test_the_mappings_at_sagan_sizes(mapping, step, own, distance):
    for side in ("ltr", "rtl"):
        found = locality(ylg_mask(f"{side}{step}", QUERIES, KEYS, mapping=mapping), QUERIES, KEYS)
        assert found.own == pytest.approx(own, abs=0.0005)
        assert found.distance == pytest.approx(distance, abs=0.005)


def test_dense_and_row_order_at_sagan_sizes():
    assert locality(ylg_mask("dense", QUERIES, KEYS), QUERIES, KEYS).distance == pytest.approx(8.33, abs=0.005)
    assert locality(ylg_mask("ltr1", QUERIES, KEYS, "row"), QUERIES, KEYS).distance == pytest.approx(7.75, abs=0.005)


def test_own_cells_are_key_cells_of_the_nearest_mapping():
    mask = torch.zeros(QUERIES.area, KEYS.area, dtype=torch.bool)
    mask[torch.arange(QUERIES.area), key_cells(QUERIES, KEYS, "nearest")] = True
    assert locality(mask, QUERIES, KEYS).own == 1.0


def test_wrong_masks_are_refused():
    size = Size(3, 3)
    for wrong in (torch.ones(9, 9), torch.ones(9, 8, dtype=torch.bool), torch.zeros(9, 9, dtype=torch.bool)):
        with pytest.raises(ValueError, match="locality: queries of 3x3"):
            locality(wrong, size, size)
    assert locality(PATTERNS["ltr1"](9), size, size).own == 1.0
