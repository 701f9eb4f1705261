"""Super-resolving a picture in parts, and averaging over its eight mirrorings.

`released` is the division that CSNLN's published scores were measured with (its option --chop): a picture is cut into
four overlapping quarters, and those again, until a part has fewer than 3,600 pixels, so its attention never sees more
than about 60x60. It is exact to the pixel which part of the picture sees what; parts that it would compute and throw
away are not computed. `none` runs the network on the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import Tensor

from saccade.geometry import Size

Chop = Literal["released", "none"]
CHOPS: tuple[Chop, ...] = ("released", "none")
Network = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]
SHAVE, AREA = 10, 3600  # low-resolution pixels, as released
ENSEMBLE = 8


class Span(NamedTuple):
    """Pixels `start` up to `stop` of one side."""

    start: int
    stop: int


class Tile(NamedTuple):
    """What the network sees of a low-resolution picture, and the part of it that is kept."""

    seen: tuple[Span, Span]
    kept: tuple[Span, Span]


def upscale(
    network: Network,
    low: Tensor,
    scale: int,
    *,
    chop: Chop = "released",
    self_ensemble: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Run a super-resolution network over pictures of any size.

    Args:
        network: (B, C, Y, X) -> (B, C', sY, sX); called without gradients if the caller has switched them off.
        low: (B, C, Y, X).
        scale: s.
        chop: "released" or "none", see the module.
        self_ensemble: the mean over the picture's eight mirrorings and transposes, each turned back (x8 the time).
        progress: called with the parts done and their number.

    Returns:
        (B, C', sY, sX).

    Raises:
        ValueError: unknown chop, a scale below 1, not four axes, or a network that enlarges by another factor.
    """
    if low.ndim != 4 or scale < 1:
        raise ValueError(f"upscale: takes (B, C, Y, X) and a scale of 1 or more; got {tuple(low.shape)}, {scale}")
    turns = range(ENSEMBLE) if self_ensemble else range(1)
    total = sum(len(tiles(_turned_size(low, turn), scale, chop)) for turn in turns)
    done = 0
    mean: Tensor | None = None
    for turn in turns:
        turned = _turn(low, turn)
        out: Tensor | None = None
        for tile in tiles(Size(*turned.shape[-2:]), scale, chop):
            part = _run(network, turned, tile, scale)
            if out is None:
                out = part.new_empty(*part.shape[:2], turned.shape[-2] * scale, turned.shape[-1] * scale)
            rows, cols = (slice(scale * span.start, scale * span.stop) for span in tile.kept)
            out[..., rows, cols] = part
            done += 1
            if progress is not None:
                progress(done, total)
        if out is None:
            raise RuntimeError(f"upscale: a picture of {tuple(turned.shape)} has no parts")
        out = _turn_back(out, turn)
        mean = out if mean is None else mean + out
    if mean is None:
        raise RuntimeError("upscale: no turn was run")
    return mean / len(turns) if self_ensemble else mean


def tiles(size: Size, scale: int, chop: Chop = "released", *, shave: int = SHAVE, area: int = AREA) -> list[Tile]:
    """The parts that a low-resolution picture is super-resolved in; what they keep covers it once.

    Args:
        size: of the picture.
        scale: the factor; the sides of the parts are multiples of it.
        chop: "released" or "none".
        shave: pixels by which a part reaches over its half. area: parts with fewer pixels are cut no further.

    Raises:
        ValueError: unknown chop.
    """
    if chop not in CHOPS:
        raise ValueError(f"chop={chop} is unknown; valid: {', '.join(CHOPS)}")
    whole = (Span(0, size.rows), Span(0, size.cols))
    if chop == "none":
        return [Tile(whole, whole)]
    return list(_quarters(Tile(whole, whole), scale, shave, area))


def _quarters(tile: Tile, scale: int, shave: int, area: int) -> Iterator[Tile]:
    rows, cols = (_halves(span, scale, shave) for span in tile.seen)
    side_rows, side_cols = (halves[0][0].stop - halves[0][0].start for halves in (rows, cols))
    smallest = len(rows) == 1 and len(cols) == 1  # too small to be cut: its quarters would be the whole
    for seen_rows, own_rows in rows:
        for seen_cols, own_cols in cols:
            kept = (_both(own_rows, tile.kept[0]), _both(own_cols, tile.kept[1]))
            if any(span.stop <= span.start for span in kept):
                continue  # lies in what the whole part's neighbours keep
            quarter = Tile((seen_rows, seen_cols), kept)
            if smallest or side_rows * side_cols < area:
                yield quarter
            else:
                yield from _quarters(quarter, scale, shave, area)


def _halves(span: Span, scale: int, shave: int) -> list[tuple[Span, Span]]:
    """The two overlapping parts of one side, each with the half that it stands for; one where they would be as long."""
    length = span.stop - span.start
    half = length // 2
    side = half + shave
    side += scale - side % scale  # adds a whole scale to what is a multiple already: as released
    if side >= length:
        return [(span, span)]
    middle = span.start + half
    first = (Span(span.start, span.start + side), Span(span.start, middle))
    return [first, (Span(span.stop - side, span.stop), Span(middle, span.stop))]


def _both(a: Span, b: Span) -> Span:
    return Span(max(a.start, b.start), min(a.stop, b.stop))


def _run(network: Network, low: Tensor, tile: Tile, scale: int) -> Tensor:
    """What a part keeps, super-resolved."""
    (top, bottom), (left, right) = tile.seen
    high = network(low[..., top:bottom, left:right])
    if high.shape[-2:] != (scale * (bottom - top), scale * (right - left)):
        raise ValueError(
            f"upscale: the network made {tuple(high.shape[-2:])} of {(bottom - top, right - left)}, which is not "
            f"{scale} times as large; give the scale that it was built for"
        )
    rows = slice(scale * (tile.kept[0].start - top), scale * (tile.kept[0].stop - top))
    cols = slice(scale * (tile.kept[1].start - left), scale * (tile.kept[1].stop - left))
    return high[..., rows, cols]


def _turned_size(low: Tensor, turn: int) -> Size:
    rows, cols = low.shape[-2:]
    return Size(cols, rows) if turn & 4 else Size(rows, cols)


def _turn(images: Tensor, turn: int) -> Tensor:
    """One of the eight: mirrored left to right (1), top to bottom (2), then transposed (4)."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if turn & bit]
    images = images.flip(axes) if axes else images
    return images.transpose(-1, -2) if turn & 4 else images


def _turn_back(images: Tensor, turn: int) -> Tensor:
    images = images.transpose(-1, -2) if turn & 4 else images
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if turn & bit]
    return images.flip(axes) if axes else images
