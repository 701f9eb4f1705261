"""Other people's layers beside ours, where they are installed: `pip install -e '.[peers]'`.

They are given the maps as sequences in row order, one head, and run as published; what they cannot do (patches other
than by unfolding, key maps of another size, projections left out) is arranged here and said in the functions.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

from attention_bench.cells import Cell

Attention = Callable[[Any, Any, Any], Any]

PACKAGES = {
    "peer-performer": "performer_pytorch",
    "peer-reformer": "reformer_pytorch",
    "peer-nystrom": "nystrom_attention",
    "peer-local": "local_attention",
    "peer-natten": "natten",
}


def why_skipped(backend: str) -> str:
    """Why a peer cannot run here; empty where it can, and for everything that is no peer."""
    package = PACKAGES.get(backend)
    return f"not installed ({package})" if package and importlib.util.find_spec(package) is None else ""


def _sequence(maps: Any, patch_size: int = 1) -> Any:
    """(B, C, Y, X) -> (B, Y * X, C * p * p): every pixel's patch as a vector."""
    import torch.nn.functional as F

    columns = maps.flatten(2) if patch_size == 1 else F.unfold(maps, patch_size, padding=patch_size // 2)
    return columns.transpose(1, 2)


def _as_maps(sequence: Any, like: Any) -> Any:
    return sequence.transpose(1, 2).unflatten(2, like.shape[2:])


def _sdpa(cell: Cell) -> Attention:
    """torch's scaled_dot_product_attention as it is: scale 1 / sqrt(channels)."""
    import torch.nn.functional as F

    def run(q: Any, k: Any, v: Any) -> Any:
        parts = (_sequence(q, cell.patch_size), _sequence(k, cell.patch_size), _sequence(v))
        q_s, k_s, v_s = (x.unsqueeze(1).contiguous() for x in parts)
        return _as_maps(F.scaled_dot_product_attention(q_s, k_s, v_s).squeeze(1), q)

    return run


def _performer(cell: Cell) -> Attention:
    """performer-pytorch's FastAttention, softmax kernel, its default number of features d ln d."""
    import torch
    from performer_pytorch import FastAttention

    torch.manual_seed(0)
    layer = FastAttention(cell.case.channels * cell.patch_size**2, nb_features=cell.options.get("features"))
    layer = layer.to(cell.device)

    def run(q: Any, k: Any, v: Any) -> Any:
        parts = (_sequence(q, cell.patch_size), _sequence(k, cell.patch_size), _sequence(v))
        return _as_maps(layer(*(x.unsqueeze(1) for x in parts)).squeeze(1), q)

    return run


def _reformer(cell: Cell) -> Attention:
    """reformer-pytorch's LSHAttention on queries and keys in one sequence (arXiv 2202.03163, section 2).

    It shares query and key vectors, so queries are keys too, with zeros for values: its cost is comparable, its output
    is not.
    """
    import torch
    from reformer_pytorch import LSHAttention

    layer = LSHAttention(bucket_size=64, n_hashes=cell.options.get("hashes", 8), causal=False).to(cell.device)

    def run(q: Any, k: Any, v: Any) -> Any:
        queries, keys, values = _sequence(q, cell.patch_size), _sequence(k, cell.patch_size), _sequence(v)
        zeros = values.new_zeros(queries.shape[0], queries.shape[1], values.shape[2])
        out, *_ = layer(torch.cat([queries, keys], 1), torch.cat([zeros, values], 1))
        return _as_maps(out[:, : queries.shape[1]], q)

    return run


def _nystrom(cell: Cell) -> Attention:
    """nystrom-attention's layer without its projections and its value convolution; it wants v as wide as q and k."""
    import torch
    import torch.nn.functional as F
    from nystrom_attention import NystromAttention

    width = cell.case.channels * cell.patch_size**2
    landmarks = cell.options.get("landmarks", 256)
    layer = NystromAttention(width, dim_head=width, heads=1, num_landmarks=landmarks, residual=False)
    layer.to_qkv = layer.to_out = torch.nn.Identity()
    layer = layer.to(cell.device)

    def run(q: Any, k: Any, v: Any) -> Any:
        parts = [_sequence(q, cell.patch_size), _sequence(k, cell.patch_size), _sequence(v)]
        parts[2] = F.pad(parts[2], (0, width - v.shape[1]))
        return _as_maps(layer(torch.cat(parts, 2))[..., : v.shape[1]], q)

    return run


def _local(cell: Cell) -> Attention:
    """local-attention's windows are runs of a sequence, here of w * w / 3 pixels: a query sees its run and both next.

    So it reads as many keys as our w x w window, but other ones.
    """
    from local_attention import LocalAttention

    width = max(1, cell.options.get("window", 15) ** 2 // 3)
    layer = LocalAttention(window_size=width, causal=False, autopad=True, use_rotary_pos_emb=False).to(cell.device)

    def run(q: Any, k: Any, v: Any) -> Any:
        return _as_maps(layer(_sequence(q, cell.patch_size), _sequence(k, cell.patch_size), _sequence(v)), q)

    return run


def _natten(cell: Cell) -> Attention:
    """NATTEN's two-dimensional neighbourhood attention, an odd window, one scale 1 / sqrt(channels)."""
    from natten.functional import na2d

    window = cell.options.get("window", 15) // 2 * 2 + 1
    if cell.patch_size > 1:
        raise ValueError("peer-natten: compares pixels, not patches; valid here: patch_size 1.")

    def run(q: Any, k: Any, v: Any) -> Any:
        q_n, k_n, v_n = (x.permute(0, 2, 3, 1).unsqueeze(3).contiguous() for x in (q, k, v))  # (B, Y, X, 1, C)
        out = na2d(q_n, k_n, v_n, kernel_size=window, scale=1 / math.sqrt(q.shape[1]))
        return out.squeeze(3).permute(0, 3, 1, 2)

    return run


BUILDERS: dict[str, Callable[[Cell], Attention]] = {
    "peer-sdpa": _sdpa,
    "peer-performer": _performer,
    "peer-reformer": _reformer,
    "peer-nystrom": _nystrom,
    "peer-local": _local,
    "peer-natten": _natten,
}
