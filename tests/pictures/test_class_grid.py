"""Sheets with a row a class."""

import numpy as np
import pytest

from saccade.pictures.canvas import PAPER
from saccade.pictures.class_grid import Row, class_grid

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour, side=8):
    return np.full((side, side, 3), colour, np.uint8)


def boxes(sheet, colour):
    """(top, left, rows, cols) of a colour's surrounding box, and how many of its pixels have the colour."""
    rows, cols = np.nonzero((sheet == colour).all(2))
    box = int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
    return box, len(rows)


def test_pictures_lie_in_rows_and_columns():
    sheet = class_grid([Row("one", [plain(RED), plain(BLUE)]), Row("two", [plain(BLUE), plain(RED)])], tile=16)
    (top, left, rows, cols), count = boxes(sheet, RED)
    assert (rows, cols) == (36, 36)
    assert count == 2 * 16 * 16
    assert (sheet[top : top + 16, left : left + 16] == RED).all()
    assert (sheet[top + 20 : top + 36, left : left + 16] == BLUE).all()
    assert (sheet[top + 16 : top + 20, left : left + 36] == PAPER).all()


def test_a_shorter_row_ends_early():
    sheet = class_grid([Row("", [plain(BLUE)] * 3), Row("", [plain(RED)])], tile=16)
    (_, left, rows, cols), count = boxes(sheet, RED)
    assert (rows, cols, count) == (16, 16, 256)
    assert left == boxes(sheet, BLUE)[0][1]


def test_small_pictures_are_enlarged_to_whole_multiples():
    assert boxes(class_grid([Row("", [plain(RED, 32)])]), RED)[0][2:] == (96, 96)
    assert boxes(class_grid([Row("", [plain(RED, 128)])]), RED)[0][2:] == (128, 128)


@pytest.mark.parametrize(
    "words",
    [{"title": "some title"}, {"note": "a note"}, {"headings": ["first", "second"]}],
    ids=lambda w: next(iter(w)),
)
def test_words_take_room_of_their_own(words):
    rows = [Row("a", [plain(RED), plain(RED)])]
    bare, told = class_grid(rows, tile=64), class_grid(rows, tile=64, **words)
    assert told.shape[0] > bare.shape[0]
    assert boxes(told, RED)[1] == 2 * 64 * 64


def test_long_labels_are_cut():
    short = class_grid([Row("x" * 20, [plain(RED)])], tile=64)
    long = class_grid([Row("x" * 500, [plain(RED)])], tile=64)
    assert long.shape[1] < short.shape[1] + 100


@pytest.mark.parametrize(
    "rows", [[], [Row("a", [])], [Row("a", [plain(RED)]), Row("b", [])]], ids=["none", "empty", "one"]
)
def test_rows_without_pictures_are_refused(rows):
    with pytest.raises(ValueError, match="class_grid: at least one row"):
        class_grid(rows)


def test_headings_fit_the_columns():
    with pytest.raises(ValueError, match="1 columns have 2 headings"):
        class_grid([Row("a", [plain(RED)])], headings=["one", "two"])
