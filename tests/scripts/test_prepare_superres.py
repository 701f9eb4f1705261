"""prepare_data.py's sub-commands of super-resolution: unpack, decode, check, draw."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from saccade.data.bicubic import degrade
from saccade.data.superres_layout import find_set
from saccade.data.superres_pairs import ResolutionPairs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_data.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_superres_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 60, 3)).astype(np.uint8)


@pytest.fixture
def archives(tmp_path: Path) -> list[Path]:
    """DIV2K's archives with two pictures to train on and one to validate, x2 for the first."""
    contents = {
        "DIV2K_train_HR": {"DIV2K_train_HR/0001.png": picture(1), "DIV2K_train_HR/0002.png": picture(2)},
        "DIV2K_valid_HR": {"DIV2K_valid_HR/0801.png": picture(3)},
        "DIV2K_train_LR_bicubic_X2": {"DIV2K_train_LR_bicubic/X2/0001x2.png": degrade(picture(1), 2)},
    }
    made = []
    for name, files in contents.items():
        made.append(tmp_path / f"{name}.zip")
        with zipfile.ZipFile(made[-1], "w") as archive:
            archive.writestr("__MACOSX/._0001.png", b"no picture")
            for inner, pixels in files.items():
                archive.writestr(inner, png(pixels))
    return made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_archives_become_the_folder_that_is_read(
    script: ModuleType, archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "div2k"
    command = ["div2k", "--zip", *map(str, archives), "--out", str(out)]
    assert script.main(command) == 0
    assert "4 files written" in said(capsys)
    files = find_set(out, "div2k", 2)
    assert [pair.key for pair in files.pairs] == ["0001", "0002", "0801"]
    pairs = ResolutionPairs(files.pairs, 2)
    assert (pairs.pair(files.pairs[0])[1] == picture(1)).all()
    assert script.main(command) == 0
    assert "0 files written" in said(capsys)
    (out / "DIV2K_train_HR" / "0002.png").write_bytes(b"cut off")
    assert script.main(command) == 0
    assert "1 files written" in said(capsys)


def test_arrays_are_written_once_and_are_the_pictures(
    script: ModuleType, archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "div2k"
    assert script.main(["div2k", "--zip", *map(str, archives), "--decode", "--out", str(out)]) == 0
    assert "3 arrays written" in said(capsys)  # those that training reads
    assert (np.load(out / "decoded" / "DIV2K_train_HR" / "0002.npy") == picture(2)).all()
    low = np.load(out / "decoded" / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.npy")
    assert (low == degrade(picture(1), 2)).all()


def test_a_check_compares_low_resolutions_with_matlabs(
    script: ModuleType, archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "div2k"
    script.main(["div2k", "--zip", *map(str, archives), "--out", str(out)])
    capsys.readouterr()
    assert script.main(["div2k", "--check", "--scales", "2", "--out", str(out)]) == 0
    text = said(capsys)
    assert "3 pictures, 1 x2" in text
    assert "x2: every low resolution is MATLAB's bicubic to the bit" in text
    assert "DIV2K officially has 900 pictures" in text
    low = out / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.png"
    changed = degrade(picture(1), 2)
    changed[0, 0, 0] ^= 1
    low.write_bytes(png(changed))
    assert script.main(["div2k", "--check", "--scales", "2", "--out", str(out)]) == 0
    assert "x2: 1 of 1 low resolutions are not MATLAB's bicubic, first 0001" in said(capsys)
    low.write_bytes(png(changed[1:]))
    assert script.main(["div2k", "--check", "--scales", "2", "--out", str(out)]) == 2
    assert "0001x2.png: is 23x30" in said(capsys)


def test_a_stand_in_is_drawn_checked_and_never_unpacked_over(
    script: ModuleType, archives: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--test", "1", "--size", "48x60"]
    assert script.main(["urban100", "--standin", *small, "--out", str(tmp_path / "urban100")]) == 0
    assert "1 pictures. These are stand-ins, not Urban100." in said(capsys)
    assert script.main(["urban100", "--check", "--out", str(tmp_path / "urban100")]) == 0
    text = said(capsys)
    assert "1 pictures, 0 x2, 0 x3, 1 x4" in text
    assert "officially" not in text
    out = str(tmp_path / "div2k")
    assert script.main(["div2k", "--standin", "--train", "1", *small, "--out", out]) == 0
    assert script.main(["div2k", "--zip", str(archives[0]), "--out", out]) == 2
    assert "stand-in" in said(capsys)


def test_wrong_archives_and_folders_are_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, broken = tmp_path / "other.zip", tmp_path / "broken.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("../DIV2K_train_HR/0001.png", b"")
        archive.writestr("cats/1.png", b"")
    broken.write_bytes(b"PK but no archive")
    out = str(tmp_path / "div2k")
    assert script.main(["div2k", "--zip", str(other), "--out", out]) == 2
    assert "other.zip: holds no DIV2K_train_HR/0001.png" in said(capsys)
    assert script.main(["div2k", "--zip", str(broken), "--out", out]) == 2
    assert "broken.zip: not a readable zip file" in said(capsys)
    assert script.main(["set5", "--check", "--out", str(tmp_path / "set5")]) == 2
    assert "Expected layout of Set5" in said(capsys)
    assert script.main(["div2k", "--check", "--decode", "--out", out]) == 2
    assert "there are no pictures" in said(capsys)
