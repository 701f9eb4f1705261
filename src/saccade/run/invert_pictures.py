"""The folder that `scripts/invert.py` writes: sheets, single pictures, and the record of an inversion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from saccade.attention.block import SlotBlock
from saccade.files import new_folder, write_text
from saccade.geometry import Size
from saccade.inversion import Inversion, attention_rows, saliency
from saccade.inversion.losses import first_block
from saccade.inversion.saliency_maps import Normaliser, key_size
from saccade.inversion.samples import held
from saccade.pictures.canvas import Picture, to_uint8, write_png
from saccade.pictures.saliency import QueryMaps, inversion_sheet, query_sheet, saliency_sheet
from saccade.run.invert import Found
from saccade.run.invert_inputs import Networks, Request, Targets

_HISTORY = 100  # losses of a history that the record keeps, evenly spaced
# The released code draws saliency by this one; the paper's is dominated by the masks of sparse heads.
_SHOWN: Normaliser = "attending"


def write_all(request: Request, networks: Networks, targets: Targets, found: Found) -> Path:
    """Write everything into a new folder, which is there whole or not at all."""
    with new_folder(request.out) as partial:
        told = _told(request, networks, targets)
        title = _title(told)
        _write_images(partial / "images", targets, found)
        write_png(partial / "inversion.png", _sheet(targets, found, title))
        notes = {
            "saliency_discriminator": _discriminator_saliency(partial, networks, targets, request, title),
            "saliency_generator": _generator_pictures(partial, networks, targets, found, request, title),
        }
        record = {
            **told,
            "pictures": notes,
            "left_out": dict(found.left_out),
            "methods": [
                _method_record(inversion, seconds, targets)
                for inversion, seconds in zip(found.inversions, found.seconds, strict=True)
            ],
        }
        write_text(partial / "inversion.json", json.dumps(record, indent=1) + "\n")
    return request.out


# ---------------------------------------------------------------------- the record


def _told(request: Request, networks: Networks, targets: Targets) -> dict[str, Any]:
    config = networks.config
    source = OmegaConf.select(config, "data.source")
    return {
        "checkpoint": str(request.checkpoint),
        "weights": request.weights,
        "model": config.model.name,
        "attention": config.attention.name,
        "data": f"{config.data.name}_standin" if source == "standin" else config.data.name,
        "images_seen": networks.images_seen,
        "images": request.images,
        "seed": request.seed,
        "noise": request.noise,
        "device": str(targets.images.device),
        "torch": torch.__version__,
        "pixel_error": "mean squared error of a value; images run from -1 to 1",
        "oddities": {name: odd for name, odd in zip(targets.names, targets.oddities, strict=True) if odd},
    }


def _title(told: Mapping[str, Any]) -> str:
    return f"{told['model']}, {told['attention']}, {told['data']}"


def _method_record(found: Inversion, seconds: float, targets: Targets) -> dict[str, Any]:
    ratios = found.pixel_ratio()
    begun = None if targets.z is None else _rms(found.kept(found.starts) - targets.z)
    reached = None if targets.z is None else found.z_error(targets.z)
    images = []
    for index, name in enumerate(targets.names):
        kept = int(found.best[index])
        entry: dict[str, Any] = {
            "name": name,
            "label": None if targets.labels is None else int(targets.labels[index]),
            "class": _class_of(targets, index) or None,
            "kept_start": kept,
            "loss_at_start": float(found.start_losses[index, kept]),
            "loss": float(found.losses[index, kept]),
            "pixel_error_at_start": float(found.start_pixel_errors[index, kept]),
            "pixel_error": float(found.pixel_errors[index, kept]),
            "pixel_error_ratio": float(ratios[index]),
        }
        if begun is not None and reached is not None:
            entry |= {"z_error_at_start": float(begun[index]), "z_error": float(reached[index])}
        entry["starts"] = [
            {
                "loss_at_start": float(found.start_losses[index, start]),
                "loss": float(found.losses[index, start]),
                "pixel_error": float(found.pixel_errors[index, start]),
                "steps": int(found.taken[index, start]),
            }
            for start in range(found.losses.shape[1])
        ]
        entry["history"] = _thinned(found.history[index, kept])
        entry["z"] = [round(value, 6) for value in found.z[index, kept].tolist()]
        images.append(entry)
    return {
        "settings": asdict(found.method),
        "seconds": round(seconds, 1),
        "median_pixel_error_ratio": float(ratios.median()),
        "median_pixel_error": float(found.kept(found.pixel_errors).median()),
        "images": images,
    }


def _rms(difference: Tensor) -> Tensor:
    return difference.square().mean(1).sqrt()


def _thinned(history: Tensor) -> dict[str, list[float]]:
    """Losses by step, at most `_HISTORY` of them, without those after a start stopped."""
    values = history[torch.isfinite(history)].tolist()
    steps = sorted({round(step) for step in np.linspace(0, len(values) - 1, min(_HISTORY, len(values)))})
    return {"step": steps, "loss": [values[step] for step in steps]}


def _class_of(targets: Targets, index: int) -> str:
    if targets.labels is None:
        return ""
    label = int(targets.labels[index])
    return str(label) if targets.class_names is None else targets.class_names[label]


# ---------------------------------------------------------------------- the pictures


def _write_images(folder: Path, targets: Targets, found: Found) -> None:
    for index, name in enumerate(targets.names):
        stem = f"{index:03d}-{Path(name).stem.replace(' ', '-')}"
        write_png(folder / f"{stem}-original.png", to_uint8(targets.images[index]))
        for inversion in found.inversions:
            write_png(folder / f"{stem}-{inversion.method.name}.png", to_uint8(inversion.images[index]))


def _labels(targets: Targets) -> list[str]:
    classes = [_class_of(targets, index) for index in range(len(targets.names))]
    return [f"{name}, {one}" if one else name for name, one in zip(targets.names, classes, strict=True)]


def _sheet(targets: Targets, found: Found, title: str) -> Picture:
    columns = []
    for inversion in found.inversions:
        errors, ratios = inversion.kept(inversion.pixel_errors).tolist(), inversion.pixel_ratio().tolist()
        captions = [f"{error:.4f}, {ratio:.0%}" for error, ratio in zip(errors, ratios, strict=True)]
        columns.append((inversion.method.name, list(to_uint8(inversion.images)), captions))
    note = "mean squared pixel error, share of the start's"
    return inversion_sheet(list(to_uint8(targets.images)), columns, labels=_labels(targets), title=title, note=note)


def head_names(block: SlotBlock) -> list[str]:
    """What a block's heads are called: number, and pattern where each has one of its own."""
    patterns = getattr(block.mixer, "patterns", None)
    names = [""] * block.mixer.heads if patterns is None else [f" {pattern.name}" for pattern in patterns]
    return [f"head {index}{name}" for index, name in enumerate(names)]


def _discriminator_saliency(folder: Path, networks: Networks, targets: Targets, request: Request, title: str) -> str:
    """Draw Fig. 8; what was drawn, or why nothing was."""
    judge: Any = networks.discriminator
    if judge is None:
        return "none: the folder holds no discriminator"
    try:
        block = first_block(judge)
    except RuntimeError as error:
        return f"none: {error}"
    normaliser = request.normaliser or _SHOWN
    with held(judge), torch.no_grad():
        maps = saliency(block, judge.features(targets.images), normaliser=normaliser)
    return _write_saliency(
        folder / "saliency-discriminator.png", block, targets.images, maps, targets, normaliser, title
    )


def _write_saliency(
    path: Path, block: SlotBlock, images: Tensor, maps: Tensor, targets: Targets, normaliser: str, title: str
) -> str:
    note = f"slot {block.spec.name}, normaliser {normaliser}: each map from its least value (black) to its greatest"
    pictures, shown = list(to_uint8(images)), maps.double().cpu().numpy()
    sheet = saliency_sheet(pictures, shown, head_names(block), labels=_labels(targets), title=title, note=note)
    write_png(path, sheet)
    return note


def finest_block(network: nn.Module) -> SlotBlock | None:
    """The attending block with the largest query map of a network; None if it attends nowhere."""
    blocks: Sequence[SlotBlock] = list(getattr(network, "attention_blocks", {}).values())
    attending = [block for block in blocks if block.mixer.attends]
    return max(attending, key=lambda block: block.spec.q_size.area, default=None)


@torch.no_grad()
def maps_entering(network: nn.Module, block: SlotBlock, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """The query map and the map of keys and values that reach a generator's block."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[1])))
    try:
        with held(network):
            network(z, labels)
    finally:
        handle.remove()
    return seen[0]


def _generator_pictures(
    folder: Path, networks: Networks, targets: Targets, found: Found, request: Request, title: str
) -> str:
    """Draw the generator's saliency and query points (Fig. 6) at the first method's z; what was drawn, or why not."""
    block = finest_block(networks.generator)
    if block is None:
        return "none: the generator attends nowhere"
    inversion = found.inversions[0]
    q_map, kv_map = maps_entering(networks.generator, block, inversion.kept(inversion.z), targets.labels)
    title = f"{title}; generator at the z of {inversion.method.name}"
    with torch.no_grad(), held(networks.generator):
        normaliser = request.normaliser or _SHOWN
        maps = saliency(block, q_map, kv_map, normaliser=normaliser)
        path = folder / "saliency-generator.png"
        note = _write_saliency(path, block, inversion.images, maps, targets, normaliser, title)
        sheets = [
            query_sheet(
                to_uint8(inversion.images[index]),
                query_maps(block, q_map[index : index + 1], kv_map[index : index + 1], request.points),
                head_names(block),
                title=f"{_labels(targets)[index]}: generator at the z of {inversion.method.name}",
                note="outlined: keys that the head may see from the dot; brightness is the root of their weight",
            )
            for index in range(len(targets.names))
        ]
    for index, sheet in enumerate(sheets):
        write_png(folder / "queries" / f"{index:03d}.png", sheet)
    return note


def query_maps(
    block: SlotBlock, q_map: Tensor, kv_map: Tensor, points: Sequence[tuple[float, float]]
) -> list[QueryMaps]:
    """Where some points of one image look: q_map (1, C, Y, X), points as shares of height and width."""
    size, keys = Size(*q_map.shape[-2:]), key_size(block, kv_map)
    cells = [
        (min(int(row * size.rows), size.rows - 1), min(int(col * size.cols), size.cols - 1)) for row, col in points
    ]
    queries = torch.tensor(cells, device=q_map.device)
    rows = attention_rows(block, q_map, kv_map, queries)[0].double().cpu().numpy()  # (G, Q, n_k)
    found = []
    for place, (row, col) in enumerate(cells):
        weights = rows[:, place].reshape(-1, *keys)
        middle = (row + 0.5) / size.rows, (col + 0.5) / size.cols
        found.append(QueryMaps(f"row {row}, col {col}", *middle, weights, weights != 0))
    return found
