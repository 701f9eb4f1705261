"""Sweeps that skip, kill -9 that loses nothing, and errors that name what to mend."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow


def results(root: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(root.rglob("result.json"))]


def weights(root: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = root.rglob("last.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_sweep_then_skip_then_swap(command: Command, arguments: list[str], tmp_path: Path) -> None:
    sweep = ["-m", "model=posemorph", "attention=none,full,gpa", "seed=0,1", *arguments]
    first = command("train.py", *sweep, timeout=600)
    assert first.returncode == 0, first.stderr
    assert not (PROJECT / "multirun.yaml").exists()
    found = results(tmp_path / "runs")
    assert len(found) == 6
    assert {(r["attention"], r["seed"]) for r in found} == {(a, s) for a in ("none", "full", "gpa") for s in (0, 1)}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    second = command("train.py", *sweep)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("Finished already, skipped") == 6
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("result.json")}
    run = next(path.parent for path in stamps if "-gpa-" in path.parent.name)
    for name in ("config.yaml", "report.html", "metrics/train.csv", "metrics/eval.csv", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    assert list((run / "pictures").glob("*.png"))
    swapped = command("evaluate.py", f"run={run}", "attention=full")
    assert swapped.returncode == 0, swapped.stderr
    (record,) = run.glob("evaluations/full-*/result.json")
    assert json.loads(record.read_text())["trained_with"] == "gpa"


def test_every_backend_trains_and_reads_what_another_trained(
    command: Command, arguments: list[str], tmp_path: Path
) -> None:
    backends = ("ylg", "psal", "local", "linear", "performer", "reformer", "nystromformer")
    sweep = ["-m", "model=posemorph", f"attention={','.join(backends)}", *arguments]
    done = command("train.py", *sweep, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {r["attention"]: r for r in results(tmp_path / "runs")}
    assert set(found) == set(backends)
    for name, record in found.items():
        assert name in {entry["op"] for entry in record["ledger"]}
    run = next(path.parent for path in (tmp_path / "runs").rglob("result.json") if "-psal-" in path.parent.name)
    swapped = command("evaluate.py", f"run={run}", "attention=ylg")
    assert swapped.returncode == 0, swapped.stderr
    (record,) = run.glob("evaluations/ylg-*/result.json")
    assert json.loads(record.read_text())["trained_with"] == "psal"


def test_kill_minus_nine_then_resume_gives_the_same_bits(
    command: Command, arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    options = ["budget.images=48", "budget.eval_every=16", "budget.checkpoint_every=8", *arguments]
    whole = command("train.py", *options)
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path / "runs")
    killed_root = f"runtime.root={tmp_path / 'killed'}"
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), *options, killed_root],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").rglob("last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not results(tmp_path / "killed"), "the run was over before it could be killed"
    resumed = command("train.py", *options, killed_root)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming at image" in resumed.stdout
    found = weights(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    for table in ("train.csv", "eval.csv"):
        (left,), (right,) = ((tmp_path / root).rglob(table) for root in ("runs", "killed"))
        assert left.read_text() == right.read_text()


def test_interrupt_saves_and_resumes(
    command: Command, arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    options = ["budget.images=4000", "budget.eval_every=4000", "budget.checkpoint_every=4000", *arguments]
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "train.py"), *options, "runtime.progress=lines"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").rglob("train.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "The same command resumes" in output
    assert int(weights(tmp_path / "runs")["images_seen"]) > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["data.source=files"], "prepare_data.py deepfashion"),
        (["attention=gpu"], "gpa"),
        (["nonsense=1"], "nonsense"),
        (["model.net.skip=cat"], "concat"),
        (["attention.mixer.cells=[7,7]"], "up.32"),
        (["task.module.weights.self_l3=1"], "self_l3"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    command: Command, arguments: list[str], tmp_path: Path, options: list[str], told: str
) -> None:
    result = command("train.py", *arguments, *options)
    assert result.returncode != 0
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.tmp"))


def test_unwritable_folder_is_named(command: Command, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = command("train.py", *arguments, f"runtime.root={tmp_path / 'file'}")
    assert result.returncode == 1
    assert "cannot write the run folder" in result.stderr
