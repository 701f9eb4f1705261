"""Sheets of reconstructions: the parts that are enlarged, and where they come to lie."""

import numpy as np
import pytest

from saccade.pictures.reconstruction import FRAMES, Shown, Zoom, choose_zooms, comparison_sheet


def flat(rows: int, cols: int, grey: int = 100) -> np.ndarray:
    return np.full((rows, cols, 3), grey, dtype=np.uint8)


def test_parts_lie_where_methods_differ_most_and_apart():
    target, good = flat(60, 80), flat(60, 80)
    bad = flat(60, 80)
    bad[40:50, 60:70] = 200  # wrong in one method alone
    both = [picture.copy() for picture in (good, bad)]
    for picture in both:
        picture[5:15, 5:15] = 255  # wrong in both: they do not differ there
    first, second = choose_zooms(target, both, count=2, side=10)
    assert first == Zoom(40, 60, 10)
    assert abs(second.top - first.top) >= 10 or abs(second.left - first.left) >= 10


def test_of_one_method_the_largest_errors_are_shown():
    target, rebuilt = flat(40, 40), flat(40, 40)
    rebuilt[20:28, 4:12] = 0
    assert choose_zooms(target, [rebuilt], count=1, side=8) == [Zoom(20, 4, 8)]


def test_a_method_that_fails_everywhere_does_not_choose():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    close, closer = target.copy(), target.copy()
    close[10:20, 10:20] = 255 - close[10:20, 10:20]
    closer[12:20, 10:20] = 255 - closer[12:20, 10:20]
    mean_colour = flat(40, 40, 128)
    assert choose_zooms(target, [close, closer, mean_colour], count=1, side=6) == choose_zooms(
        target, [close, closer], count=1, side=6
    )


def test_no_more_parts_than_there_is_room_for():
    assert len(choose_zooms(flat(10, 10), [flat(10, 10, 90)], count=9, side=7)) == 1


def test_parts_are_framed_and_enlarged_pixel_by_pixel():
    picture = flat(32, 32)
    picture[8, 8] = (255, 0, 255)
    sheet = comparison_sheet([Shown("A", "", picture)], [Zoom(6, 6, 4)], tile=64)
    seen = (sheet == (255, 0, 255)).all(axis=2).sum()
    part = 64 - 2 * 3  # the whole width of the column without its frame
    assert seen >= (part // 4) ** 2 + 4  # one pixel of four a side, and its 2x2 pixels in the picture above
    assert (sheet == FRAMES[0]).all(axis=2).sum() > 4 * 58


def test_other_sizes_show_the_same_share():
    first, other = flat(40, 40), flat(20, 80)
    other[10:, 40:] = (1, 2, 3)
    sheet = comparison_sheet([Shown("A", "", first), Shown("B", "", other)], [Zoom(20, 20, 20)], tile=40)
    filled = (sheet == (1, 2, 3)).all(axis=2).sum()
    assert filled >= (160 - 2 * 3) ** 2  # B is 160 wide on the sheet, and its part shows nothing else


def test_columns_wrap_and_narrow_pictures_have_room():
    wide = comparison_sheet([Shown("A", "b", flat(16, 16))] * 3, tile=32, across=3)
    tall = comparison_sheet([Shown("A", "b", flat(16, 16))] * 3, tile=32, across=2)
    assert tall.shape[0] > wide.shape[0]
    assert tall.shape[1] < wide.shape[1]
    narrow = comparison_sheet([Shown("A", "", flat(400, 3))], [Zoom(0, 0, 2), Zoom(4, 0, 2)], tile=100)
    assert (narrow == FRAMES[1]).all(axis=2).any()


def test_titles_and_notes_take_room():
    bare = comparison_sheet([Shown("A", "", flat(16, 16))], tile=32)
    told = comparison_sheet([Shown("A", "", flat(16, 16))], tile=32, title="title", note="note")
    assert told.shape[0] > bare.shape[0]
    assert told.shape[1] == bare.shape[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: comparison_sheet([]), "at least one picture"),
        (lambda: comparison_sheet([Shown("A", "", flat(8, 8))], [Zoom(5, 0, 4)]), "does not lie inside"),
        (lambda: comparison_sheet([Shown("A", "", np.zeros((8, 8), np.uint8))]), "a picture is"),
        (lambda: choose_zooms(flat(8, 8), []), "one or more pictures"),
        (lambda: choose_zooms(flat(8, 8), [flat(8, 9)]), "of the target's size"),
        (lambda: choose_zooms(flat(8, 8), [flat(8, 8)], side=9), "a part of 9 pixels"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
