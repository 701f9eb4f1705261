"""Pair lists of DeepFashion: reading, regenerating from the keypoints, and saying which published split they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saccade.data.keypoints import Annotations
from saccade.files import write_text

Pair = tuple[str, str]
HEADER = "from,to"
TEST_SPLITS = {
    8570: "the split of PATN (Zhu et al. 2019)",
    8670: "the split of DSC (Siarohin et al. 2018)",
    12800: "the split of PG2 (Ma et al. 2017)",
}
_GROUP = re.compile(r"id(\d{10})")
_SHOULDERS_AND_HIPS = (2, 5, 8, 11)


def read_pairs(path: Path | str) -> list[Pair]:
    """Read a pair list: CSV with the header `from,to`.

    Raises:
        ValueError: unreadable, another header, a row that is not two names, or no pairs; names file and line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the pair list ({error})") from error
    if not lines or lines[0].strip() != HEADER:
        found = repr(lines[0][:60]) if lines else "an empty file"
        raise ValueError(f"{path}:1: a pair list starts with the header {HEADER!r}; found {found}")
    pairs: list[Pair] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        names = [name.strip() for name in line.split(",")]
        if len(names) != 2 or not all(names):
            raise ValueError(f"{path}:{number}: a row is two picture names with a comma between; found {line[:100]!r}")
        pairs.append((names[0], names[1]))
    if not pairs:
        raise ValueError(f"{path}: the pair list is empty; delete the file to have the pairs made from the keypoints")
    return pairs


def write_pairs(path: Path | str, pairs: Iterable[Pair]) -> None:
    """Write a pair list, whole or not at all."""
    write_text(path, "\n".join([HEADER, *(f"{a},{b}" for a, b in pairs)]) + "\n")


def group_of(name: str) -> str | None:
    """Garment and colour of a picture: the ten digits after `id` in its name; None for other names."""
    found = _GROUP.search(name)
    return found.group(1) if found else None


def regenerate_pairs(annotations: Annotations) -> list[Pair]:
    """All ordered pairs of different pictures of one garment and colour that show both shoulders and both hips.

    PATN's rule (its tool/create_pairs_dataset.py); on the published test keypoints it gives exactly the published test
    lists, 8,570 and 8,670 pairs (as sets: here in order of the names).

    Raises:
        ValueError: names without `id` and ten digits, or no pairs at all.
    """
    groups: dict[str, list[str]] = {}
    for name, row in annotations.rows.items():
        if not bool((annotations.points[row, _SHOULDERS_AND_HIPS, 2] > 0).all()):
            continue
        group = group_of(name)
        if group is None:
            raise ValueError(
                f"{annotations.where(name)}: {name} has no `id` and ten digits in it, so its garment is unknown; "
                f"name pictures like fashionWOMENDressesid0000000101_1front.jpg, or give a pair list"
            )
        groups.setdefault(group, []).append(name)
    pairs = [(a, b) for _, names in sorted(groups.items()) for a in sorted(names) for b in sorted(names) if a != b]
    if not pairs:
        raise ValueError(
            f"{annotations.path}: no two pictures of one garment show both shoulders and both hips, so there is no pair"
        )
    return pairs


@dataclass
class SplitAudit:
    """What the lists are, and what is odd about them.

    Attributes:
        counts: pairs, pictures in pairs, and groups (garment and colour) by split.
        split: the published split that the number of test pairs belongs to, or None.
        notes: facts worth a line in a log.
        warnings: oddities worth a warning.
    """

    counts: dict[str, int]
    split: str | None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def audit_splits(train: Sequence[Pair], test: Sequence[Pair]) -> SplitAudit:
    """Recognise the published test split by its number of pairs, and look for garments in both splits."""
    counts: dict[str, int] = {}
    groups: dict[str, set[str]] = {}
    pictures: dict[str, set[str]] = {}
    for split, pairs in (("train", train), ("test", test)):
        pictures[split] = {name for pair in pairs for name in pair}
        groups[split] = {_look(name) for name in pictures[split]}
        counts |= {
            f"{split}_pairs": len(pairs),
            f"{split}_images": len(pictures[split]),
            f"{split}_groups": len(groups[split]),
        }
    audit = SplitAudit(counts, TEST_SPLITS.get(len(test)))
    if audit.split:
        audit.notes.append(f"{len(test):,} test pairs: {audit.split}")
    else:
        known = ", ".join(f"{count:,}: {name}" for count, name in TEST_SPLITS.items())
        audit.warnings.append(f"{len(test):,} test pairs are no published split ({known}); scores do not compare")
    if len(set(test)) != len(test):
        audit.warnings.append(f"{len(test) - len(set(test)):,} test pairs are listed more than once")
    shared = sorted(pictures["train"] & pictures["test"])
    if shared:
        audit.warnings.append(f"{len(shared):,} pictures are in both train and test, e.g. {shared[0]}")
    both = sorted((groups["train"] & groups["test"]) - {_look(name) for name in shared})
    if both:
        audit.warnings.append(f"{len(both):,} garments with their colour are in both train and test, e.g. {both[0]}")
    return audit


def _look(name: str) -> str:
    """Category, garment and colour: what comes before the view; ten-digit ids repeat across categories."""
    found = _GROUP.search(name)
    return name[: found.end()] if found else name
