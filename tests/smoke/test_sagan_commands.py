"""A GAN from training to pictures: train, resume, score the best weights, sample, invert, export."""

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
SAGAN = ("model=sagan", "attention=ylg")
START = ("task.module.score_start=true", "task.module.ema_half_life=20")


def the_run(root: Path) -> Path:
    (record,) = (root / "sagan").glob("*/result.json")
    return record.parent


def test_from_training_to_pictures(command: Command, arguments: list[str], tmp_path: Path) -> None:
    trained = command("train.py", *SAGAN, *arguments)
    assert trained.returncode == 0, trained.stderr
    run = the_run(tmp_path / "runs")
    record = json.loads((run / "result.json").read_text())
    assert record["images_seen"] == 16
    assert "frechet_proxy_random_conv_val_4" in record["metrics"]
    assert not any(name.startswith("fid") for name in record["metrics"])
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert "sigma/up.16" in (run / "metrics" / "train.csv").read_text().splitlines()[0]

    scored = command("evaluate.py", f"run={run}", "attention=full", "weights=best")
    assert scored.returncode == 0, scored.stderr
    (evaluation,) = run.glob("evaluations/best-full-*/result.json")
    assert json.loads(evaluation.read_text())["trained_with"] == "ylg"

    shipped = tmp_path / "shipped"
    exported = command("scripts/export_weights.py", f"run={run}", f"out={shipped}")
    assert exported.returncode == 0, exported.stderr
    grid = tmp_path / "grid.png"
    sampled = command("scripts/sample.py", f"run={shipped}", "classes=0,1", "count=2", f"out={grid}")
    assert sampled.returncode == 0, sampled.stderr
    assert grid.is_file()
    inverted = command(
        "scripts/invert.py", f"checkpoint={shipped}", "images=self:2", "method=paper,pixel", "steps=3", "seeds=2",
        f"out={tmp_path / 'inverted'}",
    )  # fmt: skip
    assert inverted.returncode == 0, inverted.stderr
    assert (tmp_path / "inverted" / "inversion.png").is_file()
    assert json.loads((tmp_path / "inverted" / "inversion.json").read_text())
    curves = command("scripts/draw_curves.py", f"runs={run}", f"out={tmp_path / 'curves.png'}")
    assert curves.returncode == 0, curves.stderr


def test_killed_and_resumed_the_same_bits_and_best_weights(
    command: Command, arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    options = [*SAGAN, *START, "budget.images=32", "budget.eval_every=8", "budget.checkpoint_every=8", *arguments]
    whole = command("train.py", *options)
    assert whole.returncode == 0, whole.stderr
    root = f"runtime.root={tmp_path / 'killed'}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(PROJECT / "train.py"), *options, root], env=environment, **quiet)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "killed").rglob("best.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").rglob("result.json")), "the run was over before it could be killed"
    resumed = command("train.py", *options, root)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("last.ckpt", "best.ckpt"):
        (one,), (other,) = ((tmp_path / folder).rglob(name) for folder in ("runs", "killed"))
        states = [torch.load(path, weights_only=True)["state_dict"] for path in (one, other)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), name
    for table in ("train.csv", "eval.csv"):
        (one,), (other,) = ((tmp_path / folder).rglob(table) for folder in ("runs", "killed"))
        assert one.read_text() == other.read_text()
    (path,) = (tmp_path / "runs").rglob("result.json")
    result = json.loads(path.read_text())
    assert result["headline"].endswith("_ratio_to_start")
    assert result["best"]["metrics"][result["best"]["selected_by"]] == result["best"]["value"]
    scored = command("evaluate.py", f"run={path.parent}", "weights=best")
    assert scored.returncode == 0, scored.stderr
    (record,) = path.parent.glob("evaluations/best-ylg-*/result.json")
    again = json.loads(record.read_text())
    assert (again["weights"], again["images_seen"]) == ("best", result["best"]["images_seen"])
    assert again["metrics"][result["best"]["selected_by"]] == pytest.approx(result["best"]["value"], rel=1e-5)


def test_a_collapse_ends_in_one_message(command: Command, arguments: list[str], tmp_path: Path) -> None:
    guard = ["task.module.collapse.diversity_below=9", "task.module.collapse.diversity_patience=1"]
    done = command("train.py", "model=sagan", *guard, *arguments)
    assert done.returncode == 1
    assert "The training has collapsed at image 8" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.rglob("last.ckpt"))) == len(list(tmp_path.rglob("best.ckpt"))) == 1
    assert not list(tmp_path.rglob("result.json"))
    done = command("train.py", "model=sagan", *guard, *arguments, "runtime.ignore_collapse=true")
    assert done.returncode == 0, done.stderr
    assert "Resuming at image 8 of 16" in done.stdout
    assert len(list(tmp_path.rglob("result.json"))) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["data.source=files"], "prepare_data.py imagenet"),
        (["model.classes=1000"], "10 classes"),
        (["model.channels=[16,16]"], "4 maps, 4x4 to 32x32"),
        (["task.module.accumulate=3"], "multiple of 3"),
        (["model.net.spectral=half"], "bounded"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    command: Command, arguments: list[str], options: list[str], told: str
) -> None:
    result = command("train.py", *SAGAN, *arguments, *options)
    assert result.returncode != 0
    assert told in result.stderr
    assert "Traceback" not in result.stderr
