"""Places2: its layouts, crops of full pictures, and the module over files, lists and the stand-in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.places2 import Places2Module, read_covering
from saccade.data.places2_layout import PictureList, find_places, resolve_source, write_list
from saccade.data.standin.folder import MARKER
from saccade.geometry import Size

Make = Callable[..., Path]
STANDIN = {"standin_train": 4, "standin_test": 3, "standin_size": 32}


def ramp(rows: int, cols: int, blue: int = 0) -> np.ndarray:
    """A picture that tells where each of its pixels is: (row, column, blue)."""
    y, x = np.mgrid[:rows, :cols]
    return np.stack([y, x, np.full_like(y, blue)], -1).astype(np.uint8)


@pytest.fixture
def make_places(tmp_path: Path) -> Make:
    """Write pictures that know their place; the train ones in class folders, those of val flat."""

    def make(
        train: str = "data_large", val: str = "val_large", size: tuple[int, int] = (40, 60), count: int = 4
    ) -> Path:
        root = tmp_path / "places2"
        for folder, names in (
            (train, [f"{'ab'[i % 2]}/{('airfield', 'bar/inside')[i % 2]}/{i:08d}.png" for i in range(count)]),
            (val, [f"Places365_val_{i:08d}.png" for i in range(count)]),
        ):
            for number, name in enumerate(names):
                path = root / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(ramp(*size, blue=number)).save(path)
        return root

    return make


def module(root: Path, **options: object) -> Places2Module:
    return Places2Module(root=root, cache=root.parent / "cache", **({"image_size": 16} | options))  # type: ignore[arg-type]


def positions(image: torch.Tensor) -> tuple[int, int, int]:
    """Row, column and number that a crop's first pixel tells."""
    row, col, number = ((image[:, 0, 0] + 1) * 127.5).round().int().tolist()
    return row, col, number


# -------------------------------------------------------------------- layout


@pytest.mark.parametrize(("train", "val"), [("data_large", "val_large"), ("data_256", "val_256"), ("train", "val")])
def test_class_folders_are_searched_to_any_depth(make_places: Make, train: str, val: str) -> None:
    root = make_places(train, val)
    (root / train / "a" / ".hidden.png").touch()
    (root / train / "notes.txt").touch()
    files = find_places(root)
    assert files.sources == {"train": root / train, "val": root / val}
    pictures = files.pictures("train")
    assert [pictures.name(i) for i in range(4)] == [
        "a/airfield/00000000.png",
        "a/airfield/00000002.png",
        "b/bar/inside/00000001.png",
        "b/bar/inside/00000003.png",
    ]
    assert all(path.is_file() for path in pictures)


def test_large_pictures_are_preferred(make_places: Make) -> None:
    make_places("data_256", "val_256")
    root = make_places("data_large", "val_large")
    assert find_places(root).sources["train"].name == "data_large"


@pytest.mark.parametrize(
    ("names", "lines", "folder"),
    [
        (("places365_train_standard.txt", "places365_val.txt"), ("/b/bar/inside/00000001.png 12", "{name} 3"), ""),
        (("train.txt", "val.txt"), ("data_large/b/bar/inside/00000001.png", "val_large/{name}"), ""),
        (("train_shuffled.flist", "validation_static_view.flist"), ("{root}/data_large/b/bar/inside/00000001.png",
         "{root}/val_large/{name}"), "data_flist"),
    ],
)  # fmt: skip
def test_lists_say_which_pictures_in_which_order(
    make_places: Make, names: tuple[str, str], lines: tuple[str, str], folder: str
) -> None:
    root = make_places()
    (root / folder).mkdir(exist_ok=True)
    first = lines[0].format(root=root)
    (root / folder / names[0]).write_text(
        first + "\n\n" + first.replace("b/bar/inside/00000001", "a/airfield/00000000")
    )
    val = [lines[1].format(root=root, name=f"Places365_val_{i:08d}.png") for i in (3, 1, 2)]
    (root / folder / names[1]).write_text("\n".join(val) + "\n")
    files = find_places(root)
    assert [path.name for path in files.sources.values()] == list(names)
    train = files.pictures("train")
    assert [path.relative_to(root / "data_large").as_posix() for path in train] == [
        "b/bar/inside/00000001.png",
        "a/airfield/00000000.png",
    ]
    assert not any(os.path.isabs(train.name(i)) for i in range(2))
    data = module(root)
    assert [positions(sample.image / 127.5 - 1)[2] for sample in map(data.dataset("val").__getitem__, range(3))] == [
        3,
        1,
        2,
    ]
    assert len(find_places(root, "folders").pictures("train")) == 4


def test_lists_of_other_names_can_be_given(make_places: Make) -> None:
    root = make_places()
    (root / "mine.txt").write_text("data_large/a/airfield/00000000.png\n")
    (root / "yours.txt").write_text("val_large/Places365_val_00000002.png\n")
    files = find_places(root, train_list="mine.txt", val_list="yours.txt")
    assert [len(files.pictures(split)) for split in ("train", "val")] == [1, 1]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"train_list=his\.txt: no such list file"):
        find_places(root, train_list="his.txt", val_list="yours.txt")
    with pytest.raises(ValueError, match="go with layout=lists"):
        find_places(root, "folders", train_list="mine.txt")


def test_a_list_whose_pictures_are_not_there_says_where_it_looked(make_places: Make) -> None:
    root = make_places()
    (root / "train.txt").write_text("/c/cave/00000001.jpg 7\n")
    (root / "val.txt").write_text("val_large/Places365_val_00000002.png\n")
    with pytest.raises(ValueError, match=r"train\.txt:1: no picture /c/cave/00000001\.jpg; tried .*data_large/c/cave"):
        find_places(root).pictures("train")
    (root / "train.txt").write_text(f"{root}/data_large/a/airfield/00000000.png\ndata_large/b.png\n")
    with pytest.raises(ValueError, match=r"first line is an absolute path, and data_large/b\.png is not"):
        find_places(root).pictures("train")
    (root / "train.txt").write_text("\n")
    with pytest.raises(ValueError, match="no pictures in it"):
        find_places(root).pictures("train")


def test_the_source_is_decided_by_what_is_there(make_places: Make, tmp_path: Path) -> None:
    assert resolve_source(tmp_path / "none") == "standin"
    assert resolve_source(make_places()) == "files"
    with pytest.raises(ValueError, match=r"no folder or list file for train and val(.|\n)*prepare_data\.py places2"):
        resolve_source(tmp_path / "none", "files")
    (tmp_path / "places2" / "val_large").rename(tmp_path / "places2" / "elsewhere")
    with pytest.raises(ValueError, match="no folder or list file for val"):  # begun, so no stand-in in secret
        resolve_source(tmp_path / "places2")
    with pytest.raises(ValueError, match="valid: auto, folders, lists"):
        find_places(tmp_path, "flat")  # type: ignore[arg-type]


def test_many_paths_are_kept_in_one_block_whatever_their_bytes(tmp_path: Path) -> None:
    names = ["é/ü.jpg", os.fsdecode(b"\xff\xfe.jpg"), "a b.jpg"]
    pictures = PictureList(tmp_path, names)
    assert [pictures.name(i) for i in range(3)] == names
    assert pickle.loads(pickle.dumps(pictures))[2] == tmp_path / "a b.jpg"
    with pytest.raises(IndexError):
        pictures[3]
    write_list(tmp_path / "list", [tmp_path / name for name in names])
    assert (tmp_path / "list").read_bytes().count(b"\n") == 3


# -------------------------------------------------------------------- crops


def test_evaluation_takes_the_middle_of_the_full_picture(make_places: Make) -> None:
    data = module(make_places(size=(40, 60)))
    batch = next(iter(data.test_dataloader()))
    assert [positions(image) for image in batch.images] == [(12, 22, i) for i in range(4)]
    assert batch.keys[0] == "Places365_val_00000000.png"
    assert batch.images.shape == (4, 3, 16, 16)
    row, col, _ = positions(batch.images[0][:, 15:, 15:])
    assert (row, col) == (27, 37)  # pixels as they are in the file


def test_training_crops_reach_every_place_and_depend_on_the_position_alone(make_places: Make) -> None:
    data = module(make_places(size=(18, 19), count=2), batch_size=250)
    stream = iter(data.train_dataloader())
    batch = next(stream)
    places = {positions(image)[:2] for image in batch.images}
    assert places == {(row, col) for row in range(3) for col in range(4)}
    assert sorted(batch.keys).count(batch.keys[0]) == 125  # each lap has every picture once
    second = next(stream)
    data.set_position(250)
    again = next(iter(data.train_dataloader()))
    assert again.keys == second.keys
    assert torch.equal(again.images, second.images)
    assert not torch.equal(second.images, batch.images)


def test_a_centre_crop_and_mirrored_pictures_can_be_had_in_training(make_places: Make) -> None:
    root = make_places(size=(40, 60))
    batch = next(iter(module(root, crop="centre", batch_size=64).train_dataloader()))
    assert {positions(image)[:2] for image in batch.images} == {(12, 22)}
    batch = next(iter(module(root, crop="centre", flip=True, batch_size=64).train_dataloader()))
    starts = [positions(image)[:2] for image in batch.images]
    assert set(starts) == {(12, 22), (12, 37)}
    assert 16 < starts.count((12, 22)) < 48


@pytest.mark.parametrize(
    ("file", "crop", "shorter", "expected"),
    [
        ((40, 60), (16, 16), None, (40, 60)),  # large enough: untouched
        ((10, 60), (16, 16), None, (16, 96)),
        ((40, 10), (16, 20), None, (80, 20)),
        ((40, 60), (16, 16), 20, (20, 30)),
        ((40, 60), (16, 28), 16, (19, 28)),
        ((16, 16), (16, 16), None, (16, 16)),
        ((7, 3), (16, 16), None, (38, 16)),
    ],
)
def test_pictures_are_resized_only_where_the_crop_would_not_fit(
    tmp_path: Path, file: tuple[int, int], crop: tuple[int, int], shorter: int | None, expected: tuple[int, int]
) -> None:
    Image.fromarray(ramp(*file)).save(tmp_path / "a.png")
    picture = read_covering(tmp_path / "a.png", Size(*crop), shorter)
    assert tuple(picture.shape) == (3, *expected)
    if file == expected:
        assert np.array_equal(picture.permute(1, 2, 0).numpy(), ramp(*file))


def test_odd_files_are_read_and_broken_ones_named(make_places: Make) -> None:
    root = make_places()
    names = sorted((root / "val_large").iterdir())
    Image.fromarray(ramp(40, 60)[..., 1]).save(names[0])  # grey
    Image.fromarray(ramp(40, 60)).convert("CMYK").save(names[1].with_suffix(".jpg"))
    names[1].unlink()
    data = module(root)
    assert len(data.dataset("val")) == 4
    grey = data.dataset("val")[0].image
    assert torch.equal(grey[0], grey[2])
    names[2].write_bytes(names[2].read_bytes()[:60])
    with pytest.raises(ValueError, match=r"Places365_val_00000002\.png: not a readable picture"):
        data.dataset("val")[2]


# -------------------------------------------------------------------- module


def test_fewer_samples_are_spread_over_the_list_and_shared_out(make_places: Make) -> None:
    data = module(make_places(count=12), eval_samples=4, val_samples=2, eval_batch_size=3)
    assert [len(batch) for batch in data.test_dataloader()] == [3, 1]
    keys = [key for batch in data.test_dataloader() for key in batch.keys]
    assert [int(key[-6:-4]) for key in keys] == [0, 3, 6, 9]
    assert sum(map(len, data.val_dataloader())) == 2
    seen = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        seen += [key for batch in data.test_dataloader() for key in batch.keys]
    assert sorted(seen) == keys
    assert data.preview(3).keys == [f"Places365_val_{i:08d}.png" for i in (0, 4, 8)]
    assert data.preview(1, "train").keys == ["a/airfield/00000000.png"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "middle"}, "valid: random, centre"),
        ({"shorter_side": 8}, "shorter_side=8 is below the crop's shorter side, 16"),
        ({"eval_samples": 0}, "eval_samples=0: choose 1 or more"),
        ({"workers": -1}, "workers 0 or more"),
        ({"layout": "list"}, "valid: auto, folders, lists"),
    ],
)
def test_wrong_options_are_refused(make_places: Make, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(make_places(), **wrong)


def test_resolving_auto_names_the_folder_of_another_name(make_places: Make, tmp_path: Path) -> None:
    make_places().rename(tmp_path / "mine")
    changes, notices = Places2Module.resolve_auto({"name": "mine", "source": "auto"}, {"data_dir": tmp_path})
    assert (changes, notices) == ({"source": "files"}, [])
    changes, notices = Places2Module.resolve_auto({"source": "auto", **STANDIN}, {"data_dir": tmp_path})
    assert changes == {"source": "standin"}
    assert "instead of places2 (4 pictures to train, 3 to test)" in notices[0]


def test_the_module_reads_its_stand_in_both_ways(tmp_path: Path) -> None:
    data = module(tmp_path / "none", image_size=24, batch_size=2, **STANDIN)
    data.setup()
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [4, 3, 3]  # type: ignore[arg-type]
    assert next(iter(data.train_dataloader())).images.shape == (2, 3, 24, 24)
    for layout in ("folders", "lists"):
        files = module(data.data_root, image_size=24, source="files", layout=layout)
        assert torch.equal(files.preview(3).images, data.preview(3).images)
        assert "STAND-IN DATA" in str(files.banner)
    (data.data_root / MARKER).unlink()
    assert files.banner is None
