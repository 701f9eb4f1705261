"""Score a folder of somebody's pictures against a folder of real images, so that published results can be compared.

Pictures are paired by name: the same name as the real image, or the naming of the released codes,
``<from>___<to>_vis.png`` (PATN and followers), ``<from>_2_<to>_vis.png`` (GFLA and followers) and
``<from>.jpg_<to>.jpg.png`` (DSC). A picture that is several panels wide stands for its last one (PATN saves five:
source, its pose, target, its pose, generated).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from saccade.geometry import Size
from saccade.metrics.pairs import PLAIN_METRICS, ImagePairMetrics, fitting_names

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SEPARATORS = ("___", "_2_", ".jpg_", ".png_")
_WIDE, _NARROW, _BORDER = 256, 176, 40
_SHOWN = 5


@dataclass(frozen=True)
class PicturePair:
    """A generated picture and the real image that it should equal."""

    key: str
    picture: Path
    real: Path


@dataclass(frozen=True)
class FolderScore:
    """Result of scoring a folder. ``provenance`` is JSON-ready."""

    metrics: dict[str, float]
    per_image: list[dict[str, Any]]
    provenance: dict[str, Any]
    notices: list[str]


def pair_files(images: Path, reference: Path) -> list[PicturePair]:
    """Find the real image of every picture, by name, sorted by name.

    Raises:
        ValueError: a folder is missing or holds no image, a picture has no partner, or a name is ambiguous.
    """
    pictures = _image_files(images)
    real: dict[str, Path] = {}
    for path in _image_files(reference):
        if (other := real.setdefault(_stem(path.name), path)) != path:
            raise ValueError(f"folder: {other.name} and {path.name} in {reference} have the same stem: remove one")
    found = {path: _partner(_stem(path.name), real) for path in pictures}
    alone = [path.name for path, partner in found.items() if partner is None]
    if alone:
        more = f" and {len(alone) - _SHOWN} more" if len(alone) > _SHOWN else ""
        raise ValueError(
            f"folder: {len(alone)} of {len(pictures)} pictures in {images} have no partner in {reference}: "
            f"{', '.join(alone[:_SHOWN])}{more}. A picture is named as its real image, or <from>___<to>_vis.png, "
            f"<from>_2_<to>_vis.png, <from>.jpg_<to>.jpg.png with <to> a real image such as {next(iter(real))}"
        )
    return [PicturePair(_stem(path.name), path, partner) for path, partner in found.items() if partner is not None]


def score_folders(
    images: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    *,
    names: Sequence[str] = PLAIN_METRICS,
    weights: str = "auto",
    weights_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
) -> FolderScore:
    """Score every picture of a folder against its real image.

    A 256x176 picture and a 256x256 real image (or the reverse) are compared on the middle 176 columns. No other sizes
    are mixed.

    Args:
        images: folder of generated pictures.
        reference: folder of real images; it may hold more than are needed.
        names: metrics; those that the size does not allow are left out and listed in the provenance.
        weights: ``auto``, ``pretrained`` or ``random``, as in ``ImagePairMetrics``.
        weights_dir: folder searched first for weight files.
        download: whether missing files may be fetched.
        batch_size: pictures at a time.
        device: where the networks run.

    Raises:
        ValueError: as ``pair_files``; an unreadable file; sizes that do not fit together.
        WeightsError: ``pretrained`` and a file is missing.
    """
    folder, real_folder = Path(images), Path(reference)
    pairs = pair_files(folder, real_folder)
    first, _, panels = _load(pairs[0])
    size = Size(*first.shape[:2])
    fitting, reasons = fitting_names(size, [name for name in names if name != "l1_figure"])
    metrics = ImagePairMetrics(size, fitting, weights=weights, weights_dir=weights_dir, download=download)
    for chunk in _chunks(pairs, batch_size):
        loaded = [_load(pair) for pair in chunk]
        for pair, (picture, _, _) in zip(chunk, loaded, strict=True):
            if picture.shape[:2] != size:
                raise ValueError(f"folder: {pair.picture} compares at {Size(*picture.shape[:2])}, the first at {size}")
        generated = _batch([picture for picture, _, _ in loaded]).to(device)
        target = _batch([real for _, real, _ in loaded]).to(device)
        metrics.update(generated, target, keys=[pair.key for pair in chunk])
    used = {pair.real for pair in pairs}
    provenance: dict[str, Any] = {
        "images": str(folder),
        "reference": str(real_folder),
        "pairs": len(pairs),
        "reference_unused": len(_image_files(real_folder)) - len(used),
        "size": str(size),
        "panel": "whole picture" if panels == 1 else f"last of {panels}",
        "left_out": reasons,
        "networks": metrics.provenance,
    }
    return FolderScore(metrics.compute(), metrics.per_image(), provenance, metrics.notices)


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"folder: {folder} is not a folder")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"folder: {folder} holds no image ({', '.join(_SUFFIXES)})")
    return files


def _stem(name: str) -> str:
    # strips every image suffix: a.jpg.png is a
    while (path := Path(name)).suffix.lower() in _SUFFIXES:
        name = path.stem
    return name


def _partner(stem: str, real: dict[str, Path]) -> Path | None:
    if stem in real:
        return real[stem]
    bare = _stem(stem.removesuffix("_vis"))
    for separator in _SEPARATORS:
        at = bare.rfind(separator)
        while at >= 0:
            if (partner := real.get(bare[at + len(separator) :])) is not None:
                return partner
            at = bare.rfind(separator, 0, at)
    return None


def _load(pair: PicturePair) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    # generated and real as (Y, X, 3) of one size, and how many panels the picture had
    picture, real = _read(pair.picture), _read(pair.real)
    rows, cols = picture.shape[:2]
    widths = [real.shape[1]]
    if rows == _WIDE and real.shape[1] in (_WIDE, _NARROW):
        widths.append(_WIDE + _NARROW - real.shape[1])
    fitting = [width for width in widths if cols % width == 0]
    if rows != real.shape[0] or not fitting:
        raise ValueError(
            f"folder: {pair.picture} is {rows}x{cols} and {pair.real} {real.shape[0]}x{real.shape[1]}: a picture must "
            f"be as high as its real image, and as wide or a row of panels (176 and 256 may be mixed at height 256)"
        )
    panel = picture[:, cols - fitting[0] :]
    common = min(fitting[0], real.shape[1])
    return _centre(panel, common), _centre(real, common), cols // fitting[0]


def _centre(image: NDArray[np.uint8], cols: int) -> NDArray[np.uint8]:
    return image if image.shape[1] == cols else image[:, _BORDER : _BORDER + cols]


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise ValueError(f"folder: {path} cannot be read as an image: {error}") from error


def _batch(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    # (B, 3, Y, X)


def _chunks(pairs: Sequence[PicturePair], size: int) -> Iterator[Sequence[PicturePair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]
