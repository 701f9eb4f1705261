"""scripts/morph.py: one's own picture through a run's network."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from saccade.data.batches import PoseBatch
from saccade.run import morph as morph_module
from saccade.run.build import build_task
from saccade.run.config import CONF, register
from saccade.run.folder import RunFolder
from saccade.run.load import load_task
from saccade.run.morph import main, parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with untrained weights of the smallest budget."""
    root = tmp_path_factory.mktemp("morph")
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "train",
            overrides=[
                "model=posemorph",
                "attention=gpa",
                "task=distortion",
                "budget=smoke",
                "data.source=standin",
                "data.module.standin_train=2",
                "data.module.standin_test=2",
                "data.module.standin_poses=2",
                f"runtime.cache_dir={root / 'cache'}",
                f"runtime.data_dir={root / 'data'}",
            ],
        )
    run = RunFolder(root / "run")
    run.create()
    run.write_config(config)
    torch.save({"state_dict": build_task(config).state_dict()}, run.checkpoint)
    return run.path


# COCO-17 in a picture of 120 rows and 80 columns
BODY = [(40, 12), (43, 10), (37, 10), (46, 12), (34, 12), (52, 30), (28, 30), (56, 48), (24, 48), (58, 64), (22, 64)]
BODY += [(48, 62), (32, 62), (48, 86), (32, 86), (48, 110), (32, 110)]


@pytest.fixture
def own(tmp_path):
    """A picture and its pose as COCO-17, and a mirrored target pose as OpenPose-18."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (120, 80, 3), dtype=np.uint8)).save(tmp_path / "me.png")
    (tmp_path / "coco.json").write_text(json.dumps({"keypoints": [v for x, y in BODY for v in (x, y, 2)]}))
    order = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    openpose = [(40, 30) if index is None else BODY[index] for index in order]
    flat = [v for x, y in openpose for v in (79 - x, y, 0.9)]
    (tmp_path / "openpose.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": flat}]}))
    return tmp_path


def arguments(folder, own, **changes):
    options = {
        "run": folder,
        "source": own / "me.png",
        "source_pose": own / "coco.json",
        "target_pose": own / "openpose.json",
        "out": own / "out" / "morph.png",
        **changes,
    }
    return [f"{key}={value}" for key, value in options.items() if value is not None]


def test_the_morph_its_attention_and_a_sheet_are_written(folder, own, capsys):
    assert main(arguments(folder, own)) == 0
    assert "morph.png" in capsys.readouterr().out
    names = sorted(path.name for path in (own / "out").iterdir())
    assert names == ["morph-attention.png", "morph-sheet.png", "morph.png"]
    with Image.open(own / "out" / "morph.png") as picture:
        assert picture.size == (21, 32)  # 32 rows, the source's aspect, without the padding


def test_the_picture_is_what_the_averaged_network_makes(folder, own):
    main(arguments(folder, own))
    _, task = load_task(folder)
    from saccade.data.own_pictures import load_picture, load_pose
    from saccade.geometry import Size

    canvas = Size(32, 32)
    source = load_picture(own / "me.png", own / "coco.json", canvas)
    target = load_pose(own / "openpose.json", Size(120, 80), canvas)
    batch = PoseBatch(source.image, source.keypoints, source.image, target, ["me"])
    with torch.no_grad():
        maps = [task.pose(points, batch.source_image) for points in (batch.source_keypoints, batch.target_keypoints)]
        wanted = task.ema.network(batch.source_image, *maps).clamp(-1, 1)
    box = source.box
    wanted = wanted[0, :, box.top : box.top + box.rows, box.left : box.left + box.cols].permute(1, 2, 0)
    with Image.open(own / "out" / "morph.png") as picture:
        found = np.asarray(picture, dtype=np.float32) / 127.5 - 1
    assert np.abs(found - wanted.numpy()).max() <= 1 / 127.5


def test_the_target_can_be_a_picture_of_the_runs_data(folder, own, capsys):
    config, _ = load_task(folder)
    with pytest.raises(ValueError, match="Nearest names: fashion") as error:
        morph_module.pose_of_key(config, "fashionWOMEN")
    name = str(error.value).rpartition("Nearest names: ")[2].split(",")[0]
    for key in (name, f"{name}.jpg", f"somebody___{name}"):
        pose, box = morph_module.pose_of_key(config, key)
        assert pose.shape == (1, 18, 3)
        assert float(pose[..., 2].sum()) >= 4
        assert (box.rows, box.cols) == (32, 22)
    assert main(arguments(folder, own, target_pose=name)) == 0
    with Image.open(own / "out" / "morph.png") as picture:
        assert picture.size == (22, 32)


def test_a_pose_may_belong_to_a_picture_of_another_size(folder, own):
    assert main(arguments(folder, own, target_size="240x120")) == 0
    with Image.open(own / "out" / "morph.png") as picture:
        assert picture.size == (16, 32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": "nowhere"}, "nowhere is no run folder"),
        ({"source": "gone.png"}, "gone.png"),
        ({"source_pose": "gone.json"}, "gone.json"),
        ({"target_pose": "gone.json"}, "gone.json"),
        ({"target_pose": "gone_picture"}, "neither a JSON file nor a picture"),
        ({"target_size": "20x10"}, "outside the picture"),
        ({"source": None}, "missing: source="),
        ({"target_size": "big"}, "512x352"),
        ({"out": "morph.jpg"}, "ends in .png"),
        ({"upscale": "maybe"}, "true or false"),
        ({"sorce": "x"}, "did you mean source=?"),
    ],
)
def test_wrong_input_is_one_clear_message_and_nothing_is_written(folder, own, capsys, changes, words):
    if changes.get("source", "") == "gone.png":
        changes = {"source": own / "gone.png"}
    assert main(arguments(folder, own, **changes)) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: ")
    assert words in told
    assert not (own / "out").exists()


def test_a_wrong_pose_file_is_named(folder, own, capsys):
    (own / "wrong.json").write_text(json.dumps({"keypoints": [1, 2, 3]}))
    assert main(arguments(folder, own, target_pose=own / "wrong.json")) == 1
    assert "wrong.json" in capsys.readouterr().err


def test_a_small_picture_is_refused_where_enlarging_is(folder, own, capsys):
    Image.new("RGB", (8, 12)).save(own / "small.png")
    pose = [v for x, y in BODY for v in (x / 10, y / 10, 2)]
    (own / "small.json").write_text(json.dumps({"keypoints": pose}))
    options = {"source": own / "small.png", "source_pose": own / "small.json", "target_pose": own / "small.json"}
    assert main(arguments(folder, own, **options, upscale="false")) == 1
    assert "small.png" in capsys.readouterr().err
    assert main(arguments(folder, own, **options)) == 0


def test_arguments():
    request = parse(["run=a", "source=b/me.jpg", "source_pose=c", "target_pose=x=y"])
    assert request.out.name == "me-morph.png"
    assert request.target_pose == "x=y"
    with pytest.raises(ValueError, match="twice"):
        parse(["run=a", "run=b"])
    with pytest.raises(ValueError, match="key=value"):
        parse(["run"])


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "target_pose=" in capsys.readouterr().out
    assert main([]) == 2
