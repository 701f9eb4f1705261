"""Where DeepFashion's files lie on disk: the PATN layout (Zhu et al. 2019) and its spellings.

<root>/fasion-resize-pairs-train.csv        <root>/fasion-resize-pairs-test.csv           (optional: can be made)
<root>/fasion-resize-annotation-train.csv   <root>/fasion-resize-annotation-test.csv
<root>/train/<name>.jpg                     <root>/test/<name>.jpg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["auto", "files", "standin"]
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
PREFIXES = ("fasion-resize", "fashion-resize", "fasion", "fashion")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split; `pairs` is None where the list is missing and has to be made from the keypoints."""

    annotations: Path
    pairs: Path | None
    images: Path


def find_layout(root: Path | str, folders: str = "{split}", prefix: str = "auto") -> dict[Split, SplitFiles]:
    """Find the lists and picture folders of both splits.

    Args:
        root: the data set's folder.
        folders: name of the picture folders, with {split} in it (CFLD: "{split}_highres").
        prefix: what the keypoint files' names start with, one of PREFIXES; "auto" takes the one that is there.
            Pair lists may spell fasion or fashion either way.

    Raises:
        ValueError: files are missing, or several annotation files could be meant; shows the layout and how to get it.
    """
    root = Path(root)
    if "{split}" not in folders:
        raise ValueError(f"data.module.folders={folders!r} must hold {{split}}, which becomes train and test")
    _check_prefix(prefix)
    missing: list[str] = []
    found: dict[Split, SplitFiles] = {}
    for split in SPLITS:
        images = root / folders.format(split=split)
        annotations, pairs = find_lists(root, split, prefix)
        if annotations is None:
            missing.append(f"{root}/{'fasion-resize' if prefix == 'auto' else prefix}-annotation-{split}.csv")
        if not images.is_dir():
            missing.append(f"{images}/{_others(root, split)}")
        if annotations is not None and images.is_dir():
            found[split] = SplitFiles(annotations, pairs, images)
    if missing:
        raise ValueError(f"DeepFashion is not complete in {root}. Missing: {', '.join(missing)}\n{how_to_get(root)}")
    return found


def find_lists(root: Path, split: Split, prefix: str = "auto") -> tuple[Path | None, Path | None]:
    """The keypoint file and the pair list of one split, None for what is not there.

    Raises:
        ValueError: unknown prefix, or several files could be meant.
    """
    _check_prefix(prefix)
    return _one_of(root, "annotation", split, prefix), _one_of(root, "pairs", split, prefix)


def resolve_source(
    root: Path | str, source: Source = "auto", folders: str = "{split}", prefix: str = "auto"
) -> Literal["files", "standin"]:
    """Decide whether real files or the stand-in will be read, by looking at names only.

    `auto` takes the files if they are all there and the stand-in if there are none; a half of a data set is an error.

    Raises:
        ValueError: unknown source; files demanded or begun but not complete.
    """
    if source not in ("auto", "files", "standin"):
        raise ValueError(f"data.source={source} is unknown; valid: auto, files, standin")
    if source == "standin":
        return "standin"
    try:
        find_layout(root, folders, prefix)
    except ValueError:
        if source == "auto" and not _any_of(Path(root), folders):
            return "standin"
        raise
    return "files"


def how_to_get(root: Path | str) -> str:
    """The expected layout, and the commands that would make it."""
    return f"""\
Expected layout (PATN's; see data/README.md):
  {root}/fasion-resize-annotation-{{train,test}}.csv   keypoints   (also without -resize; also fashion)
  {root}/fasion-resize-pairs-{{train,test}}.csv        pair lists  (made from the keypoints where missing)
  {root}/train/*.jpg  {root}/test/*.jpg   pictures: fashionWOMENDressesid0000000101_1front.jpg
To make it from the official download (In-shop Clothes Retrieval, by agreement with its authors) and PATN's lists:
  python scripts/prepare_data.py deepfashion --zip img.zip --lists <folder with the csv files> --out {root}
  python scripts/prepare_data.py deepfashion --folder img_highres --lists <folder> --out {root} --size 512x352
To go without: data.source=standin (or auto) draws stand-in people, and
  python scripts/prepare_data.py deepfashion --standin --out {root}
writes them there in the same layout."""


def _check_prefix(prefix: str) -> None:
    if prefix not in ("auto", *PREFIXES):
        raise ValueError(f"data.module.list_prefix={prefix!r} is unknown; valid: auto, {', '.join(PREFIXES)}")


def _one_of(root: Path, what: str, split: Split, prefix: str) -> Path | None:
    prefixes: tuple[str, ...] = PREFIXES if prefix == "auto" else (prefix,)
    if what == "pairs" and prefix != "auto":  # public copies spell fasion-annotation beside fashion-pairs
        prefixes = tuple(p for p in PREFIXES if p.endswith("-resize") == prefix.endswith("-resize"))
    there = [path for p in prefixes if (path := root / f"{p}-{what}-{split}.csv").is_file()]
    if len(there) > 1:
        raise ValueError(
            f"{root} holds {' and '.join(path.name for path in there)}, which may be in different frames; "
            f"keep one, or choose by data.module.list_prefix: {', '.join(PREFIXES)}"
        )
    return there[0] if there else None


def _any_of(root: Path, folders: str) -> bool:
    names = [f"{p}-{w}-{s}.csv" for p in PREFIXES for w in ("annotation", "pairs") for s in SPLITS]
    return any((root / name).exists() for name in [*names, *(folders.format(split=s) for s in SPLITS)])


def _others(root: Path, split: Split) -> str:
    if not root.is_dir():
        return ""
    near = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.startswith(split))
    return f" (there is {', '.join(near)}: set data.module.folders)" if near else ""
