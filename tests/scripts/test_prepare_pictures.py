"""`scripts/prepare_data.py davis` and `places2`: unpack, list, check, stand in; wrong input is one line that helps."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from saccade.data import prepare_davis
from saccade.data.davis import DavisModule
from saccade.data.places2 import Places2Module

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_pictures_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, *arguments: object) -> int:
    return int(script.main([str(argument) for argument in arguments]))


def jpeg(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 12, 3), grey, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def package(path: Path, lists: dict[str, Sequence[str]], frames: int = 4, resolution: str = "480p") -> Path:
    """A package as davischallenge.org has it, with segmentations and a 2016 list that are not wanted."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, names in lists.items():
            archive.writestr(f"DAVIS/ImageSets/2017/{split}.txt", "\n".join(names))
            archive.writestr(f"DAVIS/ImageSets/2016/{split}.txt", "old")
            for name in names:
                for number in range(frames):
                    archive.writestr(f"DAVIS/JPEGImages/{resolution}/{name}/{number:05d}.jpg", jpeg(20 * number))
                    archive.writestr(f"DAVIS/Annotations/480p/{name}/{number:05d}.png", "not wanted")
        archive.writestr("DAVIS/JPEGImages/480p/../../../../evil.jpg", "not wanted")
    return path


@pytest.fixture
def zips(tmp_path: Path) -> list[Path]:
    return [
        package(tmp_path / "DAVIS-2017-trainval-480p.zip", {"train": ["bear", "boat"], "val": ["camel"]}),
        package(tmp_path / "DAVIS-2017-test-dev-480p.zip", {"test-dev": ["dog"]}),
    ]


def test_packages_are_unpacked_without_what_is_not_needed_and_can_be_read(
    script: ModuleType, zips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "davis"
    assert run(script, "davis", "--zip", *zips, "--out", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "19 files written" in said
    assert "2 train sequences, 8 train frames" in said
    assert "warning: train: 2 sequences, officially 60" in said
    assert "warning: no list test-challenge" in said
    assert sorted(path.name for path in (out / "DAVIS").iterdir()) == ["ImageSets", "JPEGImages"]
    assert not list(tmp_path.rglob("evil.jpg"))
    data = DavisModule(root=out, cache=tmp_path, image_size=8, distances=[1])
    assert (data.train_split, data.test_split) == ("train+test-dev", "val")


def test_an_interrupted_unpacking_goes_on(script: ModuleType, zips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "davis"
    prepare_davis.unpack(zips, out)
    frames = sorted(out.rglob("*.jpg"))
    whole = frames[3].read_bytes()
    frames[3].write_bytes(whole[:10])
    frames[5].unlink()
    assert prepare_davis.unpack(zips, out) == 2
    assert frames[3].read_bytes() == whole
    assert prepare_davis.unpack(zips, out) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"<html>not found</html>"), "not a readable zip file"),
        (
            lambda path: package(path, {"train": ["bear"]}, resolution="Full-Resolution"),
            "holds no DAVIS/JPEGImages/480p",
        ),
    ],
)
def test_other_files_than_packages_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    make(tmp_path / "a.zip")  # type: ignore[operator]
    assert run(script, "davis", "--zip", tmp_path / "a.zip", "--out", tmp_path / "davis") == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "davis").exists()


def test_a_damaged_package_is_named(zips: list[Path], tmp_path: Path) -> None:
    data = bytearray(zips[0].read_bytes())
    place = data.index(jpeg(20)[-40:])
    data[place : place + 20] = bytes(20)
    zips[0].write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"trainval-480p\.zip: cannot be unpacked to its end"):
        prepare_davis.unpack(zips, tmp_path / "davis")


def test_a_check_reads_every_frame(
    script: ModuleType, zips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "davis"
    prepare_davis.unpack(zips, out)
    frames = out / "DAVIS" / "JPEGImages" / "480p"
    (frames / "boat" / "00002.jpg").unlink()
    Image.new("RGB", (9, 9)).save(frames / "bear" / "00001.jpg")
    assert run(script, "davis", "--check", "--out", out) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "boat: frames are not numbered 0 to 2 without gaps" in said
    assert "bear: frames of 2 sizes" in said
    (frames / "camel" / "00003.jpg").write_bytes(b"broken")
    assert run(script, "davis", "--check", "--out", out) == 2
    assert "camel/00003.jpg: not a readable picture" in " ".join(capsys.readouterr().out.split())


def test_stand_ins_are_written_read_and_never_mixed_with_files(
    script: ModuleType, zips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--train", 2, "--test", 1, "--frames", 3, "--size", "32x48")
    assert run(script, "davis", "--standin", "--out", tmp_path / "davis", *options) == 0
    assert "5 sequences. These are stand-ins" in " ".join(capsys.readouterr().out.split())
    data = DavisModule(root=tmp_path / "davis", cache=tmp_path, image_size=8, distances=[1], source="files")
    data.setup()
    assert "STAND-IN" in str(data.banner)
    assert run(script, "davis", "--zip", *zips, "--out", tmp_path / "davis") == 2
    assert "holds a stand-in" in capsys.readouterr().out
    small = ("--train", 3, "--val", 2, "--size", 32)
    assert run(script, "places2", "--standin", "--out", tmp_path / "places2", *small) == 0
    assert "3 + 2 pictures. These are stand-ins" in " ".join(capsys.readouterr().out.split())
    assert run(script, "places2", "--check", "--out", tmp_path / "places2", "--workers", 0) == 0
    assert "train: 3 pictures of" in " ".join(capsys.readouterr().out.split())
    assert run(script, "places2", "--from", tmp_path, "--out", tmp_path / "places2") == 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number in range(10):
        path = root / ("deep/er" if number % 2 else "") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(20 * number))
    return root


def test_pictures_that_lie_elsewhere_are_listed_and_divided(
    script: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data" / "mine"
    assert run(script, "places2", "--from", photos, "--out", out, "--held-out", 0.2) == 0
    assert "8 in train.flist, 2 in val.flist" in " ".join(capsys.readouterr().out.split())
    train, val = ((out / name).read_text().split() for name in ("train.flist", "val.flist"))
    assert sorted(train + val) == sorted(str(path) for path in photos.rglob("*.jpg"))
    data = Places2Module(root=out, cache=tmp_path, image_size=8, name="mine")
    data.setup()
    assert len(data.dataset("train")) == 8
    assert next(iter(data.test_dataloader())).images.shape == (2, 3, 8, 8)
    run(script, "places2", "--from", photos, "--out", tmp_path / "again", "--held-out", 0.2)
    assert (tmp_path / "again" / "val.flist").read_text().split() == val


def test_a_validation_folder_is_taken_as_it_is(script: ModuleType, photos: Path, tmp_path: Path) -> None:
    (photos / "deep").rename(photos / "val_256")
    (photos / "data_256").mkdir()
    for path in photos.glob("*.jpg"):
        path.rename(photos / "data_256" / path.name)
    assert run(script, "places2", "--from", photos, "--out", tmp_path / "out") == 0
    val = (tmp_path / "out" / "val.flist").read_text().split()
    assert val == sorted(str(path) for path in (photos / "val_256").rglob("*.jpg"))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pictures_are_left_out_or_named(
    script: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    (photos / "4.jpg").write_bytes(jpeg(1)[:200])
    out = tmp_path / "out"
    options = ("--out", out, "--held-out", 0.2, "--workers", workers)
    assert run(script, "places2", "--from", photos, *options, "--verify") == 0
    assert f"cannot be decoded: {photos}/4.jpg" in capsys.readouterr().out.replace("\n", "")
    listed = [line for name in ("train.flist", "val.flist") for line in (out / name).read_text().split()]
    assert len(listed) == 9
    assert run(script, "places2", "--check", "--out", out, "--workers", workers) == 0
    assert run(script, "places2", "--from", photos, *options) == 0
    assert run(script, "places2", "--check", "--out", out, "--workers", workers) == 2
    assert "1 pictures cannot be decoded" in " ".join(capsys.readouterr().out.split())


def test_nothing_to_list_is_said(
    script: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, "places2", "--from", tmp_path / "none", "--out", tmp_path / "o") == 2
    assert "no such folder" in capsys.readouterr().out
    assert run(script, "places2", "--from", photos, "--out", tmp_path / "o", "--held-out", 0.01) == 2
    assert "no pictures for val" in " ".join(capsys.readouterr().out.split())
    assert run(script, "places2", "--from", photos, "--out", tmp_path / "o", "--held-out", 1.5) == 2
    assert not (tmp_path / "o").exists()
