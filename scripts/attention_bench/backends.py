"""What a cell can run: the library's modules, the forms that papers and released code compute, and peers.

A builder takes a cell and returns a function of q, k, v, each (B, channels, rows, cols), to (B, channels, rows, cols).
Imports happen inside, so that a cell's process loads only what it measures. A new rival is one function and one line.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from attention_bench import peers
from attention_bench.cells import ROOT, Cell

Attention = Callable[[Any, Any, Any], Any]
Builder = Callable[[Cell], Attention]

MODULES = {
    "full": "FullAttention",
    "gpa": "GridPartitionedAttention",
    "ylg": "YourLocalAttention",
    "psal": "PatchBasedStochasticAttention",
    "local": "LocalAttention",
    "linear": "LinearAttention",
    "performer": "PerformerAttention",
    "reformer": "ReformerAttention",
    "nystromformer": "NystromAttention",
}


def module(cell: Cell) -> Attention:
    """The library's own module, built from the cell's options."""
    built: Attention = module_class(cell.backend)(**cell.options).to(cell.device)
    return built


def module_class(backend: str) -> Any:
    """The library's class of that name."""
    return getattr(importlib.import_module(f"saccade.attention.{backend}"), MODULES[backend])


def _restated(name: str) -> ModuleType:
    """A file of benchmarks/peers: an algorithm as others compute it, restated by us."""
    path = ROOT / "benchmarks" / "peers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"bench_attention: cannot load the peer {path}")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _released_gpa(cell: Cell) -> Attention:
    released = _restated("released_gpa").released_gpa
    options = {key: tuple(x) if isinstance(x, list) else x for key, x in cell.options.items()}
    return lambda q, k, v: released(*(x.unsqueeze(1) for x in (q, k, v)), **options).squeeze(1)


def _unfolded_linear(cell: Cell) -> Attention:
    linear = _restated("unfolded").unfolded_linear
    return lambda q, k, v: linear(q, k, v, **cell.options)


def _unfolded_local(cell: Cell) -> Attention:
    local = _restated("unfolded").unfolded_local
    return lambda q, k, v: local(q, k, v, **cell.options)


def _masked_sdpa(cell: Cell) -> Attention:
    """YLG as one call of PyTorch's attention with a mask for each head; it takes the kernel that PyTorch chooses."""
    import torch
    import torch.nn.functional as F

    from saccade.ops.ylg.patterns import HEADS, ylg_mask

    patterns = HEADS["ylg"]
    masks = torch.stack([ylg_mask(name, cell.case.q_size, cell.case.kv_size) for name in patterns]).to(cell.device)

    def heads(x: Any) -> Any:
        return x.flatten(2).unflatten(1, (len(patterns), -1)).transpose(2, 3)  # (B, heads, pixels, channels)

    def attend(q: Any, k: Any, v: Any) -> Any:
        out = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), attn_mask=masks.unsqueeze(0), scale=1.0)
        return out.transpose(2, 3).flatten(1, 2).unflatten(2, q.shape[2:])

    return attend


def _levels(cell: Cell) -> Attention:
    from attention_bench.levels import run_levels

    return lambda q, k, v: run_levels(cell.options, cell.device)


BACKENDS: dict[str, Builder] = {
    **dict.fromkeys(MODULES, module),
    "released-gpa": _released_gpa,
    "unfolded-linear": _unfolded_linear,
    "unfolded-local": _unfolded_local,
    "levels": _levels,
    "ylg-sdpa": _masked_sdpa,
    **peers.BUILDERS,
}
