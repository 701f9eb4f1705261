"""Stand-in places: same seed, same bytes; the layout of Places365-Standard; pictures that differ."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.standin.folder import MARKER
from saccade.data.standin.places import paint_place, write_places


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_a_folder_is_reused(tmp_path: Path) -> None:
    made = write_places(tmp_path / "a", train=4, val=2, size=32, seed=3)
    assert (made.train_images, made.val_images, made.reused) == (4, 2, False)
    assert write_places(tmp_path / "a", train=4, val=2, size=32, seed=3).reused
    write_places(tmp_path / "b", train=4, val=2, size=32, seed=3)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    pictures = [digest for name, digest in first.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 6
    with pytest.raises(ValueError, match=r"made with other arguments \(seed 3 there, 4 asked for\)"):
        write_places(tmp_path / "a", train=4, val=2, size=32, seed=4)


def test_folders_and_lists_name_the_same_pictures(tmp_path: Path) -> None:
    write_places(tmp_path / "a", train=7, val=3, size=32)
    train = [line.split() for line in (tmp_path / "a" / "places365_train_standard.txt").read_text().splitlines()]
    found = sorted(
        p.relative_to(tmp_path / "a" / "data_large").as_posix() for p in tmp_path.rglob("data_large/**/*.jpg")
    )
    assert [name.lstrip("/") for name, _ in train] == found
    assert found[0] == "c/close_up/00000001.jpg"
    assert {(name.split("/")[2], label) for name, label in train} == {
        ("close_up", "0"),
        ("field", "1"),
        ("pavement", "2"),
    }
    val = [line.split()[0] for line in (tmp_path / "a" / "places365_val.txt").read_text().splitlines()]
    assert val == sorted(path.name for path in (tmp_path / "a" / "val_large").iterdir())
    assert val == [f"Places365_val_{i:08d}.jpg" for i in (1, 2, 3)]
    assert all(min(Image.open(path).size) == 32 for path in tmp_path.rglob("*.jpg"))
    assert "not Places2" in (tmp_path / "a" / MARKER).read_text()


@pytest.mark.parametrize("part", ["train", "test"])
def test_pictures_differ_and_have_contrast(part: str) -> None:
    pictures = [paint_place(part, index, size=48) for index in range(9)]  # type: ignore[arg-type]
    assert len({picture.tobytes() for picture in pictures}) == 9
    assert len({picture.shape for picture in pictures}) > 1
    assert all(picture.dtype == np.uint8 and min(picture.shape[:2]) == 48 for picture in pictures)
    assert sum(picture.std() > 15 for picture in pictures) >= 8
    assert all(np.array_equal(paint_place(part, i, size=48), pictures[i]) for i in (0, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 16}, {"seed": -1}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="stand-in places: 1 picture or more"):
        write_places(tmp_path / "a", **{"train": 1, "val": 1, **wrong})
