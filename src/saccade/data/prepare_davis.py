"""From the downloads of DAVIS 2017 to the folder that is read: unpack what is needed, and check it.

Of each package (trainval, test-dev, test-challenge) the lists and the frames at one resolution are unpacked;
segmentations are left where they are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from saccade.data.archives import Member, extract, zip_infos
from saccade.data.davis_layout import DavisFiles, find_davis, frames_of
from saccade.data.images import decode_image
from saccade.data.standin.folder import require_no_standin

Advance = Callable[[int, int], None]  # files done, files in all
OFFICIAL = {"train": 60, "val": 30, "test-dev": 30, "test-challenge": 30}  # sequences (Pont-Tuset et al., Table 1)


def unpack(archives: Sequence[Path], out: Path, resolution: str = "480p", advance: Advance | None = None) -> int:
    """Unpack lists and frames of packages into `out`/DAVIS; files that are there in their whole size are left alone.

    Returns:
        The number of files written.

    Raises:
        ValueError: not a zip file, a damaged one, or one without frames at that resolution; names it. Also where
            `out` holds a stand-in.
    """
    require_no_standin(out)
    members = [
        Member(archive, info, out / path) for archive in archives for info, path in _members(archive, resolution)
    ]
    return extract(members, advance)


def check(root: Path, resolution: str = "480p", advance: Advance | None = None) -> tuple[dict[str, int], list[str]]:
    """Read every frame of every list.

    Returns:
        Counts (sequences and frames of each list), and warnings: what differs from the official data set.

    Raises:
        ValueError: no lists or frames, sequences without frames, or an unreadable frame; names it.
    """
    files = find_davis(root, resolution)
    warnings = _list_warnings(files)
    videos = {split: {n: frames_of(files.folders[n]) for n in files.sequences(split)} for split in _present(files)}
    total = sum(len(frames) for split in videos.values() for frames in split.values())
    counts: dict[str, int] = {}
    done = 0
    for split, sequences in videos.items():
        counts |= {f"{split}_sequences": len(sequences), f"{split}_frames": sum(map(len, sequences.values()))}
        for name, frames in sequences.items():
            if list(frames) != list(range(len(frames))):
                warnings.append(f"{name}: frames are not numbered 0 to {len(frames) - 1} without gaps")
            shapes = set()
            for path in frames.values():
                shapes.add(decode_image(path).shape)
                done += 1
                if advance is not None:
                    advance(done, total)
            if len(shapes) > 1:
                warnings.append(f"{name}: frames of {len(shapes)} sizes")
    return counts, warnings


def _present(files: DavisFiles) -> list[str]:
    """The lists whose sequences are there, in the official order first."""
    names = [*(name for name in OFFICIAL if name in files.lists), *(n for n in files.lists if n not in OFFICIAL)]
    return [name for name in names if len(files.missing(name)) < len(files.lists[name])]


def _list_warnings(files: DavisFiles) -> list[str]:
    warnings = []
    for split, count in OFFICIAL.items():
        if split not in files.lists:
            warnings.append(f"no list {split}")
        elif len(files.missing(split)) == len(files.lists[split]):
            warnings.append(f"{split}: its list is there, its frames are not")
        elif len(files.lists[split]) != count:
            warnings.append(f"{split}: {len(files.lists[split])} sequences, officially {count}")
    return warnings


def _members(archive: Path, resolution: str) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """What a package holds that is needed, and where it goes below the data folder."""
    found: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    frames = 0
    for info in zip_infos(archive):
        parts = PurePosixPath(info.filename).parts
        if "DAVIS" not in parts:
            continue
        inner = parts[parts.index("DAVIS") + 1 :]
        is_list = inner[:2] == ("ImageSets", "2017") and len(inner) == 3
        is_frame = inner[:2] == ("JPEGImages", resolution) and len(inner) == 4
        if is_list or is_frame:
            frames += is_frame
            found.append((info, PurePosixPath("DAVIS", *inner)))
    if not frames:
        raise ValueError(
            f"{archive}: holds no DAVIS/JPEGImages/{resolution}/<sequence>/*.jpg; it should be a package of "
            f"davischallenge.org as DAVIS-2017-trainval-480p.zip (--resolution chooses another one)"
        )
    return found
