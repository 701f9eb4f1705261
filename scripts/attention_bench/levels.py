"""The attention levels of GPA's pose-morphing network alone: the protocol of the memory axis of its Figure 5.

arXiv 2107.03742: the six attention blocks, batch 1, one forward and one backward pass, peak allocated memory; weights,
inputs, their gradients and the outputs included.
"""

from __future__ import annotations

import functools
from typing import Any

from attention_bench.backends import module_class

# Sides and channels of the decoder levels of the 256x256 network (Table 2 of the paper).
LEVELS = ((8, 640), (16, 640), (32, 640), (64, 640), (128, 320), (256, 160))


def run_levels(options: dict[str, Any], device: str) -> None:
    """Build the blocks and their inputs, run them forward and backward, and let go of everything.

    `options`: `mixer`, a backend of this library or "none"; its options under `with`; `exact_up_to`, the side of the
    largest level with exact attention; `exact`, options of that; `levels`, sides and channels if not the paper's.
    """
    import torch

    from saccade.attention import FullAttention, NoAttention, SlotPolicy
    from saccade.geometry import Size, SlotSpec

    backend = NoAttention if options["mixer"] == "none" else module_class(options["mixer"])
    policy = SlotPolicy(
        functools.partial(backend, **options.get("with", {})),
        exact_up_to=options["exact_up_to"],
        exact=functools.partial(FullAttention, **options.get("exact", {})),
    )
    levels = [(Size.of(side), channels) for side, channels in options.get("levels", LEVELS)]
    specs = [SlotSpec(f"up.{size.rows}", *(3 * [channels]), size, size) for size, channels in levels]
    with torch.device(device):
        blocks = policy.build(specs).values()
        inputs = [
            [torch.randn(1, spec.q_channels, *spec.q_size, requires_grad=True) for _ in range(2)] for spec in specs
        ]
        outputs = [block(*maps) for block, maps in zip(blocks, inputs, strict=True)]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
