"""A stand-in's folder: made whole or not at all, marked as what it is, and reused when it is what was asked for."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MARKER, MANIFEST = "STANDIN.txt", "standin.json"

Summary = dict[str, Any]


def write_whole(
    root: Path,
    who: str,
    arguments: Mapping[str, Any],
    build: Callable[[Path], Summary],
    marker: str,
    *,
    note: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[Summary, bool]:
    """Make a stand-in folder, or find it made: everything is written to a temporary sibling, renamed at the end.

    Args:
        root: the folder to make.
        who: the generator, for messages.
        arguments: what decides the files; plain values.
        build: fills an empty folder and returns what `standin.json` keeps as its summary.
        marker: the text of STANDIN.txt.
        note: more keys for standin.json.
        overwrite: replace a stand-in made with other arguments (never a folder that is not a stand-in).

    Returns:
        The summary, and whether the folder was there already.

    Raises:
        ValueError: the folder holds something else, or a stand-in made with other arguments.
        OSError: the folder cannot be written.
    """
    if not (overwrite and (root / MARKER).is_file()):
        found = _existing(root, who, arguments)
        if found is not None:
            return found, True
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", suffix="-partial", dir=root.parent) as partial:
        folder = Path(partial) / root.name
        folder.mkdir()
        summary = build(folder)
        manifest = {"generator": who, "arguments": dict(arguments), "summary": summary} | dict(note or {})
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (folder / MARKER).write_text(marker, encoding="utf-8")
        return _install(folder, root, who, arguments, summary, overwrite)


def require_no_standin(root: Path) -> None:
    """Refuse to put real files into a stand-in's folder, whose mark would go on saying what they are not.

    Raises:
        ValueError: the folder is marked as a stand-in.
    """
    if (root / MARKER).is_file():
        raise ValueError(f"{root}: holds a stand-in (see its {MARKER}); delete that folder, or give another one")


def _existing(root: Path, who: str, arguments: Mapping[str, Any]) -> Summary | None:
    """The summary of a finished stand-in with these arguments; None when the place is free."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    if not (root / MARKER).is_file() or not (root / MANIFEST).is_file():
        raise ValueError(
            f"{who}: {root} holds something that this generator did not write (no {MARKER} and {MANIFEST} "
            "in it); it is left alone. Give an empty or new folder."
        )
    manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    had = manifest["arguments"]
    if had != arguments:
        keys = sorted(key for key in {*had, *arguments} if had.get(key) != arguments.get(key))
        told = ", ".join(f"{key} {had.get(key)!r} there, {arguments.get(key)!r} asked for" for key in keys)
        raise ValueError(
            f"{who}: {root} holds a stand-in made with other arguments ({told}). "
            "Delete that folder, pass overwrite=True, or give another folder."
        )
    summary: Summary = manifest["summary"]
    return summary


def _install(
    folder: Path, root: Path, who: str, arguments: Mapping[str, Any], summary: Summary, overwrite: bool
) -> tuple[Summary, bool]:
    """Move the finished folder into place; if another process was faster with the same, take its."""
    if overwrite and (root / MARKER).is_file():
        os.replace(root, folder.parent / "replaced")
    try:
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()
        os.rename(folder, root)
    except OSError:
        found = _existing(root, who, arguments)
        if found is None:
            raise
        return found, True
    return summary, False
