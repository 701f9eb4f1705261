"""Holes: where they may lie, what decides them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.images import Box
from saccade.data.masks import (
    CentredHole,
    FreeFormHoles,
    Holes,
    MaskFiles,
    RectangularHoles,
    centred_box,
    hole_boxes,
)
from saccade.geometry import Size

SIZE = Size(64, 48)


def sides(holes: Holes) -> list[Box]:
    """The one rectangle of each mask, which must fill its bounding box."""
    found = []
    for mask in holes.masks:
        (box,) = hole_boxes(mask)
        assert float(mask.sum()) == box.rows * box.cols
        found.append(box)
    return found


def test_the_centred_hole_is_the_box() -> None:
    holes = CentredHole([32, 16]).draw(SIZE, range(3), seed=0)
    assert sides(holes) == [Box(16, 16, 32, 16)] * 3
    assert holes.boxes.tolist() == [[16, 16, 32, 16]] * 3
    assert (holes.masks.shape, holes.masks.dtype, holes.boxes.dtype) == ((3, 1, 64, 48), torch.float32, torch.int64)
    assert centred_box(Size(256, 256), Size(128, 128)) == (64, 64, 128, 128)


def test_boxes_lie_anywhere_but_at_the_last_place() -> None:
    holes = RectangularHoles([60, 45], shrink=0, shared=False).draw(SIZE, range(200), seed=1)
    tops, lefts = holes.boxes[:, 0].tolist(), holes.boxes[:, 1].tolist()
    assert set(tops) == {0, 1, 2, 3}  # of 5 places the last one is left out, as released
    assert set(lefts) == {0, 1, 2}
    assert [tuple(box) for box in sides(holes)] == [tuple(box) for box in holes.boxes.tolist()]


def test_a_margin_is_kept_and_a_single_place_is_taken() -> None:
    holes = RectangularHoles(24, shrink=0, margin=8, shared=False).draw(SIZE, range(400), seed=0)
    assert set(holes.boxes[:, 0].tolist()) == set(range(8, 64 - 8 - 24))
    assert holes.boxes[:, 1].min() == 8
    exact = RectangularHoles([64, 47], shrink=2, shared=False).draw(SIZE, [5], seed=0)
    assert exact.boxes.tolist() == [[0, 0, 64, 47]]


def test_shrinking_moves_both_sides_of_a_pair_alike() -> None:
    holes = RectangularHoles(32, shrink=[8, 5], shared=False).draw(SIZE, range(100), seed=0)
    rows, cols = set(), set()
    for hole, (top, left, _, _) in zip(sides(holes), holes.boxes.tolist(), strict=True):
        rows.add(hole.rows)
        cols.add(hole.cols)
        assert hole.top - top == (32 - hole.rows) // 2
        assert hole.left - left == (32 - hole.cols) // 2
    assert rows == {32, 30, 28, 26, 24}
    assert cols == {32, 30, 28}  # 5 // 2 pixels on each side at most


def test_a_shared_box_is_that_of_the_batch_and_its_holes_differ() -> None:
    source = RectangularHoles(32, shrink=16)
    one, other = (source.draw(SIZE, range(8), seed=0, batch=batch) for batch in (16, 24))
    assert len({tuple(box) for box in one.boxes.tolist()}) == 1
    assert one.boxes[0].tolist() != other.boxes[0].tolist()
    assert len(set(sides(one))) > 1
    apart = source.draw(SIZE, range(8), seed=0)
    assert len({tuple(box) for box in apart.boxes.tolist()}) > 4


@pytest.mark.parametrize(
    "source",
    [RectangularHoles(24, shrink=8), RectangularHoles(24, shared=False, shrink=8), FreeFormHoles(), FreeFormHoles(32)],
)
def test_seed_and_position_decide(source: RectangularHoles | FreeFormHoles) -> None:
    together = source.draw(SIZE, range(10, 16), seed=3, batch=10)
    parts = [source.draw(SIZE, range(start, start + 3), seed=3, batch=10) for start in (10, 13)]
    assert torch.equal(together.masks, torch.cat([part.masks for part in parts]))
    assert torch.equal(together.boxes, torch.cat([part.boxes for part in parts]))
    assert not torch.equal(together.masks, source.draw(SIZE, range(10, 16), seed=4, batch=10).masks)
    assert not torch.equal(together.masks, source.draw(SIZE, range(16, 22), seed=3, batch=16).masks)


def test_strokes_cover_a_share_within_limits_and_stay_in_their_box() -> None:
    holes = FreeFormHoles(32, area=(0.1, 0.4)).draw(SIZE, range(40), seed=0)
    inside = holes.crops(holes.masks)
    assert set(holes.masks.unique().tolist()) == {0.0, 1.0}
    assert float(holes.masks.sum()) == float(inside.sum())
    shares = inside.mean((1, 2, 3))
    assert float(shares.min()) >= 0.1
    assert float(shares.max()) <= 0.4
    assert len({tuple(box) for box in holes.boxes.tolist()}) > 20
    whole = FreeFormHoles().draw(SIZE, range(2), seed=0)
    assert whole.boxes.tolist() == [[0, 0, 64, 48]] * 2
    assert float(whole.masks.sum()) > 0


def test_wider_brushes_cover_more() -> None:
    thin, wide = (
        FreeFormHoles(width=(share, share), area=(1e-3, 1.0)).draw(Size(96, 96), range(20), seed=0).masks.mean()
        for share in (0.02, 0.2)
    )
    assert float(wide) > 3 * float(thin)


def test_an_area_that_no_drawing_has_is_refused() -> None:
    source = FreeFormHoles(strokes=(1, 1), vertices=(1, 1), width=(0.02, 0.02), area=(0.9, 1.0))
    with pytest.raises(ValueError, match=r"FreeFormHoles: none of 100 drawings in 64x48 .* widen area"):
        source.draw(SIZE, [0], seed=0)


def test_crops_and_pasting() -> None:
    holes = Holes(torch.zeros(2, 1, 5, 6), torch.tensor([[0, 1, 2, 3], [3, 3, 2, 3]]))
    holes.masks[0, 0, 0, 1] = 1
    maps = torch.arange(60.0).reshape(2, 1, 5, 6)
    assert holes.crops(maps)[:, 0].tolist() == [[[1, 2, 3], [7, 8, 9]], [[51, 52, 53], [57, 58, 59]]]
    pasted = holes.paste(torch.full_like(maps, torch.inf), maps)
    assert (pasted != maps).nonzero().tolist() == [[0, 0, 0, 1]]  # an infinite prediction elsewhere does no harm
    assert len(holes.to("cpu")) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CentredHole(80), "CentredHole: a hole of 80x80 does not fit pictures of 64x48; at most 64x48"),
        (
            lambda: RectangularHoles(40, margin=8),
            "40x40 does not fit pictures of 64x48 within a margin of 8; at most 48x3",
        ),
        (lambda: RectangularHoles(2, margin=30, shrink=0), "none fits"),
        (lambda: FreeFormHoles(65), "FreeFormHoles: a hole of 65x65"),
        (lambda: CentredHole([64, 48]), "a hole of 64x48 leaves nothing known of pictures of 64x48"),
        (lambda: RectangularHoles([64, 48], shrink=2), "leaves nothing known"),
    ],
)
def test_a_hole_that_does_not_fit_is_refused(make, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make().draw(SIZE, [0], seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RectangularHoles(16, shrink=16), "shrink .* less than the hole's 16x16; got 16"),
        (lambda: RectangularHoles(16, shrink=[1, 2, 3]), "one or two numbers"),
        (lambda: RectangularHoles(16, shrink=-1), "0 or more"),
        (lambda: RectangularHoles(16, shrink=0, margin=-1), "margin is 0 or more"),
        (lambda: FreeFormHoles(width=(0.2, 0.1)), r"width is \(smallest, largest\), both above 0; got \[0.2, 0.1\]"),
        (lambda: FreeFormHoles(area=(0.2, 1.1)), "area is at most 1"),
        (lambda: FreeFormHoles(length=0), "length above 0"),
    ],
)
def test_options_out_of_range_are_refused(make, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_separate_holes_of_a_mask_are_found() -> None:
    mask = torch.zeros(1, 20, 30)
    mask[0, 2:5, 3:9] = 1
    mask[0, 10:12, 20:30] = 1
    mask[0, 12:14, 19:20] = 1  # touches at a corner
    assert hole_boxes(mask) == [Box(2, 3, 3, 6), Box(10, 19, 4, 11)]
    assert hole_boxes(torch.zeros(4, 4)) == []
    assert hole_boxes(torch.ones(4, 5)) == [Box(0, 0, 4, 5)]


def test_masks_from_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for index, name in enumerate(["a.png", "more/b.png", "c.png"]):
        mask = np.zeros(SIZE, np.uint8)
        mask[: 8 * (index + 1)] = 255
        Image.fromarray(mask).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no mask")
    source = MaskFiles(tmp_path)
    holes = source.draw(SIZE, range(30), seed=0)
    assert {float(mask.sum()) / SIZE.cols for mask in holes.masks} == {8.0, 16.0, 24.0}
    assert holes.boxes.tolist() == [[0, 0, 64, 48]] * 30
    assert torch.equal(holes.masks[7:9], source.draw(SIZE, [7, 8], seed=0).masks)
    with pytest.raises(ValueError, match=r"the mask is 64x48 .* the picture 32x24"):
        source.draw(Size(32, 24), [0], seed=0)
    small = MaskFiles(tmp_path, resize=True).draw(Size(32, 24), range(30), seed=0)
    assert {float(mask.sum()) / 24 for mask in small.masks} == {4.0, 8.0, 12.0}
    with pytest.raises(ValueError, match="no mask files in it"):
        MaskFiles(tmp_path / "empty") if (tmp_path / "empty").mkdir() is None else None
    with pytest.raises(ValueError, match="no such folder"):
        MaskFiles(tmp_path / "nowhere")
