"""Made-up batches in CIFAR-10's pickled format; torchvision's check of their sums is told the made-up ones."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from saccade.data import cifar10
from saccade.data.cifar10 import CLASSES, find_cifar10
from saccade.data.class_images import ClassImagesModule

RNG = np.random.default_rng(0)


def write(folder: Path, name: str, content: object) -> list[str]:
    data = pickle.dumps(content)
    (folder / name).write_bytes(data)
    return [name, hashlib.md5(data).hexdigest()]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cifar10" / cifar10.FOLDER
    folder.mkdir(parents=True)
    lists = {}
    for key, names in (("train_list", ["data_batch_1", "data_batch_2"]), ("test_list", ["test_batch"])):
        lists[key] = [
            write(
                folder,
                name,
                {"data": RNG.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": RNG.permutation(10).tolist()},
            )
            for name in names
        ]
        monkeypatch.setattr(CIFAR10, key, lists[key])
    name, md5 = write(folder, "batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    cifar10._batches.cache_clear()
    return tmp_path / "cifar10"


def module(root: Path, **options: object) -> ClassImagesModule:
    options = {"cache": root.parent, "name": "cifar10", "layout": "cifar10", "source": "files", **options}
    return ClassImagesModule(root=root, **options)  # type: ignore[arg-type]


def test_pictures_and_labels_are_torchvisions(root: Path) -> None:
    data = module(root, image_size=32)
    assert data.classes == 10
    for split, train in (("train", True), ("val", False)):
        theirs = CIFAR10(str(root), train=train)
        ours = data.dataset(split)  # type: ignore[arg-type]
        assert len(ours) == len(theirs)
        assert ours.labels.tolist() == sorted(theirs.targets)
        for i in range(len(ours)):
            index = int(ours.name(i).split("_")[1])
            picture, label = theirs[index]
            assert label == ours[i].label
            assert torch.equal(ours.picture(i), torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            assert ours.name(i) == f"{CLASSES[label]}/{split}_{index:05d}"
    assert data.class_names == list(CLASSES)


def test_another_size_is_interpolated_and_counted(root: Path) -> None:
    data = module(root, image_size=63)
    data.setup()
    assert data.manifest["splits"]["train"]["odd"]["smaller_than_size"]["count"] == 20
    small = module(root, image_size=32)
    assert torch.equal(data.dataset("val").picture(3)[:, ::2, ::2], small.dataset("val").picture(3))


def test_the_archive_alone_will_do(root: Path) -> None:
    with tarfile.open(root / cifar10.ARCHIVE, "w:gz") as archive:
        archive.add(root / cifar10.FOLDER, cifar10.FOLDER)
    for file in (root / cifar10.FOLDER).iterdir():
        file.unlink()
    (root / cifar10.FOLDER).rmdir()
    assert len(find_cifar10(root).splits["train"]) == 20


def test_damaged_and_missing_batches_are_named(root: Path, tmp_path: Path) -> None:
    with open(root / cifar10.FOLDER / "data_batch_2", "ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: not there, not whole, .* --download"):
        find_cifar10(root)
    with pytest.raises(ValueError, match=r"no CIFAR-10 batches there(.|\n)*cifar10 --download --out"):
        module(tmp_path / "none", image_size=32)


@pytest.mark.parametrize("kept", [0, 30, -20])
def test_a_damaged_archive_is_named(tmp_path: Path, kept: int) -> None:
    archive = tmp_path / cifar10.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(__file__, f"{cifar10.FOLDER}/data_batch_1")
    archive.write_bytes(archive.read_bytes()[:kept] or b"not an archive")
    cifar10._batches.cache_clear()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: not there, not whole, or not the published files"):
        find_cifar10(tmp_path)
