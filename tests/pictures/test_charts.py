import re
import xml.etree.ElementTree as ElementTree

import pytest

from saccade.pictures.charts import line_chart, nice_ticks, short_number


def drawn(chart):
    """name of nothing, only the lines: a list of (x, y) lists."""
    root = ElementTree.fromstring(chart)
    return [
        [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in root.iter("polyline")
    ]


def test_a_falling_series_goes_right_and_down():
    (line,) = drawn(line_chart("loss", {"a": ([100, 200, 300], [3.0, 2.0, 1.0])}))
    xs, ys = zip(*line, strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # SVG counts rows from the top
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_everything_lies_inside_the_frame_even_a_first_spike():
    values = [1e6, *[1.0 + index / 100 for index in range(200)]]
    chart = line_chart("loss", {"a": (list(range(201)), values)}, width=400, height=200)
    (line,) = drawn(chart)
    assert all(0 <= x <= 400 and 0 <= y <= 200 for x, y in line)
    heights = [y for _, y in line[1:]]
    assert max(heights) - min(heights) > 50  # the spike did not flatten the rest


def test_values_that_are_not_finite_are_left_out_and_long_series_thinned():
    (line,) = drawn(line_chart("loss", {"a": ([1, 2, 3], [1.0, float("nan"), 2.0]), "b": ([1], [float("inf")])}))
    assert len(line) == 2
    (line,) = drawn(line_chart("loss", {"a": (list(range(5000)), [1.0] * 5000)}))
    assert 100 < len(line) <= 400
    with pytest.raises(ValueError, match="no series"):
        line_chart("loss", {"a": ([1], [float("nan")])})


def test_names_are_escaped_and_marks_take_their_series_colour():
    chart = line_chart("<loss>", {"a & b": ([0, 1], [1.0, 2.0])}, marks={"a & b, source unchanged": 3.0})
    root = ElementTree.fromstring(chart)
    assert "<loss>" in "".join(root.itertext())
    (stroke,) = {line.attrib["stroke"] for line in root.iter("polyline")}
    assert re.search(rf'stroke="{stroke}" stroke-width="1.4" stroke-dasharray', chart)


def test_long_names_and_titles_stay_inside():
    name = "frechet_proxy_random_conv_vs_targets_256x176"
    chart = line_chart("held-out: " + name * 2, {name + str(index): ([0, 1], [1.0, 2.0]) for index in range(3)})
    root = ElementTree.fromstring(chart)
    for text in root.iter("text"):
        assert float(text.attrib["x"]) + 6 * len(text.text) * (text.attrib.get("text-anchor") is None) <= 540
    rows = {text.attrib["y"] for text in root.iter("text") if text.attrib["class"] == "legend"}
    assert len(rows) == 3


def test_ticks_are_round_numbers_inside_the_range():
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-3, 17, 4) == [0, 5, 10, 15]
    assert nice_ticks(2, 2) == [2]
    with pytest.raises(ValueError, match="order"):
        nice_ticks(1, 0)


def test_numbers_are_short():
    assert [short_number(value) for value in (0.12345, 12, 1500, 2.5e6, 3e9)] == ["0.1235", "12", "1.5k", "2.5M", "3G"]
