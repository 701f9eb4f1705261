"""docs/editing.md: commands and files exist, experiments have the published numbers, shipped weights their gains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "editing.md").read_text()
EXPERIMENTS = sorted((PROJECT / "conf" / "experiment" / "psal").glob("*.yaml"))
NUMBER = re.compile(r"\d+\.\d+")


def metrics(name: str) -> dict[str, float]:
    return dict(json.loads((PROJECT / "demo" / name / "result.json").read_text())["metrics"])


def test_every_experiment_is_in_the_table_with_its_published_numbers() -> None:
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `(table\d|fig5)", line)]
    named = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert sorted(named) == [file.stem for file in EXPERIMENTS]
    for file in EXPERIMENTS:
        published = file.read_text().splitlines()[1].partition("published")[2].partition("with evaluate")[0]
        missing = [number for number in NUMBER.findall(published) if number not in named[file.stem]]
        assert not missing, f"{file.stem}: {missing}"


def test_commands_and_files_exist() -> None:
    for script in re.findall(r"python (\S+\.py)", PAGE):
        assert (PROJECT / script).is_file(), script
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (PROJECT / "docs" / link).exists(), link


@pytest.mark.parametrize(
    ("name", "value", "baseline", "decibels"),
    [
        ("superres_x2_psal", "superres/psnr_y_shave2", "superres/psnr_y_shave2_bicubic", 0.2),
        ("superres_x3_psal", "superres/psnr_y_shave3", "superres/psnr_y_shave3_bicubic", 0.2),
        ("inpainting_psal", "psnr_hole", "psnr_hole_mean_fill", 1.0),
    ],
)
def test_shipped_weights_beat_their_trivial_baselines(name: str, value: str, baseline: str, decibels: float) -> None:
    found = metrics(name)
    gain = found[value] - found[baseline]
    assert gain > decibels
    assert f"{gain:.2f} dB" in PAGE
    assert (PROJECT / "demo" / name / "weights.pt").stat().st_size < 5 * 2**20
