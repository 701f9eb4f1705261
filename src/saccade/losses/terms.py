"""The one place where loss terms become a loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum named scalar terms by their weights, in float32. A term of weight 0 is left out, so it costs no backward.

    Args:
        terms: name to scalar.
        weights: name to factor; exactly the names of ``terms``.

    Raises:
        ValueError: the names differ, there are none, or every weight is 0 (a sum that trains nothing).
    """
    without_weight = sorted(set(terms) - set(weights))
    without_term = sorted(set(weights) - set(terms))
    if without_weight or without_term or not terms:
        raise ValueError(
            f"loss: terms and weights must have the same names; terms without weight: {without_weight or 'none'}, "
            f"weights without term: {without_term or 'none'}, terms: {sorted(terms) or 'none'}"
        )
    used = [terms[name].float() * weights[name] for name in terms if weights[name] != 0]
    if not used:
        raise ValueError(f"loss: every weight is 0 (terms: {sorted(terms)}); give at least one a weight")
    total = used[0]
    for term in used[1:]:
        total = total + term
    return total
