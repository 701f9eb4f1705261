"""How far an output is from exact attention, how good chosen matches are, and what a backend says that it costs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from attention_bench.backends import MODULES
from attention_bench.cells import Cell

# Query pixels at which exact attention is computed, drawn once; all of them on smaller maps.
QUERIES = 400
# Keys that are compared at a time.
CHUNK = 8192
# Options that say what is approximated, and what they are where a backend does not have them.
BARE = (("heads", 1), ("score", "dot"), ("scale", None))


def judge(cell: Cell, run: Any, inputs: Sequence[Any], out: Any = None) -> dict[str, Any]:
    """Quality columns of a cell: "error" and "match" of its measures; `out` is what `run` made of the inputs."""
    row: dict[str, Any] = {}
    if "error" in cell.measures:
        row |= error_columns(cell, run, inputs, out)
    if "match" in cell.measures:
        row["match_cost"] = round(match_cost(run, inputs[0], inputs[1], cell.patch_size), 5)
    return row


def computed_cost(cell: Cell, run: Any) -> Any:
    """What the backend's own `cost` says, or None for a peer."""
    if not hasattr(run, "cost"):
        return None
    from saccade.geometry import AttentionShape, Size

    case, heads = cell.case, run.heads
    qk, values = case.channels // heads, case.v_channels // heads
    return run.cost(AttentionShape(case.batch, heads, qk, values, Size(*case.q_size), Size(*case.kv_size)))


def error_columns(cell: Cell, run: Any, inputs: Sequence[Any], out: Any = None) -> dict[str, Any]:
    """Relative l2 error against exact attention of the same score, scale, heads and patches, in float64.

    `error` is the mean over query pixels of |output - exact| / |exact|; `error_of_mean` is that of the mean of all
    values, what a layer gives that finds nothing; `exact_perplexity` tells over how many keys exact attention spreads.
    """
    import torch

    if out is None:
        with torch.no_grad():
            out = run(*inputs)
    chosen = sample(cell.case.pixels)
    heads, score, scale = (_option(cell, run, name, other) for name, other in BARE)
    if cell.backend == "reformer":  # its keys are of length 1, its default scale is that of "dot"
        score, scale = "unit_key", scale or (cell.case.channels // heads * cell.patch_size**2) ** -0.5
    exact, perplexity = exact_attention(inputs, chosen, heads, score, scale, cell.patch_size)
    ours = out.flatten(2).cpu()[:, :, chosen].double()
    mean = inputs[2].cpu().double().flatten(2).mean(2, keepdim=True)
    length = exact.norm(dim=1).clamp_min(1e-12)
    return {
        "error": _round(((ours - exact).norm(dim=1) / length).mean()),
        "error_of_mean": _round(((mean - exact).norm(dim=1) / length).mean()),
        "exact_perplexity": round(perplexity, 1),
        "error_queries": len(chosen),
        "error_score": score,
    }


def _option(cell: Cell, run: Any, name: str, otherwise: Any) -> Any:
    """What a backend was built with: as given, or its constructor's default; else `otherwise`."""
    if name in cell.options:
        return cell.options[name]
    known = inspect.signature(type(run)).parameters if cell.backend in MODULES else {}
    return known[name].default if name in known else otherwise


def sample(pixels: int) -> Any:
    """Flat indices of the query pixels at which outputs are compared, the same for every backend."""
    import torch

    order = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))
    return order[:QUERIES].sort().values


def exact_attention(
    inputs: Sequence[Any], chosen: Any, heads: int, score: str, scale: float | None, patch_size: int
) -> tuple[Any, float]:
    """Outputs (B, channels, Q) at the chosen query pixels, in float64 on the CPU, and the mean perplexity."""
    import torch

    from saccade.ops.inputs import default_scale
    from saccade.ops.patches import as_vectors

    q, k, v = (x.cpu().float().unflatten(1, (heads, -1)) for x in inputs)  # (B, G, channels, Y, X)
    factor = default_scale(scale, q.shape[2] * patch_size**2, score)  # type: ignore[arg-type]
    q, k, compared = as_vectors(q, k, patch_size, score)  # type: ignore[arg-type]
    queries = q.flatten(3)[..., chosen].double().transpose(2, 3)  # (B, G, Q, D)
    keys = k.flatten(3)  # (B, G, D, K)
    logits = torch.empty(*queries.shape[:3], keys.shape[3], dtype=torch.float64)
    for start in range(0, keys.shape[3], CHUNK):
        part = keys[..., start : start + CHUNK].double()
        product = queries @ part
        if compared == "l2":
            product = 2 * product - queries.square().sum(3, keepdim=True) - part.square().sum(2, keepdim=True)
        logits[..., start : start + CHUNK] = factor * product
    log_weights = torch.log_softmax(logits, -1)
    weights = log_weights.exp()
    entropy = -(weights * log_weights).nan_to_num(0.0).sum(-1)
    out = v.flatten(3).double() @ weights.transpose(2, 3)  # (B, G, E, Q)
    return out.flatten(1, 2), float(entropy.exp().mean())


def match_cost(run: Any, q: Any, k: Any, patch_size: int) -> float:
    """Mean over all query pixels of the squared distance between a query's patch and that of its best match.

    The matches are those that the backend's `weights` names with the largest weight.
    """
    import torch

    rows, cols = torch.meshgrid(torch.arange(q.shape[2]), torch.arange(q.shape[3]), indexing="ij")
    points = torch.stack([rows.flatten(), cols.flatten()], 1).to(q.device)
    with torch.no_grad():
        indices, weights = run.weights(q, k, points)  # (B, 1, N, K)
        best = indices.gather(3, weights.argmax(3, keepdim=True)).squeeze(3).squeeze(1)  # (B, N)
        return float(patch_distance(q, k, best, patch_size).mean())


def patch_distance(q: Any, k: Any, matches: Any, patch_size: int) -> Any:
    """Squared distance (B, N) of every query pixel's patch to that around its match, zeros outside both maps."""
    import torch
    import torch.nn.functional as F

    reach = patch_size // 2
    border = (reach, reach, reach, reach)
    width = k.shape[3]
    row, col = matches // width, matches % width
    q_padded, k_padded = F.pad(q, border), F.pad(k, border).flatten(2)
    total = torch.zeros(matches.shape, dtype=torch.float64, device=q.device)
    for dy in range(patch_size):
        for dx in range(patch_size):
            here = q_padded[:, :, dy : dy + q.shape[2], dx : dx + q.shape[3]].flatten(2)  # (B, C, N)
            place = ((row + dy) * (width + 2 * reach) + col + dx).unsqueeze(1).expand(-1, q.shape[1], -1)
            total += (here - k_padded.gather(2, place)).square().sum(1)
    return total


def _round(value: Any) -> float:
    return float(f"{float(value):.4g}")
