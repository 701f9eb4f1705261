"""scripts/invert.py: from a run folder and pictures to sheets and a record."""

import json
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from saccade.inversion import METHODS
from saccade.run import invert_inputs
from saccade.run.build import build_task
from saccade.run.folder import RunFolder
from saccade.run.invert import main, parse
from saccade.run.load import load_task

NETWORK = {"image_size": 16, "channels": [32, 32, 32], "attention_at": 8, "classes": 3, "init": "orthogonal"}


def config_of(*, mixer=None, classes=3):
    """A run's config.yaml with the smallest networks; no data set belongs to it."""
    mixer = mixer or {"_target_": "saccade.attention.ylg.YourLocalAttention", "_partial_": True, "heads": 4}
    attention = {"_target_": "saccade.models.sagan.sagan_attention", "mixer": mixer}
    optimiser = {"_target_": "saccade.tasks.optimisers.adam", "_partial_": True, "lr": 0.001}
    shared = {**NETWORK, "classes": classes, "attention": attention}
    return OmegaConf.create(
        {
            "seed": 0,
            "budget": {"images": 64},
            "data": {"name": "things", "source": "standin"},
            "attention": {"name": mixer["_target_"].rpartition(".")[2]},
            "model": {
                "name": "sagan",
                "net": {"_target_": "saccade.models.sagan.SaganGenerator", "latent": 6, **shared},
                "discriminator": {"_target_": "saccade.models.sagan.SaganDiscriminator", **shared},
            },
            "task": {
                "adversarial": True,
                "module": {
                    "_target_": "saccade.tasks.generation.GenerationTask",
                    "generator_optimiser": optimiser,
                    "discriminator_optimiser": optimiser,
                },
            },
        }
    )


def make_run(path, **options):
    run = RunFolder(path)
    run.create()
    config = config_of(**options)
    run.write_config(config)
    task = build_task(config)
    torch.save({"state_dict": task.state_dict()}, run.checkpoint)
    return run.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("invert") / "run")


@pytest.fixture
def pictures(tmp_path):
    """A folder with a grey, a transparent and a rotated picture, a text, and a hidden file."""
    place = tmp_path / "pictures"
    place.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels[..., 0]).save(place / "a-grey.png")
    Image.fromarray(np.dstack([pixels, np.full((24, 40), 128, np.uint8)])).save(place / "b-alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(place / "c-rotated.jpg", exif=exif)
    (place / "notes.txt").write_text("no picture")
    (place / ".hidden.png").write_text("no picture")
    return place


def arguments(folder, tmp_path, **changes):
    options = {"checkpoint": folder, "images": "self:2", "steps": 3, "seeds": 2, "out": tmp_path / "out", **changes}
    return [f"{key}={value}" for key, value in options.items() if value is not None]


def record_of(tmp_path):
    return json.loads((tmp_path / "out" / "inversion.json").read_text())


def test_own_samples_by_every_method(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path, method="all", steps=6, device="cpu")) == 0
    told = capsys.readouterr().out
    assert "paper: pixel error" in told
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    singles = [f"images/{i:03d}-sample-{i}-{one}.png" for i in range(2) for one in ("original", *METHODS)]
    sheets = ["inversion.png", "saliency-discriminator.png", "saliency-generator.png"]
    assert files == sorted([*singles, *sheets, "inversion.json", "queries/000.png", "queries/001.png"])
    record = record_of(tmp_path)
    assert record["data"] == "things_standin"
    assert record["left_out"] == {}
    assert [method["settings"]["name"] for method in record["methods"]] == list(METHODS)
    for method in record["methods"]:
        assert len(method["images"]) == 2
        for image in method["images"]:
            assert image["loss"] <= image["loss_at_start"]
            assert image["loss"] == min(start["loss"] for start in image["starts"])
            assert image["z_error_at_start"] > 0
            assert len(image["z"]) == 6
            assert image["history"]["step"] == list(range(7))


def test_the_record_redraws_what_was_found(folder, tmp_path):
    assert main(arguments(folder, tmp_path, device="cpu")) == 0
    _, task = load_task(folder)
    for index, image in enumerate(record_of(tmp_path)["methods"][0]["images"]):
        with torch.no_grad():
            wanted = task.ema.network(torch.tensor([image["z"]]), torch.tensor([image["label"]]))[0]
        with Image.open(tmp_path / "out" / "images" / f"{index:03d}-sample-{index}-paper.png") as picture:
            found = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        assert (found - wanted).abs().max() < 1.01 / 127.5


def test_run_twice_gives_the_same(folder, tmp_path):
    for name in ("one", "two"):
        assert main(arguments(folder, tmp_path, out=tmp_path / name, device="cpu", method="paper,pixel")) == 0
    records = [json.loads((tmp_path / name / "inversion.json").read_text()) for name in ("one", "two")]
    for record in records:
        for method in record["methods"]:
            del method["seconds"]
    assert records[0] == records[1]
    for file in (tmp_path / "one").rglob("*.png"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


def test_pictures_of_all_kinds_are_read_as_the_networks_were_trained(folder, tmp_path, pictures):
    assert main(arguments(folder, tmp_path, images=pictures, label="0,1,2")) == 0
    record = record_of(tmp_path)
    images = record["methods"][0]["images"]
    assert [image["name"] for image in images] == ["a-grey.png", "b-alpha.png", "c-rotated.jpg"]
    assert [image["label"] for image in images] == [0, 1, 2]
    assert "z_error" not in images[0]
    assert record["oddities"] == {
        "a-grey.png": ["grey"],
        "b-alpha.png": ["alpha"],
        "c-rotated.jpg": ["exif_rotated"],
    }
    with Image.open(tmp_path / "out" / "images" / "000-a-grey-original.png") as picture:
        assert picture.size == (16, 16)
        assert len({*np.asarray(picture).transpose(2, 0, 1).reshape(3, -1).std(1).round(6)}) == 1


def test_a_folder_gives_its_first_pictures_and_one_file_itself(folder, tmp_path, pictures, capsys):
    assert main(arguments(folder, tmp_path, images=pictures, label="1", count=2)) == 0
    assert "2 of the 3 pictures" in capsys.readouterr().err
    assert len(record_of(tmp_path)["methods"][0]["images"]) == 2
    assert main(arguments(folder, tmp_path, images=pictures / "c-rotated.jpg", label="1", out=tmp_path / "o2")) == 0


def test_noise_moves_the_targets_and_is_named_by_the_seed(folder, tmp_path):
    for name, noise, seed in (("a", 0.2, 0), ("b", 0.2, 0), ("c", 0, 0)):
        assert main(arguments(folder, tmp_path, out=tmp_path / name, noise=noise, seed=seed)) == 0
    pixels = [
        np.asarray(Image.open(tmp_path / name / "images" / "000-sample-0-original.png"), dtype=float) for name in "abc"
    ]
    assert np.array_equal(pixels[0], pixels[1])
    assert float((pixels[0] - pixels[2]).std()) == pytest.approx(0.2 * 127.5, rel=0.25)


def test_a_network_that_attends_nowhere_serves_the_methods_that_need_none(tmp_path, capsys):
    blind = make_run(tmp_path / "run", mixer={"_target_": "saccade.attention.none.NoAttention", "_partial_": True})
    assert main(arguments(blind, tmp_path, method="all")) == 0
    assert "paper is left out" in capsys.readouterr().err
    record = record_of(tmp_path)
    assert [method["settings"]["name"] for method in record["methods"]] == ["pixel"]
    assert set(record["left_out"]) == {"paper", "released", "generator_weighted"}
    assert record["pictures"]["saliency_generator"] == "none: the generator attends nowhere"
    assert not (tmp_path / "out" / "saliency-discriminator.png").exists()
    assert main(arguments(blind, tmp_path, out=tmp_path / "other")) == 1
    assert "attends nowhere" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_fewer_heads_than_the_released_method_uses(tmp_path, capsys):
    single = make_run(
        tmp_path / "run",
        mixer={"_target_": "saccade.attention.full.FullAttention", "_partial_": True, "score": "dot"},
        classes=None,
    )
    assert main(arguments(single, tmp_path, method="all")) == 0
    assert "released is left out" in capsys.readouterr().err
    assert main(arguments(single, tmp_path, method="released", head="0", out=tmp_path / "one")) == 0
    assert main(arguments(single, tmp_path, method="all", head="1", out=tmp_path / "two")) == 1
    assert "from 0 to 0" in capsys.readouterr().err
    assert main(arguments(single, tmp_path, label="1", out=tmp_path / "two")) == 1
    assert "unconditional" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": "nowhere"}, "nowhere is no run folder"),
        ({"images": "gone.png"}, "images=gone.png: no such file or folder"),
        ({"images": "self"}, "self:8"),
        ({"images": "self:0"}, "self:8"),
        ({"images": None}, "missing: images="),
        ({"method": "papre"}, "Valid here: paper, released"),
        ({"steps": "many"}, "steps=many: give a whole number"),
        ({"steps": "0"}, "steps is a whole number, 1 or more"),
        ({"lr": "0"}, "lr is above 0"),
        ({"lr": "fast"}, "lr=fast"),
        ({"head": "all,1"}, "head=all,1: give all, or numbers"),
        ({"head": "9"}, "from 0 to 3"),
        ({"normaliser": "mean"}, "choose queries, attending, baseline"),
        ({"noise": "-1"}, "noise=-1"),
        ({"points": "2,0"}, "points=2,0: give row,col"),
        ({"label": "5"}, "label=5: labels are 0 to 2"),
        ({"label": "tench"}, "label=tench"),
        ({"label": "0,1,2"}, "3 classes for 2 images"),
        ({"weights": "best"}, "keeps no best checkpoint"),
        ({"weights": "first"}, "last or best"),
        ({"imges": "x"}, "did you mean images=?"),
    ],
)
def test_wrong_input_is_one_clear_message_and_nothing_is_written(folder, tmp_path, capsys, changes, words):
    assert main(arguments(folder, tmp_path, **changes)) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert words in told
    assert not list(tmp_path.iterdir())


def test_pictures_need_a_class_and_must_be_pictures(folder, tmp_path, pictures, capsys):
    assert main(arguments(folder, tmp_path, images=pictures)) == 1
    assert "label= is needed" in capsys.readouterr().err
    (pictures / "0-broken.jpg").write_bytes(b"\xff\xd8 half a picture")
    assert main(arguments(folder, tmp_path, images=pictures, label="1")) == 1
    assert "0-broken.jpg" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(arguments(folder, tmp_path, images=tmp_path / "empty", label="1")) == 1
    assert "holds no pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(arguments(folder, tmp_path)) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_progress_is_told_on_the_way(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saccade.run.invert._SAY_EVERY", 0.0)
    assert main(arguments(folder, tmp_path, steps=12)) == 0
    assert "paper: step 10 of 12, 4 starts running, best loss" in capsys.readouterr().err


def test_arguments():
    request = parse(["checkpoint=a", "images=b/me.jpg"])
    assert request.out.name == "me-inversion"
    assert [method.name for method in request.methods] == ["paper"]
    assert request.own is None
    request = parse(["checkpoint=a", "images=self:8", "method=released,paper", "head=all", "lr=0.1", "seeds=3"])
    assert request.own == 8
    assert request.out.name == "self-8-inversion"
    assert [(method.heads, method.lr, method.seeds) for method in request.methods] == [(None, 0.1, 3)] * 2
    assert parse(["checkpoint=a", "images=b", "points=0,1;0.25,.5"]).points == ((0.0, 1.0), (0.25, 0.5))
    assert parse(["checkpoint=a", "images=b", "head=0,2"]).methods[0].heads == (0, 2)


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "normaliser=" in capsys.readouterr().out
    assert main([]) == 2
    assert all(len(line) <= 120 for line in sys.modules["saccade.run.invert"].USAGE.splitlines())


def test_names_of_classes_come_from_the_runs_data(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(invert_inputs, "_class_names", lambda config, classes: ["fox", "sea lion", "owl"])
    assert main(arguments(folder, tmp_path, label="sea lion")) == 0
    assert {image["class"] for image in record_of(tmp_path)["methods"][0]["images"]} == {"sea lion"}
