"""A few hand-made pictures in the PATN layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_people import PICTURE, a_name, a_pose

from saccade.data.keypoints import write_annotations
from saccade.data.pairs import write_pairs
from saccade.geometry import Size


@pytest.fixture
def make_deepfashion(tmp_path: Path) -> Callable[..., Path]:
    """Write a small data set; every picture has its own colour, at a known place of the list."""

    def make(
        *,
        train: int = 3,
        test: int = 2,
        views: int = 2,
        size: Size = PICTURE,
        frame: Size = PICTURE,
        prefix: str = "fasion-resize",
        pair_lists: bool = True,
        folders: str = "{split}",
        name: str = "deepfashion",
    ) -> Path:
        root = tmp_path / name
        rng = np.random.default_rng(0)
        for split, garments, first in (("train", train, 1), ("test", test, 1001)):
            folder = root / folders.format(split=split)
            folder.mkdir(parents=True)
            rows = {}
            for garment in range(first, first + garments):
                for view in range(1, views + 1):
                    picture = np.full((*size, 3), 255, np.uint8)
                    picture[:, size.cols // 4 : -size.cols // 4] = rng.integers(0, 256, 3)
                    Image.fromarray(picture).save(folder / a_name(garment, view), quality=95)
                    pose = a_pose(shift=2.0 * view)
                    pose[:, 0] += (frame.cols - 176) // 2
                    rows[a_name(garment, view)] = pose
            write_annotations(root / f"{prefix}-annotation-{split}.csv", rows)
            if pair_lists:
                pairs = [(a, b) for a in rows for b in rows if a != b and a[:31] == b[:31]]
                write_pairs(root / f"{prefix}-pairs-{split}.csv", pairs)
        return root

    return make


@pytest.fixture
def make_classes(tmp_path: Path) -> Callable[..., Path]:
    """Write folders of classes, `<root>/<split>/<class>/<i>.JPEG`, every picture of its own colour."""

    def make(
        name: str = "classes",
        splits: Sequence[str] = ("train/", "val/"),
        classes: Sequence[str] = ("n02", "n01"),
        count: int = 3,
        size: tuple[int, int] = (12, 10),
        suffix: str = ".JPEG",
    ) -> Path:
        rng = np.random.default_rng(0)
        for split in splits:
            for key in classes:
                folder = tmp_path / name / f"{split}{key}"
                folder.mkdir(parents=True)
                for index in range(count):
                    picture = np.full((*size, 3), rng.integers(0, 256, 3), np.uint8)
                    Image.fromarray(picture).save(folder / f"{key}_{index}{suffix}", quality=95)
        return tmp_path / name

    return make
