from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_people import a_pose

from saccade.data.keypoints import decide_frame, read_annotations, read_pose_json, write_annotations

HEADER = "name:keypoints_y:keypoints_x\n"
YS = [40, 85, 90, 147, 210, 82, 141, 199, 205, -1, -1, 205, -1, -1, 34, 34, 39, 40]
XS = [128, 129, 96, 89, 75, 164, 169, 151, 98, -1, -1, 138, -1, -1, 121, 136, 112, 145]
ROW = f"a.jpg: {YS}: {XS}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_y_before_x_and_missing_points(tmp_path: Path) -> None:
    table = read_annotations(write(tmp_path / "k.csv", HEADER + ROW + "\n" + ROW.replace("a.jpg", "b.jpg")))
    assert len(table) == 2
    assert table["a.jpg"][0].tolist() == [128, 40, 1]
    assert table["a.jpg"][9].tolist() == [0, 0, 0]
    assert table["b.jpg"][:, 2].sum() == 14
    assert table.where("b.jpg") == f"{tmp_path / 'k.csv'}:4"


def test_written_files_are_read_back(tmp_path: Path) -> None:
    pose = a_pose()
    pose[3] = 0
    write_annotations(tmp_path / "k.csv", {"one.jpg": pose, "two.jpg": a_pose(shift=3)})
    assert (tmp_path / "k.csv").read_text().startswith(HEADER + "one.jpg: [")
    table = read_annotations(tmp_path / "k.csv")
    assert torch.equal(table["one.jpg"], pose)
    assert torch.equal(table["two.jpg"], a_pose(shift=3))
    assert [path.name for path in tmp_path.iterdir()] == ["k.csv"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (ROW[:60], "three fields .* found 2 .*cut off"),
        (ROW.rstrip()[:-20], "the x list is not JSON"),
        (ROW.replace("[40,", "[np.int64(40),"), "the y list is not JSON .*json.dumps"),
        (ROW.replace("[40, ", "["), "the y list must be 18 integers; found 17 values"),
        (ROW.replace("[40,", "[40.5,"), "the y list must be 18 integers"),
        (ROW.replace("[40,", "[null,"), "the y list must be 18 integers"),
        (ROW.replace("[128,", "[-1,"), "point 0 has y = 40 but x = -1"),
        (ROW.replace("[128,", "[-7,"), "point 0 is at x = -7"),
        (": " + ROW.split(": ", 1)[1], "name is empty"),
        ("ok.jpg" + ROW[5:], "ok.jpg has a row already, at line 2"),
    ],
)
def test_malformed_rows_are_named_with_file_and_line(tmp_path: Path, row: str, complaint: str) -> None:
    path = write(tmp_path / "keys.csv", HEADER + "ok.jpg" + ROW[5:] + row)
    with pytest.raises(ValueError, match=rf"keys\.csv:3: .*{complaint}"):
        read_annotations(path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv: cannot read"):
        read_annotations(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"k\.csv:1: .*starts with the header.*found 'from,to'"):
        read_annotations(write(tmp_path / "k.csv", "from,to\n"))
    with pytest.raises(ValueError, match="an empty file"):
        read_annotations(write(tmp_path / "k.csv", ""))
    with pytest.raises(ValueError, match="no rows"):
        read_annotations(write(tmp_path / "k.csv", HEADER))
    with pytest.raises(ValueError, match="without ':'"):
        write_annotations(tmp_path / "k.csv", {"a:b": a_pose()})


def table(path: Path, widest: int) -> Path:
    pose = a_pose()
    pose[0, 0] = widest
    write_annotations(path, {"x.jpg": a_pose(), "y.jpg": pose})
    return path


def test_a_far_point_proves_the_large_frame(tmp_path: Path) -> None:
    far = read_annotations(table(tmp_path / "fasion-annotation-test.csv", 176))
    near = read_annotations(table(tmp_path / "fasion-annotation-train.csv", 175))
    frame, evidence = decide_frame([near, far])
    assert frame == "256x256"
    assert "fasion-annotation-test.csv:3: a point at x = 176" in evidence


def test_nothing_is_guessed(tmp_path: Path) -> None:
    near = read_annotations(table(tmp_path / "fasion-annotation-train.csv", 175))
    with pytest.raises(
        ValueError, match=r"fasion-annotation-train.csv: no point has x > 175.*data.module.keypoint_frame=256x256"
    ):
        decide_frame([near])
    assert decide_frame([near], "256x176")[0] == "256x176"
    assert decide_frame([near], "256x256")[0] == "256x256"
    named = read_annotations(table(tmp_path / "fasion-resize-annotation-train.csv", 175))
    frame, evidence = decide_frame([named])
    assert frame == "256x176"
    assert "implied by the file name" in evidence
    with pytest.raises(ValueError, match="no point has x > 175"):
        decide_frame([named, near])


def test_contradictions_name_file_and_line(tmp_path: Path) -> None:
    named = read_annotations(table(tmp_path / "fasion-resize-annotation-test.csv", 200))
    with pytest.raises(
        ValueError, match=r"fasion-resize-annotation-test.csv:3: a point at x = 200.*keypoint_frame=256x256"
    ):
        decide_frame([named])
    with pytest.raises(ValueError, match=r"test.csv:3: a point at x = 200, outside the 256x176 frame"):
        decide_frame([named], "256x176")
    assert decide_frame([named], "256x256")[0] == "256x256"
    with pytest.raises(ValueError, match=r"data.module.keypoint_frame=512 is unknown; valid: auto, 256x256, 256x176"):
        decide_frame([named], "512")


def save(path: Path, document: object) -> Path:
    return write(path, json.dumps(document))


def flat(points: torch.Tensor, score: float = 0.8) -> list[float]:
    return [v for x, y, there in points.tolist() for v in (x, y, score * there)]


def test_openpose_and_plain_lists(tmp_path: Path) -> None:
    pose = a_pose()
    pose[10] = 0
    path = tmp_path / "pose.json"
    save(path, {"people": [{"pose_keypoints_2d": flat(a_pose(), 0.3)}, {"pose_keypoints_2d": flat(pose)}]})
    assert torch.equal(read_pose_json(path), pose)  # the higher total
    save(path, [[x, y] if v else None for x, y, v in pose.tolist()])
    assert torch.equal(read_pose_json(path), pose)
    save(path, [[x, y] if v else [-1, -1] for x, y, v in pose.tolist()])
    assert torch.equal(read_pose_json(path), pose)
    save(path, {"keypoints": flat(pose)})
    assert torch.equal(read_pose_json(path), pose)


def test_body_25(tmp_path: Path) -> None:
    pose = a_pose()
    body = [[0.0, 0.0, 0.0] for _ in range(25)]
    for ours, theirs in enumerate([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]):
        body[theirs] = pose[ours].tolist()
    body[8] = [1.0, 2.0, 0.9]
    save(tmp_path / "p.json", {"people": [{"pose_keypoints_2d": [v for p in body for v in p]}]})
    assert torch.equal(read_pose_json(tmp_path / "p.json"), pose)


def test_coco_derives_the_neck(tmp_path: Path) -> None:
    pose = a_pose()
    left_first = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
    coco = [v for i in left_first for v in (*pose[i, :2].tolist(), 2)]
    expected = pose.clone()
    expected[1] = (pose[2] + pose[5]) / 2
    path = tmp_path / "p.json"
    for document in ({"keypoints": coco}, [{"keypoints": coco}], {"annotations": [{"keypoints": coco}]}):
        assert torch.equal(read_pose_json(save(path, document)), expected)
    coco[5 * 3 + 2] = 0  # left shoulder unlabelled: no neck either
    expected[[1, 5]] = 0
    assert torch.equal(read_pose_json(save(path, {"keypoints": coco})), expected)


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([[1, 2]] * 16, "found 16 entries; expected 18 points"),
        ({"keypoints": [1.0] * 50}, "found 50 numbers; expected 18 points .* 54, 75 or 51 numbers"),
        ({"pose": []}, "no keypoints found; expected"),
        ({"people": []}, "nobody"),
        ([{"keypoints": []}, {"keypoints": []}], "holds 2 people"),
        ([["a", 2]] + [[1, 2]] * 17, 'point 0 is \\["a", 2\\]'),
        ([[3, 4, 0.01]] * 18, "every keypoint is missing"),
        ("text", "no keypoints found"),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, document: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"bad\.json: .*{complaint}"):
        read_pose_json(save(tmp_path / "bad.json", document))


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bad\.json: cannot read the pose"):
        read_pose_json(write(tmp_path / "bad.json", "{"))
    with pytest.raises(ValueError, match=r"none\.json: cannot read"):
        read_pose_json(tmp_path / "none.json")
