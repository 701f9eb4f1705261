"""scripts/import_editing.py: released checkpoints as folders that the tools take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from torch import nn

from saccade.attention.cross_scale import cross_scale_attention
from saccade.models.csnln import CrossScaleNet
from saccade.models.inpainting import InpaintingCritics, InpaintingGenerator
from saccade.run.folder import RunFolder
from saccade.run.import_editing import main


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def generator(width: int = 4) -> nn.Module:
    return InpaintingGenerator(image_size=64, width=width)


def csnln(scale: int, channels: int = 4, depth: int = 3) -> nn.Module:
    attention = cross_scale_attention()
    return CrossScaleNet(scale=scale, channels=channels, depth=depth, size=12, attention=attention)


def weights_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return dict(torch.load(folder / "weights.pt", weights_only=True))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_generator_and_the_critics_of_contextual_attention(tmp_path, capsys, prefix):
    net, critics = generator(), InpaintingCritics(image_size=64, hole=32, width=8)
    state = {prefix + key: value for key, value in net.state_dict().items()}
    parts = {"localD": critics.local.state_dict(), "globalD": critics.whole.state_dict()}
    gen, dis = saved(tmp_path / "gen_00430000.pt", state), saved(tmp_path / "dis_00430000.pt", parts)
    assert main([f"weights={gen}", f"critics={dis}", f"out={tmp_path / 'out'}"]) == 0
    assert "inpainting; use it with run=" in capsys.readouterr().out
    folder = RunFolder(tmp_path / "out")
    config, weights = folder.read_config(), weights_of(folder.path)
    assert (list(config.model.image_size), list(config.model.hole)) == ([64, 64], [32, 32])
    for name, node, source in (("generator", "net", net), ("discriminator", "discriminator", critics)):
        built = instantiate(config.model[node], _convert_="all")
        built.load_state_dict(weights[name])
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in built.state_dict().items())
    record = json.loads((folder.path / "result.json").read_text())
    assert (record["status"], record["model"], record["attention"]) == ("imported", "inpainting", "full")
    assert record["released_step"] == 430_000
    assert [entry["file"] for entry in record["files"]] == ["gen_00430000.pt", "dis_00430000.pt"]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_scale_width_and_depth_of_csnln_are_told_by_its_keys(tmp_path, scale):
    net = csnln(scale)
    file = saved(tmp_path / f"model_x{scale}.pt", net.state_dict())
    assert main([f"weights={file}", f"out={tmp_path / 'out'}"]) == 0
    config = RunFolder(tmp_path / "out").read_config()
    assert (config.model.scale, config.model.net.channels, config.model.net.depth) == (scale, 4, 3)
    built = instantiate(config.model.net, _convert_="all")
    built.load_state_dict(weights_of(tmp_path / "out")["generator"])
    low = torch.rand(1, 3, 6, 6)
    with torch.no_grad():
        assert torch.equal(built.eval()(low), net.eval()(low))


def test_the_tools_take_the_folders(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    from saccade.run import inpaint, upscale

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "me.png")
    mask = np.zeros((20, 24), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for name, net in (("gen", generator()), ("x3", csnln(3))):
        file = saved(tmp_path / f"{name}.pt", net.state_dict())
        assert main([f"weights={file}", f"out={tmp_path / name}"]) == 0
    shared = [f"image={tmp_path / 'me.png'}", "progress=off"]
    assert inpaint.main([*shared, f"mask={tmp_path / 'mask.png'}", f"run={tmp_path / 'gen'}"]) == 0
    assert upscale.main([*shared, f"run={tmp_path / 'x3'}"]) == 0
    assert capsys.readouterr().out.count("released weights") == 2
    swapped = [f"mask={tmp_path / 'mask.png'}", f"run={tmp_path / 'gen'}", "attention=psal", "overwrite=true"]
    assert inpaint.main([*shared, *swapped]) == 0
    assert "psal attention, trained with full" in capsys.readouterr().out
    assert Image.open(tmp_path / "me-x3.png").size == (72, 60)


def test_what_cannot_be_imported_is_named_and_leaves_nothing(tmp_path, capsys):
    state = dict(generator().state_dict())
    lacking = {key: value for key, value in state.items() if key != "fine_generator.conv3.conv.bias"}
    twisted = {**state, "fine_generator.conv3.conv.bias": torch.zeros(3)}
    odd = {**state, "another.weight": torch.zeros(1)}
    whole = saved(tmp_path / "whole.pt", state)
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save(generator(), tmp_path / "pickled.pt")
    for arguments, words in (
        ([f"weights={saved(tmp_path / 'lacking.pt', lacking)}"], "fine_generator.conv3.conv.bias is missing"),
        ([f"weights={saved(tmp_path / 'twisted.pt', twisted)}"], "conv3.conv.bias is (3,), not (8,)"),
        ([f"weights={saved(tmp_path / 'odd.pt', odd)}"], "another.weight is unknown"),
        ([f"weights={saved(tmp_path / 'other.pt', {'a': torch.zeros(1)})}"], "neither a generator"),
        ([f"weights={saved(tmp_path / 'list.pt', [1])}"], "holds a list"),
        ([f"weights={tmp_path / 'gone.pt'}"], "gone.pt: no such file"),
        ([f"weights={tmp_path / 'text.pt'}"], "text.pt: not a checkpoint of tensors alone"),
        ([f"weights={tmp_path / 'pickled.pt'}"], "pickled.pt: not a checkpoint of tensors alone"),
        ([f"weights={whole}", f"critics={whole}"], "localD and globalD"),
        ([f"weights={saved(tmp_path / 'x2.pt', csnln(2).state_dict())}", f"critics={whole}"], "localD and globalD"),
        ([f"weights={whole}", "critic=x"], "did you mean critics=?"),
    ):
        assert main([*arguments, f"out={tmp_path / 'out'}"]) == 1
        told = capsys.readouterr().err
        assert told.startswith("Error: ")
        assert words in told
        assert not (tmp_path / "out").exists()
    assert main([f"weights={whole}", f"out={tmp_path}"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert main([]) == 2
