"""Packing: decode every picture of a data set once, into one memory-mapped array of bytes a split.

    <out>/train.npy          (N, 3, size, size) uint8, in the order of the listing (sorted class, then sorted name)
    <out>/train_labels.npy   (N,) int64
    <out>/train_names.txt    N lines
    <out>/val...             the same
    <out>/manifest.json      classes, counts, hashes, options, what was odd; written last: no manifest, no pack

While a split is written it is called train.npy.part, with a journal beside that has one line for every chunk that is
whole (bytes, checksum, what was odd). Interrupted at any point, the same call goes on after the last whole chunk and
ends with the same bytes; they depend neither on the number of workers nor on where it was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import shutil
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saccade.data.class_layout import ClassSplit, Entry, Listing
from saccade.data.square import CROP, EXIFS, ODDITIES, Exif, Square, read_square
from saccade.files import write_bytes

Advance = Callable[[int, int], None]  # pictures done, pictures in all
Read = Callable[[Entry, int], Square]  # an entry at a size
FORMAT = 1
MANIFEST = "manifest.json"
HEADER = 128  # bytes before the pixels in a .npy file of ours
_BEGUN, _LOCK = ".packing.json", ".lock"
_CHUNK = 64  # pictures; fixed, so that a resumed pack has the same chunks
_EXAMPLES = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackOptions:
    """How pictures are packed.

    Attributes:
        size: rows and columns.
        exif: "ignore" leaves pictures as they are stored, "apply" turns them upright.
        max_unreadable: so many truncated or undecodable files are left out and listed; one more is an error.
    """

    size: int = 128
    exif: Exif = "ignore"
    max_unreadable: int = 20

    def __post_init__(self) -> None:
        if self.size < 2 or self.max_unreadable < 0:
            raise ValueError(
                f"packing needs a size of 2 or more and max_unreadable of 0 or more; got {self.size} and "
                f"{self.max_unreadable}"
            )
        if self.exif not in EXIFS:
            raise ValueError(f"exif={self.exif!r} is unknown; valid: {', '.join(EXIFS)}")

    def lasting(self) -> dict[str, Any]:
        """What decides the bytes; how many files may be unreadable can be changed on the way."""
        return {"size": self.size, "exif": self.exif}


class _Chunk(NamedTuple):
    pixels: bytes
    odd: list[tuple[str, tuple[str, ...]]]
    unreadable: list[tuple[str, str]]


def pack(
    listing: Listing,
    out: Path,
    options: PackOptions,
    *,
    read: Read | None = None,
    about: dict[str, Any] | None = None,
    workers: int = 0,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Pack a data set, or go on with a pack that was interrupted; a finished one is left as it is.

    Args:
        listing: what to pack.
        out: folder to make or to go on in.
        options: how.
        read: makes a square of an entry where entries are no picture files; then `workers` must be 0.
        about: more keys for the manifest.
        workers: processes that decode; 0 decodes in this one. They never change the result.
        advance: called with the pictures done and in all.

    Returns:
        The manifest.

    Raises:
        ValueError: too many unreadable pictures, a class that has none left, a folder begun or finished with other
            options or pictures, or too little disk space.
        OSError: the folder cannot be written.
    """
    wanted = {"format": FORMAT, "options": options.lasting(), "listing": listing.digest()}
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        done = _begin(out, wanted)
        if done is not None:
            return done
        total = sum(len(entries) for entries in listing.splits.values())
        _require_space(out, total, options.size)
        before, splits = 0, {}
        for split, entries in listing.splits.items():
            report = None if advance is None else _shifted(advance, before, total)
            splits[split] = _pack_split(out, split, entries, _Decoder(options, read), workers, report)
            before += len(entries)
        manifest = wanted | (about or {}) | {"crop": CROP, "notes": list(listing.notes)}
        manifest["classes"] = _count_classes(out, listing)
        manifest["splits"] = splits
        _write_text(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        for left in [out / _BEGUN, *out.glob("*.journal")]:
            left.unlink()
        return manifest


def _begin(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished pack of just this, else None; refuses to go on with another one."""
    for note in (out / MANIFEST, out / _BEGUN):
        if not note.is_file():
            continue
        had: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        other = [key for key in wanted if had.get(key) != wanted[key]]
        if other:
            told = "other pictures" if other == ["listing"] else f"{had.get('options')}, not {wanted['options']}"
            raise ValueError(f"{out}: was packed from {told}. Delete that folder to pack anew, or choose another")
        return had if note.name == MANIFEST else None
    _write_text(out / _BEGUN, json.dumps(wanted) + "\n")
    return None


def _pack_split(
    out: Path, split: ClassSplit, entries: Sequence[Entry], decode: _Decoder, workers: int, advance: Advance | None
) -> dict[str, Any]:
    final, journal, options = out / f"{split}.npy", out / f"{split}.journal", decode.options
    chunks = [entries[i : i + _CHUNK] for i in range(0, len(entries), _CHUNK)]
    partial = final.with_name(final.name + ".part")
    if not final.is_file():
        lines = _recover(partial, journal, options.size)
        _require_readable(lines, options, out)
        with (
            open(partial, "ab", buffering=0) as pixels,
            open(journal, "a", encoding="utf-8") as notes,
            _decoded(chunks[len(lines) :], decode, workers) as results,
        ):
            for chunk in results:
                _write_all(pixels, chunk.pixels)  # first the pixels, then the line that vouches for them
                line = {"bytes": len(chunk.pixels), "crc": zlib.crc32(chunk.pixels)}
                lines.append(line | {"odd": chunk.odd, "unreadable": chunk.unreadable})
                notes.write(json.dumps(lines[-1]) + "\n")
                notes.flush()
                _require_readable(lines, options, out)
                if advance is not None:
                    advance(min(len(lines) * _CHUNK, len(entries)), len(entries))
    else:
        lines = _journal(journal)
    bad = {name for line in lines for name, _ in line["unreadable"]}
    kept = [entry for entry in entries if entry.name not in bad]
    _write_text(out / f"{split}_names.txt", "".join(f"{entry.name}\n" for entry in kept))
    _write_labels(out / f"{split}_labels.npy", [entry.label for entry in kept])
    if not final.is_file():
        with open(partial, "r+b") as pixels:
            pixels.write(header((len(kept), 3, options.size, options.size)))
        partial.replace(final)
    files = {name: sha256(out / name) for name in (f"{split}.npy", f"{split}_labels.npy", f"{split}_names.txt")}
    return {"count": len(kept), "sha256": files, **_summary(lines)}


def _recover(partial: Path, journal: Path, size: int) -> list[dict[str, Any]]:
    """Cut a half-written split back to the chunks that are whole; begins it where there is none."""
    if not partial.is_file():
        partial.write_bytes(header((0, 3, size, size)))
        journal.unlink(missing_ok=True)
    whole: list[dict[str, Any]] = []
    end = HEADER
    with open(partial, "r+b") as pixels:
        pixels.seek(HEADER)
        for line in _journal(journal):
            data = pixels.read(line["bytes"])
            if len(data) != line["bytes"] or zlib.crc32(data) != line["crc"]:
                break
            whole.append(line)
            end += line["bytes"]
        pixels.truncate(end)
    _write_text(journal, "".join(json.dumps(line) + "\n" for line in whole))
    return whole


def _journal(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:  # the line that a kill cut off
                break
    return lines


def header(shape: tuple[int, ...]) -> bytes:
    """The head of a .npy file of uint8 with this shape: always HEADER bytes, so that it can be written last."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "|u1", "fortran_order": False, "shape": shape})
    made = text.getvalue()
    if len(made) != HEADER:
        raise RuntimeError(f"packing: NumPy made a header of {len(made)} bytes for {shape}; {HEADER} are kept for it")
    return made


@dataclass(frozen=True)
class _Decoder:
    """Decodes the pictures of a chunk, here or in a worker process."""

    options: PackOptions
    read: Read | None

    def __call__(self, entries: Sequence[Entry]) -> _Chunk:
        pixels: list[bytes] = []
        odd: list[tuple[str, tuple[str, ...]]] = []
        unreadable: list[tuple[str, str]] = []
        for entry in entries:
            try:
                square = self._square(entry)
            except (ValueError, OSError) as error:
                unreadable.append((entry.name, str(error).removeprefix(f"{entry.name}: ")))
                continue
            pixels.append(square.pixels.transpose(2, 0, 1).tobytes())
            if square.oddities:
                odd.append((entry.name, square.oddities))
        return _Chunk(b"".join(pixels), odd, unreadable)

    def _square(self, entry: Entry) -> Square:
        if self.read is not None:
            return self.read(entry, self.options.size)
        return read_square(entry.name, self.options.size, exif=self.options.exif, data=entry.read())


@contextlib.contextmanager
def _decoded(chunks: list[Sequence[Entry]], decode: _Decoder, workers: int) -> Iterator[Iterable[_Chunk]]:
    """The decoded chunks in order, from this process or from a pool of others."""
    if workers < 1 or len(chunks) < 2:
        yield map(decode, chunks)
        return
    posix = "forkserver" in multiprocessing.get_all_start_methods()  # imports once, not once a worker
    context = multiprocessing.get_context("forkserver" if posix else "spawn")
    if posix:
        multiprocessing.set_forkserver_preload([__name__])
    with context.Pool(min(workers, len(chunks)), initializer=_start_worker) as pool:
        yield pool.imap(decode, chunks)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the workers


def _require_readable(lines: Sequence[dict[str, Any]], options: PackOptions, out: Path) -> None:
    bad = [tuple(item) for line in lines for item in line["unreadable"]]
    if len(bad) > options.max_unreadable:
        told = "; ".join(f"{name} ({why})" for name, why in bad[:5])
        raise ValueError(
            f"{out}: {len(bad):,} pictures cannot be read, more than max_unreadable={options.max_unreadable}: {told}"
            f"{'; ...' if len(bad) > 5 else ''}. Mend or remove them, delete {out}, and pack again; or allow more"
        )


def _count_classes(out: Path, listing: Listing) -> list[dict[str, Any]]:
    """Classes with their pictures in each split.

    Raises:
        ValueError: the readable training pictures lack a class.
    """
    counts = {
        split: np.bincount(np.load(out / f"{split}_labels.npy"), minlength=len(listing.classes)).tolist()
        for split in listing.splits
    }
    empty = [name for name, count in zip(listing.classes, counts["train"], strict=True) if not count]
    if empty:
        raise ValueError(f"{out}: {len(empty):,} classes have no readable training picture: {', '.join(empty[:5])}")
    return [
        {"id": key, "name": name, **{split: own[label] for split, own in counts.items()}}
        for label, (key, name) in enumerate(zip(listing.classes, listing.names, strict=True))
    ]


def _summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for name, kinds in (item for line in lines for item in line["odd"]):
        for kind in kinds:
            counts[kind] += 1
            if len(examples.setdefault(kind, [])) < _EXAMPLES:
                examples[kind].append(name)
    odd = {kind: {"count": counts[kind], "examples": examples[kind]} for kind in ODDITIES if kind in counts}
    return {"odd": odd, "unreadable": {name: why for line in lines for name, why in line["unreadable"]}}


def _require_space(out: Path, pictures: int, size: int) -> None:
    there = sum(path.stat().st_size for path in out.glob("*.npy*"))
    need, free = pictures * 3 * size * size - there, shutil.disk_usage(out).free
    if need > free:
        raise ValueError(
            f"{out}: {pictures:,} pictures of {size}x{size} need {need / 2**30:.1f} GiB more, and {free / 2**30:.1f} "
            f"are free"
        )


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Let one process at a time work on a pack; the system frees the lock of one that dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two processes that pack the same folder at once are on their own
        yield
        return
    with open(out / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Another process is packing %s; waiting for it ...", out)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shifted(advance: Advance, before: int, total: int) -> Advance:
    return lambda done, _: advance(before + done, total)


def _write_all(file: io.RawIOBase | io.FileIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # an unbuffered write may take a part only
        view = view[file.write(view) or 0 :]


def _write_labels(path: Path, labels: Sequence[int]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array(labels, dtype=np.int64))
    write_bytes(path, buffer.getvalue())


def _write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
