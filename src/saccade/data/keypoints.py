"""Keypoint annotations: the PATN family's CSV of many pictures, and the JSON of one picture.

CSV: separator ':', header `name:keypoints_y:keypoints_x`, the y list first, two JSON lists of 18 integers, -1 in both
for a missing point. Two coordinate frames are in use under nearly the same file names: the uncropped 256x256 picture,
and its middle 176 columns (gpa page, section 6). `decide_frame` tells them apart by evidence only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.files import write_text
from saccade.geometry import Size

COUNT = 18
HEADER = "name:keypoints_y:keypoints_x"
Frame = Literal["256x256", "256x176"]
FRAMES: dict[Frame, Size] = {"256x256": Size(256, 256), "256x176": Size(256, 176)}


@dataclass
class Annotations:
    """The rows of one annotation file, in its own frame.

    Attributes:
        path: the file.
        points: (N, 18, 3) float32 of x, y, v; missing points are zeros.
        rows: picture name to row of `points`.
        lines: line number in the file of every row.
    """

    path: Path
    points: Tensor
    rows: dict[str, int]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> Tensor:
        return self.points[self.rows[name]]

    def where(self, name: str) -> str:
        """`file:line` of a picture's row."""
        return f"{self.path}:{self.lines[self.rows[name]]}"


def read_annotations(path: Path | str) -> Annotations:
    """Read an annotation CSV.

    Raises:
        ValueError: the file cannot be read, has no rows, another header, a malformed row or a name twice; names file
            and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the keypoint file ({error})") from error
    lines = text.splitlines()
    if not lines or lines[0].strip() != HEADER:
        found = lines[0][:60] if lines else "an empty file"
        raise ValueError(f"{path}:1: a keypoint file starts with the header {HEADER!r}; found {found!r}")
    rows: dict[str, int] = {}
    numbers: list[int] = []
    flat: list[tuple[list[int], list[int]]] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, ys, xs = _parse_row(path, number, line)
        if name in rows:
            raise ValueError(f"{path}:{number}: {name} has a row already, at line {numbers[rows[name]]}; keep one")
        rows[name] = len(flat)
        numbers.append(number)
        flat.append((ys, xs))
    if not flat:
        raise ValueError(f"{path}: the keypoint file has a header but no rows")
    return Annotations(path, _as_points(torch.tensor(flat, dtype=torch.float32)), rows, numbers)


def write_annotations(path: Path | str, rows: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
    """Write an annotation CSV (whole or not at all). Points are (18, 3) of x, y, v and are rounded to integers.

    Raises:
        ValueError: points of another shape, or a name with ':' or a line end in it.
    """
    path = Path(path)
    items = rows.items() if isinstance(rows, Mapping) else rows
    out = [HEADER]
    for name, points in items:
        if ":" in name or "\n" in name or points.shape != (COUNT, 3):
            raise ValueError(
                f"{path}: a row is a name without ':' and ({COUNT}, 3) points; got {name!r}, {tuple(points.shape)}"
            )
        there = points[:, 2] > 0
        xs, ys = (torch.where(there, points[:, i].round(), -1.0).int().tolist() for i in (0, 1))
        out.append(f"{name}: {json.dumps(ys)}: {json.dumps(xs)}")
    write_text(path, "\n".join(out) + "\n")


def decide_frame(
    tables: Sequence[Annotations], stated: str = "auto", key: str = "data.module.keypoint_frame"
) -> tuple[Frame, str]:
    """Tell in which frame annotation files are, and on what evidence.

    A point at x > 175 proves 256x256. Without one, the file name `*-resize-annotation-*` implies 256x176. With neither,
    somebody must say: nothing is guessed.

    Args:
        tables: files that share a frame (train and test of one data set).
        stated: "auto", or one of FRAMES.
        key: the configuration key to name in messages.

    Returns:
        The frame and one sentence of evidence.

    Raises:
        ValueError: the statement, the file name and the data contradict each other, or nothing decides.
    """
    if stated not in ("auto", *FRAMES):
        raise ValueError(f"{key}={stated} is unknown; valid: auto, {', '.join(FRAMES)}")
    proof = next((found for table in tables if (found := _beyond(table, FRAMES["256x176"].cols)) is not None), None)
    names = ", ".join(str(table.path) for table in tables)
    if stated == "256x256":
        return "256x256", f"stated by {key}"
    if stated == "256x176":
        if proof is not None:
            raise ValueError(
                f"{proof}, outside the 256x176 frame that {key} states; the file is in the 256x256 frame: set "
                f"{key}=256x256"
            )
        return "256x176", f"stated by {key}"
    implied = all("-resize-annotation-" in table.path.name for table in tables)
    if proof is not None and implied:
        raise ValueError(
            f"{proof}, which only a 256x256 frame can hold, but files called *-resize-annotation-* are in the 256x176 "
            f"frame; state the true one: {key}=256x256, or mend the row"
        )
    if proof is not None:
        return "256x256", f"proved: {proof}"
    if implied:
        return "256x176", f"implied by the file name ({names}); no x beyond 175"
    raise ValueError(
        f"{names}: no point has x > 175, so the coordinates may belong to the 256x256 or to the 256x176 picture, and "
        f"the file name does not tell; state it: {key}=256x256 or {key}=256x176"
    )


def read_pose_json(path: Path | str, min_score: float = 0.1) -> Tensor:
    """Read the pose of one person from JSON, in the pixels of its picture.

    Understood: OpenPose output (`people` with `pose_keypoints_2d` of 18 or 25 points; the highest total score wins),
    COCO (`keypoints` of 17 points, in an object, in a list of one, or under `annotations`; the neck is the shoulders'
    midpoint), and plain lists of 18 or 17 points [x, y] or [x, y, score]. A point is missing when it is null, negative,
    (0, 0), or its score is below `min_score`.

    Returns:
        (18, 3) float32 of x, y, v.

    Raises:
        ValueError: names the file, what was expected and what was found.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot read the pose ({error})") from error
    points = _triples(path, _person(path, document))
    there = (points[:, 2] >= min_score) & (points[:, :2] >= 0).all(1) & ((points[:, :2] != 0).any(1))
    points = torch.where(there.unsqueeze(1), torch.cat([points[:, :2], torch.ones(len(points), 1)], 1), 0.0)
    if len(points) == 25:
        points = points[[*range(8), *range(9, 19)]]  # BODY_25 has a middle hip at 8, the face at 15-18
    elif len(points) == 17:
        points = _from_coco(points)
    if not (points[:, 2] > 0).any():
        raise ValueError(f"{path}: every keypoint is missing or has a score below {min_score}")
    return points


def _parse_row(path: Path, number: int, line: str) -> tuple[str, list[int], list[int]]:
    fields = line.split(":")
    if len(fields) != 3:
        raise ValueError(
            f"{path}:{number}: a row is name: [18 y]: [18 x], three fields with ':' between; found {len(fields)} "
            f"(is the row cut off?): {_short(line)}"
        )
    name = fields[0].strip()
    if not name:
        raise ValueError(f"{path}:{number}: the picture's name is empty: {_short(line)}")
    ys, xs = (_parse_list(path, number, what, text) for what, text in zip("yx", fields[1:], strict=True))
    lone = next((i for i, (y, x) in enumerate(zip(ys, xs, strict=True)) if (y == -1) != (x == -1)), None)
    if lone is not None:
        raise ValueError(
            f"{path}:{number}: point {lone} has y = {ys[lone]} but x = {xs[lone]}; a missing point is -1 in both lists"
        )
    low = next((i for i, (y, x) in enumerate(zip(ys, xs, strict=True)) if min(y, x) < -1), None)
    if low is not None:
        raise ValueError(f"{path}:{number}: point {low} is at x = {xs[low]}, y = {ys[low]}; coordinates start at 0")
    return name, ys, xs


def _parse_list(path: Path, number: int, what: str, text: str) -> list[int]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; written by str() of a numpy list, write it with json.dumps" if "np." in text else ""
        raise ValueError(
            f"{path}:{number}: the {what} list is not JSON ({error.msg}){hint}: {_short(text.strip())}"
        ) from error
    if not isinstance(values, list) or len(values) != COUNT or not all(type(value) is int for value in values):
        count = f"{len(values)} values" if isinstance(values, list) else type(values).__name__
        raise ValueError(
            f"{path}:{number}: the {what} list must be {COUNT} integers; found {count}: {_short(text.strip())}"
        )
    return values


def _as_points(pairs: Tensor) -> Tensor:
    """(N, 2, 18) of y and x lists with -1 for missing, to (N, 18, 3) of x, y, v."""
    ys, xs = pairs.unbind(1)
    there = (ys >= 0) & (xs >= 0)
    return torch.where(there.unsqueeze(-1), torch.stack([xs, ys, torch.ones_like(xs)], dim=-1), 0.0)


def _beyond(table: Annotations, cols: int) -> str | None:
    widest = table.points[:, :, 0].amax(1)
    row = int(widest.argmax())
    if widest[row] < cols:
        return None
    return f"{table.path}:{table.lines[row]}: a point at x = {int(widest[row])}"


def _person(path: Path, document: object) -> object:
    """The list of numbers or points of the one person in a document."""
    if isinstance(document, dict) and isinstance(document.get("people"), list):
        people: list[Any] = [p.get("pose_keypoints_2d") for p in document["people"] if isinstance(p, dict)]
        if not people:
            raise ValueError(f"{path}: OpenPose found nobody (people is empty); use a picture with a visible person")
        if len(people) > 1 and all(isinstance(p, list) for p in people):
            return max(people, key=lambda flat: sum(float(v) for v in flat[2::3] if _is_number(v)))
        return people[0]
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        document = document["annotations"]
    if isinstance(document, list) and document and all(isinstance(entry, dict) for entry in document):
        if len(document) != 1:
            raise ValueError(f"{path}: holds {len(document)} people; keep one")
        document = document[0]
    return document.get("keypoints") if isinstance(document, dict) else document


def _triples(path: Path, flat: object) -> Tensor:
    """(17 | 18 | 25, 3) float32 of x, y, score."""
    expected = (
        "expected 18 points (OpenPose-18), 25 (OpenPose BODY_25) or 17 (COCO), as pose_keypoints_2d, keypoints or a "
        "list of [x, y] or [x, y, score]"
    )
    if not isinstance(flat, list):
        raise ValueError(f"{path}: no keypoints found; {expected}")
    if flat and all(_is_number(value) for value in flat):
        if len(flat) not in (51, 54, 75):
            raise ValueError(f"{path}: found {len(flat)} numbers; {expected}, that is 54, 75 or 51 numbers")
        flat = [flat[i : i + 3] for i in range(0, len(flat), 3)]
    if len(flat) not in (17, 18, 25):
        raise ValueError(f"{path}: found {len(flat)} entries; {expected}")
    rows: list[list[float]] = []
    for index, point in enumerate(flat):
        if point is None:
            rows.append([0.0, 0.0, 0.0])
        elif isinstance(point, list) and len(point) in (2, 3) and all(_is_number(value) for value in point):
            rows.append([float(value) for value in (*point, 1.0)[:3]])
        else:
            raise ValueError(f"{path}: point {index} is {_short(json.dumps(point))}; {expected}")
    return torch.tensor(rows, dtype=torch.float32)


def _from_coco(points: Tensor) -> Tensor:
    """COCO-17 (nose, eyes, ears, shoulders, ..., left before right) to OpenPose-18, the neck between the shoulders."""
    left, right = points[5], points[6]
    seen = bool(left[2] > 0 and right[2] > 0)
    neck = (left + right) / 2 if seen else torch.zeros(3)
    order = [6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    return torch.cat([points[:1], neck.unsqueeze(0), points[order]])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
