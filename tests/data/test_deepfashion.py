from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_people import a_name, a_pose

from saccade.data.batches import PoseBatch, PoseSample, collate_pose
from saccade.data.deepfashion import DeepFashionDataset, DeepFashionModule, PoseStream
from saccade.data.framing import Framing
from saccade.data.layout import find_layout, resolve_source
from saccade.data.lists import read_lists
from saccade.data.pairs import read_pairs, write_pairs
from saccade.data.pose import FLIP_PAIRS
from saccade.geometry import Size

Make = Callable[..., Path]
CANVAS = Size(256, 256)


def module(root: Path, **options: object) -> DeepFashionModule:
    defaults = {"cache": root.parent / "cache", "image_size": 32, "batch_size": 2, "source": "files"}
    return DeepFashionModule(root=root, **{**defaults, **options})  # type: ignore[arg-type]


def tensors(batch: PoseBatch) -> list[torch.Tensor]:
    return [batch.source_image, batch.source_keypoints, batch.target_image, batch.target_keypoints]


# ---------------------------------------------------------------- pictures and points


def test_a_batch_is_what_it_says(make_deepfashion: Make) -> None:
    data = module(make_deepfashion(), image_size=[256, 256])
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert len(batch) == len(batch.keys) == 4
    assert batch.source_image.shape == (4, 3, 256, 256)
    assert batch.source_image.dtype == torch.float32
    assert batch.source_image.min() >= -1
    assert (batch.source_image[:, :, :, :40] == 1).all()  # white beside the 176 columns
    assert batch.source_keypoints.shape == (4, 18, 3)
    expected = a_pose(shift=2.0) + torch.tensor([40.0, 0, 0])
    assert torch.equal(batch.source_keypoints[0], expected)
    assert batch.keys[0] == f"{a_name(1001, 1)[:-4]}___{a_name(1001, 2)[:-4]}"
    assert batch.paired
    moved = batch.to("cpu", non_blocking=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors(moved), tensors(batch), strict=True))


@pytest.mark.parametrize(
    ("size", "frame", "square"),
    [
        (Size(256, 176), Size(256, 176), "auto"),
        (Size(256, 176), Size(256, 256), "auto"),
        (Size(512, 352), Size(256, 176), "auto"),
        (Size(256, 256), Size(256, 256), "auto"),
        (Size(256, 256), Size(256, 176), "bordered"),
        (Size(256, 256), Size(256, 176), "stretched"),
        (Size(256, 256), Size(256, 256), "stretched"),
    ],
)
@pytest.mark.parametrize("canvas", [Size(256, 256), Size(256, 176), Size(64, 64), Size(128, 96)])
def test_points_fall_on_their_pixels_whatever_the_files(
    make_deepfashion: Make, size: Size, frame: Size, square: str, canvas: Size
) -> None:
    """A mark is painted where the annotation says; after framing it must lie under the framed point."""
    root = make_deepfashion(size=size, frame=frame)
    name = a_name(1001, 1)
    x, y = a_pose(shift=2.0)[4, :2].tolist()  # right wrist, in the 256x176 frame
    shows_borders = size.cols == size.rows and square != "stretched"
    scale_x = size.cols / (256 if shows_borders else 176)
    column = (x + (40 if shows_borders else 0) + 0.5) * scale_x - 0.5
    row = (y + 0.5) * size.rows / 256 - 0.5
    rows, cols = np.mgrid[: size.rows, : size.cols]
    spread = ((rows - row) / (size.rows / 256)) ** 2 + ((cols - column) / scale_x) ** 2
    picture = (255 * (1 - np.exp(-spread / 60)))[..., None].repeat(3, 2).astype(np.uint8)
    Image.fromarray(picture).save(root / "test" / name, format="PNG")
    stated = str(frame)
    lists = read_lists(root, keypoint_frame=stated)
    data = DeepFashionDataset(lists, "test", Framing(canvas, lists.frame, square))  # type: ignore[arg-type]
    dark = 255 - data.picture(name)[0].double()
    ys, xs = torch.meshgrid(torch.arange(canvas.rows), torch.arange(canvas.cols), indexing="ij")
    point = data.keypoints(name)[4]
    assert float((dark * xs).sum() / dark.sum()) == pytest.approx(float(point[0]), abs=0.3)
    assert float((dark * ys).sum() / dark.sum()) == pytest.approx(float(point[1]), abs=0.3)


def test_square_files_with_points_of_the_middle_must_be_explained(make_deepfashion: Make) -> None:
    data = module(make_deepfashion(size=Size(256, 256)))
    data.setup()
    with pytest.raises(
        ValueError, match=r"id0*1.*front\.jpg: the picture is square .*square_files=bordered .* or stretched"
    ):
        next(iter(data.train_dataloader()))
    with pytest.raises(ValueError, match="square_files=padded is unknown; valid: auto, bordered, stretched"):
        module(data.root, square_files="padded").setup()


def test_other_shapes_are_refused(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    Image.fromarray(np.zeros((128, 300, 3), np.uint8)).save(root / "test" / a_name(1001, 1))
    with pytest.raises(ValueError, match=r"_1front\.jpg: the picture is 128x300"):
        module(root).preview(4)


# ---------------------------------------------------------------- wrong input


def test_missing_files_show_layout_and_commands(tmp_path: Path, make_deepfashion: Make) -> None:
    with pytest.raises(ValueError, match=r"Missing: .*fasion-resize-annotation-train\.csv") as caught:
        module(tmp_path / "nothing")
    text = str(caught.value)
    for part in ("Expected layout", "scripts/prepare_data.py deepfashion --zip", "--standin", "data.source=standin"):
        assert part in text
    root = make_deepfashion()
    (root / "test").rename(root / "test_highres")
    with pytest.raises(ValueError, match=r"test/ \(there is test_highres: set data.module.folders\)"):
        module(root)
    (root / "train").rename(root / "train_highres")
    module(root, folders="{split}_highres").setup()


def test_source_is_decided_by_what_is_there(tmp_path: Path, make_deepfashion: Make) -> None:
    root = make_deepfashion()
    assert resolve_source(root) == resolve_source(root, "files") == "files"
    assert resolve_source(root, "standin") == "standin"
    assert resolve_source(tmp_path / "nothing") == "standin"
    (root / "fasion-resize-annotation-train.csv").unlink()
    with pytest.raises(ValueError, match="not complete"):  # half a data set is not silently replaced
        resolve_source(root)
    with pytest.raises(ValueError, match=r"data\.source=web is unknown; valid: auto, files, standin"):
        resolve_source(root, "web")  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["fasion-resize", "fashion-resize", "fasion", "fashion"])
def test_spellings_of_the_lists(make_deepfashion: Make, prefix: str) -> None:
    root = make_deepfashion(prefix=prefix)
    frame = "auto" if "resize" in prefix else "256x176"
    assert read_lists(root, keypoint_frame=frame).splits["test"].pairs_file == root / f"{prefix}-pairs-test.csv"


def test_two_keypoint_files_are_not_guessed_between(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    shutil.copy(root / "fasion-resize-annotation-test.csv", root / "fasion-annotation-test.csv")
    with pytest.raises(
        ValueError, match=r"fasion-resize-annotation-test\.csv and fasion-annotation-test\.csv.*list_prefix"
    ):
        find_layout(root)
    assert find_layout(root, prefix="fasion-resize")["test"].annotations.name == "fasion-resize-annotation-test.csv"


def test_broken_lists_are_named(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    pairs, keys = root / "fasion-resize-pairs-test.csv", root / "fasion-resize-annotation-test.csv"
    good = keys.read_text()
    keys.write_text("".join(line for line in good.splitlines(True) if a_name(1002, 2) not in line))
    with pytest.raises(
        ValueError, match=rf"annotation-test\.csv: no keypoint row for {a_name(1002, 2)}, which .*pairs-test"
    ):
        read_lists(root)
    keys.write_text(good)
    (root / "test" / a_name(1002, 2)).rename(root / "elsewhere.jpg")
    with pytest.raises(ValueError, match=rf"test/{a_name(1002, 2)}: no such picture, but .*pairs-test\.csv names it"):
        read_lists(root)
    (root / "elsewhere.jpg").rename(root / "test" / a_name(1002, 2))
    pairs.write_text("from,to\n")
    with pytest.raises(ValueError, match=r"pairs-test\.csv: the pair list is empty"):
        read_lists(root)
    pairs.unlink()
    lists = read_lists(root)
    assert len(lists.splits["test"].pairs) == 4
    assert any("test pairs were made from" in note for note in lists.audit.notes)
    blank = torch.zeros(18, 3)
    lines = good.splitlines(True)
    lines[1] = f"{a_name(1001, 1)}: {[-1] * 18}: {[-1] * 18}\n"
    keys.write_text("".join(lines))
    write_pairs(pairs, [(a_name(1001, 1), a_name(1001, 2))])
    with pytest.raises(ValueError, match=r"annotation-test\.csv:2: all keypoints of"):
        read_lists(root)
    assert not blank.any()


def test_wrong_frame_is_named(make_deepfashion: Make) -> None:
    root = make_deepfashion(frame=Size(256, 256), prefix="fasion")
    keys = root / "fasion-annotation-train.csv"
    with pytest.raises(ValueError, match=r"state it: data.module.keypoint_frame"):
        module(root).setup()
    lines = keys.read_text().splitlines()
    lines[2] = lines[2].rsplit(", ", 1)[0] + ", 201]"
    keys.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"annotation-train\.csv:3: a point at x = 201, outside the 256x176 frame"):
        module(root, keypoint_frame="256x176").setup()
    assert module(root).lists.frame == "256x256"


def test_corrupt_and_small_pictures_are_named(make_deepfashion: Make) -> None:
    root = make_deepfashion(size=Size(128, 88))
    small = module(root, image_size=256)
    with pytest.raises(ValueError, match=r"front\.jpg: the picture is 128x88 .*network's 256x256"):
        small.preview(1)
    assert module(root, image_size=256, upscale=True).preview(1).source_image.shape[-1] == 256
    (root / "test" / a_name(1001, 1)).write_bytes(b"no picture")
    for options in ({}, {"load_in_memory": True}):
        with pytest.raises(ValueError, match=rf"{a_name(1001, 1)}: not a readable picture"):
            module(root, **options).preview(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_pictures_are_named_by_workers_too(make_deepfashion: Make, workers: int) -> None:
    root = make_deepfashion()
    for path in (root / "train").iterdir():
        path.write_bytes(b"no picture")
    data = module(root, workers=workers)
    data.setup()
    with pytest.raises(ValueError, match=r"front\.jpg: not a readable picture"):
        next(iter(data.train_dataloader()))


# ---------------------------------------------------------------- order and chance


def stream(root: Path, position: int, batches: int, **options: object) -> list[PoseBatch]:
    data = module(root, flip=True, **options)
    data.setup()
    data.set_position(position)
    return list(islice(iter(data.train_dataloader()), batches))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("unpaired", [False, True])
def test_a_resumed_stream_is_the_tail_of_the_whole_one(make_deepfashion: Make, workers: int, unpaired: bool) -> None:
    root = make_deepfashion(train=5)
    whole = stream(root, 0, 9, unpaired=unpaired)
    tail = stream(root, 8, 5, unpaired=unpaired, workers=workers)
    for a, b in zip(whole[4:], tail, strict=True):
        assert a.keys == b.keys
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    assert len({key for batch in whole for key in batch.keys}) > 6


def test_seeds_differ_and_laps_show_every_pair(make_deepfashion: Make) -> None:
    root = make_deepfashion(train=5)
    pairs = len(read_pairs(root / "fasion-resize-pairs-train.csv"))
    one, two = (stream(root, 0, pairs // 2, seed=seed) for seed in (0, 1))
    keys = [key for batch in one for key in batch.keys]
    assert len(set(keys)) == pairs
    assert keys != [key for batch in two for key in batch.keys]


def test_unpaired_poses_come_from_others_and_repeat_the_source(make_deepfashion: Make) -> None:
    root = make_deepfashion(train=6)
    data = module(root, unpaired=True, batch_size=12)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert not batch.paired
    assert torch.equal(batch.source_image, batch.target_image)
    sources, poses = zip(*(key.split("___") for key in batch.keys), strict=True)
    assert len(set(sources)) == 12
    assert sum(a != b for a, b in zip(sources, poses, strict=True)) > 6
    for i, pose in enumerate(poses):
        assert torch.equal(batch.target_keypoints[i], data.dataset("train").keypoints(f"{pose}.jpg"))
    assert next(iter(data.test_dataloader())).paired


def test_flips_mirror_both_pictures_and_swap_sides(make_deepfashion: Make) -> None:
    root = make_deepfashion(train=6)
    data = module(root, flip=True, batch_size=24)
    plain = module(root, batch_size=24)
    flipped, straight = (next(iter(d.train_dataloader())) for d in (data, plain))
    assert flipped.keys == straight.keys
    turned = 0
    for i in range(24):
        if torch.equal(flipped.source_keypoints[i], straight.source_keypoints[i]):
            assert torch.equal(flipped.target_image[i], straight.target_image[i])
            continue
        turned += 1
        assert torch.equal(flipped.source_image[i], straight.source_image[i].flip(-1))
        assert torch.equal(flipped.target_image[i], straight.target_image[i].flip(-1))
        right, left = FLIP_PAIRS[0]
        assert flipped.target_keypoints[i, left, 0] == 31 - straight.target_keypoints[i, right, 0]
    assert 4 < turned < 20


def test_pictures_in_memory_are_the_same(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    a, b = module(root).preview(3), module(root, load_in_memory=True).preview(3)
    assert a.keys == b.keys
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    kept = module(root, load_in_memory=True)
    kept.setup()
    shutil.rmtree(root / "test")
    assert len(list(kept.test_dataloader())) == 1


def test_test_subsets_are_fixed(make_deepfashion: Make) -> None:
    root = make_deepfashion(test=10, views=3)
    everything = read_pairs(root / "fasion-resize-pairs-test.csv")
    some = module(root, test_samples=7, seed=0).dataset("test").pairs
    assert some == module(root, test_samples=7, seed=5).dataset("test").pairs
    assert some == [pair for pair in everything if pair in some]
    assert some != everything[:7]
    assert module(root, test_samples=7, test_subset="first").dataset("test").pairs == everything[:7]
    assert len(module(root, test_samples=1000).dataset("test")) == 60
    keys = [key for batch in module(root, val_samples=6).val_dataloader() for key in batch.keys]
    assert len(set(keys)) == 6
    with pytest.raises(ValueError, match="0 test samples"):
        module(root, test_samples=0).setup()


def test_epochs_of_a_stated_length(make_deepfashion: Make) -> None:
    loader = module(make_deepfashion(), pairs_per_epoch=5).train_dataloader()
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == 3
    endless = list(islice(iter(module(loader.dataset.dataset.images.parent).train_dataloader()), 6))  # type: ignore[attr-defined]
    assert [b.keys for b in first + second] == [b.keys for b in endless]


def test_collate_refuses_mixtures(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    lists = read_lists(root)
    sample: PoseSample = PoseStream(DeepFashionDataset(lists, "train", Framing(CANVAS, lists.frame)), 0)[10**9]
    assert collate_pose([sample]).keys == [sample.key]
    with pytest.raises(ValueError, match=r"all paired or all unpaired; got \[True, False\]"):
        collate_pose([sample, replace(sample, paired=False)])
    with pytest.raises(ValueError, match="one or more samples"):
        collate_pose([])


# ---------------------------------------------------------------- stand-in


def test_the_standin_is_built_read_and_announced(tmp_path: Path) -> None:
    options = {"standin_train": 2, "standin_test": 1, "standin_poses": 3, "standin_size": [64, 44], "source": "auto"}
    data = module(tmp_path / "none", **options)
    assert data.resolved_source == "standin"
    assert data.banner is not None
    assert "STAND-IN DATA" in data.banner
    changes, notices = DeepFashionModule.resolve_auto({"source": "auto"}, {"data_dir": str(tmp_path)})
    assert changes == {"source": "standin"}
    assert "STAND-IN DATA" in notices[0]
    data.setup()
    assert next(iter(data.train_dataloader())).source_image.shape == (2, 3, 32, 32)
    stamp = (data.data_root / "standin.json").stat().st_mtime_ns
    module(tmp_path / "none", **options).setup()
    assert (data.data_root / "standin.json").stat().st_mtime_ns == stamp
    assert [path.name for path in data.cache.iterdir()] == [data.data_root.name]


def test_real_files_are_not_announced(make_deepfashion: Make) -> None:
    root = make_deepfashion()
    data = module(root, source="auto")
    assert data.resolved_source == "files"
    assert data.banner is None
    assert DeepFashionModule.resolve_auto({"source": "auto"}, {"data_dir": str(root.parent)}) == (
        {"source": "files"},
        [],
    )
