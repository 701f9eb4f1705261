"""scripts/draw_esa.py and the tables of scripts/draw_flow.py as commands."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
ESA = runpy.run_path(str(PROJECT / "scripts" / "draw_esa.py"))
FLOW = runpy.run_path(str(PROJECT / "scripts" / "draw_flow.py"))


def test_orders_are_drawn_and_measured(tmp_path, capsys):
    out = tmp_path / "esa.png"
    assert ESA["main"](["--grid", "4", "4", "--orders", "esa", "row", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "| `esa` | 1.03 | 1.60 |" in told
    assert "| `row` | 1.00 | 1.86 |" in told
    assert "hilbert" not in told
    assert Image.open(out).width > Image.open(out).height


def test_mappings_are_drawn_and_measured(tmp_path, capsys):
    out = tmp_path / "map.png"
    options = ["--mappings", "--queries", "8", "8", "--grid", "4", "4", "--query", "3", "5", "--patterns", "ltr1"]
    assert ESA["main"]([*options, "--out", str(out)]) == 0
    assert "| `nearest` | 100.0 %," in capsys.readouterr().out
    assert out.is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "esa.jpg"], "esa.png"),
        (["--query", "1", "1"], "--query goes with --mappings"),
        (["--mappings", "--orders", "esa"], "--orders goes without --mappings"),
        (["--mappings", "--query", "32", "0"], "query inside 32x32"),
        (["--mappings", "--patterns", "ltr9"], "no pattern is called 'ltr9'"),
        (["--grid", "0", "4"], "positive"),
    ],
)
def test_bad_options_end_in_one_message(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        ESA["main"](options)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flow_tables_are_printed_without_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert FLOW["main"](["--table"]) == 0
    told = capsys.readouterr().out
    assert "| Left to right | yes | 0 | 39 / 156 / 3,304 / 59,280 |" in told
    assert "| Left to right | 116 | 1, 2, 1.094 | 12,316 of 14,400 |" in told
    assert not list(tmp_path.iterdir())
