"""The editing tasks from training to a person's own picture: train, score with another attention, edit, reconstruct."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Command = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "mine.png"
    rows, cols = np.mgrid[:37, :50]
    Image.fromarray(np.stack([rows * 6, cols * 5, rows + cols], -1).astype(np.uint8)).save(path)
    return path


def trained(command: Command, arguments: list[str], tmp_path: Path, model: str, attention: str) -> Path:
    done = command("train.py", f"model={model}", f"attention={attention}", *arguments)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "runs" / model).glob("*/result.json")
    result = json.loads(record.read_text())
    assert result["images_seen"] == 16
    assert result["headline"] in result["metrics"]
    assert result["data_source"] == "standin"
    assert list(record.parent.glob("pictures/samples-*.png"))
    assert list(record.parent.glob("pictures/attention-*.png"))
    assert (record.parent / "report.html").is_file()
    return record.parent


def swapped(command: Command, run: Path, attention: str, *options: str) -> dict[str, object]:
    """The record of the run's weights with another attention in their slots."""
    done = command("evaluate.py", f"run={run}", f"attention={attention}", *options)
    assert done.returncode == 0, done.stderr
    (record,) = run.glob(f"evaluations/{attention}-*/result.json")
    return dict(json.loads(record.read_text()))


def test_colorization(command: Command, arguments: list[str], picture: Path, tmp_path: Path) -> None:
    run = trained(command, arguments, tmp_path, "colorization", "full")
    record = swapped(command, run, "psal", "attention.mixer.matches=1")
    assert (record["trained_with"], record["attention"]) == ("full", "psal")
    done = command("scripts/colorize.py", f"run={run}", f"image={picture}", f"reference={picture}", "size=32")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "mine-colorized.png").size == (50, 37)
    again = command("scripts/colorize.py", f"run={run}", f"image={picture}", f"reference={picture}", "size=32")
    assert again.returncode == 1
    assert "overwrite=true" in again.stderr


def test_inpainting(command: Command, arguments: list[str], picture: Path, tmp_path: Path) -> None:
    run = trained(command, arguments, tmp_path, "inpainting", "full")
    record = swapped(command, run, "psal")
    assert (record["trained_with"], record["attention"]) == ("full", "psal")
    mask = np.zeros((37, 50), dtype=np.uint8)
    mask[5:20, 8:24] = mask[25:33, 30:45] = 255
    Image.fromarray(mask).save(tmp_path / "holes.png")
    done = command(
        "scripts/inpaint.py", f"run={run}", f"image={picture}", f"mask={tmp_path / 'holes.png'}", "attention=psal"
    )
    assert done.returncode == 0, done.stderr
    made = np.asarray(Image.open(tmp_path / "mine-inpainted.png").convert("RGB"))
    known = np.asarray(Image.open(picture))
    assert np.array_equal(made[mask == 0], known[mask == 0])
    assert not np.array_equal(made[mask > 0], known[mask > 0])


def test_superres(command: Command, arguments: list[str], picture: Path, tmp_path: Path) -> None:
    run = trained(command, arguments, tmp_path, "superres", "full")
    record = swapped(command, run, "psal")
    assert (record["trained_with"], record["attention"]) == ("full", "psal")
    done = command("scripts/upscale.py", f"run={run}", f"image={picture}")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "mine-x2.png").size == (100, 74)


def test_reconstruction_of_two_pictures(command: Command, picture: Path, tmp_path: Path) -> None:
    Image.open(picture).rotate(180).save(tmp_path / "other.png")
    done = command(
        "scripts/reconstruct.py", f"target={picture}", f"reference={tmp_path / 'other.png'}", "methods=psal3,full"
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("mine-reconstructed*.png"))
