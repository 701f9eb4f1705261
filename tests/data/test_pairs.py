from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_people import a_name, a_pose

from saccade.data.keypoints import read_annotations, write_annotations
from saccade.data.pairs import audit_splits, group_of, read_pairs, regenerate_pairs, write_pairs


def test_pair_lists_are_read_and_written(tmp_path: Path) -> None:
    pairs = [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")]
    write_pairs(tmp_path / "pairs.csv", pairs)
    assert (tmp_path / "pairs.csv").read_bytes() == b"from,to\na.jpg,b.jpg\nb.jpg,a.jpg\n"
    assert read_pairs(tmp_path / "pairs.csv") == pairs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"pairs\.csv:1: a pair list starts with .*an empty file"),
        ("a.jpg,b.jpg\n", r"pairs\.csv:1: a pair list starts with .*'a\.jpg,b\.jpg'"),
        ("from,to\n", r"pairs\.csv: the pair list is empty"),
        ("from,to\na.jpg,b.jpg\nc.jpg\n", r"pairs\.csv:3: a row is two picture names .*'c\.jpg'"),
        ("from,to\na.jpg,\n", r"pairs\.csv:2: a row is two"),
        ("from,to\na.jpg,b.jpg,c.jpg\n", r"pairs\.csv:2: a row is two"),
    ],
)
def test_bad_pair_lists_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_pairs(tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    "name",
    [
        "fashionWOMENTees_Tanksid0000796209_7additional.jpg",
        "fasionWOMENTeesTanksid0000796209_7additional.jpg",
    ],
)
def test_group_is_garment_and_colour_in_both_spellings(name: str) -> None:
    assert group_of(name) == "0000796209"


def test_pairs_are_regenerated_by_the_published_rule(tmp_path: Path) -> None:
    hipless = a_pose()
    hipless[11] = 0
    no_face = a_pose()
    no_face[[0, 14, 15, 16, 17]] = 0
    rows = {
        a_name(1, 1): a_pose(),
        a_name(1, 2): no_face,
        a_name(1, 3): hipless,
        a_name(1, 1, colour=2): a_pose(),
        a_name(2, 1): a_pose(),
        a_name(2, 2): a_pose(),
        a_name(2, 3): a_pose(),
        a_name(3, 1): torch.zeros(18, 3),
    }
    write_annotations(tmp_path / "k.csv", rows)
    pairs = regenerate_pairs(read_annotations(tmp_path / "k.csv"))
    assert len(pairs) == len(set(pairs)) == 2 + 6
    assert {(a_name(1, 1), a_name(1, 2)), (a_name(1, 2), a_name(1, 1))} < set(pairs)
    assert all(a != b and group_of(a) == group_of(b) for a, b in pairs)


def test_regenerating_says_what_is_wrong(tmp_path: Path) -> None:
    write_annotations(tmp_path / "k.csv", {a_name(1, 1): a_pose(), "me.jpg": a_pose()})
    with pytest.raises(ValueError, match=r"k\.csv:3: me\.jpg has no `id` and ten digits"):
        regenerate_pairs(read_annotations(tmp_path / "k.csv"))
    write_annotations(tmp_path / "k.csv", {a_name(1, 1): a_pose(), a_name(2, 1): a_pose()})
    with pytest.raises(ValueError, match=r"k\.csv: no two pictures of one garment"):
        regenerate_pairs(read_annotations(tmp_path / "k.csv"))


@pytest.mark.parametrize(("count", "who"), [(8570, "PATN"), (8670, "DSC"), (12800, "PG2")])
def test_published_splits_are_recognised(count: int, who: str) -> None:
    test = [(a_name(i, 1), a_name(i, 2)) for i in range(1, count + 1)]
    audit = audit_splits([(a_name(99_999, 1), a_name(99_999, 2))], test)
    assert audit.split is not None
    assert who in audit.split
    assert audit.warnings == []
    assert audit.counts["test_pairs"] == audit.counts["test_groups"] == count
    assert audit.counts["test_images"] == 2 * count


def test_audit_warns_of_other_splits_overlaps_and_repeats() -> None:
    train = [(a_name(1, 1), a_name(1, 2)), (a_name(2, 1), a_name(2, 2))]
    test = [(a_name(1, 1), a_name(1, 2)), (a_name(2, 3), a_name(2, 4)), (a_name(2, 3), a_name(2, 4))]
    text = "\n".join(audit_splits(train, test).warnings)
    assert "3 test pairs are no published split" in text
    assert "1 test pairs are listed more than once" in text
    assert "2 pictures are in both train and test" in text
    assert f"1 garments with their colour are in both train and test, e.g. {a_name(2, 1)[:31]}" in text
    other_category = [(name.replace("Dresses", "Shorts"), other) for name, other in train]
    assert "garments" not in "\n".join(audit_splits(train, [(a, a) for a, _ in other_category]).warnings)
