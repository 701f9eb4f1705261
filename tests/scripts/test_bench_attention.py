"""scripts/bench_attention.py: what it counts, judges, tabulates and draws, and runs of it on tiny maps."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
if str(SCRIPTS) not in sys.path:
    sys.path.insert(0, str(SCRIPTS))


def _load(name: str) -> Any:
    return importlib.import_module(name)


cells, suites, counting, quality = (
    _load(f"attention_bench.{name}") for name in ("cells", "suites", "counting", "quality")
)
inputs, measure, fresh, peers = (_load(f"attention_bench.{name}") for name in ("inputs", "measure", "fresh", "peers"))
verdicts, tables, plots = (_load(f"attention_bench.{name}") for name in ("verdicts", "tables", "plots"))
backends: Any = _load("attention_bench.backends")
bench: Any = _load("bench_attention")

MIB = 2**20
SCRIPT = SCRIPTS / "bench_attention.py"


def _cell(**changes: Any) -> Any:
    options = changes.pop("options", {"score": "l2"})
    cell = cells.Cell("layers", "full", "full", options, cells.Case.square(16, 4), "forward", repeats=1)
    return dataclasses.replace(cell, **changes)


# Counting


def test_peak_of_a_sequence_of_allocations() -> None:
    assert counting.peak_of([(1, 5), (2, 5), (1, -5), (3, 3), (2, -5), (3, -3), (1, 9)]) == 10
    assert counting.peak_of([(7, -50), (1, 5), (8, -50), (2, 5)]) == 10  # 7 and 8 were there before: not ours to count
    assert counting.peak_of([]) == 0


def _three_at_once(x: torch.Tensor) -> None:
    first = x + 1
    second = first + 1
    del first
    third = second + 1
    fourth = third + 1
    del second, third, fourth


def test_cpu_peak_counts_tensors_and_temporaries_inside_operators() -> None:
    x = torch.randn(512, 512)  # 1 MiB, made before: not counted
    assert 3 * MIB <= counting.cpu_peak_bytes(lambda: _three_at_once(x)) < 3.01 * MIB  # the rest is the scalars
    # argsort makes values (1 MiB) and indices (2 MiB) and gives back only the indices.
    assert counting.cpu_peak_bytes(lambda: torch.argsort(x)) >= 3 * MIB


def test_memory_without_data_is_that_of_a_run() -> None:
    with counting.without_data():
        x = torch.empty(512, 512)
        assert counting.count_peak_bytes(lambda: _three_at_once(x)) == 3 * MIB
    for backend, options in (("full", {"patch_size": 3, "kernel": "chunked"}), ("nystromformer", {"landmarks": 16})):
        cell = _cell(backend=backend, options=options, mode="forward+backward", measures=("memory",))
        run, count = (measure.measure(dataclasses.replace(cell, how=how)) for how in (cells.RUN, cells.COUNT))
        assert count["peak_new_mib"] == pytest.approx(run["peak_new_mib"], rel=0.05)
        assert "not run" in count["memory_method"]


def test_products_are_counted_also_in_the_fused_attention_of_the_cpu() -> None:
    n, c = 256, 4
    q = torch.randn(1, 1, n, c, requires_grad=True)
    assert counting.counted_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 2 * n * n * c
    both = counting.counted_flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert both == (2 + 5) * 2 * n * n * c


# What attention is given


def test_features_are_normalised_where_asked_and_keys_are_a_warped_picture() -> None:
    case = cells.Case.square(32, 8)
    q, k, v, upstream = inputs.make_maps(case, "fp32", "cpu")
    assert [x.shape for x in (q, k, v, upstream)] == [(1, 8, 32, 32)] * 4
    assert k.mean((0, 2, 3)).abs().max() < 1e-4
    assert 0.9 < k.std((0, 2, 3)).median() < 1.1
    again = inputs.make_maps(case, "fp32", "cpu")
    assert all(torch.equal(x, y) for x, y in zip((q, k, v, upstream), again, strict=True))
    raw = inputs.make_maps(dataclasses.replace(case, inputs="photograph-raw"), "fp32", "cpu")
    assert raw[0].min() == 0.0  # after a ReLU
    near = F.cosine_similarity(q.flatten(1), k.flatten(1)).item()
    noise = inputs.make_maps(dataclasses.replace(case, inputs="noise"), "fp32", "cpu")
    assert 0.2 < near < 0.95  # alike, not the same
    assert abs(F.cosine_similarity(noise[0].flatten(1), noise[1].flatten(1)).item()) < 0.2


# Quality


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, score: str, scale: float, p: int) -> torch.Tensor:
    """(channels, N) by plain loops over nothing but the definition."""
    queries, keys = (F.unfold(x.double(), p, padding=p // 2)[0] for x in (q, k))
    logits = queries.T @ keys if score == "dot" else -(queries.T[:, None, :] - keys.T[None, :, :]).square().sum(2)
    return v.double().flatten(2)[0] @ torch.softmax(scale * logits, 1).T


@pytest.mark.parametrize(("score", "scale", "patch"), [("l2", 1.0, 3), ("dot", None, 1)])
def test_exact_attention_at_sampled_queries(score: str, scale: float | None, patch: int) -> None:
    maps = inputs.make_maps(cells.Case.square(12, 4), "fp32", "cpu")[:3]
    chosen = torch.tensor([0, 5, 77, 143])
    out, perplexity = quality.exact_attention(maps, chosen, 1, score, scale, patch)
    truth = _dense(*maps, score, (4 * patch**2) ** -0.5 if scale is None else scale, patch)
    assert torch.allclose(out[0], truth[:, chosen], atol=1e-6)
    assert 1.0 <= perplexity <= 144.0


def test_error_is_none_for_exact_attention_and_one_of_the_mean_for_the_mean() -> None:
    cell = _cell(measures=("time", "memory", "flops", "error"), options={"score": "l2", "patch_size": 3})
    row = measure.measure(cell)
    assert row["error"] < 1e-5
    assert row["error_of_mean"] > 0.05
    maps = inputs.make_maps(cell.case, "fp32", "cpu")[:3]
    mean = quality.error_columns(cell, lambda q, k, v: v.mean((2, 3), keepdim=True).expand_as(v), maps)
    assert mean["error"] == pytest.approx(mean["error_of_mean"], rel=1e-3)


def test_heads_and_scores_of_the_backend_decide_what_exact_is() -> None:
    for options in ({"heads": 2, "score": "dot", "scale": 0.7}, {"heads": 4, "score": "l2"}):
        assert measure.measure(_cell(measures=("error",), options=options))["error"] < 1e-5


def test_patch_distance_of_known_matches() -> None:
    q, k = torch.randn(2, 1, 3, 6, 5)
    matches = torch.randint(30, (1, 30))
    got = quality.patch_distance(q, k, matches, 3)
    rows_q, rows_k = (F.unfold(x, 3, padding=1)[0].T.double() for x in (q, k))
    assert torch.allclose(got[0], (rows_q - rows_k[matches[0]]).square().sum(1), atol=1e-5)


def test_a_better_search_has_a_lower_match_cost() -> None:
    case = cells.Case.square(24, 4, "photograph-raw")
    maps = inputs.make_maps(case, "fp32", "cpu")
    costs = {}
    for search, iterations in (("exact", 1), ("jump", 1), ("jump", 8)):
        options = {"matches": 1, "patch_size": 3, "seed": 0, "search": search, "iterations": iterations}
        run = backends.module(_cell(backend="psal", options=options, case=case))
        costs[search, iterations] = quality.match_cost(run, *maps[:2], 3)
    assert costs["exact", 1] <= costs["jump", 8] < costs["jump", 1]


# Measuring


def test_cell_survives_its_way_into_the_process() -> None:
    cell = _cell(memory_limit_gib=2.0, options={"window": 3, "score": "l2"})
    assert cells.Cell.from_json(json.dumps(dataclasses.asdict(cell))) == cell


@pytest.mark.parametrize("mode", ["forward", "backward", "forward+backward"])
def test_measure_fills_the_columns(mode: str) -> None:
    row = measure.measure(_cell(mode=mode, repeats=3))
    assert (row["repeats"], row["warmup"]) == (3, 1)
    assert 0 < row["wall_ms_min"] <= row["wall_ms_median"] <= row["wall_ms_max"]
    output_mib = 16 * 16 * 4 * 4 / MIB
    assert row["peak_new_mib"] >= round((1 if mode == "forward" else 5) * output_mib, 3)
    assert set(row) | {"status"} <= set(bench.COLUMNS)
    if mode == "forward":
        # |k|^2 rides in two more channels of the product, so a little more than the formula is counted
        assert row["flops_computed"] <= row["flops_counted"] <= 2 * row["flops_computed"]
    else:
        assert row["forward_wall_ms"] > 0
        assert row["backward_wall_ms"] > 0


def test_backward_is_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"forward": (30.0, 20.0), "backward": (5.0, 4.0)}
    for mode, expected in (("backward", (5.0, 4.0)), ("forward+backward", (35.0, 24.0))):
        subject = measure.Subject(_cell(mode=mode))
        assert subject.part(times) == expected


def test_a_call_over_budget_is_timed_once_and_cold() -> None:
    row = measure.measure(_cell(repeats=3, cell_seconds=0.0))
    assert (row["repeats"], row["warmup"]) == (1, 0)
    assert row["wall_ms_median"] > 0


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("side", [128, pytest.param(256, marks=pytest.mark.slow)])
def test_gpa_memory_stays_within_the_bar(side: int, mode: str) -> None:
    """Bytes, unlike times, are the same on every machine, so this bar is held here and not only by the bench."""
    peaks = {}
    for cell in suites.gpa(suites.Wish(sides=[side], modes=[mode], scores=["l2"])):
        if cell.label != "full":
            peaks[cell.label] = measure.Subject(cell).timed_and_weighed()[1]["peak_new_mib"]
    bars = [bar for m, column, bar in verdicts.RELEASED_BARS if m == mode and column == "peak_new_mib"]
    assert verdicts.judge_ratio("", peaks["gpa"], peaks["released-gpa"], bars[0]).met, peaks


@pytest.mark.parametrize("label", ["linear", "psal-3", "psal-aggregate"])
def test_memory_of_table_1_stays_within_the_bars(label: str) -> None:
    (cell,) = [c for c in suites.memory(suites.Wish(sides=[256])) if c.label == label]
    row = measure.measure(dataclasses.replace(cell, threads=1))
    peak_mb = row["peak_new_mib"] * MIB / 1e6
    assert peak_mb <= verdicts.MEMORY_MB[label, "forward+backward"][256]
    assert row["peak_new_mib"] / 1024 <= verdicts.TABLE1_GIB[label][256]


# Processes of their own


def test_failures_and_missing_memory_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    huge = _cell(case=cells.Case.square(512, 512), options={"score": "dot"}, memory_limit_gib=1.5)
    with fresh.Fresh() as processes:
        assert processes.run(huge) == {"status": "out of memory"}
        broken = processes.run(_cell(options={"score": "cosinus"}))
        assert broken["status"].startswith("failed (1): ValueError: full: no score is called 'cosinus'")
        assert processes.run(_cell(measures=("memory",)))["status"] == "ok"  # the server lives on
        missing = processes.run(_cell(backend="peer-performer", options={}))
    assert missing == {"status": "skipped: not installed (performer_pytorch)"}
    assert fresh.ended_badly(-9, "") == {"status": "out of memory"}


@pytest.mark.parametrize("backend", sorted(peers.PACKAGES))
def test_peers_run_where_they_are_installed(backend: str) -> None:
    if peers.why_skipped(backend):
        pytest.skip(peers.why_skipped(backend))
    case = cells.Case.square(16, 8)
    options = {"landmarks": 16, "window": 5, "patch_size": 1}
    q, k, v, _ = inputs.make_maps(case, "fp32", "cpu")
    out = backends.BACKENDS[backend](_cell(backend=backend, case=case, options=options))(q, k, v)
    assert out.shape == q.shape
    assert torch.isfinite(out).all()


# Restated forms


def test_unfolded_forms_equal_our_backends() -> None:
    case = cells.Case((9, 7), (9, 7), 4, 3)
    maps = [x.double() for x in inputs.make_maps(case, "fp32", "cpu")[:3]]
    for ours, options in (("linear", {"patch_size": 3}), ("local", {"patch_size": 3, "window": 4, "scale": 0.3})):
        written = backends.BACKENDS[f"unfolded-{ours}"](_cell(options=options))(*maps)
        module = backends.module(_cell(backend=ours, options=options))(*maps)
        assert torch.allclose(written, module, atol=1e-5), ours


# Verdicts


def _row(label: str, **changes: Any) -> dict[str, Any]:
    row = {
        "suite": "gpa",
        "label": label,
        "backend": label,
        "options": '{"score": "l2"}',
        "inputs": "noise",
        "batch": 1,
        "q_rows": 128,
        "q_cols": 128,
        "kv_rows": 128,
        "kv_cols": 128,
        "channels": 320,
        "patch_size": 1,
        "dtype": "fp32",
        "mode": "forward",
        "device": "cpu",
        "threads": 1,
        "status": "ok",
        "cpu_ms_median": 100.0,
        "wall_ms_median": 200.0,
        "peak_new_mib": 10.0,
        "memory_method": counting.PROFILED,
        "device_name": "x",
        "torch": "2",
    }
    return {**row, **changes}


@pytest.mark.parametrize(
    ("ours", "peer", "ratio", "met"),
    [(100.0, 351.0, 3.51, True), (100.0, 349.0, 3.49, False), (None, 1.0, None, False), (1.0, None, None, None)],
)
def test_judging_a_speed(ours: float | None, peer: float | None, ratio: float | None, met: bool | None) -> None:
    verdict = verdicts.judge_ratio("", ours, peer, verdicts.RELEASED_BARS[0][2])
    assert verdict.value == pytest.approx(ratio)
    assert verdict.met is met
    assert (verdict.bar, verdict.goal) == (">=3.5", ">=5")


def test_verdicts_pair_the_right_rows() -> None:
    rows = [
        _row("gpa"),
        _row("released-gpa", cpu_ms_median=500.0, wall_ms_median=400.0, peak_new_mib=40.0),
        _row("full", cpu_ms_median=700.0),
        _row("gpa", mode="forward+backward", status="out of memory"),
        _row("released-gpa", mode="forward+backward"),
        _row("released-gpa", options='{"score": "dot"}'),
    ]
    found = verdicts.verdicts(rows)
    assert [(v.value, v.met) for v in found] == [(5.0, True), (0.25, True), (7.0, False), (None, False), (None, False)]
    assert verdicts.verdicts(rows, "wall")[0].value == 2.0
    from_csv = [{key: str(value) for key, value in row.items()} for row in rows]
    assert verdicts.verdicts(from_csv) == found
    text = verdicts.as_text(found)
    assert "MISSED" in text
    assert "cpu time" in text


def test_verdicts_on_written_forms() -> None:
    size = {"suite": "ratios", "q_rows": 64, "q_cols": 64, "kv_rows": 32, "kv_cols": 32, "batch": 2, "options": "{}"}
    rows = [_row("ylg", **size), _row("ylg-masked-dense", **size, cpu_ms_median=4100.0)]
    assert [(v.value, v.met, v.goal_met) for v in verdicts.verdicts(rows)] == [(41.0, True, False)]
    rows[1]["cpu_ms_median"] = 3900.0
    assert [v.met for v in verdicts.verdicts(rows)] == [False]


def _search(label: str, ms: float, cost: float) -> dict[str, Any]:
    size = {"q_rows": 256, "q_cols": 256, "kv_rows": 256, "kv_cols": 256, "patch_size": 7, "threads": 2}
    changes = {"backend": "psal", "wall_ms_median": ms, "match_cost": cost, "options": "{}", **size}
    return _row(label, suite="ratios", **changes)


def test_a_faster_search_counts_only_at_no_higher_cost() -> None:
    jump = _search("psal-jump", 900.0, 4.6)
    fast, faster = _search("psal-sweep", 250.0, 4.5), _search("psal-coarse-8", 100.0, 4.7)
    seconds, ratio = verdicts.verdicts([jump, fast, faster])
    assert (seconds.value, seconds.met) == (0.9, True)
    assert (ratio.value, ratio.met) == (3.6, True)
    assert "psal-sweep" in ratio.what
    assert [v.met for v in verdicts.verdicts([jump, faster])] == [True, False]
    assert [v.met for v in verdicts.verdicts([_search("psal-jump", 1600.0, 4.6), fast])] == [False, True]


def test_memory_bars_and_the_published_table() -> None:
    both = {"suite": "memory", "mode": "forward+backward", "patch_size": 7, "channels": 16, "options": "{}"}
    row = _row("psal-3", **both, q_rows=256, peak_new_mib=38.0)
    assert [(round(v.value, 4), v.met) for v in verdicts.verdicts([row])] == [(39.8459, True), (0.0371, True)]
    row["peak_new_mib"] = 39.0
    assert [v.met for v in verdicts.verdicts([row])] == [False, True]
    row["peak_new_mib"] = 41.0
    assert [v.met for v in verdicts.verdicts([row])] == [False, False]
    skipped = _row("local", **both, q_rows=512, status="skipped: takes minutes")
    assert [v.met for v in verdicts.verdicts([skipped])] == [None]


# Tables and pictures


def test_tables_have_the_papers_layout() -> None:
    both = {"suite": "memory", "mode": "forward+backward", "patch_size": 7, "channels": 16, "options": "{}"}
    rows = [
        _row("psal-3", **both, q_rows=256, peak_new_mib=37.9),
        _row("full", **both, q_rows=256, peak_new_mib=102.4, memory_method=counting.COUNTED),
        _row("GPA1024_12_64", **{**both, "backend": "levels"}, peak_new_mib=1000.0),
        _row("full", **{**both, "backend": "levels"}, peak_new_mib=1500.0, memory_method=counting.COUNTED),
    ]
    lines = tables.published_beside_measured(rows).splitlines()
    columns = {
        line.split("|")[1].strip(): [word.strip() for word in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert columns["PSAL 3"] == ["3 n", "0.01", "-", "0.01", "-", "0.04", "0.0370", "0.18", "-"]
    assert columns["Full Attention"][5:] == ["15.26 c", "0.100 n", "250.04 c", "-"]
    assert columns["full"] == ["1,500 n", "1.50", ""]
    assert len({len(line) for line in lines if line.startswith(("| PSAL", "| Full"))}) == 1


def test_computed_entries_of_the_table_fit_their_formula() -> None:
    for label, side in verdicts_computed():
        assert verdicts.TABLE1_GIB[label][side] == pytest.approx(side**2 * (side - 6) ** 2 * 4 / 2**30, abs=0.005)


def verdicts_computed() -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = _load("attention_bench.published").TABLE1_COMPUTED
    return found


def test_names_beside_lines_keep_a_distance() -> None:
    placed = plots.spread([0.1, 0.11, 0.12, 0.9], 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(placed))
    assert placed[3] == 0.9
    assert sum(placed[:3]) / 3 == pytest.approx(0.11)


def test_pictures_are_drawn_from_rows(tmp_path: Path) -> None:
    rows = []
    for label in ("gpa", "psal-3", "linear"):
        for side in (64, 128):
            size = {"q_rows": side, "suite": "layers", "inputs": "photograph-raw", "error": 0.1, "error_of_mean": 0.5}
            rows += [_row(label, **size), _row(label, **size, mode="forward+backward")]
    assert {path.name for path in plots.draw_all(rows, tmp_path)} == {
        f"attention_{name}.png" for name in ("time", "memory", "error")
    }
    assert plots.draw_all([_row("gpa")], tmp_path / "none") == []


# The command line


def _main(monkeypatch: pytest.MonkeyPatch, rows: dict[str, dict[str, Any]], *arguments: str) -> int:
    figures = {**_row("x"), "warmup": 1, "repeats": 1, "kernel": "", "wall_ms_median": 1.0, "cpu_ms_median": 1.0}
    figures = {k: v for k, v in figures.items() if k in ("status", "wall_ms_median", "cpu_ms_median", "peak_new_mib")}
    monkeypatch.setattr(bench.Fresh, "run", lambda self, cell: {**figures, **rows.get(cell.label, {})})
    return int(bench.main(["--suites", "gpa", *arguments]))


def test_check_fails_when_a_bar_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    good = {"released-gpa": {"cpu_ms_median": 4.0, "peak_new_mib": 30.0}, "full": {"cpu_ms_median": 51.0}}
    slow = good | {"full": {"cpu_ms_median": 49.0}}
    assert _main(monkeypatch, good, *out, "--check") == 0
    assert _main(monkeypatch, slow, *out, "--check") == 1
    assert _main(monkeypatch, slow, *out) == 0
    assert _main(monkeypatch, good, *out, "--check", "--backends", "gpa") == 1  # nothing to judge is not a pass
    assert _main(monkeypatch, {"gpa": {"status": "failed (1): boom"}}, *out) == 1
    (path,) = tmp_path.glob("attention-gpa_*.csv")
    assert bench.main(["--from-csv", str(path), "--check", *out]) == 1


def test_heavy_cells_are_rows_that_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--out", str(tmp_path), "--backends", "full", "--scores", "dot", "--sizes", "256")
    for extra, expected in (((), ["ok", "skipped"]), (("--heavy",), ["ok"] * 2)):
        assert _main(monkeypatch, {}, *options, *extra) == 0
        (path,) = tmp_path.glob("*.csv")
        with path.open() as file:
            assert [row["status"].split(":")[0] for row in csv.DictReader(file)] == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ("--quick",),
        ("--quick", "--check", "--out", "x"),
        ("--backends", "gap"),
        ("--repeats", "0"),
        ("--set", "gpa.coarse"),
        ("--set", "gap.coarse=3"),
    ],
)
def test_wrong_command_lines_are_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "bench_attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "gpu"), "takes cpu, cuda or cuda:N; got 'gpu'"),
        (("--device", "cuda"), "no CUDA device here; valid: cpu"),
        (("--from-csv", "nowhere.csv"), "cannot read nowhere.csv: No such file"),
        (("--from-csv", __file__), "is no CSV of this script"),
        (("--threads", "0"), "argument --threads: must be a whole number from 1; got '0'"),
        (("--sizes", "64", "-1"), "argument --sizes: must be a whole number from 1; got '-1'"),
        (("--patch-size", "4"), "must be an odd number from 1; got 4, nearest: 3, 5"),
        (("--patch-size", "x"), "must be an odd number from 1; got 'x'"),
        (("--cell-seconds", "0"), "must be a number above 0; got '0'"),
        (("--set", "gpa.cellz=3"), "gpa has no option cellz; valid here: coarse, cells, "),
        (("--set", "gpa.score=cos"), "gpa on 128x128-c320: gpa: "),
        (("--set", "gpa.cells=null"), "gpa on 128x128-c320: "),
        (("--set", "gpa.heads=7"), "320 channels do not split into 7 heads"),
        (("--set", "gpa.coarse=48"), "gpa on 256x256-c160: query map 256x256 is not a multiple"),
    ],
)
def test_wrong_values_are_told_before_anything_runs(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run_all", lambda *_: pytest.fail("cells ran"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--suites", "gpa", *arguments])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_device_number_beyond_those_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        bench.check_device(device)
    with pytest.raises(ValueError, match=r"no such device; valid: cpu, cuda:0, cuda:1"):
        bench.check_device("cuda:2")


def test_suites_as_they_are_pass_the_checks() -> None:
    assert len(bench.plan(bench.parser().parse_args([]))) > 100


def test_wishes_reach_the_cells() -> None:
    arguments = [
        "--suites",
        "layers",
        "--sizes",
        "48",
        "--channels",
        "8",
        "--patch-size",
        "5",
        "--dtypes",
        "fp16",
        "fp32",
    ]
    arguments += ["--modes", "backward", "--inputs", "noise", "--backends", "psal-3", "--set", "psal.iterations=2"]
    planned = bench.plan(bench.parser().parse_args(arguments))
    assert [cell.dtype for cell in planned] == ["fp16", "fp32"]
    cell = planned[0]
    assert (cell.case.q_size, cell.case.channels, cell.mode, cell.case.inputs) == ((48, 48), 8, "backward", "noise")
    assert (cell.options["patch_size"], cell.options["iterations"], cell.options["matches"]) == (5, 2, 3)


def test_file_names_say_the_conditions() -> None:
    found = bench.conditions("cpu")
    name = bench.file_stem("layers", found, [1, 2], ["fp32"])
    assert name.startswith("attention-layers_")
    assert "_1-2threads_" in name
    assert f"torch-{torch.__version__}".replace("+", "-") in name
    assert name.endswith("_fp32")


def test_every_backend_runs_in_quick_mode(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path), "--tables", "--plots", str(tmp_path)]
    arguments = ["--suites", "pixels", "ratios", "memory", "--inputs", "photograph", "--modes", "forward+backward"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = bench.read_csv(tmp_path.glob("*.csv"))
    assert {row["backend"] for row in rows} >= set(backends.MODULES) | {"levels", "unfolded-linear", "unfolded-local"}
    assert [row for row in rows if row["status"] != "ok" and not row["backend"].startswith("peer-")] == []
    assert list(rows[0]) == bench.COLUMNS
    assert (tmp_path / "memory_published_beside_measured.md").exists()
    assert (tmp_path / "attention_time.png").exists() or (tmp_path / "attention_memory.png").exists()
