from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data import prepare_deepfashion
from saccade.data.keypoints import write_annotations
from saccade.data.lists import read_lists
from saccade.data.pairs import write_pairs
from saccade.data.prepare_deepfashion import flat_names

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_data.py"
GARMENTS = {"train": (1, 2), "test": (7,)}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_data_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entry(garment: int, view: int) -> str:
    return f"WOMEN/Tees_Tanks/id_{garment:08d}/01_{view}_front.jpg"


def patn(garment: int, view: int) -> str:
    return f"fashionWOMENTees_Tanksid{garment:08d}01_{view}front.jpg"


def pixels(garment: int, view: int, rows: int, cols: int) -> np.ndarray:
    """A smooth picture of its own with red side borders of 40/256."""
    y, x = np.mgrid[:rows, :cols] / rows
    out = np.stack([120 + 60 * np.sin(3 * x + garment), 120 + 60 * np.sin(4 * y + view), 128 + 0 * x], -1)
    if rows == cols:
        border = 40 * cols // 256
        out[:, :border] = out[:, cols - border :] = (255, 0, 0)
    return out.astype(np.uint8)


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=98, subsampling=0)
    return buffer.getvalue()


def make_zip(path: Path, rows: int = 256, cols: int = 256, drop: tuple[str, ...] = ()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img/README.txt", "no picture")
        for garments in GARMENTS.values():
            for garment in garments:
                for view in (1, 2, 3):
                    if entry(garment, view) not in drop:
                        archive.writestr(f"img/{entry(garment, view)}", jpeg(pixels(garment, view, rows, cols)))
    return path


def make_lists(folder: Path, pair_lists: bool = False, far: float = 60.0) -> Path:
    folder.mkdir()
    for split, garments in GARMENTS.items():
        rows = {}
        for garment in garments:
            for view in (1, 2, 3):
                points = torch.ones(18, 3)
                points[:, 0], points[:, 1] = torch.linspace(50, far, 18), torch.linspace(20, 200, 18)
                rows[patn(garment, view)] = points.round()
        write_annotations(folder / f"fasion-resize-annotation-{split}.csv", rows)
        if pair_lists:
            write_pairs(folder / f"fasion-resize-pairs-{split}.csv", [(patn(garments[0], 1), patn(garments[0], 2))])
    return folder


def run(script: ModuleType, *arguments: object) -> int:
    code = script.main(["deepfashion", *map(str, arguments)])
    assert isinstance(code, int)
    return code


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_names_are_flattened_as_published() -> None:
    assert flat_names("img/WOMEN/Tees_Tanks/id_00007962/09_7_additional.jpg") == (
        "fashionWOMENTees_Tanksid0000796209_7additional.jpg",
        "fasionWOMENTeesTanksid0000796209_7additional.jpg",
    )
    assert flat_names("any/where/mine.jpg") == ("mine.jpg",)


def test_img_zip_becomes_the_patn_layout(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, lists, out = make_zip(tmp_path / "img.zip"), make_lists(tmp_path / "lists"), tmp_path / "out"
    assert run(script, "--zip", archive, "--lists", lists, "--out", out) == 0
    said = capsys.readouterr().out
    assert "implied by the file name" in said
    assert "warning: 6 test pairs are no published split" in said
    pictures = {f"{s}/{patn(g, v)}" for s, gs in GARMENTS.items() for g in gs for v in (1, 2, 3)}
    names = {f"fasion-resize-{kind}-{split}.csv" for kind in ("annotation", "pairs") for split in GARMENTS}
    assert listing(out) == pictures | names | {"manifest.json"}
    made = np.asarray(Image.open(out / "train" / patn(2, 3))).astype(int)
    assert made.shape == (256, 176, 3)
    assert np.abs(made - pixels(2, 3, 256, 256)[:, 40:-40]).max() < 12  # cut, not squeezed; two JPEG rounds
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["train_pairs"] == 12
    assert manifest["counts"]["test_files"] == 3
    assert len(manifest["lists"]["fasion-resize-annotation-test.csv"]) == 64
    assert read_lists(out).frame == "256x176"
    assert run(script, "--check", "--out", out) == 0
    assert "12 train pairs" in capsys.readouterr().out


def test_high_resolution_folders_are_resized_whole(script: ModuleType, tmp_path: Path) -> None:
    source, lists = tmp_path / "img_highres", make_lists(tmp_path / "lists", pair_lists=True)
    for garments in GARMENTS.values():
        for garment in garments:
            for view in (1, 2, 3):
                path = source / entry(garment, view)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(pixels(garment, view, 550, 375)))
    out = tmp_path / "out"
    assert run(script, "--folder", source, "--lists", lists, "--out", out, "--size", "512x352") == 0
    made = np.asarray(Image.open(out / "test" / patn(7, 1))).astype(int)
    assert made.shape == (512, 352, 3)
    corner = pixels(7, 1, 550, 375)
    assert np.abs(made[[0, 0, -1, -1], [0, -1, 0, -1]] - corner[[0, 0, -1, -1], [0, -1, 0, -1]]).max() < 8
    assert len(read_lists(out).splits["train"].pairs) == 1


def test_borders_can_stay(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, lists, out = make_zip(tmp_path / "img.zip"), make_lists(tmp_path / "lists"), tmp_path / "out"
    options = ("--zip", archive, "--lists", lists, "--out", out, "--keep-borders")
    assert run(script, *options) == 2
    assert "pictures with their borders are square" in capsys.readouterr().out
    assert not out.exists()
    assert run(script, *options, "--size", "256x256") == 0
    assert "square_files=bordered" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as whole:
        assert (out / "test" / patn(7, 2)).read_bytes() == whole.read(f"img/{entry(7, 2)}")


def test_an_interrupted_call_goes_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, lists, out = make_zip(tmp_path / "img.zip"), make_lists(tmp_path / "lists"), tmp_path / "out"
    options = ("--zip", archive, "--lists", lists, "--out", out)
    write, wrote = prepare_deepfashion._write_picture, []

    def stop_in_the_middle(name: str, data: bytes, path: Path, how: prepare_deepfashion.Options) -> None:
        wrote.append(path.name)
        if len(wrote) == 4:
            path.with_name(f".{path.name}-0.tmp").write_bytes(data[:100])
            raise KeyboardInterrupt
        write(name, data, path, how)

    monkeypatch.setattr(prepare_deepfashion, "_CHUNK", 1)
    monkeypatch.setattr(prepare_deepfashion, "_write_picture", stop_in_the_middle)
    assert run(script, *options) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not (out / "manifest.json").exists()
    whole = list(out.rglob("*.jpg"))
    assert len(whole) == 3
    assert all(Image.open(path).size == (176, 256) for path in whole)
    stamps = {path: path.stat().st_mtime_ns for path in whole}
    assert run(script, *options, "--quality", "50") == 2  # other options would mix
    assert "was prepared with other options" in capsys.readouterr().out
    monkeypatch.setattr(prepare_deepfashion, "_write_picture", write)
    assert run(script, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in whole} == stamps
    assert not [name for name in listing(out) if "tmp" in name or "preparing" in name]
    assert len(list(out.rglob("*.jpg"))) == 9
    assert run(script, *options) == 0


def test_bad_input_is_named(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists, out = make_lists(tmp_path / "lists"), tmp_path / "out"

    def complaint(*options: object) -> str:
        assert run(script, "--out", out, *options) == 2
        assert not out.exists() or not list(out.rglob("*.jpg"))
        return " ".join(capsys.readouterr().out.split())

    archive = make_zip(tmp_path / "img.zip")
    assert "--lists is missing" in complaint("--zip", archive)
    (tmp_path / "empty").mkdir()
    assert "no keypoint file of the train split" in complaint("--zip", archive, "--lists", tmp_path / "empty")
    assert "holds no .jpg pictures" in complaint("--folder", tmp_path / "empty", "--lists", lists)
    assert "neither a folder nor a readable zip" in complaint("--zip", SCRIPT, "--lists", lists)
    assert "neither a folder nor a readable zip" in complaint("--zip", tmp_path / "no.zip", "--lists", lists)
    partial = make_zip(tmp_path / "part.zip", drop=(entry(2, 1),))
    assert f"1 of 6 pictures of the train pairs are not there, e.g. {patn(2, 1)}" in complaint(
        "--zip", partial, "--lists", lists
    )
    assert "has 256x176 pixels to show, less than the 512x352" in complaint(
        "--zip", archive, "--lists", lists, "--size", "512x352"
    )
    odd = make_zip(tmp_path / "odd.zip", rows=128, cols=300)
    assert "the picture is 128x300" in complaint("--zip", odd, "--lists", lists, "--out", tmp_path / "out2")
    far = make_lists(tmp_path / "far", far=230.0)
    assert "fasion-resize-annotation-train.csv:2: a point at x = 230" in complaint("--zip", archive, "--lists", far)
    assert "--frame=256x256" in complaint("--zip", archive, "--lists", far)


def test_damaged_pictures_are_named_and_leave_nothing_half_written(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, lists, out = (
        make_zip(tmp_path / "img.zip", drop=(entry(1, 2),)),
        make_lists(tmp_path / "l"),
        tmp_path / "out",
    )
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(f"img/{entry(1, 2)}", jpeg(pixels(1, 2, 256, 256))[:900])
    assert run(script, "--zip", archive, "--lists", lists, "--out", out) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"img.zip/img/{entry(1, 2)}: not a readable picture" in said
    assert not (out / "train" / patn(1, 2)).exists()
    assert not list(out.rglob("*.tmp"))
    assert not (out / "manifest.json").exists()


def test_foreign_folders_are_left_alone(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, lists = make_zip(tmp_path / "img.zip"), make_lists(tmp_path / "lists")
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert run(script, "--zip", archive, "--lists", lists, "--out", out) == 2
    assert "not empty and was not made by this command" in " ".join(capsys.readouterr().out.split())
    assert listing(out) == {"mine.txt"}


def test_standins_are_written_and_checked(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--standin", "--out", tmp_path / "df", "--train", 2, "--test", 1, "--poses", 3, "--size", "64x44")
    assert run(script, *options) == 0
    assert "These are stand-ins" in " ".join(capsys.readouterr().out.split())
    assert run(script, "--check", "--out", tmp_path / "df") == 0
    assert run(script, *options) == 0
    assert "already there" in capsys.readouterr().out


# ---------------------------------------------------------------- pictures of classes


def make_class_folders(root: Path, count: int = 4) -> Path:
    for number, key in enumerate(("ash", "oak")):
        (root / key).mkdir(parents=True)
        for view in range(count):
            (root / key / f"{view}.jpg").write_bytes(jpeg(pixels(number, view, 20, 24)))
    return root


def test_a_folder_of_classes_is_packed_and_checked(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = make_class_folders(tmp_path / "trees"), tmp_path / "out"
    (source / "oak" / "1.jpg").write_bytes(b"broken")
    options = ("--from", source, "--out", out, "--size", 16, "--workers", 0, "--held-out", 0.25)
    for _ in range(2):  # the second time it is there
        assert run_class(script, "folder", *options) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "train: 5 pictures of 2 classes" in said
        assert "left out: oak/1.jpg: not a readable picture" in said
    assert listing(source) == {"ash/0.jpg", "ash/1.jpg", "ash/2.jpg", "ash/3.jpg"} | {f"oak/{i}.jpg" for i in range(4)}
    assert run_class(script, "folder", "--check", "--out", out) == 0
    assert "every file is as it was packed" in " ".join(capsys.readouterr().out.split())
    (out / "packed-16" / "val_labels.npy").write_bytes(b"")
    assert run_class(script, "folder", "--check", "--out", out) == 2
    assert "val_labels.npy: missing or not as it was packed" in " ".join(capsys.readouterr().out.split())
    assert run_class(script, "folder", "--check", "--out", source) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 classes, 6 train, 2 val; not packed" in said
    assert f"python scripts/prepare_data.py folder --from {source}" in said


def test_stand_in_classes_are_drawn_and_packed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--standin", "--out", tmp_path / "things", "--train", 1, "--val", 1, "--size", 16)
    assert run_class(script, "imagenet", *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "train: 10 pictures of 10 classes" in said
    assert "These are stand-ins." in said


def test_pictures_of_classes_that_are_not_there_end_in_one_message(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout, words in (
        ("imagenet", "neither train/"),
        ("folder", "no folders of classes"),
        ("cifar10", "not there"),
    ):
        assert run_class(script, layout, "--from", tmp_path / "none", "--out", tmp_path / "out") == 2
        assert words in " ".join(capsys.readouterr().out.split())


def run_class(script: ModuleType, layout: str, *options: object) -> int:
    return int(script.main([layout, *map(str, options)]))
