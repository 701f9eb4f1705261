"""The lists of a DeepFashion folder, read and checked against each other and against the pictures that are there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from saccade.data.keypoints import Annotations, Frame, decide_frame, read_annotations
from saccade.data.layout import SPLITS, Split, find_layout
from saccade.data.pairs import Pair, SplitAudit, audit_splits, read_pairs, regenerate_pairs


@dataclass
class SplitLists:
    """One split: its picture folder, keypoints and pairs, and the pair list's file (None: made from the keypoints)."""

    images: Path
    annotations: Annotations
    pairs: list[Pair]
    pairs_file: Path | None


@dataclass
class DeepFashionLists:
    """Both splits of a data set, in one keypoint frame, with the evidence for it and an audit of the splits."""

    root: Path
    splits: dict[Split, SplitLists]
    frame: Frame
    frame_evidence: str
    audit: SplitAudit


def read_lists(
    root: Path | str,
    *,
    keypoint_frame: str = "auto",
    folders: str = "{split}",
    list_prefix: str = "auto",
) -> DeepFashionLists:
    """Read keypoints and pair lists of both splits, checking that every picture of a pair has keypoints and a file.

    Raises:
        ValueError: anything missing, malformed or contradictory; names file and, where there is one, line.
    """
    layout = find_layout(root, folders, list_prefix)
    tables = {split: read_annotations(layout[split].annotations) for split in SPLITS}
    frame, evidence = decide_frame([tables[split] for split in SPLITS], keypoint_frame)
    splits: dict[Split, SplitLists] = {}
    for split in SPLITS:
        files = layout[split]
        pairs = regenerate_pairs(tables[split]) if files.pairs is None else read_pairs(files.pairs)
        _check_pairs(pairs, files.pairs, tables[split], files.images)
        splits[split] = SplitLists(files.images, tables[split], pairs, files.pairs)
    audit = audit_splits(splits["train"].pairs, splits["test"].pairs)
    for split in SPLITS:
        if splits[split].pairs_file is None:
            audit.notes.append(f"the {split} pairs were made from {tables[split].path.name}: there is no pair list")
    return DeepFashionLists(Path(root), splits, frame, evidence, audit)


def _check_pairs(pairs: list[Pair], listed: Path | None, table: Annotations, images: Path) -> None:
    """Every picture that the pairs name must have a keypoint row with at least one point, and a file."""
    origin = listed if listed is not None else table.path
    names = {name for pair in pairs for name in pair}
    without = sorted(name for name in names if name not in table)
    if without:
        raise ValueError(
            f"{table.path}: no keypoint row for {without[0]}, which {origin} names"
            f"{_and_more(without)}; add the row or drop the pair"
        )
    there = set(os.listdir(images))
    absent = sorted(name for name in names if name not in there)
    if absent:
        raise ValueError(
            f"{images / absent[0]}: no such picture, but {origin} names it{_and_more(absent)}; "
            f"prepare the pictures again (scripts/prepare_data.py) or use the lists that belong to them"
        )
    blank = sorted(name for name in names if not bool((table[name][:, 2] > 0).any()))
    if blank:
        raise ValueError(
            f"{table.where(blank[0])}: all keypoints of {blank[0]} are missing, but {origin} pairs it{_and_more(blank)}"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1:,} more like it)" if len(names) > 1 else ""
