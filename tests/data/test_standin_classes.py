"""The ten kinds of things: same seed, same bytes; ImageNet's layout with its oddities; classes that look different."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from saccade.data.imagenet import find_imagenet
from saccade.data.pack import PackOptions, pack
from saccade.data.standin.classes import CLASSES, render_thing, write_classes
from saccade.data.standin.folder import MARKER
from saccade.data.standin.objects import KINDS
from saccade.geometry import Size


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_and_a_folder_is_reused(tmp_path: Path) -> None:
    made = write_classes(tmp_path / "a", train=2, val=1, size=16, seed=3)
    assert (made.train_images, made.val_images, made.reused) == (20, 10, False)
    assert write_classes(tmp_path / "a", train=2, val=1, size=16, seed=3).reused
    write_classes(tmp_path / "b", train=2, val=1, size=16, seed=3)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    pictures = [digest for name, digest in first.items() if name.endswith("JPEG")]
    assert len(set(pictures)) == len(pictures) == 30
    with pytest.raises(ValueError, match=r"made with other arguments \(seed 3 there, 4 asked for\)"):
        write_classes(tmp_path / "a", train=2, val=1, size=16, seed=4)
    write_classes(tmp_path / "a", train=2, val=1, size=16, seed=4, overwrite=True)
    assert not set(pictures) & set(digests(tmp_path / "a").values())
    assert "not ImageNet" in (tmp_path / "a" / MARKER).read_text()


def test_it_is_laid_out_as_imagenet_and_has_its_oddities(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", train=8, val=1, size=16)
    listing = find_imagenet(tmp_path / "a")
    assert listing.classes == tuple(kind.wnid for kind in KINDS)
    assert listing.names == tuple(kind.name for kind in KINDS)
    manifest = pack(listing, tmp_path / "out", PackOptions(16))
    odd = {kind: found["count"] for kind, found in manifest["splits"]["train"]["odd"].items()}
    assert odd == {"grey": 3, "cmyk": 3, "exif_rotated": 2, "other_format_than_suffix": 2}
    assert manifest["splits"]["train"]["count"] == 80
    assert manifest["splits"]["val"]["odd"] == {}


@pytest.mark.parametrize("size", [Size(32, 32), Size(48, 64), Size(96, 64)])
@pytest.mark.parametrize("label", range(CLASSES))
def test_pictures_differ_and_have_contrast(label: int, size: Size) -> None:
    pictures = [render_thing(label, 0, index, size) for index in range(3)]
    assert all(picture.shape == (*size, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 4
    assert all(picture.std() > 15 for picture in pictures)


def test_classes_can_be_told_apart_by_their_mean_colours() -> None:
    """A nearest-mean rule on 4x4 thumbnails is right far more often than one in ten; a person does better still."""

    def thumbnails(first: int, count: int) -> np.ndarray:
        drawn = [[render_thing(c, 0, first + i, Size(32, 32)) for i in range(count)] for c in range(CLASSES)]
        return np.array(drawn, float).reshape(CLASSES, count, 4, 8, 4, 8, 3).mean((3, 5)).reshape(CLASSES, count, -1)

    means = thumbnails(0, 12).mean(axis=1)
    tests = thumbnails(100, 8)
    nearest = ((tests[:, :, None] - means) ** 2).sum(-1).argmin(-1)
    assert (nearest == np.arange(CLASSES)[:, None]).mean() > 0.7


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 8}, {"seed": -1}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 picture of each class"):
        write_classes(tmp_path / "a", **{"train": 1, "val": 1, **wrong})
