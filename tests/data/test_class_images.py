from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from saccade.data import class_images
from saccade.data.batches import ClassBatch, ClassSample, collate_class
from saccade.data.class_images import ClassImagesModule, ClassStream
from saccade.data.pack import MANIFEST, sha256
from saccade.data.packed import PackedImages
from saccade.data.standin.classes import write_classes
from saccade.data.standin.folder import MARKER

Make = Callable[..., Path]


def module(root: Path, **options: object) -> ClassImagesModule:
    defaults = {"cache": root.parent / "cache", "layout": "folder", "image_size": 8, "batch_size": 2, "source": "files"}
    return ClassImagesModule(root=root, **{**defaults, **options})  # type: ignore[arg-type]


def batches(data: ClassImagesModule, count: int) -> list[ClassBatch]:
    return list(islice(iter(data.train_dataloader()), count))


def same(a: list[ClassBatch], b: list[ClassBatch]) -> bool:
    return all(torch.equal(x.images, y.images) and x.keys == y.keys for x, y in zip(a, b, strict=True))


def test_a_batch_is_what_it_says(make_classes: Make) -> None:
    data = module(make_classes(), batch_size=3)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == len(batch.keys) == 3
    assert batch.images.shape == (3, 3, 8, 8)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.images.abs().max() <= 1
    images = data.dataset("train")
    index = [images.name(i) for i in range(len(images))].index(batch.keys[0])
    assert torch.equal(batch.images[0], images.picture(index).float() * (2 / 255) - 1)
    assert [data.class_names[label] for label in batch.labels] == [key.split("/")[0] for key in batch.keys]
    moved = batch.to("cpu", non_blocking=True)
    assert torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.images, batch.images)
    with pytest.raises(ValueError, match="one or more samples; got none"):
        collate_class([])


# ---------------------------------------------------------------- streams


def test_training_resumes_exactly_and_workers_change_nothing(make_classes: Make) -> None:
    root = make_classes(count=4)
    whole = batches(module(root, flip=True), 9)
    resumed = module(root, flip=True)
    resumed.set_position(8)
    assert same(batches(resumed, 5), whole[4:])
    assert same(batches(module(root, flip=True, workers=2), 4), whole[:4])
    assert not same(batches(module(root, flip=True, seed=1), 4), whole[:4])
    assert sorted(key for batch in whole[:4] for key in batch.keys) == sorted(
        name for name in map(module(root).dataset("train").name, range(8))
    )


def test_ranks_share_out_the_global_batches(make_classes: Make) -> None:
    root = make_classes()
    one = batches(module(root, batch_size=4), 3)
    parts = []
    for rank in (0, 1):
        data = module(root, batch_size=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        parts.append(batches(data, 3))
    assert [a.keys + b.keys for a, b in zip(*parts, strict=True)] == [batch.keys for batch in one]


def test_half_of_the_draws_are_mirrored_by_their_position_alone(make_classes: Make) -> None:
    data = module(make_classes())
    data.setup()
    plain, flipped = (ClassStream(data.dataset("train"), 0, flip) for flip in (False, True))
    data.dataset("train")._pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    mirrored = 0
    for position in range(200):
        one, other = plain[position].image, flipped[position].image
        if not torch.equal(one, other):
            assert torch.equal(one.flip(-1), other)
            mirrored += 1
    assert 70 < mirrored < 130
    assert torch.equal(flipped[77].image, ClassStream(data.dataset("train"), 0, True)[77].image)


def test_evaluation_loaders_give_every_position_once(make_classes: Make) -> None:
    root = make_classes()
    data = module(root, eval_samples=11, eval_batch_size=3, val_samples=4)
    assert [batch.tolist() for batch in data.test_dataloader()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    assert [batch.tolist() for batch in data.val_dataloader()] == [[0, 1, 2], [3]]
    assert next(iter(data.test_dataloader())).dtype == torch.int64
    seen: list[int] = []
    for rank in range(3):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3)  # type: ignore[assignment]
        seen += [position for batch in data.test_dataloader() for position in batch.tolist()]
    assert sorted(seen) == list(range(11))
    data.trainer = SimpleNamespace(global_rank=0, world_size=5)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"4 evaluation samples cannot be shared out to 5 devices.*eval_samples=5"):
        data.val_dataloader()


def test_a_pickled_copy_opens_the_file_again(make_classes: Make) -> None:
    data = module(make_classes(count=30, size=(60, 60)), image_size=50)
    images = data.dataset("train")
    first = images[7]
    copied = pickle.dumps(images)
    assert len(copied) < 20_000  # 450 kB of pixels are not in it
    again: PackedImages = pickle.loads(copied)
    assert torch.equal(again[7].image, first.image)
    assert isinstance(again[7], ClassSample)


# ---------------------------------------------------------------- references, previews


def test_the_reference_is_the_pack_by_its_hash(make_classes: Make) -> None:
    data = module(make_classes(count=4))
    reference, images = data.reference("val")
    assert (reference.name, reference.count, reference.size) == ("val", 8, "8x8")
    assert reference.files_sha256 == sha256(data.data_root / "packed-8" / "val.npy")
    assert reference.files_sha256 != data.reference("train")[0].files_sha256
    shown = torch.cat(list(images()))
    assert shown.dtype == torch.uint8
    assert torch.equal(shown, torch.stack([data.dataset("val").picture(i) for i in range(8)]))


def test_a_preview_goes_over_the_classes(make_classes: Make) -> None:
    data = module(make_classes(classes=("a", "b", "c")))
    assert data.preview(3).labels.tolist() == [0, 1, 2]
    assert len(data.preview(100, "val")) == 9
    with pytest.raises(ValueError, match="count must be at least 1; got 0"):
        data.preview(0)


def test_without_a_val_split_the_user_is_told(make_classes: Make) -> None:
    data = module(make_classes(splits=("",)), held_out=0)
    data.setup()
    with pytest.raises(ValueError, match=r"no val split, it has train; score .*scores\.splits=\[train\]"):
        data.reference("val")


# ---------------------------------------------------------------- sources


def test_small_folders_are_packed_at_once_and_only_once(make_classes: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make_classes()
    caplog.set_level("INFO")
    assert module(root).packed is None
    module(root).setup()
    assert "Packing 12 pictures" in caplog.text
    caplog.clear()
    data = module(root, image_size=8)
    data.setup()
    assert not caplog.text
    assert data.packed == root / "packed-8"
    assert data.banner is None


def test_a_folder_that_cannot_be_written_is_packed_into_the_cache(
    make_classes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_classes()
    monkeypatch.setattr(class_images.os, "access", lambda path, mode: False)
    data = module(root)
    data.setup()
    assert data.packed is not None
    assert data.packed.parent == root.parent / "cache" / "packs"
    assert len(module(root).dataset("train")) == 6


def test_large_folders_are_left_to_the_command(make_classes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_classes("birds")
    monkeypatch.setattr(class_images, "PACK_BY_COMMAND", 11)
    command = f"python scripts/prepare_data.py folder --from {root} --out {root} --size 8"
    with pytest.raises(ValueError, match=rf"12 pictures that are not packed at 8x8(.|\n)*{re.escape(command)}"):
        module(root).setup()
    options = {"name": "birds", "layout": "folder", "image_size": 8}
    with pytest.raises(ValueError, match="12 pictures that are not packed"):
        ClassImagesModule.resolve_auto(options, {"data_dir": str(root.parent)})


def test_the_number_of_classes_is_checked_and_both_numbers_are_named(make_classes: Make) -> None:
    root = make_classes()
    with pytest.raises(
        ValueError, match=r"classes has 2 classes, and 1000 are configured; set model\.classes=2 or auto"
    ):
        module(root, classes=1000)
    assert module(root, classes=2).classes == module(root, classes=None).classes == 2
    with pytest.raises(ValueError, match="the stand-in has 10 classes, and 1000 are configured"):
        module(root, classes=1000, source="standin")


def test_options_that_a_pack_was_not_made_with_are_refused(make_classes: Make) -> None:
    root = make_classes(splits=("",), count=10)
    module(root).setup()
    with pytest.raises(ValueError, match=r"packed-8: was packed with exif=ignore \(asked: apply\)"):
        module(root, exif="apply").setup()
    with pytest.raises(ValueError, match=r"was packed with held_out=0\.1 \(asked: 0\.2\)"):
        module(root, held_out=0.2).setup()
    with pytest.raises(ValueError, match="1 or more; got 0, 64"):
        module(root, batch_size=0)


def test_auto_takes_what_is_there_and_refuses_halves(make_classes: Make, tmp_path: Path) -> None:
    root = make_classes("imagenet", classes=("n01000000", "n02000000"))
    options = {"name": "imagenet", "layout": "imagenet", "image_size": 8, "classes": "auto", "source": "auto"}
    runtime = {"data_dir": str(tmp_path)}
    assert ClassImagesModule.resolve_auto(options, runtime) == ({"source": "files", "classes": 2}, [])
    unconditional = ClassImagesModule.resolve_auto(options | {"classes": None}, runtime)
    assert unconditional == ({"source": "files"}, [])
    changes, notices = ClassImagesModule.resolve_auto(options, {"data_dir": str(tmp_path / "none")})
    assert changes == {"source": "standin", "classes": 10}
    assert "STAND-IN DATA" in notices[0]
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(ValueError, match=r"no complete ImageNet there(.|\n)*prepare_data.py imagenet --from"):
        ClassImagesModule.resolve_auto(options, runtime)
    with pytest.raises(ValueError, match=r"no folders of classes there(.|\n)*<class>/\*\.jpg(.|\n)*--standin"):
        module(tmp_path / "none")
    for wrong in ({"source": "web"}, {"layout": "tree"}):
        with pytest.raises(ValueError, match=r"is unknown; valid: (auto|imagenet)"):
            module(root, **wrong)


def test_a_pack_serves_without_the_files_it_was_made_of(make_classes: Make) -> None:
    root = make_classes("imagenet")
    made = module(root, layout="imagenet")
    made.setup()
    kept = torch.stack([made.dataset("train").picture(i) for i in range(6)])
    for folder in ("train", "val"):
        (root / folder).rename(root.parent / folder)
    data = module(root, layout="imagenet", source="auto")
    assert data.resolved_source == "files"
    assert torch.equal(torch.stack([data.dataset("train").picture(i) for i in range(6)]), kept)
    with pytest.raises(ValueError, match=r"It is packed at 8, not at 16\."):
        module(root, layout="imagenet", image_size=16, source="auto")


def test_a_stand_in_that_somebody_put_into_the_folder_is_still_one(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    write_classes(root, train=1, val=1, size=16)
    data = module(root, layout="imagenet", image_size=16)
    assert data.resolved_source == "files"
    assert "STAND-IN DATA" in str(data.banner)
    data.setup()
    (root / MARKER).unlink()
    assert "STAND-IN DATA" in str(module(root, layout="imagenet", image_size=16).banner)  # the pack knows


def test_pictures_added_after_packing_are_pointed_out(make_classes: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make_classes(splits=("",), count=4)
    module(root, held_out=0.3).setup()
    module(root, held_out=0.3).setup()
    assert "other pictures" not in caplog.text
    (root / "n01" / "n01_0.JPEG").rename(root / "n01" / "new.JPEG")
    data = module(root, held_out=0.3)
    data.setup()
    assert f"other pictures than when it was packed; to see them delete {root / 'packed-8'}" in caplog.text
    assert len(data.dataset("train")) == 6


def test_the_stand_in_goes_through_the_packer(tmp_path: Path) -> None:
    options = {"source": "auto", "standin_train": 2, "standin_val": 1, "image_size": 16, "layout": "imagenet"}
    data = module(tmp_path / "imagenet", **options)
    assert data.banner is not None
    data.setup()
    assert (data.data_root / "packed-16" / MANIFEST).is_file()
    assert data.class_names[0] == "beach ball"
    assert data.preview(20).labels.tolist() == [label for label in range(10) for _ in range(2)]
    again = module(tmp_path / "imagenet", **options)
    again.setup()
    assert torch.equal(again.preview(20).images, data.preview(20).images)
    upright = module(tmp_path / "imagenet", **options, exif="apply")  # a pack of its own beside the first
    upright.setup()
    assert upright.manifest["options"]["exif"] == "apply"


def test_a_preview_of_some_classes_holds_no_others(tmp_path: Path) -> None:
    module = ClassImagesModule(
        root=tmp_path / "none", cache=tmp_path, image_size=16, source="standin", standin_train=3, standin_val=1
    )
    batch = module.preview(4, labels=[2, 7])
    assert batch.labels.tolist() == [2, 2, 7, 7]
    with pytest.raises(ValueError, match="labels"):
        module.preview(4, labels=[99])
