"""Reformer attention (arXiv 2001.04451) by plain loops over queries, rounds and tokens, for float64 comparisons.

Queries and keys of two maps form one sequence; a token's own logit is -5e4, as in the released layers. `case` names
the options: `rounds`, `buckets` (the numbers of buckets that one or two rotations tell apart), `bucket_size`,
`shared`, `keys_only`, `patch_size`, `scale`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def patches_of(image, p):
    """(D, Y, X) -> one vector a pixel, (Y * X, D * p * p), zeros outside."""
    _, rows, cols = image.shape
    padded = F.pad(image, (p // 2,) * 4)
    return torch.stack([padded[:, y : y + p, x : x + p].flatten() for y in range(rows) for x in range(cols)])


def token_order(vectors, first_key, alive, rotations, case):
    """Tokens of every round in sorted order, lists of lists; masked keys that are no queries come last."""
    rounds = []
    for turned in (vectors.detach() @ rotations).chunk(case.rounds, 1):
        keys, start = [0] * len(vectors), 0
        for count in case.buckets:
            part = turned[:, start : start + count // 2]
            best = torch.cat([part, -part], 1).argmax(1).tolist()
            keys = [key * count + bucket for key, bucket in zip(keys, best, strict=True)]
            start += count // 2
        for token in range(len(vectors)):
            if not case.shared and token >= first_key and not alive[token - first_key]:
                keys[token] = math.inf
        rounds.append(sorted(range(len(vectors)), key=lambda token: (keys[token], token)))
    return rounds


def windows(rounds, case):
    """For every round, what each token may attend to, in the words of the paper: its chunk, and the chunk before."""
    count = -(-len(rounds[0]) // case.bucket_size)
    length = -(-len(rounds[0]) // count)
    chunks = [[order[i * length : (i + 1) * length] for i in range(count)] for order in rounds]
    met = []
    for number, parts in enumerate(chunks):
        seen = {}
        for i, part in enumerate(parts):
            before = (parts[i - 1] if i else chunks[number - 1][-1]) if count > 1 else []
            seen.update(dict.fromkeys(part, before + part))
        met.append(seen)
    return met


def attend_by_loops(q, k, v, rotations, case, alive):
    """One map and head: (D, Yq, Xq), (D, Yk, Xk), (E, Yk, Xk) -> (E, Yq * Xq)."""
    queries, keys = patches_of(q, case.patch_size), patches_of(k, case.patch_size)
    first_key = 0 if case.shared else len(queries)
    vectors = queries if case.shared else torch.cat([queries, keys])
    units = vectors / vectors.norm(dim=1, keepdim=True)
    values = v.flatten(1).T
    if not case.shared:
        values = torch.cat([torch.zeros(len(queries), values.shape[1], dtype=values.dtype), values])
    met = windows(token_order(vectors, first_key, alive, rotations, case), case)
    logits = (queries @ units.T) * (vectors.shape[1] ** -0.5 if case.scale is None else case.scale)
    columns = []
    for query in range(len(queries)):
        sums, brought = [], []
        for seen in met:
            tokens = [t for t in seen[query] if (alive[t - first_key] if t >= first_key else not case.keys_only)]
            if tokens:
                row = torch.where(
                    torch.tensor(tokens) == query, torch.tensor(-5e4, dtype=q.dtype), logits[query, tokens]
                )
                sums.append(row.logsumexp(0))
                brought.append(torch.softmax(row, 0) @ values[tokens])
        if sums:
            columns.append(torch.softmax(torch.stack(sums), 0) @ torch.stack(brought))
        else:
            columns.append(torch.zeros_like(values[0]))
    return torch.stack(columns, 1)
