"""ILSVRC's downloads in all the ways that they lie about, in miniature."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from saccade.data.class_layout import Listing
from saccade.data.imagenet import META, SOLUTION, TRUTH, find_imagenet, tar_classes

Make = Callable[..., Path]
WNIDS = ("n02000000", "n01000000")


@pytest.fixture
def root(make_classes: Make) -> Path:
    return make_classes("imagenet", classes=WNIDS, count=2)


def flatten_val(root: Path) -> list[str]:
    """Move the validation pictures into one folder under ILSVRC's names, classes mixed; returns their classes."""
    files = [root / "val" / key / f"{key}_{i}.JPEG" for i in (0, 1) for key in WNIDS]
    for number, file in enumerate(files, 1):
        file.rename(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    for key in WNIDS:
        (root / "val" / key).rmdir()
    return [file.parent.name for file in files]


def write_devkit(folder: Path, truth: list[int]) -> None:
    """The development kit numbers synsets in an order of its own, and lists their ancestors as well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRUTH).write_text("".join(f"{number}\n" for number in truth))
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(1, "n02000000", "grouse, bird", "", 0), (2, "n01000000", "tench", "", 0), (3, "n00001740", "all", "", 2)]
    savemat(folder / META, {"synsets": np.array(rows, dtype=kind).reshape(-1, 1)})


def val(found: Listing) -> list[tuple[str, str]]:
    return [(entry.name, found.classes[entry.label]) for entry in found.splits["val"]]


SORTED = [
    ("ILSVRC2012_val_00000002.JPEG", "n01000000"),
    ("ILSVRC2012_val_00000004.JPEG", "n01000000"),
    ("ILSVRC2012_val_00000001.JPEG", "n02000000"),
    ("ILSVRC2012_val_00000003.JPEG", "n02000000"),
]


def test_folders(root: Path) -> None:
    found = find_imagenet(root)
    assert found.classes == ("n01000000", "n02000000")
    assert found.names == found.classes
    assert [len(found.splits[s]) for s in ("train", "val")] == [4, 4]
    assert found.notes == ()


def test_names_come_from_any_of_the_mappings(root: Path) -> None:
    write_devkit(root / "ILSVRC2012_devkit_t12" / "data", [1])
    assert find_imagenet(root).names == ("tench", "grouse, bird")
    index = {"0": ["n01000000", "a_tench"], "1": ["n02000000", "grouse"]}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))
    assert find_imagenet(root).names == ("a tench", "grouse")
    (root / "LOC_synset_mapping.txt").write_text("n01000000 tench, Tinca tinca\n")
    assert find_imagenet(root).names == ("tench, Tinca tinca", "n02000000")
    (root / "LOC_synset_mapping.txt").unlink()
    (root / "imagenet_class_index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"imagenet_class_index\.json: expected"):
        find_imagenet(root)


def test_flat_validation_pictures_by_kaggles_list(root: Path) -> None:
    keys = flatten_val(root)
    rows = [f"ILSVRC2012_val_{i:08d},{key} 1 2 3 4 {key} 5 6 7 8" for i, key in enumerate(keys, 1)]
    (root / SOLUTION).write_text("\n".join(["ImageId,PredictionString", *reversed(rows), ""]))
    assert val(find_imagenet(root)) == SORTED
    (root / SOLUTION).write_text("\n".join(["ImageId,PredictionString", *rows[1:], ""]))
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv: has no row for ILSVRC2012_val_00000001\.JPEG"):
        find_imagenet(root)
    (root / SOLUTION).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected columns ImageId, PredictionString"):
        find_imagenet(root)


def test_flat_validation_pictures_by_the_development_kit(root: Path) -> None:
    keys = flatten_val(root)
    with pytest.raises(ValueError, match=r"classes are not to be found\. Put one.*LOC_val_solution\.csv"):
        find_imagenet(root)
    numbers = [{"n02000000": 1, "n01000000": 2}[key] for key in keys]
    write_devkit(root, numbers)
    assert val(find_imagenet(root)) == SORTED
    write_devkit(root, numbers[:3])
    with pytest.raises(ValueError, match="has 3 lines, but there are 4 validation pictures"):
        find_imagenet(root)
    write_devkit(root, [1, 2, 3, 1])  # 3 is no leaf
    with pytest.raises(ValueError, match=f"{TRUTH} holds a number that {META} does not know"):
        find_imagenet(root)


def test_archives_are_read_where_they_lie(root: Path) -> None:
    unpacked = find_imagenet(root)
    bytes_of = {entry.name: entry.read() for entry in unpacked.splits["train"]}
    keys = flatten_val(root)
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for key in WNIDS:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for file in sorted((root / "train" / key).iterdir(), reverse=True):
                    inner.add(file, file.name)
            info = tarfile.TarInfo(f"{key}.tar")
            info.size = buffer.tell()
            buffer.seek(0)
            outer.addfile(info, buffer)
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for file in sorted((root / "val").iterdir()):
            archive.add(file, file.name)
    first = (root / "val" / SORTED[0][0]).read_bytes()
    write_devkit(root / "kit" / "data", [{"n02000000": 1, "n01000000": 2}[key] for key in keys])
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(root / "kit", "ILSVRC2012_devkit_t12")
    for folder in ("train", "val", "kit"):
        shutil.rmtree(root / folder)
    found = find_imagenet(root)
    assert found.names == ("tench", "grouse, bird")
    assert {entry.name: entry.read() for entry in found.splits["train"]} == bytes_of
    assert [e.name for e in found.splits["train"]] == [e.name for e in unpacked.splits["train"]]
    assert val(found) == SORTED
    assert found.splits["val"][0].read() == first
    train = root / "ILSVRC2012_img_train.tar"
    assert tar_classes(train) == found.classes
    whole = train.read_bytes()
    for part in (b"no tar", whole[:700], whole[: len(whole) // 2 - 700]):  # a download that stopped
        train.write_bytes(part)
        for reads in (lambda: find_imagenet(root), lambda: tar_classes(train)):
            with pytest.raises(ValueError, match=r"img_train\.tar: cannot be read as a tar archive to its end"):
                reads()


def test_kaggles_folder_is_found(root: Path) -> None:
    inner = root / "ILSVRC" / "Data" / "CLS-LOC"
    inner.mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).rename(inner / split)
    assert [len(find_imagenet(root).splits[s]) for s in ("train", "val")] == [4, 4]


def test_what_is_missing_is_said(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "val" / "n01000000")
    assert find_imagenet(root).notes == ("1 of 2 classes have no validation picture",)
    shutil.rmtree(root / "val")
    assert "no val split" in find_imagenet(root).notes[0]
    (root / "train" / "n01000000").rename(root / "train" / "tench")
    assert "not all called by WordNet ids" in find_imagenet(root).notes[0]
    with pytest.raises(ValueError, match=r"neither train/<wnid>/\*\.JPEG nor ILSVRC2012_img_train\.tar"):
        find_imagenet(tmp_path / "nothing")
