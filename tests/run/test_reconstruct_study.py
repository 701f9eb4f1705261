"""Pairs, measurements, rows and tables of a reconstruction study."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.standin.folder import MARKER
from saccade.geometry import Size
from saccade.run.reconstruct_methods import Settings, method_named
from saccade.run.reconstruct_pairs import (
    Pair,
    Source,
    davis_pairs,
    folder_pairs,
    middle_pair,
    numbered_frames,
    read_frame,
)
from saccade.run.reconstruct_rows import as_csv, better_in, cell_rows, pair_rows, read_pair_rows, summarise
from saccade.run.reconstruct_study import Cell, Measured, Plan, make_cells, measure_pair, motion_of, moves_beyond
from saccade.run.reconstruct_tables import TABLE_2, TABLE_3, tables


def texture(side: int, seed: int = 0) -> np.ndarray:
    """Smooth noise: every place looks different, and neighbours look alike."""
    coarse = np.random.default_rng(seed).integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture
def pair(tmp_path):
    """A picture, and the same moved by 3 rows and 16 columns of 64."""
    reference = texture(64)
    Image.fromarray(reference).save(tmp_path / "b.png")
    Image.fromarray(np.roll(reference, (3, 16), (0, 1))).save(tmp_path / "a.png")
    return Pair("moved", tmp_path / "a.png", tmp_path / "b.png")


def measured(name: str, pair: str, error: float, *, side: int = 512, motion: float = 0.0, **changes) -> Measured:
    cell = Cell(method_named(name), side, 1.0 if method_named(name).tempered else None)
    one = Measured(
        cell,
        Pair(pair, Path(pair), Path("b.png")),
        Size(side, side),
        Size(side, side),
        mse=2 * error,
        mse_cropped=error,
        wall_s=1.0,
        cpu_s=0.5,
        kernel="k",
        gflops=3.0,
        motion=motion,
    )
    return replace(one, **changes)


SOURCE = Source(
    "somewhere", "10 frames apart", (Pair("x", Path("x"), Path("b.png")), Pair("y", Path("y"), Path("b.png")))
)


# ---------------------------------------------------------------------- measuring


def test_errors_are_means_of_squares_with_and_without_margin(pair):
    cell = Cell(method_named("linear"), 64, None)
    one, rebuilt = measure_pair(cell, pair, Plan(crop=5, memory=False), weigh=False)
    error = (rebuilt - read_frame(pair.target, 64)).square()
    assert one.mse == pytest.approx(float(error.mean()), rel=1e-6)
    assert one.mse_cropped == pytest.approx(float(error[..., 5:-5, 5:-5].mean()), rel=1e-6)
    assert one.peak_mib is None
    assert one.kernel != ""


def test_the_first_pair_is_weighed(pair):
    one, rebuilt = measure_pair(Cell(method_named("psal1"), 64, 1.0), pair, Plan(), weigh=True)
    assert one.peak_mib >= rebuilt.nbytes / 2**20
    assert one.memory_method


def test_a_margin_that_leaves_nothing_is_refused(pair):
    with pytest.raises(ValueError, match="Valid here: 0 to 31"):
        measure_pair(Cell(method_named("psal1"), 64, 1.0), pair, Plan(crop=32), weigh=False)


def test_motion_is_the_commonest_displacement(pair):
    assert motion_of(pair) == pytest.approx(16 / 64, abs=0.02)


def test_motion_beyond_a_window_depends_on_the_size():
    one = measured("local", "x", 0.1, side=512, motion=0.06)
    assert moves_beyond(one, 50)
    assert not moves_beyond(replace(one, queries=Size(256, 256)), 50)


def test_the_papers_ordering_on_a_moved_picture(pair):
    """PSAL 3 beats Full, aggregation beats PSAL 3 or ties, and Local fails where the motion leaves its window."""
    plan = Plan(memory=False)

    def error(name: str) -> float:
        return measure_pair(Cell(method_named(name), 64, 1.0), pair, plan, weigh=False)[0].mse_cropped

    narrow = Cell(method_named("local", Settings(window=16)), 64, 1.0)
    psal = error("psal3")
    assert psal < error("full")
    assert error("aggregate") < 1.05 * psal
    assert measure_pair(narrow, pair, plan, weigh=False)[0].mse_cropped > 4 * psal


def test_cells_skip_sizes_and_temperatures_that_do_not_apply():
    cells = make_cells([method_named("psal3@64"), method_named("linear")], [64, 128], [1.0, 0.3])
    told = [(cell.method.name, cell.side, cell.temperature) for cell in cells]
    assert told == [("psal3", 64, 1.0), ("psal3", 64, 0.3), ("linear", 64, None), ("linear", 128, None)]


# ---------------------------------------------------------------------- rows


def test_rows_are_read_back_as_they_were():
    cells = [Cell(method_named("psal3"), 512, 1.0), Cell(method_named("linear"), 512, None)]
    plan = Plan()
    rows = [measured("psal3", "y", 0.25, motion=0.5, peak_mib=3.5, memory_method="m"), measured("linear", "x", 0.125)]
    rows = [replace(one, pair=SOURCE.pairs[i]) for one, i in zip(rows, (1, 0), strict=True)]
    text = as_csv(pair_rows(rows, SOURCE, plan))
    assert read_pair_rows(text, cells, SOURCE, plan, "f") == {(0, 1): rows[0], (1, 0): rows[1]}


def test_rows_of_another_study_and_damaged_ones_are_refused():
    one = replace(measured("psal3", "x", 0.25), pair=SOURCE.pairs[0])
    text = as_csv(pair_rows([one], SOURCE, Plan()))
    cells = [one.cell]
    with pytest.raises(ValueError, match=r"no place for.*overwrite=true"):
        read_pair_rows(text, [replace(one.cell, temperature=0.5)], SOURCE, Plan(), "f")
    with pytest.raises(ValueError, match="no place for"):
        read_pair_rows(text, cells, replace(SOURCE, name="elsewhere"), Plan(), "f")
    with pytest.raises(ValueError, match="no place for"):
        read_pair_rows(text, cells, SOURCE, Plan(crop=3), "f")
    with pytest.raises(ValueError, match="damaged"):
        read_pair_rows(text.replace("0.25", "a quarter"), cells, SOURCE, Plan(), "f")


def test_a_cell_is_summed_up_over_its_pairs():
    group = [
        measured("local", "x", 0.1, motion=0.0, peak_mib=7.0, cpu_s=1.0),
        measured("local", "y", 0.3, motion=0.2, cpu_s=3.0),
        measured("local", "z", 0.5, motion=0.2, cpu_s=4.0),
    ]
    (summary,) = summarise(group, Plan())
    assert summary.mse_cropped == pytest.approx(0.3)
    assert summary.mse == pytest.approx(0.6)
    assert summary.spread_cropped == pytest.approx(0.2 / math.sqrt(3))
    assert summary.cpu_s == 3.0
    assert summary.peak_mib == 7.0
    assert (summary.pairs_beyond, summary.within, summary.beyond) == (2, pytest.approx(0.1), pytest.approx(0.4))
    (row,) = csv.DictReader(io.StringIO(as_csv(cell_rows([summary], SOURCE, Plan()))))
    assert row["mse_crop7"] == "0.3"
    assert row["mse_crop7_beyond_window"] == "0.4"
    assert row["threads"].isdigit()


def test_wins_are_counted_pair_by_pair():
    rows = [
        measured("psal3", "x", 0.1),
        measured("psal3", "y", 0.3),
        measured("full", "x", 0.2),
        measured("full", "y", 0.2),
    ]
    assert better_in(rows, rows[0].cell, rows[2].cell) == (1, 2)
    assert better_in(rows[:3], rows[0].cell, rows[2].cell) == (1, 1)


# ---------------------------------------------------------------------- tables


def test_tables_have_the_papers_numbers_at_their_sizes():
    rows = [
        measured(name, "x", 0.5, side=side) for side in TABLE_3 for name in ("full", "psal3", "aggregate", "exact3")
    ]
    text = tables(rows, SOURCE, Plan())
    lines = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    assert lines["512 / 10"] == ["0.0022", "0.50000", "0.0011", "0.50000", "0.50000", "0 of 1 pairs"]
    assert lines["64 / 1"][:4] == ["0.0048", "0.50000", "0.0048", "0.50000"]
    at_512 = text[text.index("Table 2: 512x512") : text.index("## 256x256")]
    assert f"{TABLE_2['aggregate']:.4f}" in next(line for line in at_512.splitlines() if "Aggreg." in line)
    assert "0.0008" not in text[text.index("## 256x256") : text.index("## Table 3")]
    assert "Not comparable" in text


def test_a_stride_that_is_not_the_papers_stands_beside_no_number():
    one = measured("full", "x", 0.5)
    odd = replace(one, cell=Cell(method_named("full", Settings(stride=4)), 512, 1.0))
    line = next(
        line for line in tables([odd, measured("psal3", "x", 0.1)], SOURCE, Plan()).splitlines() if "512 / " in line
    )
    assert line.split("|")[1].strip() == "512 / 4"
    assert line.split("|")[2].strip() == ""


def test_only_the_papers_data_is_called_comparable():
    text = tables([measured("psal3", "x", 0.5)], replace(SOURCE, published=True), Plan())
    assert "Not comparable" not in text


def test_motion_has_a_table_where_some_pairs_leave_the_window():
    rows = [measured("local", "x", 0.1), measured("local", "y", 0.3, motion=0.3)]
    assert "beyond (1 pairs)" in tables(rows, SOURCE, Plan())
    assert "beyond (" not in tables(rows[:1], SOURCE, Plan())


# ---------------------------------------------------------------------- pairs


def frames(folder, *numbers, name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(folder / name.format(number))


def test_one_video_gives_pairs_spread_over_it(tmp_path):
    frames(tmp_path, *range(50))
    (tmp_path / "notes.txt").write_text("no frame")
    found = folder_pairs(tmp_path, 10, 5)
    assert [pair.target.stem for pair in found.pairs] == ["00000", "00010", "00020", "00029", "00039"]
    assert all(int(pair.reference.stem) - int(pair.target.stem) == 10 for pair in found.pairs)
    assert not found.published


def test_of_several_videos_each_gives_its_middle_frame(tmp_path):
    frames(tmp_path / "one", *range(31), name="shot-{}.png")
    frames(tmp_path / "two", *range(4, 21))
    frames(tmp_path / "short", 1, 2)
    found = folder_pairs(tmp_path, 10, 30)
    assert [pair.name for pair in found.pairs] == ["one-15-25", "two-10-20"]  # 20 - 4 frames leave 12 no partner
    assert "short" in found.notices[0]


def test_the_middle_frame_looks_ahead_then_back_then_aside():
    there = {number: Path(f"{number}.png") for number in (0, 10, 20, 30)}
    assert middle_pair("v", there, 10).name == "v-20-30"
    there = {number: Path(f"{number}.png") for number in range(21)}
    assert middle_pair("v", there, 10).name == "v-10-20"
    assert middle_pair("v", {n: there[n] for n in range(12)}, 10).name == "v-10-0"
    assert middle_pair("v", {n: there[n] for n in range(9)}, 10) is None
    assert middle_pair("v", {}, 10) is None


def test_no_pairs_is_an_error_that_names_the_folder(tmp_path):
    frames(tmp_path / "video", 1, 2)
    with pytest.raises(ValueError, match="no two frames whose numbers are 10 apart"):
        folder_pairs(tmp_path, 10, 3)
    with pytest.raises(ValueError, match="no such folder"):
        folder_pairs(tmp_path / "nowhere", 10, 3)
    assert numbered_frames(tmp_path / "video").keys() == {1, 2}


def test_frames_are_stretched_to_squares(tmp_path):
    Image.fromarray(texture(64)[:32]).save(tmp_path / "wide.png")
    Image.fromarray(np.full((4, 6), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert read_frame(tmp_path / "wide.png", 24).shape == (1, 3, 24, 24)
    assert read_frame(tmp_path / "wide.png").shape == (1, 3, 32, 64)
    assert float(read_frame(tmp_path / "deep.png").mean()) == pytest.approx(40000 / 65535)
    assert float(read_frame(tmp_path / "deep.png", 4).mean()) == pytest.approx((40000 >> 8) / 255)


def test_pairs_of_the_davis_stand_in(tmp_path):
    options = {"standin_train": 2, "standin_test": 2, "standin_frames": 13, "standin_size": [36, 64]}
    found = davis_pairs(
        source="standin",
        data_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        split="test",
        distance=6,
        count=30,
        options=options,
    )
    assert (found.name, len(found.pairs), found.published) == ("davis_standin", 2, False)
    assert found.notices
    assert all(int(pair.reference.stem) - int(pair.target.stem) == 6 for pair in found.pairs)
    assert any((tmp_path / "cache").rglob(MARKER))
    only = davis_pairs(
        source="standin",
        data_dir=tmp_path,
        cache_dir=tmp_path / "cache",
        split="test",
        distance=6,
        count=1,
        options=options,
    )
    assert only.pairs == found.pairs[:1]
