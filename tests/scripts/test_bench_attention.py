"""scripts/bench_attention.py: what it counts, how it judges, and one run of it on tiny maps."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))
cases: Any = importlib.import_module("attention_bench.cases")
measure: Any = importlib.import_module("attention_bench.measure")
verdicts: Any = importlib.import_module("attention_bench.verdicts")
bench: Any = importlib.import_module("bench_attention")

MIB = 2**20


def _cell(**changes: Any) -> Any:
    cell = cases.Cell("gpa", cases.QUICK_CASES[0], "dot", "fp32", "forward", "cpu", 1, 1, 25.0, None)
    return dataclasses.replace(cell, **changes)


def _row(backend: str, mode: str = "forward", **changes: Any) -> dict[str, Any]:
    case = cases.CASES[0].name
    row = {"backend": backend, "case": case, "score": "l2", "dtype": "fp32", "mode": mode, "status": "ok"}
    return {**row, "cpu_ms_median": 100.0, "wall_ms_median": 200.0, "peak_new_mib": 10.0, **changes}


def test_peak_of_a_sequence_of_allocations() -> None:
    assert measure.peak_of([(1, 5), (2, 5), (1, -5), (3, 3), (2, -5), (3, -3), (1, 9)]) == 10
    assert measure.peak_of([(7, -50), (1, 5), (8, -50), (2, 5)]) == 10  # 7 and 8 were there before: not ours to count
    assert measure.peak_of([]) == 0


def test_cpu_peak_counts_tensors_and_temporaries_inside_operators() -> None:
    x = torch.randn(512, 512)  # 1 MiB, made before: not counted

    def three_at_once() -> None:
        first = x + 1
        second = first + 1
        del first
        third = second + 1
        fourth = third + 1
        del second, third, fourth

    assert 3 * MIB <= measure.cpu_peak_bytes(three_at_once) < 3.01 * MIB  # the rest is the scalars
    # argsort makes values (1 MiB) and indices (2 MiB) and gives back only the indices.
    assert measure.cpu_peak_bytes(lambda: torch.argsort(x)) >= 3 * MIB


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize(
    "case", [cases.CASES[0], pytest.param(cases.CASES[1], marks=pytest.mark.slow)], ids=lambda case: case.name
)
def test_memory_stays_within_the_bar(case: Any, mode: str) -> None:
    """Bytes, unlike times, are the same on every machine, so this bar is held here and not only by the bench."""
    peaks = {}
    for backend in ("gpa", "released-gpa"):
        subject = measure._Subject(_cell(backend=backend, case=case, mode=mode))
        peaks[backend] = subject.timed_and_weighed()[1]["peak_new_mib"]
    bar = next(bar for bar in verdicts.RELEASED_BARS if bar.mode == mode and bar.column == "peak_new_mib")
    assert verdicts.judge("", peaks["gpa"], peaks["released-gpa"], bar).met, peaks


def test_cell_survives_its_way_into_the_process() -> None:
    import json

    cell = _cell(memory_limit_gib=2.0)
    assert cases.Cell.from_json(json.dumps(dataclasses.asdict(cell))) == cell


@pytest.mark.parametrize("backend", ["gpa", "released-gpa", "full"])
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_measure_fills_the_columns(backend: str, mode: str) -> None:
    row = measure.measure(_cell(backend=backend, mode=mode, repeats=3))
    assert row["repeats"] == 3
    assert row["warmup"] == 1
    assert row["wall_ms_min"] <= row["wall_ms_median"] <= row["wall_ms_max"]
    output_mib = 16 * 16 * 8 * 4 / MIB
    assert row["peak_new_mib"] >= round((5 if mode == "forward+backward" else 1) * output_mib, 2)
    assert set(row) <= set(bench.COLUMNS)


def test_a_call_over_budget_is_timed_once_and_cold() -> None:
    row = measure.measure(_cell(repeats=3, cell_seconds=0.0))
    assert (row["repeats"], row["warmup"]) == (1, 0)
    assert row["wall_ms_median"] > 0


def test_a_process_out_of_memory_is_a_row() -> None:
    case = cases.Case("huge", (512, 512), 512, 2, (4, 4), 1)
    assert measure.run_fresh(_cell(case=case, memory_limit_gib=1.5), SCRIPTS / "bench_attention.py") == {
        "status": "out of memory"
    }


def test_a_process_that_fails_is_a_row_with_its_last_words() -> None:
    broken = cases.Case("broken", (16, 16), 8, 3, (4, 4), 3)  # 3 does not divide 16
    row = measure.run_fresh(_cell(case=broken), SCRIPTS / "bench_attention.py")
    assert row["status"].startswith("failed (1): ValueError")


@pytest.mark.parametrize(
    ("ours", "peer", "ratio", "met"),
    [(100.0, 351.0, 3.51, True), (100.0, 349.0, 3.49, False), (None, 1.0, None, False), (1.0, None, None, None)],
)
def test_judging_a_speed(ours: float | None, peer: float | None, ratio: float | None, met: bool | None) -> None:
    verdict = verdicts.judge("", ours, peer, verdicts.RELEASED_BARS[0])
    assert verdict.ratio == pytest.approx(ratio)
    assert verdict.met is met
    assert (verdict.bar, verdict.goal) == (">=3.5", ">=5")


def test_judging_memory_the_other_way_round() -> None:
    bar = verdicts.RELEASED_BARS[2]
    assert verdicts.judge("", 4.0, 10.0, bar).met is True
    assert verdicts.judge("", 4.1, 10.0, bar).met is False


def test_verdicts_pair_the_right_rows() -> None:
    rows = [
        _row("gpa"),
        _row("released-gpa", cpu_ms_median=500.0, wall_ms_median=400.0, peak_new_mib=40.0),
        _row("full", cpu_ms_median=700.0),
        _row("gpa", "forward+backward", status="out of memory"),
        _row("released-gpa", "forward+backward"),
        _row("released-gpa", score="dot"),
    ]
    found = verdicts.verdicts(rows, cases.CASES, "cpu")
    assert [(v.ratio, v.met) for v in found] == [(5.0, True), (None, False), (0.25, True), (None, False), (7.0, False)]
    assert verdicts.verdicts(rows, cases.CASES, "wall")[0].ratio == 2.0
    text = verdicts.as_text(found, "cpu")
    assert "MISSED" in text
    assert "cpu time" in text


def _main(monkeypatch: pytest.MonkeyPatch, rows: dict[str, dict[str, Any]], *arguments: str) -> int:
    times = {"wall_ms_median": 1.0, "cpu_ms_median": 1.0}
    figures = {"status": "ok", "warmup": 1, "repeats": 1, "peak_new_mib": 1.0, "kernel": "", **times}
    monkeypatch.setattr(bench, "run_fresh", lambda cell, script: {**figures, **rows.get(cell.backend, {})})
    return int(bench.main(arguments))


def test_check_fails_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "bench.csv"))
    good = {
        "released-gpa": {"cpu_ms_median": 4.0, "peak_new_mib": 3.0},
        "full": {"cpu_ms_median": 51.0},
    }
    slow = good | {"full": {"cpu_ms_median": 49.0}}
    assert _main(monkeypatch, good, *out, "--check") == 0
    assert _main(monkeypatch, slow, *out, "--check") == 1
    assert _main(monkeypatch, slow, *out) == 0
    assert _main(monkeypatch, good, *out, "--check", "--backends", "gpa") == 1  # nothing to judge is not a pass
    assert _main(monkeypatch, {"gpa": {"status": "failed (1): boom"}}, *out) == 1


def test_dense_backward_at_the_large_size_is_skipped_unless_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bench.csv"
    options = ("--out", str(path), "--backends", "full", "--scores", "dot")
    for extra, expected in (((), ["ok", "ok", "ok", "skipped"]), (("--dense-backward",), ["ok"] * 4)):
        assert _main(monkeypatch, {}, *options, *extra) == 0
        with path.open() as file:
            assert [row["status"].split(":")[0] for row in csv.DictReader(file)] == expected


@pytest.mark.parametrize(
    "arguments",
    [("--quick",), ("--quick", "--check", "--out", "x.csv"), ("--cases", "1x1"), ("--repeats", "0")],
)
def test_wrong_command_lines_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "bench_attention" in capsys.readouterr().err


def test_default_path_names_the_conditions() -> None:
    found = bench.conditions("cpu", 1)
    name = bench.default_path(found, ["fp32"]).name
    assert "1threads" in name
    assert f"torch-{torch.__version__}".replace("+", "-") in name
    assert name.endswith("_fp32.csv")


def test_quick_run_writes_a_row_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "quick.csv"
    command = [sys.executable, str(SCRIPTS / "bench_attention.py"), "--quick", "--out", str(path)]
    done = subprocess.run(
        [
            *command,
            *("--backends", "gpa", "released-gpa"),
            *("--cases", "16x16-d2-c8-k3", "--scores", "l2", "--modes", "forward+backward"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["backend"] for row in rows] == ["gpa", "released-gpa"]
    assert all(row["status"] == "ok" for row in rows), rows
    assert all(float(row["cpu_ms_median"]) > 0 and float(row["peak_new_mib"]) > 0 for row in rows)
    assert rows[0]["kernel"] == "recompute"
    assert rows[1]["kernel"] == ""
    assert list(rows[0]) == bench.COLUMNS
