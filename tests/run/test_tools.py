"""What the tools share: arguments, and the file that they may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from saccade.run import tools
from saccade.run.tools import grown, output_path, read_shared, split_arguments


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.b.jpg"
    path.write_bytes(b"x")
    return path


def test_results_stand_beside_the_picture_or_where_out_says(image, tmp_path):
    name = "a.b-inpainted.png"
    assert output_path(image, "-inpainted", None, overwrite=False) == tmp_path / name
    assert output_path(image, "-inpainted", str(tmp_path / "x.PNG"), overwrite=False) == tmp_path / "x.PNG"
    assert output_path(image, "-inpainted", str(tmp_path), overwrite=False) == tmp_path / name
    assert output_path(image, "-inpainted", f"{tmp_path}/new/", overwrite=False) == tmp_path / "new" / name


def test_what_may_not_be_written_is_refused(image, tmp_path):
    taken, own = tmp_path / "taken.png", tmp_path / "own.png"
    taken.write_bytes(b"")
    own.symlink_to(image)
    for out, overwrite, words in (
        (str(taken), False, "overwrite=true"),
        (str(tmp_path / "x.jpg"), True, "ends in .png"),
        (str(own), True, "is the picture itself"),
        (str(image / "x.png"), True, "cannot be written"),
    ):
        with pytest.raises(ValueError, match=words):
            output_path(image, "-x2", out, overwrite=overwrite)
    assert output_path(image, "-x2", str(taken), overwrite=True) == taken
    (tmp_path / "folder.png").mkdir()
    assert output_path(image, "-x2", str(tmp_path / "folder.png"), overwrite=True).name == "a.b-x2.png"


def test_what_a_command_reads_is_never_written_over(image, tmp_path):
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"x")
    with pytest.raises(ValueError, match="read by this command"):
        output_path(image, "-inpainted", str(mask), overwrite=True, beside=[mask])


def test_dotted_keys_are_changes_of_the_run():
    arguments = ["image=a", "attention.mixer.iterations=3", "run=b"]
    options, changes = split_arguments(arguments, required=("image",), optional=(), usage="")
    assert (options, changes) == ({"image": "a", "run": "b"}, {"attention.mixer.iterations": "3"})
    with pytest.raises(ValueError, match="given twice"):
        split_arguments(["image=a", "a.b=1", "a.b=2"], required=("image",), optional=(), usage="")
    with pytest.raises(ValueError, match="not of the form key=value"):
        split_arguments(["a.png"], required=(), optional=(), usage="")


def test_shared_options_have_defaults(image, tmp_path, monkeypatch):
    (tmp_path / "demo" / "some").mkdir(parents=True)
    monkeypatch.setattr(tools, "DEMO", tmp_path / "demo")
    shared = read_shared({}, {}, image=image, suffix="-x2", demo="some")
    assert (shared.run, shared.seed, shared.progress) == (tmp_path / "demo" / "some", 0, "auto")
    assert shared.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    shared = read_shared({"attention": "full", "device": "cpu"}, {"seed": "1"}, image=image, suffix="", demo="some")
    assert shared.changes == {"attention": "full", "seed": "1"}
    with pytest.raises(ValueError, match=r"no shipped weights in .*; name the folder of a run with run="):
        read_shared({}, {}, image=image, suffix="-x2", demo="none")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            read_shared({"device": "cuda"}, {}, image=image, suffix="-x2", demo="some")


def test_a_folder_that_takes_no_files_is_told_before_any_work(image, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)  # root may write everywhere
    for path in (closed / "a.png", closed / "new" / "a.png"):
        with pytest.raises(ValueError, match="closed takes no files"):
            output_path(image, "-x2", str(path), overwrite=True)
    assert output_path(image, "-x2", None, overwrite=False) == tmp_path / "a.b-x2.png"


def test_small_maps_go_on_with_their_last_row_and_column():
    maps = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert grown(maps, 2) is maps
    larger = grown(maps, 4)
    assert larger.shape == (1, 1, 4, 4)
    assert torch.equal(larger[..., :2, :3], maps)
    assert (larger[..., 2:, :3] == maps[..., 1:, :]).all()
    assert torch.equal(larger[..., 3], larger[..., 2])
