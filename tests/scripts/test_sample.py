"""scripts/sample.py: class grids, interpolations and files of a run's generator."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from saccade.layers.batch_norm import BatchNorm
from saccade.layers.latents import latents_at, point_between
from saccade.pictures.canvas import to_uint8
from saccade.run import sample as command
from saccade.run.build import build_task
from saccade.run.folder import RunFolder
from saccade.run.load import load_task
from saccade.run.sample import main, parse, read_classes
from saccade.run.sample_images import Planned, blended, draw, plan

SLOTS = {"_target_": "saccade.models.sagan.sagan_attention", "mixer": "full"}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-4, "betas": [0.0, 0.999]}


def configuration(classes):
    network = {"image_size": 8, "channels": [16, 16], "classes": classes, "attention_at": 8, "latent": 6}
    sizes = {key: value for key, value in network.items() if key != "latent"} | {"attention_at": 4}
    return OmegaConf.create(
        {
            "seed": 0,
            "budget": {"images": 8},
            "model": {
                "name": "sagan",
                "net": {"_target_": "saccade.models.sagan.SaganGenerator", **network, "attention": SLOTS},
                "discriminator": {"_target_": "saccade.models.sagan.SaganDiscriminator", **sizes, "attention": SLOTS},
            },
            "attention": {"name": "full"},
            "data": {"name": "shapes", "source": "standin"},
            "task": {
                "adversarial": True,
                "module": {
                    "_target_": "saccade.tasks.generation.GenerationTask",
                    "generator_optimiser": ADAM,
                    "discriminator_optimiser": ADAM,
                },
            },
        }
    )


def make_run(path, classes):
    """A run folder with untrained weights whose classes differ."""
    config = configuration(classes)
    run = RunFolder(path)
    run.create()
    run.write_config(config)
    task = build_task(config)
    torch.manual_seed(1)
    for part in task.generator.modules():
        if isinstance(part, BatchNorm):
            part.weight.data.normal_(1, 0.5)
            part.bias.data.normal_(0, 0.5)
    torch.save({"state_dict": task.state_dict()}, run.checkpoint)
    return run.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample") / "run", 4)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sample") / "plain", None)


@pytest.fixture
def names(monkeypatch):
    known = ["tench, Tinca tinca", "goldfish", "great white shark", "cock"]
    monkeypatch.setattr(command, "class_names", lambda config, classes: known)
    return known


def run_main(folder, out, *options):
    return main([f"run={folder}", f"out={out}", *options])


def expected_image(folder, label, z):
    """What the generator makes of one latent vector (1, 6)."""
    generator = load_task(folder)[1].ema.network
    with torch.no_grad():
        labels = None if label is None else torch.tensor([label])
        return to_uint8(generator(z, labels)[0])


def cell(sheet, row, column, rows, columns, *, side=96, gap=4, margin=10):
    """A picture of a sheet at the network's size: cells end at the right margin, and above the note."""
    right = sheet.shape[1] - margin - (columns - 1 - column) * (side + gap)
    bottom = sheet.shape[0] - margin - 20 - (rows - 1 - row) * (side + gap)
    found = sheet[bottom - side : bottom, right - side : right]
    assert (found == found[::12, ::12].repeat(12, 0).repeat(12, 1)).all()
    return found[::12, ::12]


def test_a_grid_has_a_row_a_class_and_a_vector_a_column(folder, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert run_main(folder, out, "classes=3,1", "count=3", "seed=5", "truncation=1.5") == 0
    assert "grid.png (6)" in capsys.readouterr().out
    sheet = np.array(Image.open(out))
    z = latents_at(5, range(3), 6, truncation=1.5)
    for row, label in enumerate((3, 1)):
        for column in range(3):
            difference = cell(sheet, row, column, 2, 3).astype(int) - expected_image(folder, label, z[[column]])
            assert np.abs(difference).max() <= 1
    record = json.loads((tmp_path / "grid.json").read_text())
    assert record["seed"] == 5
    assert record["truncation"] == 1.5
    assert record["data"] == "shapes_standin"
    assert record["classes"] == {"1": None, "3": None}
    assert record["images"][4] == {"row": 1, "column": 1, "label": 1, "position": 1, "towards": None, "share": 0.0}


def test_files_can_be_redrawn_from_their_record(folder, tmp_path):
    out = tmp_path / "files"
    assert run_main(folder, out, "mode=files", "count=3", "seed=2") == 0
    record = json.loads((out / "samples.json").read_text())
    assert record["truncation"] is None
    assert len(record["images"]) == 12
    assert {entry["file"] for entry in record["images"]} == {path.name for path in out.glob("*.png")}
    assert len({entry["position"] for entry in record["images"]}) == 12
    for entry in record["images"][::5]:
        z = latents_at(record["seed"], [entry["position"]], 6)
        found = np.array(Image.open(out / entry["file"])).astype(int)
        assert np.abs(found - expected_image(folder, entry["label"], z)).max() <= 1


def test_an_image_does_not_depend_on_the_others(folder, tmp_path):
    assert run_main(folder, tmp_path / "all", "mode=files", "count=2") == 0
    assert run_main(folder, tmp_path / "one", "mode=files", "classes=2", "count=1") == 0
    (one,) = (tmp_path / "one").glob("*.png")
    assert one.name == "class0002-0.png"
    again = np.array(Image.open(tmp_path / "all" / one.name)).astype(int)
    assert np.abs(np.array(Image.open(one)) - again).max() <= 1


@pytest.mark.parametrize("way", ["linear", "spherical"])
def test_interpolation_between_vectors(folder, tmp_path, way):
    out = tmp_path / "way.png"
    assert run_main(folder, out, "mode=interpolate", "classes=2", "count=2", f"path={way}", "steps=3") == 0
    sheet = np.array(Image.open(out))
    for row in range(2):
        ends = latents_at(0, [2 * row, 2 * row + 1], 6, truncation=1.0)
        for column, share in enumerate((0.0, 0.5, 1.0)):
            z = point_between(ends[:1], ends[1:], torch.tensor([share]), spherical=way == "spherical")
            difference = cell(sheet, row, column, 2, 3).astype(int) - expected_image(folder, 2, z)
            assert np.abs(difference).max() <= 1


def test_interpolation_between_classes_ends_in_the_classes(folder, tmp_path):
    out = tmp_path / "way.png"
    options = ("mode=interpolate", "path=classes", "classes=1,3,0", "count=1", "steps=3")
    assert run_main(folder, out, *options) == 0
    sheet = np.array(Image.open(out))
    z = latents_at(0, [0], 6, truncation=1.0)
    shown = [cell(sheet, 0, column, 1, 5).astype(int) for column in range(5)]
    for column, label in ((0, 1), (2, 3), (4, 0)):
        assert np.abs(shown[column] - expected_image(folder, label, z)).max() <= 1
    assert np.abs(shown[1] - shown[0]).max() > 1
    assert np.abs(shown[1] - shown[2]).max() > 1


def test_halfway_between_classes_gains_are_halfway(folder):
    generator = load_task(folder)[1].ema.network
    between = blended(generator, 1, 3, [0.0, 0.5])
    norm, copy = generator.blocks["8"].norm0, between.blocks["8"].norm0
    assert torch.allclose(copy.weight[1], (norm.weight[1] + norm.weight[3]) / 2)
    assert torch.equal(copy.bias[0], norm.bias[1])
    assert generator.classes == 4
    assert norm.classes == 4


def test_a_network_without_classes(unconditional, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert run_main(unconditional, out, "count=10") == 0  # rows of eight
    z = latents_at(0, [9], 6, truncation=2.0)
    shown = cell(np.array(Image.open(out)), 1, 1, 2, 8).astype(int)
    assert np.abs(shown - expected_image(unconditional, None, z)).max() <= 1
    for options, words in ((["classes=0"], "unconditional"), (["mode=interpolate", "path=classes"], "unconditional")):
        assert run_main(unconditional, tmp_path / "other.png", *options) == 1
        assert words in capsys.readouterr().err
    assert run_main(unconditional, tmp_path / "files", "mode=files", "count=2") == 0
    assert sorted(path.name for path in (tmp_path / "files").glob("*.png")) == ["0.png", "1.png"]


def test_names_choose_classes_and_label_rows(folder, names, tmp_path):
    assert run_main(folder, tmp_path / "grid.png", "classes=Great_White_Shark,tinca tinca", "count=1") == 0
    record = json.loads((tmp_path / "grid.json").read_text())
    assert [entry["label"] for entry in record["images"]] == [2, 0]
    assert record["classes"] == {"0": "tench, Tinca tinca", "2": "great white shark"}


def test_reading_classes():
    names = ["crane, bird", "crane", "maillot"]
    assert read_classes("2,0", None, 3) == [2, 0]
    assert read_classes("all", None, 3) == [0, 1, 2]
    assert read_classes(None, names, 3) is None
    assert read_classes("bird", names, 3) == [0]
    with pytest.raises(ValueError, match=r"2 classes are called that; give a label: \[0, 1\]"):
        read_classes("crane", names, 3)
    with pytest.raises(ValueError, match="Nearest: maillot"):
        read_classes("mailot", names, 3)
    with pytest.raises(ValueError, match="labels are 0 to 2"):
        read_classes("3", names, 3)
    with pytest.raises(ValueError, match="tells no names"):
        read_classes("bird", None, 3)


def test_classes_of_a_grid_are_spread_over_a_long_list():
    rows = plan(parse(["run=a", "count=1"]), None, 1000)
    assert [row[0].label for row in rows] == list(range(0, 1000, 100))
    assert len(plan(parse(["run=a", "mode=files", "count=1"]), None, 1000)) == 1000


def test_truncation_defaults_are_those_of_the_paper():
    assert parse(["run=a"]).truncation == 2.0
    assert parse(["run=a", "mode=interpolate"]).truncation == 1.0
    assert parse(["run=a", "mode=files"]).truncation is None
    assert parse(["run=a", "truncation=none"]).truncation is None


def test_nothing_is_replaced_unless_asked(folder, tmp_path, capsys):
    out = tmp_path / "grid.png"
    assert run_main(folder, out, "count=1") == 0
    before = out.read_bytes()
    assert run_main(folder, out, "count=2") == 1
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert run_main(folder, out, "count=2", "overwrite=true") == 0
    assert out.read_bytes() != before
    files = tmp_path / "files"
    assert run_main(folder, files, "mode=files", "count=3") == 0
    (files / "notes.png").write_bytes(b"mine")
    assert run_main(folder, files, "mode=files", "count=1") == 1
    assert run_main(folder, files, "mode=files", "count=1", "overwrite=true") == 0
    assert len(list(files.glob("class*.png"))) == 4
    assert (files / "notes.png").read_bytes() == b"mine"
    assert run_main(folder, out, "mode=files") == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["mode=grids"], "choose grid, interpolate or files"),
        (["count=0"], "count=0: give a whole number, 1 or more"),
        (["seed=-1"], "seed=-1"),
        (["truncation=0"], "truncation=0"),
        (["truncation=two"], "truncation=two"),
        (["steps=4"], "belongs to mode=interpolate"),
        (["mode=interpolate", "steps=1"], "steps=1: give a whole number, 2 or more"),
        (["mode=interpolate", "path=classes", "classes=1"], "names two or more"),
        (["classes=4"], "labels are 0 to 3"),
        (["clases=1"], "did you mean classes=?"),
        (["count=1", "count=2"], "given twice"),
        (["nonsense"], "key=value"),
    ],
)
def test_bad_input_ends_in_one_message(folder, tmp_path, options, words, capsys):
    assert run_main(folder, tmp_path / "out.png", *options) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert words in told
    assert not list(tmp_path.iterdir())


def test_no_run_and_no_weights(tmp_path, capsys):
    assert run_main(tmp_path, tmp_path / "out.png") == 1
    assert "no run folder" in capsys.readouterr().err
    assert main(["out=a.png"]) == 1
    assert "missing: run=" in capsys.readouterr().err


def test_the_best_weights(folder, tmp_path, capsys):
    assert run_main(folder, tmp_path / "grid.png", "weights=best") == 1
    assert "no best checkpoint" in capsys.readouterr().err
    assert run_main(folder, tmp_path / "grid.png", "weights=first") == 1
    assert "choose last or best" in capsys.readouterr().err


def test_a_stand_in_has_names_wherever_it_lies():
    config = OmegaConf.create({"data": {"source": "standin"}})
    assert len(command.class_names(config, 10)) == 10
    assert command.class_names(config, 1000) is None
    assert command.class_names(OmegaConf.create({"data": {"source": "files"}}), 10) is None


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "truncation=" in capsys.readouterr().out
    assert main([]) == 2


def test_images_come_in_the_order_planned(folder):
    generator = load_task(folder)[1].ema.network
    request = parse(["run=a", "truncation=none"])
    rows = [[Planned(0, 7)], [Planned(3, 7), Planned(1, 2)]]
    made = list(draw(generator, request, rows, torch.device("cpu")))
    assert [image for image, _ in made] == [Planned(0, 7), Planned(3, 7), Planned(1, 2)]
    assert made[0][1].shape == (3, 8, 8)
    assert not torch.equal(made[0][1], made[1][1])
