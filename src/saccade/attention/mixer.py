"""What `attention=` selects: how values at key positions reach query positions, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.options import whole
from saccade.ops.patches import check_patch_size, patchify


class AttentionWeights(NamedTuple):
    """The keys that a few queries attend to: flat key indices and weights, both (B, G, Q, K)."""

    indices: Tensor
    weights: Tensor


@dataclass(frozen=True)
class AttentionCost:
    """What one call costs. FLOPs count a multiply-add as two; products only, as in the papers' tables.

    `saved_bytes` is what stays for backward beside q, k and v themselves, in float32.
    """

    forward_flops: int
    backward_flops: int
    saved_bytes: int


class SpatialAttention(nn.Module, ABC):
    """Base of every attention backend. It owns no projections: `AttentionBlock` does.

    Args:
        spec: the slot it fills, or None outside a model. Backends may check against it; none may draw from it.
        heads: number of heads G; channels of q, k and v are split into G groups in order.
    """

    name: ClassVar[str]
    attends: ClassVar[bool] = True

    def __init__(self, spec: SlotSpec | None = None, *, heads: int = 1) -> None:
        super().__init__()
        if spec is not None and not isinstance(spec, SlotSpec):
            raise ValueError(
                f"{self.name}: the first argument is the slot to fill, a SlotSpec or None; got {spec!r}. Options are "
                "given by name, such as heads=2."
            )
        self.spec = spec
        self.heads = whole(self.name, "heads", heads)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Bring values to the queries.

        Args:
            q: (B, G*D, Yq, Xq).
            k: (B, G*D, Yk, Xk).
            v: (B, G*E, Yk, Xk).
            key_mask: (B, 1, Yk, Xk) bool, True = may be attended.

        Returns:
            (B, G*E, Yq, Xq).

        Raises:
            ValueError: the maps do not fit together or this backend cannot take their sizes.
        """
        return self.attend(self.split_heads(q), self.split_heads(k), self.split_heads(v), key_mask).flatten(1, 2)

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        """`forward` with heads apart: (B, G, D, Yq, Xq), (B, G, D, Yk, Xk), (B, G, E, Yk, Xk) -> (B, G, E, Yq, Xq)."""

    def at_any_size(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """`forward`, also of maps whose sizes the backend refuses: for networks that take pictures of any size.

        Such maps are continued by zeros to the smallest whole multiple of the slot's sizes; what was added is no key,
        and its queries are cut off.

        Raises:
            ValueError: as `forward`, and where that multiple, or a backend outside a model, is refused too.
        """
        q_size, kv_size = Size(*q.shape[2:]), Size(*k.shape[2:])
        spec, heads = self.spec, self.heads
        call = AttentionShape(q.shape[0], heads, q.shape[1] // heads, v.shape[1] // heads, q_size, kv_size)
        if spec is None or not self.reasons_against(call):
            return cast(Tensor, self(q, k, v, key_mask))
        pairs = zip((*q_size, *kv_size), (*spec.q_size, *spec.kv_size), strict=True)
        times = max(-(-side // trained) for side, trained in pairs)
        larger_q, larger_kv = (Size(size.rows * times, size.cols * times) for size in (spec.q_size, spec.kv_size))
        if key_mask is None:
            key_mask = k.new_ones((k.shape[0], 1, *kv_size), dtype=torch.bool)
        k, v, key_mask = (_continued(maps, larger_kv) for maps in (k, v, key_mask))
        brought: Tensor = self(_continued(q, larger_q), k, v, key_mask)
        return brought[:, :, : q_size.rows, : q_size.cols]

    def paste(
        self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None, *, side: int = 3, divisor: float = 1.0
    ) -> Tensor:
        """`forward` of patches of values: every query pastes the patch around what it attends to at its own place.

        So contextual attention and cross-scale attention read. Here patches are made of the values first, side^2 times
        their memory; a backend that can do without overrides this.

        Args:
            q, k, v, key_mask: as in `forward`.
            side: of the patches in pixels of the maps, odd; zeros outside the value map.
            divisor: of the sum of the patches that overlap.

        Returns:
            (B, G*E, Yq, Xq).

        Raises:
            ValueError: as `forward`, or an even side.
        """
        check_patch_size(self.name, side)
        check_map(self.name, v)
        patches = patchify(v.unsqueeze(1), side).squeeze(1)  # (B, G*E*side*side, Yk, Xk)
        brought = self.at_any_size(q, k, patches, key_mask).flatten(2)
        return F.fold(brought, (q.shape[2], q.shape[3]), side, padding=side // 2) / divisor

    @abstractmethod
    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        """Where a few queries look: for pictures and saliency.

        Args:
            q: (B, G*D, Yq, Xq).
            k: (B, G*D, Yk, Xk).
            queries: (Q, 2) long, rows and cols in the query map.
            key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        """

    @abstractmethod
    def cost(self, shape: AttentionShape) -> AttentionCost:
        """What one call of this shape costs."""

    @abstractmethod
    def reasons_against(self, shape: AttentionShape) -> list[str]:
        """Why this backend cannot serve a shape, each with the nearest valid choices; empty when it can."""

    def query_rim(self) -> int | None:
        """How far around a query its answer depends on the query map, in pixels; None where all of the map counts.

        Within such a rim, a part of the query map can be attended to by itself.
        """
        return None

    def fewest_keys(self) -> int:
        """How many keys a mask must leave every sample."""
        return 1

    def split_heads(self, maps: Tensor) -> Tensor:
        """(B, G*C, Y, X) -> (B, G, C, Y, X).

        Raises:
            ValueError: not a map, an empty one, or its channels do not split into the heads.
        """
        check_map(self.name, maps)
        channels = maps.shape[1]
        if channels % self.heads:
            raise ValueError(f"{self.name}: {self.head_reason(channels)}")
        return torch.unflatten(maps, 1, (self.heads, channels // self.heads))

    def head_reason(self, channels: int) -> str:
        """Why a number of channels does not fit the heads, with the numbers of heads that do."""
        valid = [h for h in range(1, channels + 1) if channels % h == 0]
        nearest = sorted(sorted(valid, key=lambda h: abs(h - self.heads))[:3])
        return (
            f"{channels} channels do not split into {self.heads} heads. "
            f"Valid numbers of heads here: {', '.join(map(str, nearest))}."
        )

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def _continued(maps: Tensor, size: Size) -> Tensor:
    """The map with zeros below and to the right."""
    return F.pad(maps, (0, size.cols - maps.shape[3], 0, size.rows - maps.shape[2]))


def check_map(name: str, maps: Tensor) -> None:
    """Raise ValueError unless a map is a tensor (B, channels, rows, cols) that is not empty."""
    if not isinstance(maps, Tensor):
        raise ValueError(f"{name}: a map must be a tensor (B, channels, rows, cols); got {type(maps).__name__}.")
    if maps.dim() != 4:
        raise ValueError(f"{name}: a map must be (B, channels, rows, cols); got shape {tuple(maps.shape)}.")
    if maps.numel() == 0:
        raise ValueError(f"{name}: a map is empty, shape {tuple(maps.shape)}; every axis must be at least 1.")


def check_queries(name: str, q: Tensor, queries: Tensor) -> None:
    """Raise ValueError unless `queries` is (Q, 2) long, on the device of the query map, and lies inside it."""
    check_map(name, q)
    rows, cols = q.shape[-2:]
    if not isinstance(queries, Tensor):
        raise ValueError(f"{name}: queries must be a (Q, 2) long tensor, rows and cols; got {type(queries).__name__}.")
    if queries.dim() != 2 or queries.shape[1] != 2 or queries.dtype != torch.long:
        raise ValueError(
            f"{name}: queries must be (Q, 2) long, rows and cols; got {queries.dtype} of shape {tuple(queries.shape)}."
        )
    if queries.device != q.device and q.device.type != "meta":
        raise ValueError(f"{name}: queries are on {queries.device}, the maps are on {q.device}; move them there.")
    limit = torch.tensor([rows, cols], device=queries.device)
    if bool(((queries < 0) | (queries >= limit)).any()):
        raise ValueError(f"{name}: queries must lie inside the {rows}x{cols} query map; got {queries.tolist()}.")
