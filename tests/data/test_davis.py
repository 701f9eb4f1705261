"""DAVIS: its packages' layouts, the pairs of training and test, and the module over files and over the stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.davis import DavisModule
from saccade.data.davis_layout import find_davis, frames_of, middle_frame, resolve_source
from saccade.data.editing_batches import FramePairBatch
from saccade.data.frame_pairs import FramePairStream, read_frame
from saccade.data.kept import Kept
from saccade.data.standin.folder import MARKER
from saccade.geometry import Size

Make = Callable[..., Path]
STANDIN = {"standin_train": 4, "standin_test": 2, "standin_frames": 5, "standin_size": (32, 56)}
LISTS: Mapping[str, Sequence[str]] = {
    "train": ["bear", "boat"],
    "val": ["camel"],
    "test-dev": ["dog"],
    "test-challenge": ["goat", "horse"],
}


@pytest.fixture
def make_davis(tmp_path: Path) -> Make:
    """Write packages: frame i of a sequence is grey 10 * i."""

    def make(
        lists: Mapping[str, Sequence[str]] = LISTS,
        *,
        frames: Sequence[int] = range(23),
        base: str = "DAVIS",
        resolution: str = "480p",
        missing: Sequence[str] = (),
        size: tuple[int, int] = (12, 20),
    ) -> Path:
        root = tmp_path / "davis"
        listing = root / base / "ImageSets" / "2017"
        listing.mkdir(parents=True)
        for split, names in lists.items():
            (listing / f"{split}.txt").write_text("\n".join(names) + "\n")
            for name in names:
                folder = root / base / "JPEGImages" / resolution / name
                if name in missing:
                    continue
                folder.mkdir(parents=True)
                for number in frames:
                    picture = np.full((*size, 3), 10 * number % 256, np.uint8)
                    Image.fromarray(picture).save(folder / f"{number:05d}.jpg", quality=95)
        return root

    return make


def module(root: Path, **options: object) -> DavisModule:
    return DavisModule(root=root, cache=root.parent / "cache", **({"image_size": 8} | options))  # type: ignore[arg-type]


# -------------------------------------------------------------------- layout


@pytest.mark.parametrize("base", ["DAVIS", "", "DAVIS-2017-trainval-480p/DAVIS", "anything"])
def test_packages_are_found_where_they_were_unpacked(make_davis: Make, base: str) -> None:
    files = find_davis(make_davis(base=base))
    assert files.lists == {split: tuple(names) for split, names in LISTS.items()}
    assert sorted(files.folders) == ["bear", "boat", "camel", "dog", "goat", "horse"]
    assert files.sequences("train+test-dev") == ["bear", "boat", "dog"]


def test_packages_in_folders_of_their_own_are_read_together(make_davis: Make) -> None:
    make_davis({"train": ["bear"], "val": ["camel"]}, base="trainval/DAVIS")
    root = make_davis({"test-dev": ["dog"]}, base="testdev/DAVIS")
    files = find_davis(root)
    assert sorted(files.lists) == ["test-dev", "train", "val"]
    assert files.folders["dog"].relative_to(root).parts[0] == "testdev"


def test_two_lists_of_one_name_that_differ_are_an_error(make_davis: Make) -> None:
    make_davis({"train": ["bear"]}, base="a/DAVIS")
    root = make_davis({"train": ["boat"]}, base="b/DAVIS")
    with pytest.raises(ValueError, match=r"train\.txt: another list of that name"):
        find_davis(root)


def test_another_resolution_is_named_and_can_be_chosen(make_davis: Make) -> None:
    root = make_davis(resolution="Full-Resolution")
    with pytest.raises(ValueError, match=r"there is Full-Resolution: set data\.module\.resolution"):
        find_davis(root)
    assert len(find_davis(root, "Full-Resolution").folders) == 6


def test_frames_are_sorted_by_number_and_odd_names_refused(tmp_path: Path) -> None:
    for name in ("00010.jpg", "00002.jpg", "00001.jpg", "._00001.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert list(frames_of(tmp_path)) == [1, 2, 10]
    (tmp_path / "1.png").touch()
    with pytest.raises(ValueError, match="both frame 1"):
        frames_of(tmp_path)
    (tmp_path / "1.png").rename(tmp_path / "cover.jpg")
    with pytest.raises(ValueError, match=r"cover\.jpg: frames are called by their numbers"):
        frames_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no frames in it"):
        frames_of(tmp_path / "empty")


@pytest.mark.parametrize(("count", "middle"), [(5, 2), (6, 3), (1, 0), (90, 45)])
def test_the_middle_frame_is_that_of_the_released_evaluation(count: int, middle: int) -> None:
    assert middle_frame(range(count)) == middle


def test_the_source_is_decided_by_what_is_there(make_davis: Make, tmp_path: Path) -> None:
    assert resolve_source(tmp_path / "none") == "standin"
    assert resolve_source(make_davis()) == "files"
    assert resolve_source(tmp_path / "davis", "standin") == "standin"
    with pytest.raises(ValueError, match=r"not complete.*ImageSets(.|\n)*prepare_data\.py davis --zip"):
        resolve_source(tmp_path / "none", "files")
    with pytest.raises(ValueError, match="valid: auto, files, standin"):
        resolve_source(tmp_path, "file")  # type: ignore[arg-type]
    shutil.rmtree(tmp_path / "davis" / "DAVIS" / "JPEGImages")
    with pytest.raises(ValueError, match=r"no JPEGImages/480p"):  # begun, so no stand-in in secret
        resolve_source(tmp_path / "davis")


# -------------------------------------------------------------------- splits


def test_auto_is_the_papers_split_where_all_packages_are_there(make_davis: Make) -> None:
    data = module(make_davis())
    assert (data.train_split, data.test_split, data.notices) == ("train+test-dev", "test-challenge", [])
    assert data.sequences("test") == ["goat", "horse"]


def test_auto_does_without_packages_and_says_so(make_davis: Make, tmp_path: Path) -> None:
    root = make_davis(missing=["dog", "goat", "horse"])
    data = module(root)
    assert (data.train_split, data.test_split) == ("train", "val")
    assert len(data.notices) == 2
    assert "test on val, not on test-challenge" in data.notices[1]
    changes, notices = DavisModule.resolve_auto({"train_split": "auto", "test_split": "auto"}, {"data_dir": tmp_path})
    assert changes == {"source": "files", "train_split": "train", "test_split": "val"}
    assert notices == data.notices


def test_a_list_that_is_half_there_or_named_and_not_there_is_an_error(make_davis: Make) -> None:
    root = make_davis(missing=["goat"])
    with pytest.raises(ValueError, match=r"1 of 2 sequences of test-challenge have no frames there, e\.g\. goat"):
        module(root)
    assert module(root, test_split="val").test_split == "val"
    with pytest.raises(ValueError, match=r"no list .*tests\.txt; there is test-challenge, test-dev, train, val"):
        module(root, test_split="tests")


def test_training_and_test_may_not_share_sequences(make_davis: Make) -> None:
    with pytest.raises(ValueError, match=r"share 1 sequences, e\.g\. camel"):
        module(make_davis(), train_split="train+val", test_split="val")


# -------------------------------------------------------------------- pairs


def test_test_pairs_are_the_middle_frame_with_references_on_both_sides(make_davis: Make) -> None:
    pairs = module(make_davis()).test_pairs()
    assert len(pairs) == 2 * 8
    assert {pair.target for pair in pairs} == {11}
    assert [pair.reference - pair.target for pair in pairs[:8]] == [1, -1, 3, -3, 5, -5, 10, -10]
    assert [pair.sequence for pair in pairs[::8]] == ["goat", "horse"]


def test_references_outside_a_sequence_are_left_out_and_counted(
    make_davis: Make, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(make_davis(frames=range(8)))
    data.setup()
    assert [pair.reference for pair in data.test_pairs()[:4]] == [5, 3, 7, 1]
    assert "8 test references lie outside" in caplog.text
    with pytest.raises(ValueError, match=r"set data\.module\.distances to smaller ones"):
        module(data.root, distances=[20]).test_pairs()


def test_gaps_between_frame_numbers_are_kept_in_mind(make_davis: Make) -> None:
    """Distances are numbers of frames and not places in the folder."""
    data = module(make_davis(frames=range(0, 50, 10)))
    assert [(p.target, p.reference) for p in data.test_pairs()[:2]] == [(20, 30), (20, 10)]


@pytest.mark.parametrize(("samples", "count"), [(1, 8), (8, 8), (15, 8), (16, 16), (1000, 16)])
def test_fewer_samples_are_whole_sequences(make_davis: Make, samples: int, count: int) -> None:
    pairs = module(make_davis()).test_pairs(samples)
    assert len(pairs) == count
    assert len({(p.reference - p.target) for p in pairs}) == 8


def test_reconstruction_pairs_are_ten_frames_apart_later_or_else_earlier(make_davis: Make) -> None:
    data = module(make_davis(frames=range(23)))
    pair = data.reconstruction_pairs()[0]
    assert (pair.sequence, pair.target.name, pair.reference.name, pair.distance) == (
        "goat",
        "00011.jpg",
        "00021.jpg",
        10,
    )
    shutil.rmtree(data.root)
    data = module(make_davis(frames=range(20)))  # middle 10: 20 is not there, 0 is
    assert [(p.reference.name, p.distance) for p in data.reconstruction_pairs("val")] == [("00000.jpg", -10)]
    with pytest.raises(ValueError, match="camel has frames 0 to 19 and none 11 before or after"):
        data.reconstruction_pairs("val", 11)
    with pytest.raises(ValueError, match="1 frame or more"):
        data.reconstruction_pairs(distance=0)


def test_training_pairs_are_two_frames_of_one_sequence_all_of_them_in_time(make_davis: Make) -> None:
    data = module(make_davis(frames=range(4)))
    videos = data.videos("train")
    stream = FramePairStream(videos, Kept(lambda path: read_frame(path, Size(8, 8)), 1), seed=3)
    pairs = [stream.pair_at(position) for position in range(600)]
    assert all(pair.target != pair.reference for pair in pairs)
    assert len(set(pairs)) == 3 * 4 * 3  # every ordered pair of three sequences
    counts = np.unique([pair.sequence for pair in pairs], return_counts=True)[1]
    assert counts.tolist() == [200, 200, 200]  # each lap has every sequence once
    assert [stream.pair_at(p) for p in (7, 300)] == [pairs[7], pairs[300]]
    other = FramePairStream(videos, stream.read, seed=4)
    assert [other.pair_at(p) for p in range(20)] != pairs[:20]


def test_a_sequence_of_one_frame_cannot_be_trained_on(make_davis: Make) -> None:
    with pytest.raises(ValueError, match="bear has one frame only"):
        module(make_davis(frames=[0])).setup()


# -------------------------------------------------------------------- pictures and loaders


def test_frames_are_stretched_by_pillows_bicubic_filter(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 85, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    expected = np.array(Image.fromarray(picture).resize((16, 8)))  # Pillow's default since 7.0, as the released script
    found = read_frame(tmp_path / "0.png", Size(8, 16))
    assert found.shape == (3, 8, 16)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_batches_hold_what_their_keys_say(make_davis: Make) -> None:
    data = module(make_davis(), eval_batch_size=3)
    batches = list(data.test_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 3, 3, 3, 1]
    batch = batches[0]
    assert isinstance(batch, FramePairBatch)
    assert batch.keys == ["goat/00011-00012", "goat/00011-00010", "goat/00011-00014"]
    assert batch.distances.tolist() == [1, -1, 3]
    grey = ((batch.reference.mean((1, 2, 3)) + 1) * 127.5).round() / 10
    assert grey.tolist() == [12, 10, 14]
    assert torch.allclose((batch.target + 1) * 127.5, torch.tensor(110.0), atol=1.0)
    assert (batch.target.shape, batch.target.dtype) == ((3, 3, 8, 8), torch.float32)


def test_the_stream_goes_on_where_training_stopped_whatever_the_devices(make_davis: Make) -> None:
    data = module(make_davis(), batch_size=2)
    batches = iter(data.train_dataloader())
    first = [next(batches).keys for _ in range(4)]
    data.set_position(4)
    assert next(iter(data.train_dataloader())).keys == first[2]
    data.set_position(0)
    shared = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shared.append(next(iter(data.train_dataloader())).keys)
    assert shared == first[:2]


def test_evaluation_is_shared_out_over_devices_without_overlap(make_davis: Make) -> None:
    data = module(make_davis())
    seen = []
    for rank in range(3):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3)  # type: ignore[assignment]
        seen += [key for batch in data.test_dataloader() for key in batch.keys]
    assert len(seen) == len(set(seen)) == 16
    data.trainer = SimpleNamespace(global_rank=0, world_size=17)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="16 evaluation samples cannot be shared out to 17 devices"):
        data.test_dataloader()


def test_validation_has_its_own_number(make_davis: Make) -> None:
    data = module(make_davis(), eval_samples=16, val_samples=8)
    assert [sum(map(len, loader)) for loader in (data.test_dataloader(), data.val_dataloader())] == [16, 8]


def test_previews_show_several_sequences_and_distances(make_davis: Make) -> None:
    data = module(make_davis())
    assert data.preview(2).keys == data.preview(2).keys
    assert {key.split("/")[0] for key in data.preview(2).keys} == {"goat", "horse"}
    assert len(set(data.preview(2).distances.tolist())) == 2
    assert len(data.preview(5)) == 5
    assert len(data.preview(99)) == 16
    with pytest.raises(ValueError, match="at least 1"):
        data.preview(0)


@pytest.mark.parametrize("room", [0.0, 3 * 64 * 2 / 2**20, 1.0])
def test_what_is_kept_changes_no_frame(make_davis: Make, room: float) -> None:
    data = module(make_davis(), keep_mib=room)
    frames = list(data.frames("bear").values())[:4]
    first = [data._read(path) for path in frames]
    assert all(torch.equal(data._read(path), kept) for path, kept in zip(frames, first, strict=True))
    again = [data._read(path) is kept for path, kept in zip(frames, first, strict=True)]
    assert again == [i < {0.0: 0, 1.0: 4}.get(room, 2) for i in range(4)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distances": []}, "distances: different numbers"),
        ({"distances": [1, 1]}, "distances: different numbers"),
        ({"distances": [0]}, "distances: different numbers"),
        ({"batch_size": 0}, "batch_size and eval_batch_size are 1 or more"),
        ({"eval_samples": 0}, "eval_samples=0: choose 1 or more"),
        ({"keep_mib": -1.0}, "keep_mib=-1.0: 0 .keep none. or more"),
        ({"source": "file"}, "valid: auto, files, standin"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path / "none", **wrong)


def test_an_unknown_sequence_is_named(make_davis: Make) -> None:
    with pytest.raises(ValueError, match=r"no sequence bare; there are 6: bear, boat"):
        module(make_davis()).frames("bare")


# -------------------------------------------------------------------- stand-in


def test_the_module_reads_its_stand_in_and_says_so(tmp_path: Path) -> None:
    data = module(tmp_path / "none", distances=[1, 2], **STANDIN)
    assert (data.resolved_source, data.train_split, data.test_split) == ("standin", "train+test-dev", "test-challenge")
    assert data.notices == [data.banner]
    assert "STAND-IN DATA" in str(data.banner)
    data.setup()
    assert (len(data.sequences("train")), len(data.sequences("test")), len(data.sequences("val"))) == (4, 2, 2)
    assert len(data.test_pairs()) == 2 * 4
    assert next(iter(data.train_dataloader())).target.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="share 2 sequences"):
        module(tmp_path / "none", train_split="val", test_split="val", **STANDIN).setup()
    changes, notices = DavisModule.resolve_auto({"source": "auto", **STANDIN}, {"data_dir": tmp_path / "none"})
    assert changes["source"] == "standin"
    assert "STAND-IN" in notices[0]
    read_as_files = module(data.data_root, source="files", distances=[1, 2])
    assert "STAND-IN DATA" in str(read_as_files.banner)  # marked, wherever it lies
    (data.data_root / MARKER).unlink()
    assert read_as_files.banner is None
