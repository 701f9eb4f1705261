"""Which tokens meet in Reformer attention: random rotations, buckets, the sorted sequence and its chunks.

Source: Kitaev, Kaiser, Levskaya, "Reformer: The Efficient Transformer", arXiv 2001.04451, section 2. A round of hashing
sends x to argmax [xR; -xR] with a random R, tokens are sorted by bucket, and the sorted sequence is cut into chunks;
a token may attend to its own chunk and the one before. The chunk before a round's first is, as in the authors' code,
the last of the round before (of the last round for the first): `with_chunk_before`.

Different here: chunks are as equal as can be, so any number of tokens goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.ops.reformer.tokens import PatchTable, Tokens

# Ours: numbers that hashing holds at a time.
HASH_ENTRIES = {"cpu": 2**22, "other": 2**25}


@dataclass(frozen=True)
class Chunking:
    """How the sorted sequence of `tokens` tokens is cut: `count` chunks of `length`, of which the last is padded."""

    tokens: int
    bucket_size: int
    rounds: int
    rotation_buckets: int | None

    @property
    def count(self) -> int:
        return -(-self.tokens // self.bucket_size)

    @property
    def length(self) -> int:
        return -(-self.tokens // self.count)

    @property
    def padded(self) -> int:
        return self.count * self.length

    @property
    def back(self) -> int:
        """Chunks before its own that a token may attend to: 1, or 0 where there is only one chunk."""
        return int(self.count > 1)

    @property
    def factors(self) -> tuple[int, ...]:
        """Numbers of buckets, each even, whose product is at least the number of chunks; none for a single chunk."""
        if self.count == 1:
            return ()
        if self.rotation_buckets is None or self.count <= self.rotation_buckets:
            return (_even(self.count),)
        first = _even(math.isqrt(self.count - 1) + 1)
        return first, _even(-(-self.count // first))

    @property
    def rotation_columns(self) -> int:
        """Columns of all rotations of all rounds."""
        return self.rounds * sum(self.factors) // 2


def _even(number: int) -> int:
    return number + number % 2


def draw_rotations(seed: int, channels: int, patch_size: int, chunking: Chunking) -> Tensor:
    """Normal rotations for all rounds, (p * p * D, rounds * columns), rows in the order of `PatchTable`'s vectors.

    They are drawn in the order of `patchify`'s channels, so that patches and their vectors are hashed alike.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (channels, patch_size**2, chunking.rotation_columns)
    return torch.randn(shape, generator=generator, device="cpu").transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def sorted_tokens(table: PatchTable, tokens: Tokens, chunking: Chunking, seed: int, key_mask: Tensor | None) -> Tensor:
    """Sort the tokens of every map by bucket, stably, in every round.

    Args:
        key_mask: (maps, keys) bool. Masked keys that are no queries are sorted last, where they take nobody's place.

    Returns:
        (rounds, maps, padded) int32 token numbers within a map; padding is `tokens.count`.
    """
    if chunking.factors:
        buckets = _hash(table, tokens, chunking, seed)  # (rounds, maps, tokens)
        if key_mask is not None and not tokens.shared:
            buckets[:, :, tokens.first_key :].masked_fill_(~key_mask, math.prod(chunking.factors))
        order = buckets.argsort(dim=-1, stable=True)
    else:
        order = torch.arange(tokens.count, device=table.device).expand(chunking.rounds, tokens.maps, -1)
    padding = order.new_full((*order.shape[:2], chunking.padded - tokens.count), tokens.count)
    return torch.cat([order, padding], 2).int()


def with_chunk_before(order: Tensor, chunking: Chunking) -> Tensor:
    """Put before each round's tokens (rounds, maps, padded) the chunk that its first chunk may attend to."""
    return torch.cat([order.roll(1, 0)[:, :, chunking.padded - chunking.length * chunking.back :], order], 2)


def _hash(table: PatchTable, tokens: Tokens, chunking: Chunking, seed: int) -> Tensor:
    """The bucket of every token in every round: (rounds, maps, tokens) long."""
    side = table.patch_size
    rotations = draw_rotations(seed, table.width // side**2, side, chunking).to(table.device, table.dtype)
    buckets = torch.empty(chunking.rounds, tokens.maps, tokens.count, dtype=torch.long, device=table.device)
    budget = HASH_ENTRIES["cpu" if table.device.type == "cpu" else "other"]
    room = max(1, budget // max(table.width, chunking.rotation_columns))  # tokens at a time
    some = max(1, min(room // tokens.count, tokens.maps))  # maps at a time, or else tokens of one map
    for first in range(0, tokens.maps, some):
        maps = torch.arange(first, min(first + some, tokens.maps), device=table.device)
        for start in range(0, tokens.count, room):
            part = torch.arange(start, min(start + room, tokens.count), device=table.device)
            vectors = table.vectors(maps[:, None] * (tokens.count + 1) + part)  # (maps, tokens, p * p * D)
            # a batched product, one matrix a map: no map's buckets hang on how many maps there are
            turned = torch.bmm(vectors, rotations.expand(len(maps), -1, -1))
            buckets[:, first : first + len(maps), start : start + len(part)] = _largest(turned, chunking)
    return buckets


def _largest(turned: Tensor, chunking: Chunking) -> Tensor:
    """argmax of [xR; -xR] for every round, factors combined: (maps, tokens, columns) -> (rounds, maps, tokens)."""
    rounds = torch.unflatten(turned, 2, (chunking.rounds, -1)).permute(2, 0, 1, 3)  # (rounds, maps, tokens, columns)
    buckets = torch.zeros(rounds.shape[:3], dtype=torch.long, device=turned.device)
    parts = torch.split(rounds, [factor // 2 for factor in chunking.factors], 3)
    for factor, columns in zip(chunking.factors, parts, strict=True):
        highest, at_highest = columns.max(3)
        lowest, at_lowest = columns.min(3)
        buckets = buckets * factor + torch.where(highest >= -lowest, at_highest, at_lowest + factor // 2)
    return buckets
