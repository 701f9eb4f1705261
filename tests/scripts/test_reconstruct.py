"""scripts/reconstruct.py as a command: own pictures, studies in a folder, and what it answers to wrong input."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROJECT = Path(__file__).resolve().parents[2]
MAIN = runpy.run_path(str(PROJECT / "scripts" / "reconstruct.py"))["main"]


def texture(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (-(-rows // 4), -(-cols // 4), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((cols, rows), Image.Resampling.BICUBIC))


@pytest.fixture
def two(tmp_path):
    """A reference, and a smaller part of it as the target."""
    reference = texture(40, 48)
    Image.fromarray(reference).save(tmp_path / "b.png")
    Image.fromarray(reference[4:36, 10:42]).save(tmp_path / "a.png")
    return [f"target={tmp_path / 'a.png'}", f"reference={tmp_path / 'b.png'}", "progress=off"]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_picture_is_written_beside_the_target(two, tmp_path, capsys):
    assert MAIN([*two, "methods=exact", "temperature=0.01"]) == 0
    told = capsys.readouterr().out
    written = tmp_path / "a-reconstructed.png"
    assert str(written) in told
    rebuilt, target = read(written).astype(int), read(tmp_path / "a.png").astype(int)
    assert rebuilt.shape == target.shape
    assert np.abs(rebuilt - target)[4:-4, 4:-4].max() == 0  # every inner patch is in the reference
    before = written.read_bytes()
    assert MAIN([*two]) == 1
    assert "overwrite=true" in capsys.readouterr().err
    assert written.read_bytes() == before
    assert MAIN([*two, "overwrite=true", "methods=linear"]) == 0
    assert written.read_bytes() != before


def test_several_methods_write_a_picture_each_and_a_sheet(two, tmp_path, capsys):
    assert MAIN([*two, "methods=psal1,linear", "attention=psal", "matches=2", "temperature=1,0.5"]) == 0
    told = capsys.readouterr().out
    names = ["psal1", "psal1-T0.5", "linear", "psal-matches-2", "psal-matches-2-T0.5"]
    files = {path.name for path in tmp_path.glob("a-*.png")}
    assert files == {f"a-reconstructed-{name}.png" for name in names} | {"a-reconstruction.png"}
    assert "psal matches=2" in told
    assert "beside each other" in told


def test_transparency_and_16_bits_stay(tmp_path, capsys):
    rgba = np.dstack([texture(24, 24), np.full((24, 24), 77, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(texture(24, 24)[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(texture(30, 24, 1)).save(tmp_path / "b.png")
    arguments = [f"reference={tmp_path / 'b.png'}", "progress=off"]
    assert MAIN([f"target={tmp_path / 'a.png'}", *arguments]) == 0
    assert (read(tmp_path / "a-reconstructed.png")[..., 3] == 77).all()
    assert MAIN([f"target={tmp_path / 'deep.png'}", f"reference={tmp_path / 'deep.png'}", "progress=off"]) == 0
    grey = Image.open(tmp_path / "deep-reconstructed.png")
    assert grey.mode.startswith("I;16")  # grey from grey stays grey, with its depth
    assert MAIN([f"target={tmp_path / 'deep.png'}", *arguments, "overwrite=true"]) == 0
    coloured = read(tmp_path / "deep-reconstructed.png")
    assert coloured.shape == (24, 24, 3)  # grey from colours takes their colours
    assert "16 bits" in capsys.readouterr().out
    arguments = [f"target={tmp_path / 'b.png'}", f"reference={tmp_path / 'deep.png'}", "progress=off"]
    assert MAIN(arguments) == 0
    assert Image.open(tmp_path / "b-reconstructed.png").mode == "L"  # nor do colours stay without any to take


def test_tiny_pictures_are_rebuilt(tmp_path):
    Image.fromarray(texture(1, 2)).save(tmp_path / "a.png")
    Image.fromarray(texture(2, 2)).save(tmp_path / "b.png")
    command = [f"target={tmp_path / 'a.png'}", f"reference={tmp_path / 'b.png'}", "progress=off"]
    assert MAIN(command) == 0
    assert read(tmp_path / "a-reconstructed.png").shape == (1, 2, 3)


STUDY = ("sizes=32,24", "methods=full,local,psal3,aggregate@32", "window=16", "pictures=1", "memory=false", "crop=3")


def test_a_study_fills_a_folder_and_goes_on(two, tmp_path, capsys):
    out = tmp_path / "study"
    command = [*two, *STUDY, f"out={out}"]
    assert MAIN(command) == 0
    told = capsys.readouterr().out
    assert "## 32x32, T = 1" in told
    assert "## Table 3, T = 1" in told
    cells = list(csv.DictReader((out / "cells.csv").open()))
    assert [(row["size"], row["method"]) for row in cells] == [
        ("32", "full"), ("32", "local"), ("32", "psal3"), ("32", "aggregate"),
        ("24", "full"), ("24", "local"), ("24", "psal3"),
    ]  # fmt: skip
    assert (out / "pictures" / "a-32.png").is_file()
    assert read(out / "pictures" / "a" / "32-psal3.png").shape == (32, 32, 3)
    lines = (out / "pairs.csv").read_text().splitlines()
    (out / "pairs.csv").write_text(
        "\n".join([*lines[:2], lines[2].replace(",local,", ",local,", 1), *lines[4:]]) + "\n"
    )
    kept = (out / "pairs.csv").read_text().splitlines()
    assert MAIN(command) == 0
    again = (out / "pairs.csv").read_text().splitlines()
    assert len(again) == len(lines)
    assert set(kept) <= set(again)  # what was measured before stands, times and all
    assert MAIN([*two, *STUDY, f"out={out}", "patch_size=5"]) == 1
    assert "no place for" in capsys.readouterr().err
    assert MAIN([*two, *STUDY, f"out={out}", "patch_size=5", "overwrite=true"]) == 0


def test_frames_of_a_folder_are_paired(tmp_path, capsys):
    for number in range(4):
        Image.fromarray(np.roll(texture(24, 24), number, 1)).save(tmp_path / f"{number}.png")
    out = tmp_path / "out"
    command = [f"frames={tmp_path}", "distance=3", "sizes=24", "methods=psal1", "memory=false", f"out={out}"]
    assert MAIN([*command, "pictures=0", "progress=off"]) == 0
    rows = list(csv.DictReader((out / "pairs.csv").open()))
    assert [(row["target"], row["reference"]) for row in rows] == [("0.png", "3.png")]
    assert not (out / "pictures").exists()
    assert f"frames in {tmp_path.name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["target=a.png"], "give target= and reference="),
        (["data=davis", "frames=there"], "one of them"),
        (["data=sintel"], "davis is the only data set"),
        (["frames=nowhere"], "no such folder"),
        (["frames=nowhere", "split=val"], "split= belongs to data=davis"),
        (["target=a.png", "reference=b.png"], "no such picture"),
        (["target=a.png", "reference=b.png", "distance=3"], "belong to data=davis and frames="),
        (["data=davis", "methods=psla3"], "did you mean"),
        (["data=davis", "methods=psal3,psal3"], "given twice"),
        (["data=davis", "methods=,"], "name one method"),
        (["data=davis", "attention=psal", "matchs=3"], "did you mean matches=?"),
        (["data=davis", "matches=3"], "matches= is not an option"),
        (["data=davis", "sizes=big"], "give whole numbers"),
        (["data=davis", "temperature=0"], "numbers above 0"),
        (["data=davis", "zooms=0.5"], "top,left,side"),
        (["data=davis", "patch_size=4", "source=standin", "sizes=16"], "odd"),
        (["data=davis", "attention=ylg", "source=standin", "sizes=16"], "do not split into 8 heads"),
    ],
)
def test_wrong_input_ends_in_one_message(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    assert MAIN(arguments) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("Error: ")
    assert not list(tmp_path.iterdir())  # not even the stand-in
