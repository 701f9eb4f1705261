"""Saliency, query points and inversions as pictures."""

import numpy as np
import pytest

from saccade.pictures.saliency import (
    QueryMaps,
    captioned,
    inversion_sheet,
    magma,
    query_sheet,
    saliency_over,
    saliency_sheet,
    spread,
)


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_magma_is_matplotlibs():
    colours = magma(np.array([[0.0, 0.5, 1.0, -3.0, 9.0]]))[0].tolist()
    wanted = [[0, 0, 4], [183, 55, 121], [252, 253, 191]]
    for found, colour in zip(colours, [*wanted, wanted[0], wanted[2]], strict=True):
        assert np.abs(np.subtract(found, colour)).max() <= 2


def test_a_map_lies_over_its_image_at_065(picture):
    values = np.kron(np.array([[3.0, 1.0], [2.0, 1.0]]), np.ones((16, 16)))
    found = saliency_over(picture, values)
    for (row, col), level in {(0, 0): 1.0, (0, 31): 0.0, (31, 0): 0.5}.items():
        wanted = 0.35 * picture[row, col] + 0.65 * magma(np.array([[level]]))[0, 0]
        assert np.abs(found[row, col] - wanted).max() <= 1
    assert np.array_equal(saliency_over(picture, values, opacity=0.0), picture)


def test_maps_grow_bilinearly(picture):
    ramp = saliency_over(np.zeros((1, 32, 3), np.uint8), np.array([[0.0, 1.0]]), opacity=1.0)[0].astype(int).sum(1)
    assert (np.diff(ramp) >= -2).all()
    assert len(set(ramp.tolist())) > 10


def test_flat_maps_are_of_one_colour(picture):
    assert (spread(np.full((4, 4), 0.0625)) == 0).all()
    assert (spread(np.array([[0.1, 0.1 + 1e-9]])) == 0).all()
    assert len(np.unique(saliency_over(np.zeros_like(picture), np.ones((4, 4))).reshape(-1, 3), axis=0)) == 1


def test_a_sheet_has_a_column_a_head_and_the_mean(picture, rng):
    maps = rng.random((2, 3, 8, 8))
    sheet = saliency_sheet([picture, picture], maps, ["head 0", "head 1", "head 2"], labels=["a", "b"], title="t")
    assert sheet.shape[1] >= 5 * 128
    assert sheet.shape[0] >= 2 * 128
    other = maps.copy()
    other[1, 2] = other[1, 2].T
    changed = saliency_sheet([picture, picture], other, ["head 0", "head 1", "head 2"], labels=["a", "b"], title="t")
    rows, cols = np.nonzero((sheet != changed).any(2))
    assert rows.min() > sheet.shape[0] // 2
    assert cols.min() > 3 * 128  # the changed head and the mean, nothing left of them


def queries(rng, name="here"):
    weights = np.zeros((2, 4, 4))
    weights[0, 1, 2] = 1.0
    weights[1] = 1 / 16
    return QueryMaps(name, 0.5, 0.25, weights, weights != 0)


def test_a_query_shows_its_keys_and_darkens_what_it_may_not_see(rng):
    grey = np.full((32, 32, 3), 100, np.uint8)
    sheet = query_sheet(grey, [queries(rng)], ["one key", "all"], tile=128)
    found = [tuple(colour) for colour in sheet.reshape(-1, 3).tolist()]
    lit = tuple(np.rint(100 * 0.35 + magma(np.ones((1, 1)))[0, 0] * 0.65).astype(int).tolist())
    area = 32 * 32  # of a key on the sheet
    assert 14 * area < found.count((40, 40, 40)) < 15.1 * area
    assert 14 * area < found.count(lit) < 17.1 * area
    assert found.count((150, 200, 255)) == 4 * 31 + 4 * 127  # around one key, and around all
    blue = ((sheet[..., 2] > 230) & (sheet[..., 0] < 80)).sum()
    assert blue > 3 * 25  # a dot on each of the three


def test_an_inversion_sheet_has_a_column_a_method(picture):
    sheet = inversion_sheet([picture] * 2, [("paper", [picture] * 2, ["1 %", "2 %"])], labels=["a", "b"])
    assert sheet.shape[1] > 2 * 128
    with pytest.raises(ValueError, match="at least one image and one method"):
        inversion_sheet([picture], [])
    with pytest.raises(ValueError, match="argument 2"):
        inversion_sheet([picture], [("paper", [picture], [])])


def test_captions_stand_below(picture):
    cell = captioned(picture, 64, "words")
    assert np.array_equal(cell[:64:2, ::2], picture)
    assert (cell[64:] < 200).any()


def test_wrong_input_is_refused(picture, rng):
    with pytest.raises(ValueError, match="finite"):
        saliency_over(picture, np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="opacity"):
        saliency_over(picture, np.ones((2, 2)), opacity=1.5)
    with pytest.raises(ValueError, match=r"\(1, 2, 4, 4\) for 1 images and 3 heads"):
        saliency_sheet([picture], np.ones((1, 2, 4, 4)), ["a", "b", "c"])
    with pytest.raises(ValueError, match="at least one query"):
        query_sheet(picture, [], ["a"])
    with pytest.raises(ValueError, match="query there"):
        query_sheet(picture, [queries(rng, "there")], ["a"])
