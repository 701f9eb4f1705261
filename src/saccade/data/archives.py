"""Unpacking downloads: chosen files of zip archives, each written whole or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from saccade.files import write_bytes


class Member(NamedTuple):
    """A file in an archive, and where it goes."""

    archive: Path
    info: zipfile.ZipInfo
    target: Path


def zip_infos(archive: Path) -> list[zipfile.ZipInfo]:
    """The files in a zip archive; those with `..` in their names are left out.

    Raises:
        ValueError: it is no zip archive; names it.
    """
    try:
        with zipfile.ZipFile(archive) as package:
            infos = package.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{archive}: not a readable zip file ({error}); fetch it again") from error
    return [info for info in infos if not info.is_dir() and ".." not in Path(info.filename).parts]


def extract(members: Sequence[Member], advance: Callable[[int, int], None] | None = None) -> int:
    """Unpack files; those that are there in their whole size are left alone.

    Args:
        members: what to unpack, the files of one archive after each other.
        advance: called with the files done and their number.

    Returns:
        The number of files written.

    Raises:
        ValueError: a damaged archive, or a full disk; names the archive.
    """
    written = done = 0
    for archive in dict.fromkeys(member.archive for member in members):
        try:
            with zipfile.ZipFile(archive) as package:
                for member in (member for member in members if member.archive == archive):
                    target = member.target
                    if not target.is_file() or target.stat().st_size != member.info.file_size:
                        write_bytes(target, package.read(member.info))
                        written += 1
                    done += 1
                    if advance is not None:
                        advance(done, len(members))
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(
                f"{archive}: cannot be unpacked to its end ({error}); fetch it again, or free the disk"
            ) from error
    return written
