"""The colourisation study: its trainings' configurations, its tables from given rows, and one small study whole."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from saccade.run.colorization_methods import DEFAULT, METHODS, TABLE_4, TABLE_5, TABLE_8, methods_named
from saccade.run.colorization_study import Study, _costs, cells_of, main, read_csv
from saccade.run.colorization_tables import figure_5, summarise, tables


def row(trained: str, tested: str, seed: int, error: float, **more: Any) -> dict[str, Any]:
    same = {"side": 64, "images": 500, "data": "davis", "source": "standin", "threads": 1, "train_seconds": 30.0}
    costs = {"gflops": 2.0, "memory_mib": 3.0}
    scores = {"mse": error * 2, "mse_crop7_distance1": error / 2, "mse_crop7_grey": 0.5, "mse_crop7": error}
    return {"trained": trained, "tested": tested, "seed": seed, **same, **scores, **costs, **more}


ROWS = [
    row("full", "full", 0, 0.010),
    row("full", "full", 1, 0.012),
    row("full", "psal1", 0, 0.0121),
    row("full", "psal1", 1, 0.0121),
    row("dot", "dot", 0, 0.020),
    row("dot", "dot", 1, 0.011),
    row("psal1", "psal1", 0, 0.03, gflops=0.5),
    row("psal1", "psal1", 1, 0.03, gflops=0.5),
    row("psal3", "psal3", 0, 0.009),
    row("psal3", "psal3", 1, 0.011),
]


def test_every_published_row_has_its_method() -> None:
    published = {*TABLE_4, *TABLE_5, *(swap.trained for swap in TABLE_8), *(swap.tested for swap in TABLE_8)}
    assert published <= set(METHODS)
    assert set(DEFAULT) <= set(METHODS)


@pytest.mark.parametrize(("side", "stride"), [(64, 1), (128, 2), (256, 3), (512, 10)])
def test_full_has_the_papers_stride_at_every_size(side: int, stride: int) -> None:
    found = METHODS["full"].overrides(side)
    assert found["attention.mixer.key_stride"] == stride
    assert (found["attention.mixer.score"], found["attention.mixer.scale"]) == ("l2", 1.0)
    assert METHODS["dot"].overrides(side)["attention.mixer.score"] == "dot"
    assert METHODS["dot"].overrides(side, 4)["attention.mixer.key_stride"] == 4
    assert "attention.mixer.key_stride" not in METHODS["psal3"].overrides(side, 4)


@pytest.mark.parametrize("name", ["full", "dot", "psal15", "aggregate", "performer"])
def test_a_training_is_what_its_method_says(name: str, tmp_path: Path) -> None:
    study = Study([METHODS[name]], [3], budget="smoke", images=8, runs=tmp_path)
    config = study.configuration(METHODS[name], 3)
    assert (config.model.name, config.seed, config.budget.images) == ("colorization", 3, 8)
    assert config.attention.name == METHODS[name].attention
    for key, value in METHODS[name].overrides(int(config.model.image_size[0])).items():
        assert config.attention.mixer[key.rpartition(".")[2]] == value
    if name in ("psal15", "aggregate"):
        assert config.attention.mixer.iterations == 10
        costs = _costs(config)
        matches = config.attention.mixer.matches
        reads = 2 * matches * 16 * (49 if name == "aggregate" else 1)
        windows = 5  # of 32 pixels: 32, 16, 8, 4, 2
        wanted = 32 * 32 * ((matches + 10 * (16 + windows)) * 3 * 784 + reads)
        assert costs["gflops"] == pytest.approx(wanted / 1e9)
        assert costs["memory_mib"] > 32 * 32 * 16 * 4 * 3 / 2**20  # queries, keys and values at least


def test_every_swap_of_table_8_is_tested() -> None:
    study = Study(methods_named(["psal1", "psal3", "aggregate", "full", "dot"]), [0, 1])
    cells = cells_of(study)
    assert [cell.method.name for cell in cells][:4] == ["full", "full", "dot", "dot"]  # the slow ones first
    tested = {(cell.method.name, method.name) for cell in cells for method in cell.tested}
    assert tested == {*((swap.trained, swap.tested) for swap in TABLE_8), ("dot", "dot")}
    assert all(cell.tested[0] is cell.method for cell in cells)


def test_summaries_are_means_over_seeds() -> None:
    found = summarise(ROWS)
    assert found["full", "full"].mean == pytest.approx(0.011)
    assert str(found["full", "full"]) == "0.01100 ± 0.00141"
    assert str(summarise(ROWS[:1])["full", "full"]) == "0.01000"
    with pytest.raises(ValueError, match="no rows"):
        summarise([])
    with pytest.raises(ValueError, match=r"no mse_crop<pixels>; it holds trained, mse_crop7_grey"):
        summarise([{"trained": "full", "mse_crop7_grey": 1.0}])


def test_tables_have_the_papers_layout_and_say_what_holds() -> None:
    page = tables(ROWS)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if "|" in line]
    assert ["PSAL 1", "0.00832", "0.03000 ± 0.00000", "0.5", "3", "30"] in lines
    assert ["Full, dot product", "0.0064", "0.01550 ± 0.00636", "2", "3", "30"] in lines
    assert ["Full, l2", "PSAL 1", "0.0024", "0.01210 ± 0.00000", "30", "2", "46.1", "3"] in lines
    assert "l2 beats the dot product (Table 5): in 1 of 2 seeds; ratio of the means 0.71" in page
    assert "PSAL 3 beats PSAL 1 (Table 4): in 2 of 2 seeds; ratio of the means 0.33" in page
    assert "Full, l2 tested with PSAL 1: error +10.0% (Table 8)" in page
    assert "**Not comparable with the paper's columns**" in page
    assert "scores 0.50000" in page
    assert "rows and columns apart" not in page
    assert "Full's keys are 3 rows and columns apart" in tables([{**entry, "full_stride": 3} for entry in ROWS])
    real = [{**entry, "side": 256, "images": 200_000, "source": "files"} for entry in ROWS]
    assert "Not comparable" not in tables(real)


def test_a_method_of_no_table_is_shown_too() -> None:
    page = tables([*ROWS, row("local", "local", 0, 0.04)])
    assert "## Other attentions" in page
    assert "Local, w = 50" in page


def test_figure_5_is_a_picture_with_a_point_each() -> None:
    root = ElementTree.fromstring(figure_5(ROWS))
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    charts = root.findall(f"{space}svg")
    assert [len(chart.findall(f"{space}circle")) for chart in charts] == [4, 4]  # full, dot, psal1, psal3


def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in (
        (["methods=full"], "missing: out="),
        ([f"out={tmp_path}", "methods=full,psal2"], "psal2; choose among full, dot, psal1"),
        ([f"out={tmp_path}", "methods=full,full"], "each may be named once"),
        ([f"out={tmp_path}", "seeds=0,x"], "seeds=0,x: give different whole numbers"),
        ([f"out={tmp_path}", "jobs=0"], "jobs=0: give a whole number, 1 or more"),
        ([f"out={tmp_path}", "sides=32"], "did you mean side=?"),
        ([f"out={tmp_path}", "full_stride=0"], "full_stride=0: give a whole number, 1 or more"),
        ([f"out={tmp_path}", "budget=huge"], "study: In 'train'"),
        ([f"out={tmp_path}", "set=task.module.crops=3"], "study: Could not override 'task.module.crops'"),
    ):
        assert main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_small_study_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trainings, their swap, the record; a second call trains nothing again."""
    arguments = [f"out={tmp_path / 'out'}", f"runs={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]
    arguments += [f"data_dir={tmp_path / 'data'}", "budget=smoke", "methods=psal1,psal3", "seeds=0", "images=8"]
    assert main(arguments) == 0
    rows = read_csv(tmp_path / "out" / "study.csv")
    assert [(found["trained"], found["tested"]) for found in rows] == [
        ("psal1", "psal1"),
        ("psal3", "psal3"),
        ("psal3", "psal1"),
    ]
    assert {found["source"] for found in rows} == {"standin"}
    assert (tmp_path / "out" / "tables.md").is_file()
    assert (tmp_path / "out" / "figure5.svg").is_file()
    checkpoints = sorted((tmp_path / "runs").rglob("last.ckpt"))
    times = [file.stat().st_mtime_ns for file in checkpoints]
    assert len(times) == 2
    capsys.readouterr()
    assert main(arguments) == 0
    assert [file.stat().st_mtime_ns for file in checkpoints] == times
    again = read_csv(tmp_path / "out" / "study.csv")
    assert [found["mse"] for found in again] == [found["mse"] for found in rows]
