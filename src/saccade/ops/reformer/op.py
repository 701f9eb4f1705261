"""Reformer attention: each query attends to the keys that a locality-sensitive hash puts near it.

Source: Kitaev, Kaiser, Levskaya, "Reformer: The Efficient Transformer", arXiv 2001.04451, section 2. Keys are divided
by their lengths; rounds of hashing are combined by the logsumexp of their logits.

Two maps follow the concatenation trick that the layers used in PSAL's comparison (arXiv 2202.03163, section 4) offer
for cross-attention: query and key tokens form one sequence, hashed and sorted as one, and the query tokens' outputs
are kept. There a query can also attend to other queries, and here we differ by default: with `keys_only` it attends to
key tokens alone, as any other backend. Without it query tokens take part in the softmax, with value zero.

A query that meets no key in any round gives zeros. Where queries are keys (`shared_qk`), a token does not attend to
itself unless it meets no other: the released layers give its own logit -5e4, which is the same in any precision.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saccade.geometry import AttentionShape
from saccade.ops.dense import dense_logits
from saccade.ops.dispatch import Kernel, Request, choose
from saccade.ops.inputs import (
    at_least_float32,
    check_scale,
    default_scale,
    draw_seed,
    make_request,
    masked_softmax,
    no_autocast,
    read_shape,
)
from saccade.ops.options import flag, whole
from saccade.ops.patches import check_patch_size, patch_length, patchify
from saccade.ops.reformer.buckets import Chunking, sorted_tokens, with_chunk_before
from saccade.ops.reformer.sorted import Reach, attend_sorted, column_terms, make_tokens
from saccade.ops.reformer.tokens import PatchTable

# Above so many buckets two rotations of about the square root each take the place of one, as in the authors' code.
ROTATION_BUCKETS = 256


def reformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bucket_size: int = 64,
    hashes: int = 8,
    shared_qk: bool = False,
    keys_only: bool = True,
    rotation_buckets: int | None = ROTATION_BUCKETS,
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Let every query attend to the keys in its chunk of the sequence sorted by hash, and in the chunk before.

    Args:
        q: (B, G, D, Yq, Xq).
        k: (B, G, D, Yk, Xk).
        v: (B, G, E, Yk, Xk).
        bucket_size: most tokens of a chunk; the sequence of queries and keys is cut into as few equal chunks as that
            allows.
        hashes: rounds of hashing, each with rotations of its own. All batch entries and heads share them.
        shared_qk: the queries are the keys, as in the paper's self-attention. `k` is then not read and gets no
            gradient; its size must be that of `q`.
        keys_only: False lets queries attend to the query tokens of the sequence too, which bring zeros.
        rotation_buckets: most buckets that one rotation tells apart; more are told apart by two rotations, at the
            root of the cost. None is always one.
        scale: factor on the product of a query and a key of length 1; None is 1 / sqrt(channels compared).
        patch_size: p, queries and keys are compared as p x p patches, values read at the centre.
        key_mask: (B, 1, Yk, Xk) bool, True = may be attended.
        generator: where the one seed of a call is drawn from; None is the global one of the CPU.
        kernel: "auto", "sorted" (memory linear in the maps) or "reference" (all pairs; twice differentiable).

    Returns:
        (B, G, E, Yq, Xq).

    Raises:
        ValueError: the maps do not fit together, or an option is out of its range.
        RuntimeError: the named kernel cannot serve this call.
    """
    shape = read_shape("reformer", q, k, v, key_mask)
    check_reformer_options("reformer", bucket_size, hashes, rotation_buckets, scale, patch_size)
    _check_sizes(shape, shared_qk, keys_only)
    chosen = choose("reformer", KERNELS, make_request(shape, "unit_key", key_mask, q, k, v), kernel)
    reach = _reach(q, k, bucket_size, hashes, shared_qk, keys_only, rotation_buckets, scale, patch_size)
    alive = _flat_mask(key_mask, q.shape[1])
    return chosen.run(q, k, v, _order(q, k, reach, alive, generator), reach, alive)


def reformer_weights(
    q: Tensor,
    k: Tensor,
    queries: Tensor,
    *,
    bucket_size: int = 64,
    hashes: int = 8,
    shared_qk: bool = False,
    keys_only: bool = True,
    rotation_buckets: int | None = ROTATION_BUCKETS,
    scale: float | None = None,
    patch_size: int = 1,
    key_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Which keys a few query pixels meet, round by round, and how much they attend. See `reformer_attention`.

    Args:
        queries: (Q, 2) long, rows and cols in the query map.

    Returns:
        Flat key pixels (B, G, Q, K) and their weights. A key that is met in several rounds is listed as often; places
        where no key was met have weight 0. Without `keys_only` weights sum to 1 less what other queries take.
    """
    shape = read_shape("reformer", q, k, key_mask=key_mask)
    check_reformer_options("reformer", bucket_size, hashes, rotation_buckets, scale, patch_size)
    _check_sizes(shape, shared_qk, keys_only)
    reach = _reach(q, k, bucket_size, hashes, shared_qk, keys_only, rotation_buckets, scale, patch_size)
    alive, tokens = _flat_mask(key_mask, q.shape[1]), reach.tokens
    order = _order(q, k, reach, alive, generator)
    chosen = queries[:, 0] * shape.q_size.cols + queries[:, 1]
    met = _tokens_met(order, chosen, reach)  # (maps, Q, K)
    with no_autocast(q.device):
        each = _logits_of_each(q, q if shared_qk else k, chosen, met, reach, alive)
        logits = torch.stack(list(each), 1)  # (maps, Q, K)
        allowed = logits > float("-inf")
        weights = masked_softmax(logits.masked_fill(~allowed, 0), allowed)
    is_key = (met >= tokens.first_key) & (met < tokens.count)
    indices, weights = (met - tokens.first_key).masked_fill(~is_key, 0), weights * is_key
    if shared_qk:  # a token that met no other attends to itself
        itself = chosen.expand(met.shape[0], -1)
        alone = ~weights.any(2) if alive is None else ~weights.any(2) & alive.gather(1, itself)
        indices = torch.cat([indices, itself.unsqueeze(2)], 2)
        weights = torch.cat([weights, alone.unsqueeze(2).to(weights.dtype)], 2)
    return torch.unflatten(indices, 0, q.shape[:2]), torch.unflatten(weights, 0, q.shape[:2])


def check_reformer_options(
    op: str, bucket_size: int, hashes: int, rotation_buckets: int | None, scale: float | None, patch_size: int
) -> None:
    """Raise ValueError unless every option is in its range."""
    whole(op, "bucket_size", bucket_size)
    whole(op, "hashes", hashes)
    if rotation_buckets is not None:
        whole(op, "rotation_buckets", rotation_buckets, 2, "None")
    check_scale(op, scale)
    check_patch_size(op, patch_size)


def size_reasons(shape: AttentionShape, shared_qk: bool) -> list[str]:
    """Why two sizes of maps cannot be served."""
    if shared_qk and shape.q_size != shape.kv_size:
        return [
            f"with shared_qk the queries are the keys, so both maps must have one size; got {shape.q_size} and "
            f"{shape.kv_size}. Valid here: shared_qk=False."
        ]
    return []


def _check_sizes(shape: AttentionShape, shared_qk: bool, keys_only: bool) -> None:
    flag("reformer", "shared_qk", shared_qk)
    flag("reformer", "keys_only", keys_only)
    for reason in size_reasons(shape, shared_qk):
        raise ValueError(f"reformer: {reason}")


def _reach(
    q: Tensor,
    k: Tensor,
    bucket_size: int,
    hashes: int,
    shared_qk: bool,
    keys_only: bool,
    rotation_buckets: int | None,
    scale: float | None,
    patch_size: int,
) -> Reach:
    tokens = make_tokens(q, k, shared_qk)
    chunking = Chunking(tokens.count, bucket_size, hashes, rotation_buckets)
    return Reach(tokens, chunking, keys_only, default_scale(scale, q.shape[2] * patch_size**2), patch_size)


def _flat_mask(key_mask: Tensor | None, heads: int) -> Tensor | None:
    """(B, 1, Yk, Xk) -> (B * G, keys)."""
    return None if key_mask is None else key_mask.flatten(1).repeat_interleave(heads, 0)


def _order(q: Tensor, k: Tensor, reach: Reach, alive: Tensor | None, generator: torch.Generator | None) -> Tensor:
    seed = draw_seed(generator)
    with torch.no_grad(), no_autocast(q.device):
        table = PatchTable(q, k, reach.tokens, reach.patch_size)
        return sorted_tokens(table, reach.tokens, reach.chunking, seed, alive)


def _logits_of_each(
    q: Tensor, k: Tensor, chosen: Tensor, met: Tensor, reach: Reach, alive: Tensor | None
) -> Iterator[Tensor]:
    """For each of a few queries its logits with the tokens that it met (maps, Q, K): (maps, K), -inf where masked."""
    table = PatchTable(q, k, reach.tokens, reach.patch_size)
    factor, bias = column_terms(q, k, reach, alive)
    first = (reach.tokens.count + 1) * torch.arange(reach.tokens.maps, device=q.device).unsqueeze(1)
    for query, tokens in zip(chosen, met.unbind(1), strict=True):
        point = table.vectors(first + query)  # (maps, 1, p * p * D)
        logits = (table.vectors(first + tokens) @ point.transpose(1, 2)).squeeze(2)
        logits = logits * factor[first + tokens] + bias[first + tokens]
        yield logits.masked_fill(tokens == query, float("-inf")) if reach.meets_itself else logits


def _pair_logits(q: Tensor, k: Tensor, reach: Reach, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of all queries with all tokens (maps, queries, tokens), and which of these they may attend to."""
    maps = [q] if reach.tokens.shared else [q, k]
    vectors = [patchify(at_least_float32(x), reach.patch_size).flatten(0, 1).flatten(2) for x in maps]
    lengths = [patch_length(x, reach.patch_size).flatten(0, 1).flatten(2) for x in maps]
    units = torch.cat(vectors, 2) / torch.cat(lengths, 2)  # (maps, p * p * D, tokens)
    logits = dense_logits(vectors[0], units, "dot", reach.scale)
    allowed = torch.ones_like(logits, dtype=torch.bool)
    if alive is not None:
        allowed[:, :, reach.tokens.first_key :] = alive.unsqueeze(1)
    if not reach.tokens.shared and reach.keys_only:
        allowed[:, :, : reach.tokens.first_key] = False
    if reach.meets_itself:
        allowed.diagonal(0, 1, 2).fill_(False)
    return logits, allowed


def _chunk_of_token(order: Tensor, reach: Reach) -> Tensor:
    """The chunk that each token lies in: (rounds, maps, padded) -> (rounds, maps, tokens)."""
    place = order.argsort(dim=-1, stable=True)[:, :, : reach.tokens.count]
    return place // reach.chunking.length


def _tokens_met(order: Tensor, chosen: Tensor, reach: Reach) -> Tensor:
    """The tokens in reach of a few queries, round by round: (maps, Q, rounds * window)."""
    home = _chunk_of_token(order, reach)[:, :, chosen]  # (rounds, maps, Q)
    chunks = torch.unflatten(with_chunk_before(order.long(), reach.chunking), 2, (-1, reach.chunking.length))
    met = [
        chunks.gather(2, (home + step).unsqueeze(3).expand(-1, -1, -1, reach.chunking.length))
        for step in range(1 + reach.chunking.back)
    ]
    return torch.cat(met, 3).permute(1, 2, 0, 3).flatten(2)


def _times_met(order: Tensor, reach: Reach) -> Tensor:
    """How often each query meets each token, over all rounds: (maps, queries, tokens) long."""
    tokens, last = reach.tokens, reach.chunking.count - 1
    chunk = _chunk_of_token(order, reach)  # (rounds, maps, tokens)
    home = chunk[:, :, : tokens.q_size.area].unsqueeze(3)
    met = torch.zeros(tokens.maps, tokens.q_size.area, tokens.count, dtype=torch.long, device=order.device)
    for here, there, before in zip(home, chunk.unsqueeze(2), chunk.roll(1, 0).unsqueeze(2), strict=True):
        met += there == here
        if reach.chunking.back:
            met += torch.where(here > 0, there == here - 1, before == last)
    return met


def _reference(q: Tensor, k: Tensor, v: Tensor, order: Tensor, reach: Reach, alive: Tensor | None) -> Tensor:
    tokens = reach.tokens
    with no_autocast(q.device):
        met = _times_met(order, reach)
        logits, allowed = _pair_logits(q, k, reach, alive)
        allowed &= met > 0
        counted = logits + met.clamp_min(1).to(logits.dtype).log()
        weights = masked_softmax(counted, allowed)[:, :, tokens.first_key :]  # (maps, Q, K); other tokens bring zeros
        values = at_least_float32(v).flatten(0, 1).flatten(2)  # (maps, E, K)
        out = values @ weights.transpose(1, 2)
        if tokens.shared:
            alone = ~allowed.any(2) if alive is None else ~allowed.any(2) & alive
            out = torch.where(alone.unsqueeze(1), values, out)
        return out.reshape(*v.shape[:3], *q.shape[3:]).to(v.dtype)


def _anywhere(request: Request) -> list[str]:
    return []


KERNELS = (
    Kernel("sorted", attend_sorted, _anywhere),
    Kernel("reference", _reference, _anywhere, double_backward=True),
)
