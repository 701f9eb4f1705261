"""Super-resolution sets: layouts and their traps, patches that belong together, the stream, and the stand-ins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.bicubic import degrade
from saccade.data.superres import SuperResolutionModule
from saccade.data.superres_layout import PairFiles, find_set, resolve_source, set_folder
from saccade.data.superres_pairs import PatchStream, ResolutionPairs, decoded_path


def write(path: Path, rows: int = 24, cols: int = 36, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, cols, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def module(tmp_path: Path, **options: object) -> SuperResolutionModule:
    small = {"standin_train": 3, "standin_test": 2, "standin_size": (48, 60), "patch": 12, "batch_size": 4}
    given = {"root": tmp_path / "data" / "urban100", "cache": tmp_path / "cache", "scale": 2, **small, **options}
    return SuperResolutionModule(**given)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- layouts


def test_div2k_is_found_in_both_spellings_and_with_800_or_900_in_one_folder(tmp_path: Path) -> None:
    root = tmp_path / "DIV2K"
    for number, split in ((1, "train"), (2, "train"), (801, "valid"), (802, "train")):
        write(root / f"DIV2K_{split}_HR" / f"{number:04d}.png")
    write(root / "DIV2K_train_LR_bicubic" / "X2" / "0002x2.png", 12, 18)
    assert set_folder(tmp_path, "div2k") == root
    found = find_set(root, "div2k", 2, (1, 2))
    assert [(pair.key, pair.low and pair.low.name) for pair in found.pairs] == [("0001", None), ("0002", "0002x2.png")]
    valid = find_set(root, "div2k", 2, (801, 802)).pairs
    assert [pair.high.parent.name for pair in valid] == ["DIV2K_valid_HR", "DIV2K_train_HR"]
    assert [pair.key for pair in find_set(root, "div2k", 3).pairs] == ["0001", "0002", "0801", "0802"]
    with pytest.raises(ValueError, match=r"2 of 4 pictures are missing, first 0003.png.*\n.*Expected layout of DIV2K"):
        find_set(root, "div2k", 2, (1, 4))


def test_both_benchmark_layouts_and_pictures_alone(tmp_path: Path) -> None:
    modern = tmp_path / "benchmark" / "Set5"
    write(modern / "HR" / "baby.png")
    write(modern / "LR_bicubic" / "X3" / "babyx3.png", 8, 12)
    assert set_folder(tmp_path, "set5") == modern
    assert [pair.low is not None for scale in (2, 3) for pair in find_set(modern, "set5", scale).pairs] == [False, True]
    first = tmp_path / "set14"
    for factor in (2, 3):
        write(first / f"image_SRF_{factor}" / f"img_001_SRF_{factor}_HR.png", 24, 24 + factor)
        write(first / f"image_SRF_{factor}" / f"img_001_SRF_{factor}_LR.png", 24 // factor, 26 // factor)
    (pair,) = find_set(first, "set14", 3).pairs
    assert pair.low is not None
    assert (pair.key, pair.high.name, pair.low.name) == ("img_001", "img_001_SRF_3_HR.png", "img_001_SRF_3_LR.png")
    alone = tmp_path / "BSD100"
    write(alone / "b.png")
    write(alone / "a.bmp")
    (alone / "readme.txt").write_text("no picture")
    assert set_folder(tmp_path, "b100") == alone
    assert [pair.key for pair in find_set(alone, "b100", 4).pairs] == ["a", "b"]


def test_urban100s_half_size_folder_is_not_taken(tmp_path: Path) -> None:
    root = tmp_path / "urban100"
    large = write(root / "image_SRF_4" / "img_001_SRF_4_HR.png", 48, 64)
    save(root / "image_SRF_4" / "img_001_SRF_4_LR.png", degrade(large, 4))
    save(root / "image_SRF_2" / "img_001_SRF_2_HR.png", degrade(large, 2))
    save(root / "image_SRF_2" / "img_001_SRF_2_LR.png", degrade(large, 4))
    for scale, given, noted in ((2, False, True), (3, False, False), (4, True, False)):
        found = find_set(root, "urban100", scale)
        (pair,) = found.pairs
        assert (pair.key, pair.high.parent.name, pair.low is not None) == ("img_001", "image_SRF_4", given)
        assert bool(found.notes) == noted
        low, high = ResolutionPairs(found.pairs, scale).pair(pair)
        assert (low == degrade(large, scale)).all()
        assert high.shape[:2] == (48, 64 - 64 % scale)
    assert "0.50 of the size" in find_set(root, "urban100", 2).notes[0]


def test_what_is_not_there_is_told_with_its_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*\n.*Expected layout of Urban100[\s\S]*urban100 --standin"):
        find_set(tmp_path / "urban100", "urban100", 2)
    (tmp_path / "set5" / "HR").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no pictures"):
        find_set(tmp_path / "set5", "set5", 2)
    with pytest.raises(ValueError, match="'set6' is unknown; valid: div2k, urban100"):
        set_folder(tmp_path, "set6")


def test_auto_takes_files_as_soon_as_one_set_is_there(tmp_path: Path) -> None:
    assert resolve_source(tmp_path, "auto", ["div2k", "set5"]) == "standin"
    with pytest.raises(ValueError, match=r"Expected layout of DIV2K[\s\S]*Expected layout of Set5"):
        resolve_source(tmp_path, "files", ["div2k", "set5"])
    write(tmp_path / "set5" / "a.png")
    assert resolve_source(tmp_path, "auto", ["div2k", "set5"]) == "files"
    assert resolve_source(tmp_path, "standin", ["div2k", "set5"]) == "standin"
    with pytest.raises(ValueError, match=r"data\.source=real is unknown"):
        resolve_source(tmp_path, "real", ["set5"])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- pairs and patches


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("given", [False, True])
def test_a_patch_is_a_piece_of_the_whole_pair(tmp_path: Path, scale: int, given: bool) -> None:
    """Also where the low resolution is made of the piece alone, to the bit, up to the picture's borders."""
    pixels = write(tmp_path / "a.png", 50, 62)
    low = degrade(pixels, scale)
    save(tmp_path / "low.png", low)
    files = PairFiles("a", tmp_path / "a.png", tmp_path / "low.png" if given else None)
    pairs = ResolutionPairs([files], scale)
    seen = set()
    for seed in range(40):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        small, large = pairs.patch(files, 9, rng)
        top, left = (int(again.integers(side - 9 + 1)) for side in low.shape[:2])
        seen.add((top, left))
        assert (small == low[top : top + 9, left : left + 9]).all()
        wanted = pixels[scale * top : scale * (top + 9), scale * left : scale * (left + 9)]
        assert (large == wanted).all()
    assert len(seen) > 10
    assert {0} < {top for top, _ in seen}


def test_mirroring_moves_both_pictures_together_and_takes_all_eight_turns(tmp_path: Path) -> None:
    picture = np.zeros((24, 24, 3), np.uint8)
    picture[:12, :, 0] = 200
    picture[:, :12, 1] = 100
    save(tmp_path / "a.png", picture)
    pairs = ResolutionPairs([PairFiles("a", tmp_path / "a.png", None)], 2, load_in_memory=True)
    stream = PatchStream(pairs, 0, 12)
    turns = set()
    for position in range(60):
        sample = stream[position]
        shrunk = torch.from_numpy(degrade(sample.high.permute(1, 2, 0).numpy(), 2)).permute(2, 0, 1)
        assert torch.equal(shrunk, sample.low)
        turns.add(tuple(sample.high[:2, [2, 2, -3, -3], [2, -3, 2, -3]].flatten().tolist()))
        assert torch.equal(stream[position].high, sample.high)
    assert len(turns) == 8
    plain = PatchStream(pairs, 0, 12, augment=False)
    assert len({plain[position].high.numpy().tobytes() for position in range(8)}) == 1


def test_arrays_are_read_in_place_of_their_pictures(tmp_path: Path) -> None:
    picture = tmp_path / "DIV2K_train_HR" / "0001.png"
    write(picture)
    other = np.full((24, 36, 3), 7, np.uint8)
    array = decoded_path(tmp_path, picture)
    array.parent.mkdir(parents=True)
    np.save(array, other)
    files = PairFiles("0001", picture, None)
    assert (ResolutionPairs([files], 2, root=tmp_path).pair(files)[1] == 7).all()
    assert (PatchStream(ResolutionPairs([files], 2, root=tmp_path), 0, 12)[0].high == 7).all()
    assert not (ResolutionPairs([files], 2).pair(files)[1] == 7).all()


def test_pairs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 24, 36)
    write(tmp_path / "low.png", 12, 17)
    files = PairFiles("a", tmp_path / "a.png", tmp_path / "low.png")
    with pytest.raises(ValueError, match=r"low.png: is 12x17, and .*a.png is 24x36, which at a scale of 2 makes 12x18"):
        ResolutionPairs([files], 2)[0]
    with pytest.raises(ValueError, match="the largest patch here is 12"):
        ResolutionPairs([PairFiles("a", tmp_path / "a.png", None)], 2).patch(files, 13, np.random.default_rng(0))


# ---------------------------------------------------------------------- the module


def test_without_files_facades_are_drawn_in_the_official_layouts(tmp_path: Path) -> None:
    data = module(tmp_path, val="div2k")
    assert "made-up facades instead of DIV2K and Urban100" in str(data.banner)
    data.setup("fit")
    assert [pair.key for pair in data.files("train").pairs] == ["0001", "0002", "0003"]
    assert [pair.key for pair in data.files("val").pairs] == ["0801", "0802"]
    assert [pair.high.parent.name for pair in data.files("test").pairs] == ["image_SRF_4"] * 2
    batch = next(iter(data.train_dataloader()))
    assert (batch.low.shape, batch.high.shape) == ((4, 3, 12, 12), (4, 3, 24, 24))
    assert float(batch.high.min()) >= -1
    assert float(batch.high.max()) <= 1
    assert [b.keys for b in data.test_dataloader()] == [["img_001"], ["img_002"]]
    assert data.preview(5).low.shape == (2, 3, 24, 30)
    again = module(tmp_path, val="div2k")
    again.set_position(4)
    stream = iter(data.train_dataloader())
    next(stream)
    assert torch.equal(next(stream).high, next(iter(again.train_dataloader())).high)


def test_real_sets_lie_beside_each_other_and_the_training_pictures_may_be_missing_at_a_test(tmp_path: Path) -> None:
    write(tmp_path / "data" / "set5" / "baby.png", 25, 37)
    write(tmp_path / "data" / "set5" / "bird.png", 28, 36, seed=1)
    data = module(tmp_path, test="set5")
    assert data.resolved_source == "files"
    assert data.banner is None
    data.setup("test")
    shapes = [(batch.keys, tuple(batch.high.shape)) for batch in data.test_dataloader()]
    assert shapes == [(["baby"], (1, 3, 24, 36)), (["bird"], (1, 3, 28, 36))]
    assert data.preview(2).high.shape == (2, 3, 24, 36)
    assert [batch.keys for batch in module(tmp_path, test="set5", test_samples=1).test_dataloader()] == [["baby"]]
    with pytest.raises(ValueError, match="DIV2K: there is no"):
        data.setup("fit")


def test_low_resolutions_of_an_archive_can_be_left_aside(tmp_path: Path) -> None:
    root = tmp_path / "data" / "set5"
    pixels = write(root / "HR" / "baby.png", 24, 24)
    write(root / "LR_bicubic" / "X2" / "babyx2.png", 12, 12, seed=5)
    given, made = (module(tmp_path, test="set5", low=low).pairs("test")[0].low for low in ("files", "made"))
    assert not torch.equal(given, made)
    assert torch.equal(made, torch.from_numpy(degrade(pixels, 2)).permute(2, 0, 1))


def test_the_source_is_settled_before_a_run_is_named(tmp_path: Path) -> None:
    options = {"scale": 2, "test": "set5", "source": "auto"}
    runtime = {"data_dir": str(tmp_path)}
    changes, notices = SuperResolutionModule.resolve_auto(options, runtime)
    assert changes == {"source": "standin"}
    assert "STAND-IN DATA" in notices[0]
    write(tmp_path / "set5" / "a.png")
    assert SuperResolutionModule.resolve_auto(options, runtime) == ({"source": "files"}, [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 8}, "scale=8 is unknown; valid: 2, 3, 4"),
        ({"test": "set6"}, "data.module.test=set6 is unknown"),
        ({"low": "none"}, "low=none is unknown; valid: files, made"),
        ({"eval_range": [810, 801]}, "eval_range: first and last number"),
        ({"patch": 0}, "patch=0: choose 1 or more"),
        ({"val_samples": 0}, "val_samples=0"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **wrong)
