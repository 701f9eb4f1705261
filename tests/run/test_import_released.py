"""scripts/import_ylg.py: a folder of config.yaml, weights.pt and result.json from a checkpoint's arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from oracles import sagan_released as released
from saccade.run.folder import RunFolder
from saccade.run.import_released import main

CHANNELS = (12, 10, 8, 64, 64, 4)  # attention has 64 channels in both networks, the fewest for 8 heads
CLASSES = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = released.generator_shapes(CHANNELS, CLASSES) | released.discriminator_shapes(CHANNELS[::-1], CLASSES)
    path = tmp_path_factory.mktemp("released") / "checkpoint.npz"
    np.savez(path, **released.random_arrays(shapes | released.optimiser_shapes(shapes)))
    return path


def run(checkpoint: Path, out: Path, *more: str) -> int:
    channels = ",".join(map(str, CHANNELS))
    return main([f"arrays={checkpoint}", f"out={out}", f"channels={channels}", f"classes={CLASSES}", *more])


def test_the_folder_holds_networks_that_do_as_the_released_ones(checkpoint, tmp_path, capsys):
    out = tmp_path / "imported"
    assert run(checkpoint, out, "batch_size=256") == 0
    assert "step 900000; left out: 2" in capsys.readouterr().out
    folder = RunFolder(out)
    config, weights = folder.read_config(), torch.load(out / "weights.pt", weights_only=True)
    assert set(weights) == {"generator", "discriminator", "images_seen"}
    assert int(weights["images_seen"]) == 900_000 * 256
    with np.load(checkpoint) as arrays:
        oracle = released.Released(dict(arrays))
    generator, discriminator = (instantiate(config.model[node], _convert_="all") for node in ("net", "discriminator"))
    generator.load_state_dict(weights["generator"])
    discriminator.load_state_dict(weights["discriminator"])
    z, labels = torch.randn(1, 128), torch.tensor([2])
    with torch.no_grad():
        image = generator.eval()(z, labels)
        logits = discriminator.eval()(image, labels)
    expected = oracle.generator(z.double(), labels)
    assert (image.permute(0, 2, 3, 1) - expected).abs().max() < 1e-4
    assert logits.item() == pytest.approx(oracle.discriminator(expected, labels).item(), abs=1e-3)
    record = json.loads((out / "result.json").read_text())
    assert (record["status"], record["model"], record["attention"]) == ("imported", "sagan", "ylg")
    assert record["arrays"]["file"] == "checkpoint.npz"
    assert record["warnings"] == []
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "result.json", "weights.pt"]


def test_the_commands_take_the_folder_like_a_run(checkpoint, tmp_path):
    from saccade.run.load import load_task

    assert run(checkpoint, tmp_path / "imported") == 0
    config, task = load_task(tmp_path / "imported")
    assert config.model.classes == CLASSES
    assert int(task.images_seen) == 0
    weights = torch.load(tmp_path / "imported" / "weights.pt", weights_only=True)
    for name, network in (("generator", task.ema.network), ("discriminator", task.discriminator)):
        state = network.state_dict()
        assert set(state) == set(weights[name])
        assert all(torch.equal(value, weights[name][key]) for key, value in state.items()), name
    assert "no batch size" in json.loads((tmp_path / "imported" / "result.json").read_text())["warnings"][0]


def test_what_cannot_be_imported_leaves_nothing_behind(checkpoint, tmp_path, capsys):
    assert main([f"arrays={checkpoint}", f"out={tmp_path / 'wide'}"]) == 1
    assert "of another shape" in capsys.readouterr().err
    assert run(tmp_path / "none.npz", tmp_path / "none") == 1
    assert "none.npz: not a readable .npz" in capsys.readouterr().err
    (tmp_path / "text.npz").write_text("no arrays")
    assert run(tmp_path / "text.npz", tmp_path / "none") == 1
    assert "text.npz: not a readable .npz" in capsys.readouterr().err
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert run(tmp_path / "one.npy", tmp_path / "none") == 1
    assert "one.npy: not a readable .npz" in capsys.readouterr().err
    assert run(checkpoint, tmp_path) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([f"arrays={checkpoint}", f"out={tmp_path / 'x'}", "channels=64;64"]) == 1
    assert "channels=64;64: give whole numbers" in capsys.readouterr().err
    assert main(["arrays=x", "checkpoint=y"]) == 1
    assert "checkpoint= is not an option" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npy", "text.npz"]
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "usage: python scripts/import_ylg.py" in capsys.readouterr().out
