"""The slot policy: exact attention in the small maps of a model, the chosen backend in the large ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from saccade.attention.block import AttentionBlock, SlotBlock
from saccade.attention.full import FullAttention
from saccade.attention.mixer import SpatialAttention
from saccade.geometry import Size, SlotSpec

MixerFactory = Callable[[SlotSpec], SpatialAttention]
BlockFactory = Callable[[SlotSpec, SpatialAttention], SlotBlock]


class AttentionSlots(nn.Module):
    """Attention blocks by slot name, in the order of the slots. In the state dict a slot's dots are underscores."""

    def __init__(self, blocks: dict[str, SlotBlock]) -> None:
        super().__init__()
        self._names = tuple(blocks)
        for name, block in blocks.items():
            self.add_module(_module_name(name), block)

    def __getitem__(self, name: str) -> SlotBlock:
        if name not in self._names:
            raise KeyError(f"no attention slot is called {name!r}. Valid here: {', '.join(self._names)}.")
        block = self.get_submodule(_module_name(name))
        if not isinstance(block, SlotBlock):
            raise TypeError(f"slot {name} was replaced by a {type(block).__name__}, which is no SlotBlock.")
        return block

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> tuple[str, ...]:
        return self._names

    def values(self) -> list[SlotBlock]:
        return [self[name] for name in self._names]

    def items(self) -> list[tuple[str, SlotBlock]]:
        return [(name, self[name]) for name in self._names]


class SlotPolicy:
    """Fills a model's attention slots.

    Args:
        mixer: makes the chosen backend for a slot; used where the query map is larger than `exact_up_to`.
        exact_up_to: area of the largest query map that gets exact attention, as (rows, cols) or the side of a square.
            0 gives the chosen backend to every slot.
        exact: makes exact attention; None is `FullAttention`.
        block: makes the block around a mixer; None is `AttentionBlock`.
    """

    def __init__(
        self,
        mixer: MixerFactory,
        *,
        exact_up_to: int | Sequence[int] = 64,
        exact: MixerFactory | None = None,
        block: BlockFactory | None = None,
    ) -> None:
        self.mixer = mixer
        self.exact_area = 0 if exact_up_to == 0 else Size.of(exact_up_to).area
        self.exact: MixerFactory = FullAttention if exact is None else exact
        self.block: BlockFactory = AttentionBlock if block is None else block

    def build(self, specs: Sequence[SlotSpec]) -> AttentionSlots:
        """Make a block for every slot.

        Each mixer is made under its own fork of the random numbers, so that all parameters outside the mixers start the
        same whatever the backend.

        Raises:
            ValueError: names every slot that its backend does not fit, with the valid choices.
        """
        names = [_module_name(spec.name) for spec in specs]
        twice = sorted({spec.name for spec in specs if names.count(_module_name(spec.name)) > 1})
        if twice:
            raise ValueError(f"attention slots need distinct names; got more than one of: {', '.join(twice)}.")
        blocks: dict[str, SlotBlock] = {}
        misfits: list[str] = []
        cause: Exception | None = None
        for spec in specs:
            try:
                block = self._build_one(spec)
            except (ValueError, TypeError) as error:
                misfits.append(self._misfit(spec, error))
                cause = cause or error
                continue
            reasons = block.mixer.reasons_against(block.shape())
            misfits += [f"{block.mixer.name}, slot {spec.name}: {reason}" for reason in reasons]
            blocks[spec.name] = block
        if misfits:
            raise ValueError("\n".join(misfits)) from cause
        return AttentionSlots(blocks)

    def _misfit(self, spec: SlotSpec, error: Exception) -> str:
        """What went wrong, behind "<backend>, slot <name>: "."""
        message = str(error)
        if f"slot {spec.name}:" in message:
            return message
        backend, colon, rest = message.partition(": ")
        if colon and backend.isidentifier():
            return f"{backend}, slot {spec.name}: {rest}"
        make = self._maker(spec)
        name = getattr(getattr(make, "func", make), "name", None)  # of a class, or of the class in a partial
        return f"{name}, slot {spec.name}: {message}" if isinstance(name, str) else f"slot {spec.name}: {message}"

    def _maker(self, spec: SlotSpec) -> MixerFactory:
        return self.exact if spec.q_size.area <= self.exact_area else self.mixer

    def _build_one(self, spec: SlotSpec) -> SlotBlock:
        make = self._maker(spec)
        device = torch.get_default_device()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            mixer = make(spec)
        return self.block(spec, mixer)


def _module_name(slot: str) -> str:
    return slot.replace(".", "_")
