"""Packing: right pixels, counted oddities, and the same bytes whatever the workers and interruptions."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data import pack as packing
from saccade.data.class_layout import Listing, find_folders
from saccade.data.pack import MANIFEST, PackOptions, pack, sha256
from saccade.data.packed import PackedImages, check_pack
from saccade.data.square import read_square

Make = Callable[..., Path]
OPTIONS = PackOptions(size=6)


@pytest.fixture
def listing(make_classes: Make, monkeypatch: pytest.MonkeyPatch) -> Listing:
    """2 x 5 training and 2 x 5 validation pictures; chunks of 3, so that there are several."""
    monkeypatch.setattr(packing, "_CHUNK", 3)
    root = make_classes(count=5)
    (root / "train" / "n01" / "n01_1.JPEG").write_bytes(b"broken")
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(root / "train" / "n02" / "n02_4.JPEG")
    return find_folders(root)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_pack_holds_the_squares_in_order(listing: Listing, tmp_path: Path) -> None:
    manifest = pack(listing, tmp_path / "out", OPTIONS, about={"layout": "folder"})
    assert manifest == json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["layout"] == "folder"
    assert manifest["classes"] == [
        {"id": "n01", "name": "n01", "train": 4, "val": 5},
        {"id": "n02", "name": "n02", "train": 5, "val": 5},
    ]
    train = manifest["splits"]["train"]
    assert train["count"] == 9
    assert train["odd"] == {"grey": {"count": 1, "examples": ["n02/n02_4.JPEG"]}}
    assert list(train["unreadable"]) == ["n01/n01_1.JPEG"]
    assert "not a readable picture" in train["unreadable"]["n01/n01_1.JPEG"]
    kept = [entry for entry in listing.splits["train"] if entry.name != "n01/n01_1.JPEG"]
    pixels = np.load(tmp_path / "out" / "train.npy", mmap_mode="r")  # anybody's NumPy reads it
    assert pixels.shape == (9, 3, 6, 6)
    for entry, found in zip(kept, pixels, strict=True):
        assert np.array_equal(found.transpose(1, 2, 0), read_square(entry.file, 6).pixels)
    images = PackedImages(tmp_path / "out", "train")
    assert [(images[i].key, images[i].label) for i in range(9)] == [(e.name, e.label) for e in kept]
    assert images.sha256 == sha256(tmp_path / "out" / "train.npy")
    assert not list((tmp_path / "out").glob("*.part")) + list((tmp_path / "out").glob("*.journal"))


@pytest.mark.slow
def test_workers_do_not_change_a_byte(listing: Listing, tmp_path: Path) -> None:
    pack(listing, tmp_path / "one", OPTIONS)
    pack(listing, tmp_path / "two", OPTIONS, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("after", range(1, 9))
def test_interrupted_anywhere_it_ends_with_the_same_bytes(listing: Listing, tmp_path: Path, after: int) -> None:
    pack(listing, tmp_path / "whole", OPTIONS)
    calls: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(listing, tmp_path / "out", OPTIONS, advance=stop)
    assert not (tmp_path / "out" / MANIFEST).exists()
    again: list[tuple[int, int]] = []
    pack(listing, tmp_path / "out", OPTIONS, advance=lambda *progress: again.append(progress))
    assert calls + again == [(n, 20) for n in (3, 6, 9, 10, 13, 16, 19, 20)]  # nothing is decoded twice
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("wound", ["pixels ahead", "half a line", "pixels behind", "pixels changed", "no journal"])
def test_a_kill_in_the_middle_of_writing_is_mended(listing: Listing, tmp_path: Path, wound: str) -> None:
    pack(listing, tmp_path / "whole", OPTIONS)

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(listing, tmp_path / "out", OPTIONS, advance=stop)
    partial, journal = tmp_path / "out" / "train.npy.part", tmp_path / "out" / "train.journal"
    if wound == "pixels ahead":
        partial.write_bytes(partial.read_bytes() + b"half a chunk")
    elif wound == "half a line":
        journal.write_text(journal.read_text()[:-10])
    elif wound == "pixels behind":
        partial.write_bytes(partial.read_bytes()[:-50])
    elif wound == "pixels changed":
        partial.write_bytes(partial.read_bytes()[:-50] + bytes(50))
    else:
        journal.unlink()
    pack(listing, tmp_path / "out", OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_pack_is_left_alone_and_another_is_not_mixed_in(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pack(listing, tmp_path / "out", OPTIONS)
    monkeypatch.setattr(packing, "read_square", None)
    assert pack(listing, tmp_path / "out", OPTIONS) == made
    with pytest.raises(ValueError, match=r"was packed from .*'exif': 'ignore'.*, not .*'exif': 'apply'"):
        pack(listing, tmp_path / "out", PackOptions(size=6, exif="apply"))
    fewer = Listing(listing.classes, listing.names, {"train": listing.splits["train"]})
    with pytest.raises(ValueError, match="was packed from other pictures"):
        pack(fewer, tmp_path / "out", OPTIONS)


def test_too_many_broken_files_are_an_error_that_more_patience_mends(listing: Listing, tmp_path: Path) -> None:
    strict = PackOptions(size=6, max_unreadable=0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 pictures cannot be read, more than max_unreadable=0: n01/n01_1\.JPEG"):
            pack(listing, tmp_path / "out", strict)
    assert pack(listing, tmp_path / "out", OPTIONS)["splits"]["train"]["count"] == 9


def test_a_class_whose_pictures_are_all_broken_is_named(make_classes: Make, tmp_path: Path) -> None:
    root = make_classes(count=1)
    (root / "train" / "n02" / "n02_0.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match="1 classes have no readable training picture: n02"):
        pack(find_folders(root), tmp_path / "out", OPTIONS)


def test_a_full_disk_is_noticed_before_work(listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100))
    with pytest.raises(ValueError, match=r"20 pictures of 6x6 need 0\.0 GiB more, and 0\.0 are free"):
        pack(listing, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("options", [{"size": 1}, {"max_unreadable": -1}, {"exif": "maybe"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"needs a size of 2|exif='maybe' is unknown; valid: ignore, apply"):
        PackOptions(**options)  # type: ignore[arg-type]


def test_damage_is_found(listing: Listing, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(listing, out, OPTIONS)
    assert check_pack(out)["splits"]["val"]["count"] == 10
    pixels = (out / "val.npy").read_bytes()
    (out / "val.npy").write_bytes(pixels[:-1] + b"\x00")
    with pytest.raises(ValueError, match=r"val\.npy: missing or not as it was packed"):
        check_pack(out)
    (out / "val.npy").write_bytes(pixels[:-1])
    with pytest.raises(ValueError, match=r"val\.npy: has 1,207 bytes, and the manifest says 1,208"):
        PackedImages(out, "val")
    (out / "train_names.txt").write_text("a\n")
    with pytest.raises(ValueError, match="labels and names of train are not as many"):
        PackedImages(out, "train")
    with pytest.raises(ValueError, match="no test split; it has train, val"):
        PackedImages(out, "test")  # type: ignore[arg-type]
    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads 1"):
        PackedImages(out, "train")
    with pytest.raises(ValueError, match="no finished pack there"):
        PackedImages(tmp_path, "train")
