"""Files and folders that are whole or absent: who reads sees the old one or the new one, never a part of it.

What is written stands under a hidden temporary name ending in .tmp beside its place until it is complete, and is
removed if the writing fails. Its permissions are those of any new file of the user (the umask decides).
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` once the block has ended well. Its folder is made if need be.

    Raises:
        OSError: the folder cannot be made or written to; the message names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    # not tempfile's, which are private to their owner whatever the umask
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Write a file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Make a folder that appears under its name, with all that the block put in it, once the block has ended well.

    Yields:
        The folder under its temporary name.

    Raises:
        ValueError: `path` exists.
        OSError: it cannot be made there.
    """
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists already; choose a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    """An unused name beside `path`; names may have 255 bytes, so a long one is not repeated in it."""
    return path.with_name(f".{path.name[:40]}-{secrets.token_hex(4)}.tmp")
