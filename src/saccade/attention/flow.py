"""Information flow graphs of sparse attention: what can reach what through a list of masks.

Source: Daras, Odena, Zhang, Dimakis, "Your Local GAN", arXiv 1911.12287, section 3 and appendix. The graph has layers
V0 .. Vp of tokens; step i, a boolean mask with mask[q, k] true where q may attend k, connects V(i-1) to Vi. A list of
masks has Full Information if every token of V0 reaches every token of Vp.

Edges point the way information moves here: from the key k in V(i-1) to the query q in Vi, so that what reaches what is
the product of the masks from last to first, with R[b, a] for a in V0 and b in Vp. The caption of the paper's Fig. 2
points an edge from the attending token to the attended one, which turns the product round. To read a list that way
give it here in reverse: its LTR and RTL pairs then lack paths, which they do not in the direction of information.

Masks are NumPy arrays or tensors; the sizes of successive steps must chain, square steps or not. SciPy is imported by
`max_flow` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Mask = NDArray[np.bool_]
Masks = Sequence[Tensor | ArrayLike]

# Up to here every integer is a double, so that path counts may be multiplied by BLAS.
_EXACT = 2.0**53
# Ours: entries of the joint positions of two walkers that `pair_flow` holds at a time.
_PAIR_ENTRIES = 2**24


@dataclass(frozen=True, eq=False)
class FullInformation:
    """Whether every input reaches every output: `missing` is (count, 2), the pairs (output b, input a) without path."""

    full: bool
    missing: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of pairs without a path."""
        return len(self.missing)

    def __bool__(self) -> bool:
        return self.full


@dataclass(frozen=True, eq=False)
class PathCounts:
    """How many paths lead from input a to output b: `counts`[b, a], Python integers where they exceed a double's."""

    counts: NDArray[np.int64] | NDArray[np.object_]

    @property
    def least(self) -> int:
        return int(self.counts.min())

    @property
    def most(self) -> int:
        return int(self.counts.max())

    @property
    def mean(self) -> float:
        return float(self.counts.mean())


@dataclass(frozen=True)
class PairFlow:
    """How many pairs of inputs can be sent to how many pairs of outputs at once, of `pairs` pairs of pairs."""

    carried: int
    pairs: int

    @property
    def share(self) -> float:
        return self.carried / self.pairs


def read_masks(masks: Masks) -> list[Mask]:
    """The steps as boolean arrays, checked.

    Raises:
        ValueError: no step, a step that is not a boolean matrix, or sizes that do not chain.
    """
    steps: list[Mask] = []
    for number, mask in enumerate(masks, 1):
        step = np.asarray(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask)
        if step.ndim != 2 or step.dtype != np.bool_ or step.size == 0:
            raise ValueError(
                f"flow: step {number} must be a boolean matrix, mask[q, k] true where q may attend k; got {step.dtype} "
                f"of shape {step.shape}."
            )
        if steps and step.shape[1] != steps[-1].shape[0]:
            raise ValueError(
                f"flow: step {number} attends {step.shape[1]} tokens, but step {number - 1} has {steps[-1].shape[0]} "
                "queries; the keys of a step are the queries of the one before."
            )
        steps.append(step)
    if not steps:
        raise ValueError("flow: at least one mask is needed; got none.")
    return steps


def edges(masks: Masks) -> int:
    """Number of edges of the graph: pairs that the masks allow, over all steps."""
    return sum(int(step.sum()) for step in read_masks(masks))


def reach(masks: Masks) -> Mask:
    """Whether a path leads from input a to output b: R[b, a], (outputs, inputs), the boolean product Mp ... M1."""
    steps = read_masks(masks)
    reached = steps[0]
    for step in steps[1:]:
        reached = step.astype(np.float32) @ reached.astype(np.float32) > 0
    return reached


def full_information(masks: Masks) -> FullInformation:
    """Whether every input reaches every output, and the pairs that have no path."""
    missing = np.argwhere(~reach(masks)).astype(np.int64)
    return FullInformation(full=not len(missing), missing=missing)


def path_counts(masks: Masks) -> PathCounts:
    """How many paths lead from each input to each output: the integer product Mp ... M1."""
    steps = read_masks(masks)
    bound = math.prod(float(step.sum(1).max()) for step in steps)
    if bound >= _EXACT:
        whole = steps[0].astype(object)
        for step in steps[1:]:
            whole = step.astype(object) @ whole
        return PathCounts(whole)
    product = steps[0].astype(np.float64)
    for step in steps[1:]:
        product = step.astype(np.float64) @ product
    return PathCounts(product.astype(np.int64))


def pair_flow(masks: Masks) -> PairFlow:
    """Of all pairs of two inputs with two outputs, how many let two units flow where each token carries one.

    The appendix's stronger criterion: Full Information asks for one path, this for two that share no token. By Menger's
    theorem that is a maximum flow of 2. All paths have p steps, so two of them are disjoint if two walkers can go from
    the inputs to the outputs, step by step, and never meet: their joint positions are followed for all pairs at once,
    in O(inputs^2 tokens^3) instead of one flow problem for each pair of pairs. `max_flow` is the slow way.

    Raises:
        ValueError: fewer than two inputs or outputs.
    """
    steps = read_masks(masks)
    inputs, outputs = steps[0].shape[1], steps[-1].shape[0]
    if min(inputs, outputs) < 2:
        raise ValueError(f"flow: pair flow needs two inputs and two outputs; got {inputs} and {outputs}.")
    widest = max(*(step.shape[0] for step in steps), inputs)
    first, second = np.triu_indices(inputs, 1)
    above = np.triu_indices(outputs, 1)
    carried, room = 0, max(1, _PAIR_ENTRIES // widest**2)
    for start in range(0, len(first), room):
        ones, others = first[start : start + room], second[start : start + room]
        joint = np.zeros((len(ones), inputs, inputs), np.float32)
        joint[np.arange(len(ones)), ones, others] = 1
        for step in steps:
            move = step.astype(np.float32)
            joint = (move @ joint @ move.T > 0).astype(np.float32)
            np.einsum("pxx->px", joint)[:] = 0  # they would share a token
        met = joint[:, above[0], above[1]] + joint[:, above[1], above[0]]
        carried += int((met > 0).sum())
    return PairFlow(carried, len(first) * len(above[0]))


def max_flow(masks: Masks, inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """The most units that can flow at once from some inputs to some outputs, one through each token.

    The graph with every token split in two, an edge of capacity 1 between its halves: for any number of inputs and
    outputs.

    Raises:
        ValueError: a token is named twice or does not exist.
        RuntimeError: SciPy is not installed.
    """
    try:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import maximum_flow
    except ImportError as error:
        raise RuntimeError(
            f"flow: max_flow needs SciPy ({error}); install it with pip install -e '.[experiments]'. "
            "full_information, path_counts and pair_flow do without it."
        ) from error

    steps = read_masks(masks)
    sizes = [steps[0].shape[1], *(step.shape[0] for step in steps)]
    for what, named, size in (("input", inputs, sizes[0]), ("output", outputs, sizes[-1])):
        if len(set(named)) != len(named) or not all(0 <= token < size for token in named):
            raise ValueError(f"flow: {what}s must be different tokens from 0 to {size - 1}; got {list(named)}.")
    firsts = np.cumsum([0, *sizes])  # the number of each layer's first token
    source, sink = 2 * firsts[-1], 2 * firsts[-1] + 1
    tails = [np.array([source] * len(inputs), int), 2 * np.arange(firsts[-1])]
    heads = [2 * np.array(inputs, int), 2 * np.arange(firsts[-1]) + 1]
    for layer, step in enumerate(steps):
        queries, keys = np.nonzero(step)
        tails.append(2 * (firsts[layer] + keys) + 1)
        heads.append(2 * (firsts[layer + 1] + queries))
    tails.append(2 * (firsts[-2] + np.array(outputs, int)) + 1)
    heads.append(np.array([sink] * len(outputs), int))
    tail, head = np.concatenate(tails), np.concatenate(heads)
    capacity = coo_matrix((np.ones(len(tail), np.int32), (tail, head)), (sink + 1, sink + 1)).tocsr()
    return int(maximum_flow(capacity, source, sink).flow_value)
