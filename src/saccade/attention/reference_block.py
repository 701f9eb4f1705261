"""The block of guided colourisation: 3x3 projections around a mixer, and nothing of the query map in the result.

Source: the training script in the history of PSAL's repository (arXiv 2202.03163, section 4.3): three convolutions of
their own, each followed by a ReLU, of which the paper says nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from saccade.attention.block import SlotBlock
from saccade.attention.mixer import AttentionWeights, SpatialAttention
from saccade.geometry import SlotSpec

Activation = Literal["relu", "none"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


class ReferenceBlock(SlotBlock):
    """mixer(act(query(x)), act(key(y)), act(value(y))) with 3x3 convolutions, x the query map and y the reference.

    Args:
        spec: channels and sizes of the slot; queries, keys and values have `out_channels` each.
        mixer: the backend; one that brings nothing (`NoAttention`) gives zeros, and leaves the parameters in the state
            dict.
        activation: "relu" as in the script, or "none".

    Raises:
        ValueError: an unknown activation, or channels that do not split into the mixer's heads.
    """

    def __init__(self, spec: SlotSpec, mixer: SpatialAttention, *, activation: Activation = "relu") -> None:
        width = spec.out_channels
        super().__init__(spec, mixer, qk_channels=width, v_channels=width)
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{mixer.name}, slot {spec.name}: no activation is called {activation!r}. Valid here: "
                f"{', '.join(ACTIVATIONS)}."
            )
        self.activation = activation
        self.query = nn.Conv2d(spec.q_channels, width, 3, padding=1)
        self.key = nn.Conv2d(spec.kv_channels, width, 3, padding=1)
        self.value = nn.Conv2d(spec.kv_channels, width, 3, padding=1)
        if not mixer.attends:
            self.requires_grad_(False)  # or distributed training would wait for their gradients

    def _activated(self, maps: Tensor) -> Tensor:
        return F.relu(maps) if self.activation == "relu" else maps

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """(B, q_channels, Yq, Xq) and the reference (B, kv_channels, Yk, Xk) -> (B, out_channels, Yq, Xq)."""
        if not self.mixer.attends:
            return q_map.new_zeros(q_map.shape[0], self.v_channels, *q_map.shape[2:])
        q, k, v = (
            self._activated(project(maps))
            for project, maps in ((self.query, q_map), (self.key, kv_map), (self.value, kv_map))
        )
        return self.mixer.at_any_size(q, k, v, key_mask)

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map; see `SpatialAttention.weights`."""
        q, k = self._activated(self.query(q_map)), self._activated(self.key(kv_map))
        return self.mixer.weights(q, k, queries, key_mask)

    def extra_repr(self) -> str:
        return f"slot={self.spec.name}, activation={self.activation}"
