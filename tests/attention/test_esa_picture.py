"""Pictures of enumerations and mappings: the colours of their cells are what they say, and bad input is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.attention.esa_picture import block_colour, draw_mappings, draw_orders, place_colours
from saccade.attention.panels import EMPTY, STEP_COLOURS, rgb
from saccade.geometry import Size
from saccade.ops.ylg.patterns import key_cells, order_of, ylg_mask

DOTS = 150  # an inch
PANEL, MARGIN, FOOT = 3.5, 0.3, 0.62  # inches of `draw_orders`


def find_panels(pixels: np.ndarray, size: Size, count: int) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of the panels."""
    bottom = pixels.shape[0] - round(FOOT * DOTS)
    top = bottom - round(PANEL * size.rows / size.cols * DOTS)
    lefts = [MARGIN + number * (PANEL + MARGIN) for number in range(count)]
    return [(top, bottom, round(left * DOTS), round((left + PANEL) * DOTS)) for left in lefts]


def corners(pixels: np.ndarray, panel: tuple[int, int, int, int], size: Size) -> np.ndarray:
    """The colour near the upper left corner of each cell, where nothing is written: (n, 3) in 0 ... 1."""
    top, bottom, left, right = panel
    height, width = (bottom - top) / size.rows, (right - left) / size.cols
    places = [
        (top + (row + 0.09) * height, left + (col + 0.09) * width)
        for row in range(size.rows)
        for col in range(size.cols)
    ]
    return np.array([pixels[int(row), int(col)] for row, col in places]) / 255


@pytest.mark.parametrize("size", [Size(4, 4), Size(6, 9)])
def test_cells_have_the_colour_of_their_block(tmp_path: Path, size: Size):
    path = draw_orders(tmp_path / "esa.png", size)
    pixels = np.array(Image.open(path).convert("RGB"))
    stride = int(size.area**0.5)
    for panel, order in zip(find_panels(pixels, size, 3), ("esa", "hilbert", "row"), strict=True):
        found = corners(pixels, panel, size)
        walk = order_of(size, order).tolist()
        expected = np.array([block_colour(walk.index(c) // stride, -(-size.area // stride)) for c in range(size.area)])
        close = np.abs(found - expected).max(1) < 0.02
        assert close.mean() > 0.8  # the way crosses some corners


def test_large_grids_are_drawn_without_numbers(tmp_path: Path):
    pixels = np.array(Image.open(draw_orders(tmp_path / "esa.png", Size(32, 32), ["esa"])).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 32


@pytest.mark.parametrize("mapping", ["released", "nearest"])
def test_a_query_sees_what_its_mask_says(tmp_path: Path, mapping):
    queries, keys, query = Size(8, 8), Size(4, 4), (5, 2)
    path = draw_mappings(tmp_path / "map.png", queries, keys, patterns=["ltr1"], mappings=[mapping], query=query)
    pixels = np.array(Image.open(path).convert("RGB")) / 255
    side, left = 2.05 * DOTS, round((1.3 + 2.05 + 0.14) * DOTS)
    top = round((0.55 - 0.25) * DOTS)
    centres = (np.arange(4) + 0.35) * side / 4
    seen = ylg_mask("ltr1", queries, keys, mapping=mapping)[query[0] * 8 + query[1]].reshape(4, 4)
    for row in range(4):
        for col in range(4):
            colour = pixels[int(top + centres[row]), int(left + centres[col])]
            expected = rgb(STEP_COLOURS[0]) if seen[row, col] else rgb(EMPTY)
            assert np.abs(colour - expected).max() < 0.02, (row, col)


def test_places_have_colours_of_their_own():
    colours = place_colours(Size(16, 16))
    assert len(np.unique(colours.round(4), axis=0)) == 256
    borrowed = colours[key_cells(Size(32, 32), Size(16, 16), "nearest").numpy()].reshape(32, 32, 3)
    assert np.array_equal(borrowed[::2, ::2].reshape(-1, 3), colours)


def test_bad_input_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="4 cells or more"):
        draw_orders(tmp_path / "a.png", Size(1, 3))
    with pytest.raises(ValueError, match="no order is called 'zigzag'"):
        draw_orders(tmp_path / "a.png", Size(4, 4), ["zigzag"])
    with pytest.raises(ValueError, match="query inside 8x8"):
        draw_mappings(tmp_path / "a.png", Size(8, 8), Size(4, 4), query=(8, 0))
    with pytest.raises(ValueError, match="mapping='released'"):
        draw_mappings(tmp_path / "a.png", Size(9, 9), Size(4, 4))
    assert not list(tmp_path.iterdir())
