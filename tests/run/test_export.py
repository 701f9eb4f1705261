from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from saccade.run.build import build_task
from saccade.run.config import CONF, register
from saccade.run.export import export
from saccade.run.folder import RunFolder
from saccade.run.load import load_task


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder as training leaves it, of an untrained network."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["budget=smoke", "task=distortion", "data.source=standin"])
    task = build_task(config)
    task.images_seen.fill_(16)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_config(config)
    torch.save({"state_dict": task.state_dict()}, folder.checkpoint)
    for name in ("samples-distortion-0000000008", "samples-distortion-0000000016", "attention-up.32"):
        (folder.pictures / f"{name}.png").write_bytes(name.encode())
    folder.write_result({"status": "complete", "images_seen": 16})
    return folder


def test_exported_weights_are_the_average_in_half_precision(run: RunFolder, tmp_path: Path) -> None:
    out = export(run.path, tmp_path / "shipped")
    _, trained = load_task(run.path)
    _, exported = load_task(out)
    assert int(exported.images_seen) == 16
    pairs = zip(trained.ema.network.parameters(), exported.ema.network.parameters(), strict=True)
    assert all(torch.equal(mine.half().float(), other) for mine, other in pairs)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        "attention-up.32.png",
        "samples-distortion-0000000016.png",
    ]
    assert json.loads((out / "result.json").read_text())["images_seen"] == 16


def test_unfinished_runs_and_taken_folders_are_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        export(run.path, tmp_path)
    run.write_result({"status": "stopped"})
    with pytest.raises(ValueError, match="not a finished run"):
        export(run.path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_without_weights_says_so(run: RunFolder) -> None:
    run.checkpoint.unlink()
    with pytest.raises(ValueError, match=r"holds no weights yet"):
        load_task(run.path)
