"""The procedural people: same seed, same bytes; points on the figure; files that follow PATN's rules."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from saccade.data.standin import people
from saccade.data.standin.figures import draw, sample_person
from saccade.data.standin.folder import MANIFEST, MARKER
from saccade.data.standin.people import render_person, write_deepfashion
from saccade.geometry import Size

SMALL = {"train_identities": 3, "test_identities": 2, "poses_per_identity": 4, "image_size": (64, 44), "seed": 5}


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_annotation(path: Path) -> list[tuple[str, list[int], list[int]]]:
    """The format of the keypoint lists, restated: separator ':', y first, JSON lists."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "name:keypoints_y:keypoints_x"
    rows = []
    for line in lines:
        name, y, x = line.split(":")
        assert y.startswith(" [")
        assert x.startswith(" [")
        rows.append((name, json.loads(y), json.loads(x)))
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("standin") / "deepfashion"
    write_deepfashion(root, train_identities=4, test_identities=2, poses_per_identity=5, seed=3)
    return root


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    alone = write_deepfashion(tmp_path / "alone", **SMALL)
    shared = write_deepfashion(tmp_path / "shared", workers=2, **SMALL)
    assert alone.train_images == 12
    assert alone.test_images == 8
    assert (shared.train_pairs, shared.test_pairs) == (alone.train_pairs, alone.test_pairs)
    assert digests(alone.root) == digests(shared.root)
    other = write_deepfashion(tmp_path / "other", **{**SMALL, "seed": 6})
    theirs = digests(other.root)
    assert not {
        name for name, digest in digests(alone.root).items() if name.endswith("jpg") and theirs.get(name) == digest
    }


def test_an_identity_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    write_deepfashion(few, **{**SMALL, "train_identities": 1, "test_identities": 1})
    write_deepfashion(many, **SMALL)
    pictures = {name: digest for name, digest in digests(few).items() if name.endswith(".jpg")}
    assert pictures
    assert pictures.items() <= digests(many).items()


def test_render_person_is_deterministic_and_depends_on_both_seeds() -> None:
    image, keypoints = render_person(11, 2)
    again, same = render_person(11, 2)
    assert image.shape == (256, 176, 3)
    assert image.dtype == np.uint8
    assert keypoints.shape == (18, 2)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(keypoints, same)
    assert (image != render_person(11, 3)[0]).mean() > 0.05
    assert (image != render_person(12, 2)[0]).mean() > 0.05


@pytest.mark.parametrize("size", [Size(256, 176), Size(64, 44), Size(128, 128)])
def test_visible_keypoints_lie_on_the_figure(size: Size) -> None:
    hits, seen = 0, 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        picture = draw(sample_person(rng), rng, ("front", "side", "back", "full")[seed % 4], size)
        found = picture.keypoints[~np.isnan(picture.keypoints).any(axis=1)]
        assert (found >= 0).all()
        assert (found <= [size.cols - 1, size.rows - 1]).all()
        cells = np.rint(found).astype(int)
        hits += int((picture.mask[cells[:, 1], cells[:, 0]] > 0.5).sum())
        seen += len(found)
    assert seen > 120
    assert hits >= 0.97 * seen


def test_pixels_at_joints_differ_from_the_background() -> None:
    different = []
    for seed in range(8):
        image, keypoints = render_person(seed, 0, view="full")
        for x, y in np.rint(keypoints[[1, 8, 11, 9, 12]]).astype(int):
            row = image[y].astype(int)
            different.append(np.abs(row[x] - row[[1, -2]]).sum(axis=1).min() > 24)
    assert np.mean(different) > 0.9


def test_full_views_fill_the_frame_and_back_views_hide_the_face() -> None:
    heights = []
    for seed in range(8):
        rng = np.random.default_rng([seed, 7])
        person = sample_person(rng)
        rows = np.flatnonzero((draw(person, rng, "full", Size(192, 132)).mask > 0.5).any(axis=1))
        heights.append((rows[-1] - rows[0]) / 192)
        back = draw(person, rng, "back", Size(192, 132)).keypoints
        assert np.isnan(back[[0, 14, 15]]).all()
        front = draw(person, rng, "front", Size(192, 132)).keypoints
        assert not np.isnan(front[[0, 1, 2, 5]]).any()
        assert front[2, 0] < front[5, 0]  # the person's right is at the picture's left
        assert back[2, 0] > back[5, 0]
    assert np.median(heights) > 0.85
    assert min(heights) > 0.6


def test_a_garment_keeps_its_colours_over_the_poses() -> None:
    def torso(identity: int, pose: int) -> np.ndarray:
        image, points = render_person(identity, pose, (192, 132), view="front")
        outline = np.rint(points[[2, 5, 11, 8]]).astype(np.int32)
        mask = cv2.fillConvexPoly(np.zeros(image.shape[:2], np.uint8), outline, 1)
        histogram = cv2.calcHist([image], [0, 1, 2], mask, [4, 4, 4], [0, 256] * 3).ravel()
        return histogram / histogram.sum()

    first = np.stack([torso(identity, 0) for identity in range(12)])
    second = np.stack([torso(identity, 1) for identity in range(12)])
    apart = np.abs(first[:, None] - second[None]).sum(axis=-1)
    own = np.diag(apart).mean()
    others = apart[~np.eye(12, dtype=bool)].mean()
    assert own < 0.5 * others
    assert (apart.argmin(axis=1) == np.arange(12)).mean() > 0.8


def test_files_follow_the_rules_of_the_real_ones(made: Path) -> None:
    groups: dict[str, set[str]] = {}
    for split, people_there in (("train", 4), ("test", 2)):
        rows = read_annotation(made / f"fasion-resize-annotation-{split}.csv")
        names = [name for name, _, _ in rows]
        assert len(names) == len(set(names)) == 5 * people_there
        assert names == sorted(path.name for path in (made / split).iterdir())
        assert names == (made / f"{split}.lst").read_text().splitlines()
        for name, y, x in rows:
            match = re.fullmatch(
                r"fashion(WOMEN|MEN)[A-Z][A-Za-z_]+id(\d{8})(\d{2})_(\d)(front|side|back|full)\.jpg", name
            )
            assert match, name
            groups.setdefault(split, set()).add(match.group(2) + match.group(3))
            assert len(x) == len(y) == 18
            assert all(isinstance(value, int) for value in x + y)
            assert all((a == -1) == (b == -1) for a, b in zip(x, y, strict=True))
            assert all(-1 <= value <= 175 for value in x)
            assert all(-1 <= value <= 255 for value in y)
            assert cv2.imread(str(made / split / name)).shape == (256, 176, 3)
    assert len(groups["train"]) == 4
    assert not groups["train"] & groups["test"]


def test_pairs_follow_from_the_annotation_alone(made: Path) -> None:
    for split in ("train", "test"):
        valid: dict[str, list[str]] = {}
        for name, y, x in read_annotation(made / f"fasion-resize-annotation-{split}.csv"):
            if all(y[i] != -1 and x[i] != -1 for i in (2, 5, 8, 11)):
                start = name.index("id") + 2
                valid.setdefault(name[start : start + 10], []).append(name)
        expected = {(a, b) for names in valid.values() for a in names for b in names if a != b}
        header, *lines = (made / f"fasion-resize-pairs-{split}.csv").read_text().splitlines()
        assert header == "from,to"
        found = [tuple(line.split(",")) for line in lines]
        assert len(found) == len(set(found)) == len(expected) > 0
        assert set(found) == expected


def test_annotation_points_are_the_pictures_own(tmp_path: Path) -> None:
    """A picture of another size is annotated in the 256x176 frame: the same pose, the same numbers."""
    sizes = ((256, 176), (128, 88))
    tables = []
    for rows, cols in sizes:
        root = tmp_path / f"{rows}"
        write_deepfashion(root, **{**SMALL, "image_size": (rows, cols), "train_identities": 2, "test_identities": 1})
        tables.append(read_annotation(root / "fasion-resize-annotation-train.csv"))
    for (name, y, x), (other, v, u) in zip(*tables, strict=True):
        assert name == other
        assert np.abs(np.subtract(y, v)).max() <= 1
        assert np.abs(np.subtract(x, u)).max() <= 1


def test_the_marker_tells_a_stand_in_and_a_second_call_reuses_it(tmp_path: Path) -> None:
    root = tmp_path / "deepfashion"
    first = write_deepfashion(root, **SMALL)
    assert "not DeepFashion" in (root / MARKER).read_text()
    assert json.loads((root / MANIFEST).read_text())["arguments"]["seed"] == 5
    before = digests(root)
    second = write_deepfashion(root, **SMALL)
    assert second.reused
    assert not first.reused
    assert (second.train_pairs, second.test_images) == (first.train_pairs, first.test_images)
    with pytest.raises(ValueError, match="seed 5 there, 9 asked for"):
        write_deepfashion(root, **{**SMALL, "seed": 9})
    assert digests(root) == before
    replaced = write_deepfashion(root, overwrite=True, **{**SMALL, "seed": 9})
    assert not replaced.reused
    assert digests(root) != before
    assert [path.name for path in tmp_path.iterdir()] == ["deepfashion"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="did not write"):
        write_deepfashion(tmp_path / "mine", overwrite=True, **SMALL)
    assert digests(tmp_path / "mine").keys() == {"photo.jpg"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_nothing_half_written_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real, calls = people._write_identity, []

    def breaking(task: people._Task) -> list[people.Row]:
        calls.append(task)
        if len(calls) == 3:
            raise error
        return real(task)

    monkeypatch.setattr(people, "_write_identity", breaking)
    with pytest.raises((KeyboardInterrupt, OSError)):
        write_deepfashion(tmp_path / "deepfashion", **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(people, "_write_identity", real)
    steps: list[tuple[int, int]] = []
    write_deepfashion(tmp_path / "deepfashion", progress=lambda done, total: steps.append((done, total)), **SMALL)
    assert steps == [(n, 5) for n in range(1, 6)]


@pytest.mark.parametrize(
    "change", [{"train_identities": 0}, {"test_identities": 0}, {"poses_per_identity": 1}, {"poses_per_identity": 10}]
)
def test_counts_out_of_range_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="stand-in people: needs"):
        write_deepfashion(tmp_path / "deepfashion", **{**SMALL, **change})
    assert list(tmp_path.iterdir()) == []
