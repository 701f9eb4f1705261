"""The printed tables of information flow, against figures counted elsewhere."""

import pytest

from saccade.attention.flow import full_information
from saccade.attention.flow_table import LINES, PAIRS, missing_table, pair_masks, paths_table
from saccade.ops.ylg.patterns import PATTERNS


def rows(table: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines[2:]}


def test_missing_paths():
    found = rows(missing_table((9, 16, 64)))
    assert found["Left to right"] == found["Right to left"] == ["yes", "0", "39 / 156 / 3,304"]
    assert found["Fixed"] == ["no", "36 / 120 / 2,016", "54 / 192 / 3,584"]
    assert found["Fixed, without the own token"] == ["no", "45 / 144 / 2,240", "69 / 228 / 3,864"]
    assert found["Strided, as released"] == ["no", "9 / 24 / 224", "9 / 24 / 224"]
    assert found["Star"] == ["yes", "0", "-"]
    assert set(found) == set(LINES)


@pytest.mark.parametrize(
    ("name", "nine", "sixteen"),
    [
        ("Left to right", ["51", "1, 2, 1.111", "1,086 of 1,296"], ["116", "1, 2, 1.094", "12,316 of 14,400"]),
        ("Fixed", ["36", "0, 1, 0.556", "459 of 1,296"], ["80", "0, 1, 0.531", "4,696 of 14,400"]),
        ("Dense", ["162", "9, 9, 9.000", "1,296 of 1,296"], ["512", "16, 16, 16.000", "14,400 of 14,400"]),
        ("Star", ["18", "1, 1, 1.000", "0 of 1,296"], ["32", "1, 1, 1.000", "0 of 14,400"]),
    ],
)
def test_paths_and_pairs(name, nine, sixteen):
    assert rows(paths_table(9))[name] == nine
    assert rows(paths_table(16))[name] == sixteen


def test_every_pair_names_steps_that_exist():
    for heading, steps in PAIRS.values():
        assert set(steps) <= set(PATTERNS)
        assert heading in LINES
        assert [mask.shape for mask in pair_masks(steps, 4)] == [(4, 4)] * 2


def test_the_pair_without_own_tokens_lacks_exactly_them():
    first, second = LINES["Fixed, without the own token"](9)
    assert (
        second.sum() == 3 + 3 + 3 + 2 * 3 - 3
    )  # three summary tokens, each seen by itself and all after it: 7 + 4 + 1
    assert not full_information([first, second])
