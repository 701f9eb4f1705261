from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saccade.data.class_layout import find_folders

Make = Callable[..., Path]


def test_classes_are_numbered_by_their_sorted_names(make_classes: Make) -> None:
    root = make_classes(classes=("pear", "Quince", "apple"), count=2)
    (root / "train" / "apple" / "notes.txt").write_text("no picture")
    (root / "train" / "apple" / "deeper").mkdir()
    shutil.copy(root / "train" / "apple" / "apple_0.JPEG", root / "train" / "apple" / "deeper" / "x.jpg")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "packed-32").mkdir()
    found = find_folders(root)
    assert found.classes == ("Quince", "apple", "pear")  # as torchvision sorts
    assert [(e.name, e.label) for e in found.splits["train"]] == [
        ("Quince/Quince_0.JPEG", 0),
        ("Quince/Quince_1.JPEG", 0),
        ("apple/apple_0.JPEG", 1),
        ("apple/apple_1.JPEG", 1),
        ("apple/deeper/x.jpg", 1),
        ("pear/pear_0.JPEG", 2),
        ("pear/pear_1.JPEG", 2),
    ]
    assert len(found.splits["val"]) == 6
    assert found.splits["val"][5].read()[:2] == b"\xff\xd8"


def test_a_share_of_a_single_level_is_held_out_alike_every_time(make_classes: Make) -> None:
    root = make_classes(splits=("",), count=10)
    found = find_folders(root, held_out=0.2)
    train, val = ({e.name for e in found.splits[s]} for s in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert not train & val
    assert [sum(e.label == k for e in found.splits["val"]) for k in (0, 1)] == [2, 2]
    assert find_folders(root, held_out=0.2).digest() == found.digest()
    assert find_folders(root, held_out=0.3).digest() != found.digest()
    assert [e.label for e in found.splits["train"]] == sorted(e.label for e in found.splits["train"])


def test_at_least_one_of_two_is_held_out_and_never_the_only_one(make_classes: Make) -> None:
    root = make_classes(splits=("",), count=2)
    (root / "n01" / "n01_1.JPEG").unlink()
    found = find_folders(root, held_out=0.1)
    assert [e.label for e in found.splits["val"]] == [1]
    (root / "n02" / "n02_1.JPEG").unlink()
    with pytest.raises(ValueError, match=r"no class has two pictures.*held_out=0"):
        find_folders(root, held_out=0.1)
    assert list(find_folders(root, held_out=0).splits) == ["train"]


def test_wrong_folders_are_named(make_classes: Make, tmp_path: Path) -> None:
    root = make_classes()
    (root / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"train/empty: this class folder holds no picture .*remove the folder"):
        find_folders(root)
    (root / "train" / "empty").rmdir()
    (root / "val" / "n03").mkdir()
    with pytest.raises(ValueError, match=r"val/n03: no class of the training pictures .* 2: n01, n02\."):
        find_folders(root)
    with pytest.raises(ValueError, match="no folders of classes there"):
        find_folders(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"held_out is a share .* got 1"):
        find_folders(root, held_out=1)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"bare/train: no class folders there"):
        find_folders(tmp_path / "bare")


def test_without_val_there_is_no_val_split(make_classes: Make) -> None:
    found = find_folders(make_classes(splits=("train/",)))
    assert list(found.splits) == ["train"]
    assert "no val split" in found.notes[0]
