"""Attention pictures of a run: what a few joints of the generated figure read from the source (GPA paper, Fig. 9), or
what a few points of a generated image read in it, head by head ("Your Local GAN", Fig. 6). Of other tasks: what a few
points of one column of the samples read in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from saccade.callbacks.observing import PictureCallback, images_seen, sampling_batch
from saccade.data.pose import KEYPOINT_NAMES
from saccade.geometry import Size
from saccade.pictures.attention import Look, attention_picture
from saccade.pictures.canvas import Picture, stack, to_uint8
from saccade.pictures.saliency import QueryMaps, query_sheet

PREFIX = "attention"


@runtime_checkable
class ShowsWeights(Protocol):
    """What an attention block offers to a picture."""

    def weights(self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> Any:
        """Key indices and weights, (B, G, Q, K) each, of `queries` (Q, 2) rows and columns."""
        ...


@dataclass
class Seen:
    """What reached one attention block: (B, C, Y, X) each, and the key mask where there was one."""

    block: ShowsWeights
    q_map: Tensor
    kv_map: Tensor
    key_mask: Tensor | None = None

    @property
    def key_size(self) -> Size:
        """Of the keys; a block may take fewer than its map has pixels."""
        of_map = getattr(self.block, "key_size", None)
        return _size(self.kv_map) if of_map is None else of_map(_size(self.kv_map))


@dataclass(frozen=True)
class QueryPoint:
    """A point of the target figure: name and place in pixels of the image."""

    name: str
    x: float
    y: float


# A point is the mean of the joints named, if all are there.
_POINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("head", ("nose",)),
    ("chest", ("neck", "right_hip", "left_hip")),
    ("hips", ("right_hip", "left_hip")),
    ("right wrist", ("right_wrist",)),
    ("left wrist", ("left_wrist",)),
    ("right knee", ("right_knee",)),
    ("left ankle", ("left_ankle",)),
    ("neck", ("neck",)),
    ("left shoulder", ("left_shoulder",)),
    ("right shoulder", ("right_shoulder",)),
)
MAX_POINTS = 6
_APART = 0.06  # of the rows: lines from nearer points would lie on each other


def query_points(keypoints: Tensor, size: Size, *, count: int = MAX_POINTS) -> list[QueryPoint]:
    """Up to `count` points on a figure, inside the image and apart; four of a grid if it has fewer than two.

    Args:
        keypoints: (18, 3) x, y, v in pixels of an image of `size`.
    """
    points = keypoints.detach().double().cpu()
    found: list[QueryPoint] = []
    for name, joints in _POINTS:
        rows = points[[KEYPOINT_NAMES.index(joint) for joint in joints]]  # (joints, 3)
        if not bool((rows[:, 2] > 0).all()):
            continue
        x, y = rows[:, :2].mean(dim=0).tolist()
        inside = -0.5 <= x < size.cols - 0.5 and -0.5 <= y < size.rows - 0.5
        if inside and all(math.dist((x, y), (other.x, other.y)) > _APART * size.rows for other in found):
            found.append(QueryPoint(name, x, y))
    return found[:count] if len(found) >= 2 else grid_points(size)


def grid_points(size: Size) -> list[QueryPoint]:
    """Four points inside an image of `size`, away from its border."""
    places = [(row, col) for row in (0.3, 0.7) for col in (0.3, 0.7)]
    return [
        QueryPoint(f"point {index + 1}", col * (size.cols - 1), row * (size.rows - 1))
        for index, (row, col) in enumerate(places)
    ]


def query_cells(points: Sequence[QueryPoint], image: Size, q_size: Size) -> Tensor:
    """(Q, 2) long: the row and column of the query map that hold each point."""
    cells = []
    for point in points:
        row = math.floor((point.y + 0.5) * q_size.rows / image.rows)
        col = math.floor((point.x + 0.5) * q_size.cols / image.cols)
        cells.append((min(max(row, 0), q_size.rows - 1), min(max(col, 0), q_size.cols - 1)))
    return torch.tensor(cells, dtype=torch.long)


def find_blocks(module: nn.Module) -> dict[str, list[nn.Module]]:
    """Attention blocks by slot name of every network inside `module` that has an `attention_blocks` mapping.

    A slot can occur more than once (the generator and its average); the one that runs is the one that counts.
    """
    found: dict[str, list[nn.Module]] = {}
    for part in module.modules():
        blocks = getattr(part, "attention_blocks", None)
        if isinstance(blocks, Mapping):
            for name, block in blocks.items():
                found.setdefault(name, []).append(block)
    return found


def attends(block: object) -> bool:
    """Whether a block's mixer reads any key at all (`NoAttention` does not)."""
    return bool(getattr(getattr(block, "mixer", None), "attends", True))


@contextmanager
def capture(blocks: Mapping[str, Sequence[nn.Module]]) -> Iterator[dict[str, Seen]]:
    """Note the first input of every block that runs inside; one that does not run or reads no keys has no entry."""
    seen: dict[str, Seen] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(block: nn.Module, inputs: tuple[Any, ...]) -> None:
            if isinstance(block, ShowsWeights) and attends(block) and len(inputs) >= 2:
                mask = inputs[2] if len(inputs) > 2 else None
                seen.setdefault(name, Seen(block, inputs[0].detach(), inputs[1].detach(), mask))

        return hook

    handles = [block.register_forward_pre_hook(watch(name)) for name, several in blocks.items() for block in several]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _size(maps: Tensor) -> Size:
    return Size(int(maps.shape[-2]), int(maps.shape[-1]))


def _weights_of(seen: Seen, item: int, points: Sequence[QueryPoint], image: Size) -> tuple[Tensor, Tensor]:
    """Key indices and weights of each point in picture `item` of the batch: (G, Q, K) each, on the CPU."""
    q_map, kv_map = seen.q_map[item : item + 1], seen.kv_map[item : item + 1]
    cells = query_cells(points, image, _size(q_map)).to(q_map.device)
    mask = None if seen.key_mask is None else seen.key_mask[item : item + 1]
    found = seen.block.weights(q_map, kv_map, cells, *(() if mask is None else (mask,)))
    return found.indices[0].cpu(), found.weights[0].double().cpu()


def looks_of(seen: Seen, item: int, points: Sequence[QueryPoint], image: Size) -> list[Look]:
    """What each point reads in picture `item` of the batch, as the mean over the heads."""
    indices, weights = _weights_of(seen, item, points, image)
    heads = weights.shape[0]
    return [
        Look(
            point.name,
            point.x,
            point.y,
            indices[:, place].reshape(-1).numpy().astype(np.int64),
            weights[:, place].reshape(-1).numpy() / heads,
        )
        for place, point in enumerate(points)
    ]


def maps_of(seen: Seen, item: int, points: Sequence[QueryPoint], image: Size) -> list[QueryMaps]:
    """What each point reads in picture `item` of the batch, head by head. A key of no weight counts as not allowed."""
    indices, weights = _weights_of(seen, item, points, image)
    heads = weights.shape[0]
    keys = seen.key_size
    found = []
    for place, point in enumerate(points):
        shares = torch.zeros(heads, keys.area, dtype=torch.float64)
        shares.scatter_add_(1, indices[:, place], weights[:, place])
        maps = shares.reshape(heads, keys.rows, keys.cols).numpy()
        row, col = (point.y + 0.5) / image.rows, (point.x + 0.5) / image.cols
        found.append(QueryMaps(point.name, row, col, maps, maps > 0))
    return found


def head_names(block: object, heads: int) -> list[str]:
    """`0 rtl1` where a backend's heads have patterns, else `head 0`."""
    patterns = getattr(getattr(block, "mixer", None), "patterns", ())
    if len(patterns) != heads:
        return [f"head {head}" for head in range(heads)]
    return [f"{head} {getattr(pattern, 'name', pattern)}" for head, pattern in enumerate(patterns)]


def draw_heads(seen: Seen, generated: Tensor, *, title: str, count: int = 2) -> Picture:
    """What a grid of points reads in each of `count` images, spread over the batch: a row a point, a column a head."""
    image, batch = _size(generated), int(generated.shape[0])
    count = min(count, batch)
    pictures = []
    for item in (place * batch // count for place in range(count)):
        maps = maps_of(seen, item, grid_points(image), image)
        names = head_names(seen.block, maps[0].weights.shape[0])
        pictures.append(query_sheet(to_uint8(generated[item]), maps, names, title=title if item == 0 else ""))
    return stack(pictures)


def draw_slot(
    seen: Seen, sample: Mapping[str, Tensor], *, title: str, count: int = 2, views: tuple[str, str] | None = None
) -> Picture:
    """The attention pictures of `count` samples at one slot, under each other.

    Args:
        sample: named pictures (B, 3, Y, X), with the keypoints of their figures where they show some.
        views: the pictures that show the keys and the queries; None draws images of one kind head by head.
    """
    if views is None:
        return draw_heads(seen, sample["generated"], title=title, count=count)
    keys, queries = (sample[name] for name in views)
    image = _size(queries)
    pictures = []
    for item in range(min(count, queries.shape[0])):
        figure = sample.get("target_keypoints")
        points = grid_points(image) if figure is None else query_points(figure[item], image)
        pictures.append(
            attention_picture(
                to_uint8(keys[item]),
                to_uint8(queries[item]),
                looks_of(seen, item, points, image),
                seen.key_size,
                title=title if item == 0 else "",
            )
        )
    return stack(pictures)


def shows_whole(seen: Seen, image: Tensor) -> bool:
    """Whether a block saw a whole picture: a network may have worked through a large one tile by tile."""
    (rows, cols), queries = _size(image), _size(seen.q_map)
    return rows * queries.cols == cols * queries.rows


def slot_title(name: str, seen: Seen) -> str:
    """`slot up.32 (gpa), 32x32 queries`."""
    backend = getattr(getattr(seen.block, "mixer", None), "name", "")
    return f"slot {name}{f' ({backend})' if backend else ''}, {_size(seen.q_map)} queries"


def finest(seen: Mapping[str, Seen], count: int) -> list[str]:
    """The slots with the largest query maps whose blocks can show weights, finest first."""
    order = sorted(seen, key=lambda name: -_size(seen[name].q_map).area)
    return order[:count]


class AttentionPictures(PictureCallback):
    """Write `attention-<slot>.png` of the finest slots after every evaluation and at the end, over the last one.

    Args:
        folder: where the pictures go.
        slots: how many slots, finest first.
        count: samples in one picture.
    """

    def __init__(self, folder: Path, *, slots: int = 2, count: int = 2) -> None:
        super().__init__(folder)
        if slots < 1 or count < 1:
            raise ValueError(f"AttentionPictures: slots and count are 1 or more; got slots={slots}, count={count}")
        self.slots, self.count = slots, count

    def draw(self, trainer: pl.Trainer, task: Any) -> None:
        with capture(find_blocks(task)) as seen:
            samples = task.samples(sampling_batch(task))
        sample = next(iter(samples.values()))
        views = getattr(task, "attention_views", None)
        if views is not None:
            seen = {name: found for name, found in seen.items() if shows_whole(found, sample[views[1]])}
        for name in finest(seen, self.slots):
            title = f"{slot_title(name, seen[name])}, after {images_seen(task):,} images"
            picture = draw_slot(seen[name], sample, title=title, count=self.count, views=views)
            self.keep(trainer, task, f"{PREFIX}-{name}", picture, key=f"{PREFIX}/{name}")
