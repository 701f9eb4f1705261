"""saccade.files: whole or absent, readable as the umask says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from saccade.files import new_folder, replacing, write_bytes, write_text


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    write_text(tmp_path / "result.json", "{}")
    with new_folder(tmp_path / "out") as folder:
        write_bytes(folder / "weights.pt", b"x")
    assert mode(tmp_path / "result.json") == 0o666 & ~umask
    assert mode(tmp_path / "out") == 0o777 & ~umask
    assert mode(tmp_path / "out" / "weights.pt") == 0o666 & ~umask


def test_the_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "deep" / "er" / "note.txt"
    write_text(path, "old\n")
    with replacing(path) as file:
        file.write("né".encode())
        file.flush()
        assert path.read_text() == "old\n"
        assert [p.name for p in path.parent.glob("*.tmp")], "what runs are cleaned of: RunFolder.create"
    assert path.read_bytes() == "né".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "note.txt"
    write_text(path, "old")

    def fail(error: BaseException) -> None:
        with replacing(path) as file:
            file.write(b"new")
            raise error

    for error in (ValueError("half"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_can_be_sought_and_read_back_while_writing(tmp_path):
    with replacing(tmp_path / "a") as file:  # as TIFF and zip writers do
        file.write(b"0123")
        file.seek(1)
        assert file.read(2) == b"12"
    assert (tmp_path / "a").read_bytes() == b"0123"


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    name = "é" * 120 + ".png"  # 244 bytes of 255
    write_bytes(tmp_path / name, b"x")
    assert (tmp_path / name).read_bytes() == b"x"


def test_folders_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "runs" / "one"
    with new_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="exists already"), new_folder(target):
        pass

    def fail() -> None:
        with new_folder(tmp_path / "runs" / "two") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert [path.name for path in target.parent.iterdir()] == ["one"]
    assert (target / "a").read_text() == "a"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "note.txt", "x")
