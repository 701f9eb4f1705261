"""Where super-resolution pictures lie on disk: DIV2K's archives, and the layouts in which benchmarks go round.

DIV2K      DIV2K_train_HR/0001.png   DIV2K_train_LR_bicubic/X2/0001x2.png   (DIV2K_valid_* from 0801, or all in train)
benchmark  image_SRF_2/img_001_SRF_2_{HR,LR}.png   (SelfExSR, where Urban100 comes from)
           HR/img_001.png  LR_bicubic/X2/img_001x2.png   (the archive of EDSR and its successors)
           img_001.png   (pictures alone; so does HR/ without LR_bicubic/)

Urban100's SRF_2 folder holds pictures of half the size, on which no published x2 score was measured: the large pictures
of SRF_4 are taken for every scale, and shrunk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError

from saccade.data.layout import Source
from saccade.data.square import SUFFIXES
from saccade.geometry import Size

OFFICIAL = {"div2k": "DIV2K", "urban100": "Urban100", "set5": "Set5", "set14": "Set14", "b100": "B100"}
SETS = tuple(OFFICIAL)
BENCHMARKS = tuple(name for name in SETS if name != "div2k")
DECODED = "decoded"  # below DIV2K's folder: its pictures as arrays
_ALSO = {"b100": ("BSD100", "BSDS100")}
_SRF = re.compile(r"image_SRF_(\d+)")
_LARGER = 1.5  # times: from here on another folder's pictures are the whole ones


@dataclass(frozen=True)
class PairFiles:
    """One picture: its name, its file, and the file of its low resolution, None where it has to be made."""

    key: str
    high: Path
    low: Path | None


@dataclass(frozen=True)
class SetFiles:
    """The pictures of one set in order, the folder they lie in, and what a person should know about them."""

    name: str
    folder: Path
    pairs: tuple[PairFiles, ...]
    notes: tuple[str, ...] = ()


def find_set(folder: Path | str, name: str, scale: int, numbers: tuple[int, int] | None = None) -> SetFiles:
    """Find the pictures of a set.

    Args:
        folder: the set's folder.
        name: one of `SETS`.
        scale: the factor.
        numbers: first and last picture of DIV2K, all of which there must be; None takes those that are there.

    Raises:
        ValueError: pictures are missing; shows the layout and how to get it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{OFFICIAL[name]}: there is no {folder}.\n{how_to_get(folder.parent, name)}")
    pairs, notes = _div2k(folder, scale, numbers) if name == "div2k" else _benchmark(folder, scale)
    if not pairs:
        raise ValueError(f"{OFFICIAL[name]}: {folder} holds no pictures.\n{how_to_get(folder.parent, name)}")
    return SetFiles(name, folder, tuple(pairs), tuple(notes))


def set_folder(data: Path | str, name: str) -> Path | None:
    """The folder of a set, None where there is none.

    Raises:
        ValueError: unknown set.
    """
    if name not in OFFICIAL:
        raise ValueError(f"super-resolution set {name!r} is unknown; valid: {', '.join(SETS)}")
    spellings = (name, OFFICIAL[name], *_ALSO.get(name, ()))
    places = [Path(data) / below / spelling for below in ("", "benchmark") for spelling in spellings]
    return next((place for place in places if place.is_dir() and any(place.iterdir())), None)


def resolve_source(data: Path | str, source: Source, names: Sequence[str]) -> Literal["files", "standin"]:
    """Decide whether real files or stand-ins will be read, by looking for the sets' folders.

    `auto` takes the files as soon as one of the sets is there: what is missing then is an error where it is needed, so
    that trained weights can be scored without the training pictures.

    Raises:
        ValueError: unknown source or set; files demanded and none of the sets is there.
    """
    if source not in ("auto", "files", "standin"):
        raise ValueError(f"data.source={source} is unknown; valid: auto, files, standin")
    there = [name for name in names if set_folder(data, name) is not None]
    if source == "standin" or (source == "auto" and not there):
        return "standin"
    if not there:
        raise ValueError("\n".join(how_to_get(data, name) for name in dict.fromkeys(names)))
    return "files"


def how_to_get(data: Path | str, name: str) -> str:
    """The expected layout, and the commands that would make it."""
    root = Path(data) / name
    if name == "div2k":
        layout = f"""\
  {root}/DIV2K_train_HR/0001.png ... 0800.png   {root}/DIV2K_valid_HR/0801.png ...   (or all in DIV2K_train_HR)
  {root}/DIV2K_train_LR_bicubic/X2/0001x2.png ...   (X3, X4; made from the pictures where missing)
The archives DIV2K_train_HR.zip, DIV2K_valid_HR.zip and DIV2K_*_LR_bicubic_X2.zip are on the page of its authors. Then:
  python scripts/prepare_data.py div2k --zip DIV2K_*.zip --out {root}"""
    else:
        layout = f"""\
  {root}/HR/*.png   {root}/LR_bicubic/X2/*x2.png   (LR is made where missing), or
  {root}/image_SRF_4/img_001_SRF_4_HR.png ...   or   {root}/*.png
Check it:
  python scripts/prepare_data.py {name} --check --out {root}"""
    return f"""\
Expected layout of {OFFICIAL[name]} (see data/README.md):
{layout}
To go without: data.source=standin (or auto) draws facades, and
  python scripts/prepare_data.py {name} --standin --out {root}
writes them there in the same layout."""


def picture_size(path: Path) -> Size:
    """The size of a picture, from its header.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return Size(opened.height, opened.width)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable picture ({error}); replace it") from error


def _div2k(folder: Path, scale: int, numbers: tuple[int, int] | None) -> tuple[list[PairFiles], list[str]]:
    there = {path.stem: path for split in ("valid", "train") for path in (folder / f"DIV2K_{split}_HR").glob("*.png")}
    wanted = sorted(there) if numbers is None else [f"{n:04d}" for n in range(numbers[0], numbers[1] + 1)]
    missing = [stem for stem in wanted if stem not in there]
    if missing:
        raise ValueError(
            f"DIV2K is not complete in {folder}: {len(missing):,} of {len(wanted):,} pictures are missing, first "
            f"{missing[0]}.png.\n{how_to_get(folder.parent, 'div2k')}"
        )
    pairs = []
    for stem in wanted:
        lows = [folder / f"DIV2K_{split}_LR_bicubic/X{scale}/{stem}x{scale}.png" for split in ("train", "valid")]
        pairs.append(PairFiles(stem, there[stem], next((path for path in lows if path.is_file()), None)))
    return pairs, []


def _benchmark(folder: Path, scale: int) -> tuple[list[PairFiles], list[str]]:
    srf = {int(named[1]): path for path in folder.iterdir() if path.is_dir() and (named := _SRF.fullmatch(path.name))}
    if srf:
        return _first_layout(srf, scale)
    high = folder / "HR" if (folder / "HR").is_dir() else folder
    lows = folder / "LR_bicubic" / f"X{scale}"
    pairs = []
    for path in _pictures(high):
        low = next(
            (found for suffix in (".png", path.suffix) if (found := lows / f"{path.stem}x{scale}{suffix}").is_file()),
            None,
        )
        pairs.append(PairFiles(path.stem, path, low))
    return pairs, []


def _first_layout(folders: dict[int, Path], scale: int) -> tuple[list[PairFiles], list[str]]:
    """SelfExSR's folders: the one of the scale, unless another's pictures are far larger."""
    sizes = {}
    for factor, folder in folders.items():
        found = [path for path in _pictures(folder) if path.stem.endswith("_HR")]
        if found:
            sizes[factor] = picture_size(found[0]).area ** 0.5
    if not sizes:
        return [], []
    largest = max(sizes, key=lambda factor: (sizes[factor], factor))
    notes = []
    chosen = scale if scale in sizes else largest
    if sizes[largest] >= _LARGER * sizes[chosen]:
        notes.append(
            f"{folders[chosen]} holds pictures of about {sizes[chosen] / sizes[largest]:.2f} of the size of those in "
            f"{folders[largest].name}; published x{scale} scores are of the large ones, which are taken and shrunk"
        )
        chosen = largest
    pairs = []
    for path in _pictures(folders[chosen]):
        if path.stem.endswith("_HR"):
            low = path.with_name(f"{path.stem.removesuffix('_HR')}_LR{path.suffix}")
            key = path.stem.removesuffix(f"_SRF_{chosen}_HR")
            pairs.append(PairFiles(key, path, low if chosen == scale and low.is_file() else None))
    return pairs, notes


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
