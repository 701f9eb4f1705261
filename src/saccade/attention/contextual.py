"""Contextual attention: holes of a picture are filled with patches of the known rest.

Source: Yu et al. 2018, "Generative Image Inpainting with Contextual Attention", as released for PyTorch
(daa233/generative-inpainting-pytorch, `ContextualAttention`), and with PSAL in its place (arXiv 2202.03163, section
4.3). The matching is a mixer: `ContextualAttention` is the released one, exact and fused. Different here: every sample
has its own mask, and rate 1 reads the pixel at a key, where the released layer does not run.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.attention.block import SlotBlock
from saccade.attention.free_memory import free_bytes
from saccade.attention.holes import rounds, stacked
from saccade.attention.mixer import AttentionCost, AttentionWeights, SpatialAttention, check_queries
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.contextual import (
    KERNELS,
    Masked,
    Matching,
    contextual_attention,
    contextual_weights,
    memory_reason,
)
from saccade.ops.dense.keys import KeyPlaces
from saccade.ops.dispatch import Score, check_kernel_name
from saccade.ops.options import flag, whole

# Pairs of a query and a key whose weights `ContextualBlock.offsets` looks at together (ours).
_PAIRS = 2**24


class ContextualAttention(SpatialAttention):
    """The released matching: exact, fused along neighbours, in memory that grows with the square of the pixels.

    It is what `attention=full` stands for in inpainting, and has the options of `FullAttention`; those that the
    matching fixes accept nothing else.

    Args:
        spec: the slot it fills.
        heads: number of heads.
        score: "unit_key"; lengths of keys are softened as released, see `saccade.ops.contextual`.
        scale: factor on the fused scores; 10 as released.
        patch_size: side of the patches that are compared, odd.
        key_stride, keys: 1 and "all".
        kernel: "auto" or "reference".
        fuse: neighbours along each direction whose scores are added up, odd; 1 fuses nothing.
        masked: "zero", as released: a masked key keeps the logit 0 in the softmax and loses its weight after it;
            "drop": it is no part of the softmax.
        memory_mib: MiB that the scores of all pairs may take; None is what the device has free.
    """

    name = "full"

    def __init__(
        self,
        spec: SlotSpec | None = None,
        *,
        heads: int = 1,
        score: Score = "unit_key",
        scale: float | None = 10.0,
        patch_size: int = 3,
        key_stride: int = 1,
        keys: KeyPlaces = "all",
        kernel: str = "auto",
        fuse: int = 3,
        masked: Masked = "zero",
        memory_mib: int | None = None,
    ) -> None:
        super().__init__(spec, heads=heads)
        fixed = {"score": (score, "unit_key"), "key_stride": (key_stride, 1), "keys": (keys, "all")}
        for option, (given, valid) in fixed.items():
            if given != valid:
                raise ValueError(
                    f"{self.name}: contextual attention has {option}={valid}; got {given!r}. "
                    "saccade.attention.FullAttention takes others, and does not fuse."
                )
        check_kernel_name(self.name, KERNELS, kernel)
        self.matching = Matching(1.0 if scale is None else scale, patch_size, fuse, masked)
        self.kernel = kernel
        self.memory_mib = (
            None if memory_mib is None else whole(self.name, "memory_mib", memory_mib, 1, "None for what is free")
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        return contextual_attention(
            q,
            k,
            v,
            self.matching,
            key_mask=key_mask,
            kernel=self.kernel,
            memory=self._memory(q.device),
            who=self.name if self.spec is None else f"{self.name}, slot {self.spec.name}",
        )

    def weights(self, q: Tensor, k: Tensor, queries: Tensor, key_mask: Tensor | None = None) -> AttentionWeights:
        check_queries(self.name, q, queries)
        q, k = self.split_heads(q), self.split_heads(k)
        return AttentionWeights(*contextual_weights(q, k, queries, self.matching, key_mask=key_mask))

    def cost(self, shape: AttentionShape) -> AttentionCost:
        """Forward 2 n_q n_k (D p^2 + E), backward twice that; saved: patches, and weights before and after a mask."""
        maps, pairs = shape.batch * shape.heads, shape.q_size.area * shape.kv_size.area
        width, queries, keys = shape.qk_channels * self.matching.patch_size**2, shape.q_size.area, shape.kv_size.area
        products = 2 * maps * pairs * (width + shape.v_channels)
        saved = maps * (2 * pairs + width * (queries + 3 * keys))
        return AttentionCost(forward_flops=products, backward_flops=2 * products, saved_bytes=4 * saved)

    def query_rim(self) -> int | None:
        """None: fusing looks along the scan line of the whole query map."""
        return None if self.matching.fuse > 1 else self.matching.patch_size // 2

    def reasons_against(self, shape: AttentionShape) -> list[str]:
        memory = self._memory(None)
        reason = None if memory is None else memory_reason(shape, 4, torch.is_grad_enabled(), memory)
        return [] if reason is None else [reason]

    def _memory(self, device: torch.device | None) -> int | None:
        """Bytes that the matching may take on a device, or on the machine's largest."""
        if self.memory_mib is not None:
            return self.memory_mib << 20
        if device is not None:
            return free_bytes(device)
        devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
        return max((free for free in map(free_bytes, devices) if free is not None), default=None)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, {self.matching}, kernel={self.kernel}, memory_mib={self.memory_mib}"


class ContextualBlock(SlotBlock):
    """Read a map through a mixer that compares the map with itself, and paste what it reads. No parameters.

    Queries and keys are every `rate`-th row and col of the maps. With rate 1, a value is the pixel at its key. With a
    larger one it is the patch of side 2 * rate around the key, and patches are pasted over each other, a quarter each.
    As released, that quarter also holds at the border of the map, where fewer than four overlap.

    Args:
        spec: channels and sizes of the slot, those of the maps before down-sampling; all channels are equal.
        mixer: the backend; one that brings nothing (`NoAttention`) leaves the query map.
        rate: 2 as released, 1 with PSAL in the paper; 1 or even.
        everywhere: True, as released: the whole query map is replaced by what it reads. False, PSAL's masked layer:
            only the pixels of holes are, the rest stays, and backends that can look at holes alone do so.
        known_window: side, in keys, of the window around a key that must be free of holes for it to be attended; 3 as
            released, 1 (the key alone) in PSAL's masked layer.

    Raises:
        ValueError: an option, or channels or sizes that do not fit.
    """

    def __init__(
        self,
        spec: SlotSpec,
        mixer: SpatialAttention,
        *,
        rate: int = 2,
        everywhere: bool = True,
        known_window: int = 3,
    ) -> None:
        who = f"{mixer.name}, slot {spec.name}"
        self.rate = whole(who, "rate", rate)
        self.known_window = whole(who, "known_window", known_window)
        self.everywhere = flag(who, "everywhere", everywhere)
        self.paste = 1 if self.rate == 1 else 2 * self.rate
        _check(who, spec, self.rate, self.known_window, self.everywhere)
        super().__init__(spec, mixer, qk_channels=spec.q_channels, v_channels=spec.kv_channels * self.paste**2)

    def shape(self, batch: int = 1) -> AttentionShape:
        return self.shape_at(self.spec.q_size, batch, self.spec.kv_size)

    def shape_at(self, q_map: Size, batch: int = 1, kv_map: Size | None = None) -> AttentionShape:
        """The attention call for maps of other sizes than those at the training resolution."""
        sizes = self.key_size(q_map), self.key_size(q_map if kv_map is None else kv_map)
        return replace(super().shape(batch), q_size=sizes[0], kv_size=sizes[1])

    def key_size(self, kv_map: Size) -> Size:
        return Size(kv_map.rows // self.rate, kv_map.cols // self.rate)

    def forward(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Fill holes from what is known.

        Args:
            q_map: (B, C, Yq, Xq); sides are multiples of `rate`.
            kv_map: (B, C, Yk, Xk); the query map itself in the released network.
            key_mask: (B, 1, Yk, Xk) bool, True = known, False = hole; None is without holes.

        Returns:
            (B, C, Yq, Xq). Without `everywhere`, the query map where there is no hole. A sample with fewer keys that
            may be attended than the mixer needs, mostly one, gets zeros, as released; without `everywhere`, its query
            map.

        Raises:
            ValueError: maps or mask do not fit.
            RuntimeError: the mixer cannot serve this size.
        """
        _check_maps(self.spec.name, q_map, kv_map, key_mask, self.rate, self.everywhere)
        if not self.mixer.attends or (key_mask is None and not self.everywhere):
            return q_map
        usable, alive = self._usable(key_mask)
        q, k, v = self._sampled(q_map), self._sampled(kv_map), self._values(kv_map)
        if self.everywhere or key_mask is None:
            out = self._pasted(self.mixer(q, k, v, usable))
            return out if alive is None else out * alive
        holes = ~key_mask if alive is None else ~key_mask & alive
        rim = self.mixer.query_rim()
        brought = self.mixer(q, k, v, usable) if rim is None else self._inside(holes, rim, q, k, v, usable)
        return q_map if brought is None else torch.where(holes, self._pasted(brought), q_map)

    def _sampled(self, maps: Tensor) -> Tensor:
        return maps[:, :, :: self.rate, :: self.rate]

    def _values(self, kv_map: Tensor) -> Tensor:
        """(B, C, Yk, Xk) -> (B, C * paste^2, Yk / rate, Xk / rate)."""
        if self.paste == 1:
            return kv_map
        size = self.key_size(Size(*kv_map.shape[2:]))
        patches = F.unfold(kv_map, self.paste, padding=self.rate // 2, stride=self.rate)
        return patches.view(*patches.shape[:2], *size)

    def _pasted(self, brought: Tensor) -> Tensor:
        """(B, C * paste^2, Yq / rate, Xq / rate) -> (B, C, Yq, Xq)."""
        if self.paste == 1:
            return brought
        size = brought.shape[2] * self.rate, brought.shape[3] * self.rate
        return F.fold(brought.flatten(2), size, self.paste, padding=self.rate // 2, stride=self.rate) / 4

    def _usable(self, key_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Which keys may be attended, (B, 1, y, x), and which samples have enough of them, (B, 1, 1, 1).

        A sample that has not is given all: what it reads is not used.
        """
        if key_mask is None:
            return None, None
        unknown = (~self._sampled(key_mask)).float()
        usable = F.max_pool2d(unknown, self.known_window, 1, self.known_window // 2) == 0
        alive = (usable.flatten(1).sum(1) >= self.mixer.fewest_keys())[:, None, None, None]
        return usable | ~alive, alive

    def _inside(self, holes: Tensor, rim: int, q: Tensor, k: Tensor, v: Tensor, usable: Tensor | None) -> Tensor | None:
        """What the queries of holes read, and where that is less work no others, with zeros there; None without holes.

        `holes` is (B, 1, Y, X) of the map, the rest as the mixer gets it.
        """
        queries = holes
        if self.paste > 1:  # every query whose patch is pasted over a hole
            patch, margin = self.paste, self.rate // 2
            queries = F.max_pool2d(F.pad(holes.float(), (margin,) * 4), patch, self.rate) > 0
        turns = rounds(queries, rim)
        if not turns:
            return None
        if sum(turn.area for turn in turns) >= queries.numel():
            everything: Tensor = self.mixer(q, k, v, usable)
            return everything
        brought = v.new_zeros(q.shape[0], v.shape[1], *q.shape[2:])
        for turn in turns:
            keys, values, allowed = k, v, usable
            if len(turn.samples) < q.shape[0]:
                chosen = list(turn.samples)
                keys, values = k[chosen], v[chosen]
                allowed = None if usable is None else usable[chosen]
            parts = self.mixer(stacked(q, turn), keys, values, allowed)
            for place, (sample, outer, inner) in enumerate(zip(turn.samples, turn.outer, turn.inner, strict=True)):
                outer.of(brought[sample])[inner.slices] = inner.of(parts[place])
        return brought

    def weights(
        self, q_map: Tensor, kv_map: Tensor, queries: Tensor, key_mask: Tensor | None = None
    ) -> AttentionWeights:
        """Where a few queries look: (Q, 2) long rows and cols of the query map; indices number the sampled keys."""
        check_queries(self.mixer.name, q_map, queries)
        usable, _ = self._usable(key_mask)
        return self.mixer.weights(self._sampled(q_map), self._sampled(kv_map), queries // self.rate, usable)

    def offsets(self, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """From every query to the key that it attends to most: (B, 2, Yq / rate, Xq / rate) long, rows and cols.

        Zeros where nothing attends. Mixers that draw random numbers at each call draw others here.
        """
        q, k = self._sampled(q_map), self._sampled(kv_map)
        rows, cols = q.shape[2:]
        places = torch.cartesian_prod(torch.arange(rows, device=q.device), torch.arange(cols, device=q.device))
        if not self.mixer.attends:
            return places.new_zeros(q.shape[0], 2, rows, cols)
        usable, _ = self._usable(key_mask)
        strongest = []
        for some in torch.split(places, max(1, _PAIRS // k[0, 0].numel())):
            found = self.mixer.weights(q, k, some, usable)
            best = found.weights.transpose(1, 2).flatten(2).argmax(2, keepdim=True)  # (B, Q, 1) of G * K
            strongest.append(found.indices.transpose(1, 2).flatten(2).gather(2, best).squeeze(2))
        keys = torch.cat(strongest, 1)  # (B, Yq * Xq)
        apart = torch.stack([keys // k.shape[3], keys % k.shape[3]], 1) - places.t()
        return apart.view(-1, 2, rows, cols)

    def extra_repr(self) -> str:
        return (
            f"slot={self.spec.name}, rate={self.rate}, everywhere={self.everywhere}, known_window={self.known_window}"
        )


def _check(who: str, spec: SlotSpec, rate: int, known_window: int, everywhere: bool) -> None:
    if rate > 1 and rate % 2:
        raise ValueError(f"{who}: rate must be 1 or even; got {rate}. Valid here: {rate - 1}, {rate + 1}.")
    if known_window % 2 == 0:
        raise ValueError(
            f"{who}: known_window must be odd, for it has a key in its centre; got {known_window}. Valid here: "
            f"{known_window - 1}, {known_window + 1}."
        )
    channels = (spec.q_channels, spec.kv_channels, spec.out_channels)
    if len(set(channels)) > 1:
        raise ValueError(
            f"{who}: contextual attention compares and copies the maps themselves, so that queries, keys and output "
            f"have the same channels; got {channels[0]}, {channels[1]} and {channels[2]}."
        )
    for size in (spec.q_size, spec.kv_size):
        if size.rows % rate or size.cols % rate:
            raise ValueError(
                f"{who}: rate={rate} does not divide a map of {size}. Valid here: rate=1, or sides of whole multiples."
            )
    if not everywhere and spec.q_size != spec.kv_size:
        raise ValueError(f"{who}: everywhere=False needs maps of one size; got {spec.q_size} and {spec.kv_size}.")


def _check_maps(slot: str, q_map: Tensor, kv_map: Tensor, key_mask: Tensor | None, rate: int, everywhere: bool) -> None:
    sizes = [tuple(maps.shape[2:]) for maps in (q_map, kv_map)]
    if any(side % rate for size in sizes for side in size):
        raise ValueError(f"slot {slot}: rate={rate} must divide the sides of the maps; got {sizes[0]} and {sizes[1]}.")
    if not everywhere and sizes[0] != sizes[1]:
        raise ValueError(f"slot {slot}: everywhere=False needs maps of one size; got {sizes[0]} and {sizes[1]}.")
    wanted = (kv_map.shape[0], 1, *sizes[1])
    if key_mask is not None and (key_mask.dtype != torch.bool or tuple(key_mask.shape) != wanted):
        raise ValueError(
            f"slot {slot}: key_mask must be bool {wanted}; got {key_mask.dtype} of shape {tuple(key_mask.shape)}."
        )
