from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


# ---------------------------------------------------------------------- runs with a best checkpoint


@pytest.fixture
def gan(tmp_path: Path) -> RunFolder:
    """A finished GAN run whose best weights are not its last ones."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = ["model=sagan", "attention=full", "budget=smoke", "data.source=standin", "model.classes=10"]
        config = compose("train", overrides=chosen)
    folder = RunFolder(tmp_path / "gan")
    folder.create()
    folder.write_config(config)
    task = build_task(config)
    best = {"selected_by": "fid", "value": 1.0, "images_seen": 8, "metrics": {"fid": 1.0}}
    task.images_seen.fill_(8)
    torch.save({"state_dict": task.state_dict(), "best": best}, folder.best_checkpoint)
    with torch.no_grad():
        for weight in task.parameters():
            weight += 0.25
    task.images_seen.fill_(16)
    torch.save({"state_dict": task.state_dict()}, folder.checkpoint)
    folder.write_result({"status": "complete", "images_seen": 16, "best": best})
    return folder


def test_last_and_best_weights_are_two(gan: RunFolder) -> None:
    (_, last), (_, best) = load_task(gan.path), load_task(gan.path, weights="best")
    assert (int(last.images_seen), int(best.images_seen)) == (16, 8)
    for mine, other in zip(last.parameters(), best.parameters(), strict=True):
        torch.testing.assert_close(mine, other + 0.25)
    with pytest.raises(ValueError, match="weights=first is unknown; valid: last, best"):
        load_task(gan.path, weights="first")  # type: ignore[arg-type]
    gan.best_checkpoint.unlink()
    with pytest.raises(ValueError, match="keeps no best checkpoint"):
        load_task(gan.path, weights="best")


@pytest.mark.parametrize("weights", ["last", "best"])
def test_a_gan_leaves_with_its_discriminator(gan: RunFolder, tmp_path: Path, weights: Any) -> None:
    out = export(gan.path, tmp_path / "shipped", weights)
    assert torch.load(out / "weights.pt", weights_only=True).keys() == {"generator", "discriminator", "images_seen"}
    (_, trained), (_, shipped) = load_task(gan.path, weights=weights), load_task(out)
    assert int(shipped.images_seen) == int(trained.images_seen)
    assert RunFolder(out).result()["weights"] == weights
    for part in ("generator", "discriminator"):
        mine, other = getattr(trained, part).state_dict(), getattr(shipped, part).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name].half().float(), other[name]) for name in mine)
    if weights == "last":
        with pytest.raises(ValueError, match="shipped with the last weights"):
            load_task(out, weights="best")


def test_what_half_precision_cannot_hold_stays_as_it_is(gan: RunFolder, tmp_path: Path) -> None:
    saved = torch.load(gan.checkpoint, weights_only=True)
    name = next(key for key in saved["state_dict"] if key.endswith("running_var"))
    for key in (name, name.replace("generator", "ema.network")):
        saved["state_dict"][key].fill_(1e6)
    torch.save(saved, gan.checkpoint)
    _, shipped = load_task(export(gan.path, tmp_path / "shipped"))
    assert float(shipped.state_dict()[name].min()) == 1e6


def test_weights_of_other_networks_are_refused_with_the_file(gan: RunFolder) -> None:
    config = gan.read_config()
    config.model.channels = [16, 16, 16, 32]
    with pytest.raises(ValueError, match=r"last\.ckpt does not fit the networks of the run's config\.yaml: .* more"):
        load_task(gan.path, config)
