from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from saccade.run.folder import RunFolder
from saccade.run.records import CsvRecord


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_grows_columns_and_splits_evaluation(tmp_path: Path) -> None:
    record = CsvRecord(tmp_path)
    record.log_metrics({"images_seen": 8.0, "loss/a": 1.0, "epoch": 0})
    record.log_metrics({"images_seen": 16.0, "loss/a": 0.5, "loss/b": 2.0})
    record.log_metrics({"images_seen": 16.0, "eval/score": 3.0})
    assert rows(tmp_path / "train.csv") == [
        {"images_seen": "8", "loss/a": "1.0", "loss/b": ""},
        {"images_seen": "16", "loss/a": "0.5", "loss/b": "2.0"},
    ]
    assert rows(tmp_path / "eval.csv") == [{"images_seen": "16", "score": "3.0"}]


def test_csv_resume_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    record = CsvRecord(tmp_path)
    for seen in (8, 16, 24):
        record.log_metrics({"images_seen": seen, "loss/a": float(seen)})
    resumed = CsvRecord(tmp_path)
    resumed.truncate(16)
    resumed.log_metrics({"images_seen": 24, "loss/a": -1.0})
    assert [(row["images_seen"], row["loss/a"]) for row in rows(tmp_path / "train.csv")] == [
        ("8", "8.0"),
        ("16", "16.0"),
        ("24", "-1.0"),
    ]


def test_unwritable_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"cannot write the run folder .*file/run.*runtime\.root"):
        RunFolder(tmp_path / "file" / "run").create()


def test_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run folder.*config\.yaml"):
        RunFolder(tmp_path).read_config()


def test_damaged_result_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.result_file.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json is not JSON"):
        folder.result()
    folder.write_result({"status": "complete", "metrics": {}})
    assert folder.finished
    assert json.loads(folder.result_file.read_text())["status"] == "complete"
