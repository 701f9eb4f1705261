"""From DeepFashion's official download to the PATN layout.

The In-shop Clothes Retrieval archives hold `<MEN|WOMEN>/<Category>/id_XXXXXXXX/NN_K_view.jpg`: img.zip at 256x256
with 40 px side borders, img_highres.zip at about 1101x750 without. PATN flattens the names to
`fashionWOMENTees_Tanksid0000796209_7additional.jpg`; DSC takes the prefix `fasion` and the underscores out of the
category. Which pictures are wanted, and in which split, is what the keypoint files say.

A 256x256 picture loses its borders (40 px of 256 at each side) and is then resized if another size is wanted. A high
resolution one is resized to the wanted size as it is, a stretch of about one per cent, as CFLD does it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saccade.data.framing import BORDER, MIDDLE
from saccade.data.images import Box, Pixels, decode_image, paint
from saccade.data.keypoints import Annotations, decide_frame, read_annotations
from saccade.data.layout import SPLITS, Split, find_lists
from saccade.data.lists import DeepFashionLists, read_lists
from saccade.data.pairs import Pair, audit_splits, read_pairs, regenerate_pairs, write_pairs
from saccade.files import replacing, write_bytes, write_text
from saccade.geometry import Size

Advance = Callable[[int, int], None]  # pictures done, pictures in all
MANIFEST = "manifest.json"
_BEGUN = ".preparing.json"
_OFFICIAL = re.compile(r"(?:^|/)(MEN|WOMEN)/([^/]+)/id_(\d{8})/(\d{2}_)(\d+)_(\w+)\.jpg$")
_CHUNK = 64


@dataclass(frozen=True)
class Options:
    """How pictures are made.

    Attributes:
        size: rows and columns of the written pictures.
        keep_borders: leave the borders of square pictures on and write squares (DSC's files).
        quality: JPEG quality; the chroma is not subsampled.
        keypoint_frame: "auto", or what `decide_frame` should take as stated.
    """

    size: tuple[int, int] = (MIDDLE.rows, MIDDLE.cols)
    keep_borders: bool = False
    quality: int = 95
    keypoint_frame: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality {self.quality} must be from 1 to 100")
        if self.keep_borders != (self.size[0] == self.size[1]):
            raise ValueError(
                f"size {Size(*self.size)}: pictures with their borders are square (256x256), those without are not "
                f"({MIDDLE})"
            )


@dataclass
class Work:
    """What is to be written: keypoints and pairs of each split, and where each picture comes from."""

    annotations: dict[Split, Annotations]
    pairs: dict[Split, list[Pair]]
    list_files: dict[Split, tuple[Path, Path | None]]
    frame: str
    frame_evidence: str
    pictures: list[tuple[Split, str, str]] = field(default_factory=list)  # split, flat name, entry
    missing: list[str] = field(default_factory=list)


def flat_names(entry: str) -> tuple[str, ...]:
    """The names that the pose-transfer lists give to a picture of the official download: PATN's and DSC's spelling.

    A picture that is not of that layout keeps its own file name.
    """
    found = _OFFICIAL.search(entry)
    if not found:
        return (entry.rsplit("/", 1)[-1],)
    gender, category, garment, colour, number, view = found.groups()
    tail = f"id{garment}{colour}{number}{view}.jpg"
    return f"fashion{gender}{category}{tail}", f"fasion{gender}{category.replace('_', '')}{tail}"


class Pictures:
    """The pictures of an archive or a folder, by the name of their entry."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._archive: zipfile.ZipFile | None = None
        if source.is_dir():
            self.entries = sorted(str(path.relative_to(source).as_posix()) for path in source.rglob("*.jpg"))
        else:
            try:
                self._archive = zipfile.ZipFile(source)
            except (OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{source}: neither a folder nor a readable zip file ({error})") from error
            infos = [info for info in self._archive.infolist() if info.filename.endswith(".jpg")]
            if any(info.flag_bits & 1 for info in infos):
                raise ValueError(
                    f"{source}: the archive is locked with the password that its authors send; unpack it "
                    f"(unzip -P ...) and give the folder with --folder"
                )
            self.entries = [info.filename for info in infos]
        if not self.entries:
            raise ValueError(f"{source}: holds no .jpg pictures; expected WOMEN/<category>/id_<8 digits>/*.jpg")

    def read(self, entry: str) -> bytes:
        """The bytes of one picture.

        Raises:
            ValueError: damaged archive or unreadable file.
        """
        try:
            return (self.source / entry).read_bytes() if self._archive is None else self._archive.read(entry)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.source}: cannot read {entry} ({error})") from error

    def name(self, entry: str) -> str:
        return f"{self.source}/{entry}"


def plan(source: Pictures, lists: Path, options: Options) -> Work:
    """Read and check the lists, and find every picture that they name.

    Raises:
        ValueError: lists missing or malformed, or pictures of pairs that the source does not hold.
    """
    annotations: dict[Split, Annotations] = {}
    pairs: dict[Split, list[Pair]] = {}
    files: dict[Split, tuple[Path, Path | None]] = {}
    for split in SPLITS:
        keys, listed = find_lists(lists, split)
        if keys is None:
            raise ValueError(
                f"{lists}: no keypoint file of the {split} split; expected fasion-resize-annotation-{split}.csv "
                f"(256x176 frame) or fasion-annotation-{split}.csv (256x256 frame), see data/README.md"
            )
        annotations[split] = read_annotations(keys)
        pairs[split] = regenerate_pairs(annotations[split]) if listed is None else read_pairs(listed)
        files[split] = (keys, listed)
    frame, evidence = decide_frame([annotations[s] for s in SPLITS], options.keypoint_frame, key="--frame")
    work = Work(annotations, pairs, files, frame, evidence)
    where = {name: entry for entry in source.entries for name in flat_names(entry)}
    for split in SPLITS:
        paired = {name for pair in pairs[split] for name in pair}
        lost = sorted(name for name in paired if name not in where)
        if lost:
            raise ValueError(
                f"{source.source}: {len(lost):,} of {len(paired):,} pictures of the {split} pairs are not there, "
                f"e.g. {lost[0]}; use the archive that the lists belong to (img.zip or img_highres.zip, complete)"
            )
        for name in sorted(paired | set(annotations[split].rows)):
            if name in where:
                work.pictures.append((split, name, where[name]))
            else:
                work.missing.append(name)
    return work


def convert(source: Path, lists: Path, out: Path, options: Options, advance: Advance | None = None) -> dict[str, Any]:
    """Write a data set in the PATN layout; a call that was interrupted goes on where it stopped.

    Every file appears under its name only when it is whole. The manifest is written last.

    Args:
        source: img.zip, or a folder with the unpacked pictures.
        lists: folder with the keypoint files and, if they are at hand, the pair lists.
        out: folder to make or to go on with.
        advance: called with the pictures done and in all.

    Returns:
        The manifest: counts, hashes of the lists, options, the splits' audit.

    Raises:
        ValueError: bad lists or pictures, or a folder that was begun with other options; names the file.
        OSError: the folder cannot be written.
    """
    pictures = Pictures(source)
    work = plan(pictures, lists, options)
    _begin(out, options, work)
    written = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for chunk in _chunks(work.pictures):
            todo = [item for item in chunk if not (out / item[0] / item[1]).is_file()]
            data = [pictures.read(entry) for _, _, entry in todo]
            jobs = [
                pool.submit(_write_picture, pictures.name(entry), blob, out / split / name, options)
                for (split, name, entry), blob in zip(todo, data, strict=True)
            ]
            for job in jobs:
                job.result()
            written += len(chunk)
            if advance is not None:
                advance(written, len(work.pictures))
    _write_lists(work, out)
    manifest = _manifest(work, out, source, options)
    write_text(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    (out / _BEGUN).unlink()
    return manifest


def check(root: Path, keypoint_frame: str = "auto", advance: Advance | None = None) -> DeepFashionLists:
    """Read the lists of a prepared folder and decode every picture of its pairs.

    Raises:
        ValueError: whatever is wrong first; names file and line.
    """
    lists = read_lists(root, keypoint_frame=keypoint_frame)
    paths = sorted({split.images / name for split in lists.splits.values() for pair in split.pairs for name in pair})
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, _ in enumerate(pool.map(decode_image, paths), start=1):
            if advance is not None:
                advance(done, len(paths))
    return lists


def _chunks(items: list[tuple[Split, str, str]]) -> Iterator[list[tuple[Split, str, str]]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _begin(out: Path, options: Options, work: Work) -> None:
    """Make the folders, or see that what is there was begun in the same way; sweep up half-written files."""
    wanted = {"options": asdict(options) | {"size": list(options.size)}, "keypoints": _hashes(work)}
    out.mkdir(parents=True, exist_ok=True)
    for note in (out / _BEGUN, out / MANIFEST):
        if note.is_file():
            had = json.loads(note.read_text(encoding="utf-8"))
            if {key: had.get(key) for key in wanted} != wanted:
                raise ValueError(
                    f"{out}: was prepared with other options or lists ({note.name}: {had.get('options')}); "
                    f"now asked: {wanted['options']}. Choose another --out or delete the folder"
                )
            break
    else:
        if any(out.iterdir()):
            raise ValueError(f"{out}: the folder is not empty and was not made by this command; choose another --out")
    write_text(out / _BEGUN, json.dumps(wanted) + "\n")
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        for half in (out / split).glob(".*.tmp"):  # of a call that was killed
            half.unlink()


def _write_picture(name: str, data: bytes, path: Path, options: Options) -> None:
    pixels = decode_image(name, data)
    size = Size(*pixels.shape[:2])
    target = Size(*options.size)
    if size == target:
        write_bytes(path, data)
        return
    made = _reshape(name, pixels, target, options.keep_borders)
    with replacing(path) as file:
        Image.fromarray(made).save(file, format="JPEG", quality=options.quality, subsampling=0)


def _reshape(name: str, pixels: Pixels, target: Size, keep_borders: bool) -> Pixels:
    rows, cols = pixels.shape[:2]
    square = rows == cols
    if not square and (keep_borders or abs(cols / rows - MIDDLE.cols / MIDDLE.rows) > 0.05):
        wanted = "square" if keep_borders else f"square, or of the aspect of {MIDDLE}"
        raise ValueError(f"{name}: the picture is {rows}x{cols} (rows x cols); expected one that is {wanted}")
    if square and not keep_borders:
        border = round(BORDER * cols / 256)
        pixels = np.ascontiguousarray(pixels[:, border : cols - border])
        rows, cols = pixels.shape[:2]
    if rows < target.rows or cols < target.cols:
        raise ValueError(
            f"{name}: has {rows}x{cols} pixels to show, less than the {target} asked for; use img_highres or a smaller "
            f"--size"
        )
    return paint(pixels, Box(0, 0, *target), target)


def _write_lists(work: Work, out: Path) -> None:
    for split in SPLITS:
        keys, listed = work.list_files[split]
        _copy(keys, out / keys.name)
        if listed is None:
            write_pairs(out / keys.name.replace("annotation", "pairs"), work.pairs[split])
        else:
            _copy(listed, out / listed.name)


def _manifest(work: Work, out: Path, source: Path, options: Options) -> dict[str, Any]:
    audit = audit_splits(work.pairs["train"], work.pairs["test"])
    made = [f"the {split} pairs were made from the keypoints" for split in SPLITS if work.list_files[split][1] is None]
    return {
        "dataset": "DeepFashion in-shop, PATN layout",
        "source": source.name,
        "options": asdict(options) | {"size": list(options.size)},
        "keypoints": _hashes(work),
        "keypoint_frame": work.frame,
        "keypoint_frame_evidence": work.frame_evidence,
        "counts": audit.counts | {f"{s}_files": sum(item[0] == s for item in work.pictures) for s in SPLITS},
        "keypoint_rows_without_picture": len(work.missing),
        "lists": {path.name: _sha256(path) for path in sorted(out.glob("*.csv"))},
        "split": audit.split,
        "notes": [*audit.notes, *made],
        "warnings": audit.warnings,
    }


def _hashes(work: Work) -> dict[str, str]:
    return {work.list_files[split][0].name: _sha256(work.list_files[split][0]) for split in SPLITS}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    write_bytes(target, source.read_bytes())
