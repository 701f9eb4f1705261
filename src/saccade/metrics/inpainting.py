"""Scores of inpainted pictures: l1, l2, PSNR, total variation, SSIM: the columns of PSAL's Table 6 (arXiv 2202.03163).

The paper does not say on which pixels. Its numbers (16.4 dB, SSIM 0.54) fit the 128x128 hole alone and not the whole
picture, three quarters of which are copied. So every score names its region: `hole` is the missing pixels, `box` the
box around them (the same pixels where the hole is the whole box: Table 6), `image` everything.

Scores are of 8-bit pictures, as saving would round them, in units of the full range: l1 and l2 are the means of |e| and
e^2 in percent, total variation the mean |dx| plus the mean |dy| in percent, PSNR has peak 1, all of one picture; the
mean over pictures is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.geometry import Size
from saccade.metrics.pixels import to_uint8
from saccade.metrics.rows import Rows, require_finite
from saccade.metrics.ssim import SSIMProtocol

BASELINE = "mean_fill"
SSIMS = (SSIMProtocol("ssim_gaussian_range255", 11, True), SSIMProtocol("ssim_default", 7, False))


def mean_fill(images: Tensor, masks: Tensor) -> Tensor:
    """The trivial completion: each hole gets the mean colour of its picture's known pixels.

    Args:
        images: (B, C, Y, X).
        masks: (B, 1, Y, X), 1 in the hole.
    """
    known = (masks <= 0.5).to(images.dtype)
    colours = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1.0)
    return torch.where(masks > 0.5, colours, images)


def inpainting_rows(completed: Tensor, target: Tensor, masks: Tensor, boxes: Tensor, keys: Sequence[str]) -> Rows:
    """Every score of each picture by its key; those of `mean_fill` (`..._mean_fill`) in hole and box; the target's TV.

    SSIM is left out of regions smaller than its window.

    Args:
        completed: (B, 3, Y, X) in [-1, 1] (clamped), the known pixels as in the target.
        target: the same shape.
        masks: (B, 1, Y, X), 1 in the hole.
        boxes: (B, 4) top, left, rows, cols.

    Raises:
        ValueError: shapes that do not fit, a number of keys, or a picture that holds values that are not finite.
    """
    _check(completed, target, masks, boxes, keys)
    baseline = mean_fill(target, masks)
    rows: Rows = {}
    for index, key in enumerate(keys):
        wanted, hole = to_uint8(target[index]).cpu(), (masks[index, 0] > 0.5).cpu()
        box: list[int] = boxes[index].tolist()
        made = _of_one(to_uint8(completed[index]).cpu(), wanted, hole, box, ("box", "image"))
        trivial = _of_one(to_uint8(baseline[index]).cpu(), wanted, hole, box, ("box",))
        natural = {f"tv_{name}_percent_target": _variation(part) for name, part in _regions(wanted, box).items()}
        rows[key] = {**made, **{f"{name}_{BASELINE}": value for name, value in trivial.items()}, **natural}
    return rows


def _of_one(made: Tensor, wanted: Tensor, hole: Tensor, box: Sequence[int], regions: Sequence[str]) -> dict[str, float]:
    """The scores of one picture in the hole and in other regions: (3, Y, X) uint8 twice, (Y, X) bool."""
    scores = _distances("hole", made[:, hole], wanted[:, hole])
    ours, theirs = _regions(made, box), _regions(wanted, box)
    for name in regions:
        part = ours[name]
        scores |= _distances(name, part, theirs[name])
        scores[f"tv_{name}_percent"] = _variation(part)
        size = Size(*part.shape[1:])
        pair = [picture.permute(1, 2, 0).contiguous().numpy() for picture in (part, theirs[name])]
        # (Y, X, 3)
        for protocol in SSIMS:
            if protocol.reason_against(size) is None:
                scores[f"{protocol.name}_{name}_{size}"] = protocol.score(pair[0], pair[1])
    return scores


def _regions(picture: Tensor, box: Sequence[int]) -> dict[str, Tensor]:
    top, left, rows, cols = box
    return {"box": picture[:, top : top + rows, left : left + cols], "image": picture}


def _distances(region: str, made: Tensor, wanted: Tensor) -> dict[str, float]:
    error = (made.double() - wanted.double()) / 255
    squares = error.square().mean()
    # equal pictures: as if a single value were off by one level, which a mean over pictures survives
    floor = 1.0 / (255.0**2 * max(1, error.numel()))
    return {
        f"l1_{region}_percent": 100 * float(error.abs().mean()),
        f"l2_{region}_percent": 100 * float(squares),
        f"psnr_{region}": float(-10 * torch.log10(squares.clamp_min(floor))),
    }


def _variation(picture: Tensor) -> float:
    values = picture.double() / 255
    down, across = values.diff(dim=1).abs(), values.diff(dim=2).abs()
    # a side of one pixel has no differences
    return 100 * sum(float(part.mean()) for part in (down, across) if part.numel())


def _check(completed: Tensor, target: Tensor, masks: Tensor, boxes: Tensor, keys: Sequence[str]) -> None:
    count, channels, rows, cols = target.shape
    shapes = [tuple(part.shape) for part in (completed, target, masks, boxes)]
    if channels != 3 or shapes[0] != shapes[1] or shapes[2:] != [(count, 1, rows, cols), (count, 4)]:
        raise ValueError(
            f"inpainting scores: pictures (B, 3, Y, X) twice, masks (B, 1, Y, X), boxes (B, 4); got {shapes}"
        )
    if len(set(keys)) != count:
        raise ValueError(f"inpainting scores: {count} pictures need {count} different keys; got {list(keys)}")
    require_finite("inpainting scores", completed, keys)
