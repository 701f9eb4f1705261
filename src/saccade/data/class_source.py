"""Which pictures of classes are there: a layout's files, a pack of them, or neither; and how to get there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from saccade.data import cifar10, imagenet
from saccade.data.class_layout import Listing, class_folders, find_folders
from saccade.data.layout import Source
from saccade.data.pack import MANIFEST, Advance, PackOptions, pack
from saccade.data.packed import pack_folder, packed_sizes, read_manifest
from saccade.data.standin.folder import MARKER

Layout = Literal["imagenet", "folder", "cifar10"]
LAYOUTS: tuple[Layout, ...] = ("imagenet", "folder", "cifar10")
_TRACES: dict[Layout, tuple[str, ...]] = {  # what shows that somebody meant the data set to be there
    "imagenet": ("train", "val", imagenet.TRAIN_TAR, imagenet.VAL_TAR, "ILSVRC"),
    "cifar10": (cifar10.FOLDER, cifar10.ARCHIVE),
    "folder": (),
}


def list_pictures(root: Path, layout: Layout, held_out: float = 0.1) -> Listing:
    """The pictures of a data set.

    Raises:
        ValueError: it is not there or not whole.
    """
    if layout == "imagenet":
        return imagenet.find_imagenet(root)
    return cifar10.find_cifar10(root) if layout == "cifar10" else find_folders(root, held_out)


def class_ids(root: Path, layout: Layout, size: int) -> tuple[str, ...]:
    """The classes of a data set, by names of folders alone; of its pack where there is one."""
    if (pack_folder(root, size) / MANIFEST).is_file():
        return tuple(entry["id"] for entry in read_manifest(pack_folder(root, size))["classes"])
    if layout == "cifar10":
        return cifar10.CLASSES
    for train in (root / "ILSVRC" / "Data" / "CLS-LOC" / "train", root / "train"):
        if train.is_dir():
            return tuple(class_folders(train))
    if layout == "imagenet":
        return imagenet.tar_classes(root / imagenet.TRAIN_TAR) if (root / imagenet.TRAIN_TAR).is_file() else ()
    return tuple(class_folders(root)) if root.is_dir() else ()


def pack_pictures(
    root: Path,
    out: Path,
    layout: Layout,
    options: PackOptions,
    *,
    held_out: float = 0.1,
    workers: int = 0,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Pack the data set in `root` into the folder `out`: see `saccade.data.pack.pack`.

    Raises:
        ValueError: no such data set, or what `pack` raises.
    """
    listing = list_pictures(root, layout, held_out)
    from_array = layout == "cifar10"
    return pack(
        listing,
        out,
        options,
        read=cifar10.read_cifar10 if from_array else None,
        about={
            "layout": layout,
            "held_out": held_out if layout == "folder" and not (root / "train").is_dir() else None,
            "standin": (root / MARKER).is_file(),
        },
        workers=0 if from_array else workers,
        advance=advance,
    )


def has_changed(root: Path, layout: Layout, manifest: dict[str, Any]) -> bool:
    """Whether a folder of class folders has other pictures than when it was packed; False where that is not to be seen.

    Raises:
        ValueError: a class without pictures.
    """
    if layout != "folder" or manifest["standin"] or not _complete(root, layout, 0):
        return False
    return list_pictures(root, layout, manifest["held_out"] or 0).digest() != str(manifest["listing"])


def resolve_source(root: Path, source: Source, layout: Layout, size: int) -> Literal["files", "standin"]:
    """Decide whether real files (or their pack) or the stand-in will be read, by looking at names only.

    `auto` takes the files if they are there and the stand-in if there is no trace of them; a half is an error.

    Raises:
        ValueError: unknown source or layout; files demanded or begun but not complete.
    """
    if source not in ("auto", "files", "standin"):
        raise ValueError(f"data.source={source} is unknown; valid: auto, files, standin")
    if layout not in LAYOUTS:
        raise ValueError(f"data.module.layout={layout} is unknown; valid: {', '.join(LAYOUTS)}")
    if source == "standin":
        return "standin"
    if (pack_folder(root, size) / MANIFEST).is_file() or _complete(root, layout, size):
        return "files"
    sizes = packed_sizes(root)
    begun = sizes or any((root / name).exists() for name in _TRACES[layout])
    if source == "auto" and not begun:
        return "standin"
    packs = f" It is packed at {', '.join(map(str, sizes))}, not at {size}." if sizes else ""
    raise ValueError(f"{root}: no {_WHAT[layout]} there.{packs}\n{how_to_get(root, layout, size)}")


def _complete(root: Path, layout: Layout, size: int) -> bool:
    if layout == "cifar10":
        return any((root / name).exists() for name in _TRACES[layout])
    return len(class_ids(root, layout, size)) > 0


_WHAT: dict[Layout, str] = {
    "imagenet": "complete ImageNet", "folder": "folders of classes", "cifar10": "CIFAR-10 batches"
}  # fmt: skip
_LAYOUTS: dict[Layout, str] = {
    "imagenet": """\
  {root}/train/<wnid>/*.JPEG   {root}/val/<wnid>/*.JPEG    e.g. train/n01440764/n01440764_10026.JPEG
  {root}/LOC_synset_mapping.txt or imagenet_class_index.json   names of classes (optional)
  also: val/*.JPEG with LOC_val_solution.csv or the development kit; ILSVRC2012_img_train.tar and _val.tar; Kaggle's
  ILSVRC/Data/CLS-LOC""",
    "folder": """\
  {root}/train/<class>/*.jpg  {root}/val/<class>/*.jpg
  or one level, of which a share is held out:  {root}/<class>/*.jpg""",
    "cifar10": """\
  {root}/cifar-10-batches-py/   or   {root}/cifar-10-python.tar.gz""",
}


def how_to_get(root: Path, layout: Layout, size: int) -> str:
    """The expected layout, and the commands that would make it."""
    download = f"\n  python scripts/prepare_data.py cifar10 --download --out {root}" if layout == "cifar10" else ""
    return f"""\
Expected layout (see data/README.md):
{_LAYOUTS[layout].format(root=root)}
{pack_command(root, layout, size)}{download}
To go without: data.source=standin (or auto) draws stand-in pictures of ten classes, and
  python scripts/prepare_data.py {layout} --standin --out {root} --size {size}
writes them there in ImageNet's layout."""


def pack_command(root: Path, layout: Layout, size: int) -> str:
    """The command that packs a data set, in words."""
    return f"""\
To pack it once (from the same or from another folder):
  python scripts/prepare_data.py {layout} --from {root} --out {root} --size {size}"""
