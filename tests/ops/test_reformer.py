"""Reformer attention against plain loops that were written independently, and against exact attention."""

from __future__ import annotations

import functools
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from oracles.reformer_loops import attend_by_loops
from saccade.ops import dense_attention, double_backward
from saccade.ops.inputs import at_least_float32
from saccade.ops.patches import as_vectors
from saccade.ops.reformer import KERNELS, reformer_attention, reformer_weights
from saccade.ops.reformer import buckets as reformer_buckets
from saccade.ops.reformer import sorted as reformer_sorted
from saccade.ops.reformer.buckets import Chunking
from saccade.ops.reformer.op import _order, _reach

TOLERANCE = 1e-12  # relative to the largest entry of the expected tensor, or absolute where that is below 1


def draw(*shape, seed=0, gain=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def assert_close(got, expected, what, tolerance=TOLERANCE):
    assert got.shape == expected.shape, what
    error = (got - expected).abs().max().item()
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert error <= bound, f"{what}: off by {error:.2e}, allowed {bound:.2e}"


@dataclass(frozen=True)
class Case:
    """Sizes and options of one comparison; `buckets` are what one or two rotations tell apart."""

    query: tuple[int, int]
    key: tuple[int, int]
    bucket_size: int
    buckets: tuple[int, ...]
    rounds: int = 3
    shared: bool = False
    keys_only: bool = True
    rotation_buckets: int | None = None
    patch_size: int = 1
    masked: bool = False
    scale: float | None = 1.3

    def mask(self):
        if not self.masked:
            return None
        mask = torch.rand(2, 1, *self.key, generator=torch.Generator().manual_seed(1)) > 0.6
        mask[1] = False
        mask[1, 0, 1, 2] = True  # most queries of the second map meet no key
        return mask

    @property
    def options(self):
        return {
            "bucket_size": self.bucket_size,
            "hashes": self.rounds,
            "shared_qk": self.shared,
            "keys_only": self.keys_only,
            "rotation_buckets": self.rotation_buckets,
            "patch_size": self.patch_size,
            "key_mask": self.mask(),
            "scale": self.scale,
        }

    def inputs(self):
        return (
            draw(2, 2, 3, *self.query, gain=2),
            draw(2, 2, 3, *self.key, gain=2, seed=1),
            draw(2, 2, 4, *self.key, seed=2),
        )


CASES = {
    "two maps": Case((5, 6), (4, 7), 7, (10,)),
    "two maps, default scale": Case((5, 6), (4, 7), 7, (10,), scale=None),
    "two maps, two rotations": Case((5, 6), (4, 7), 4, (4, 4), rotation_buckets=8),
    "two maps, patches": Case((5, 4), (4, 6), 7, (8,), patch_size=3),
    "two maps, masked": Case((5, 6), (4, 7), 7, (10,), masked=True),
    "two maps, one chunk": Case((3, 4), (4, 3), 24, (), rounds=2),
    "two maps, two chunks": Case((3, 4), (4, 3), 13, (2,), rounds=2),
    "two maps, pairs": Case((3, 4), (4, 3), 1, (24,)),
    "queries met": Case((5, 6), (4, 7), 7, (10,), keys_only=False),
    "queries met, masked patches": Case((5, 4), (4, 6), 7, (8,), keys_only=False, patch_size=3, masked=True),
    "shared": Case((5, 6), (5, 6), 7, (6,), shared=True),
    "shared, default scale": Case((5, 6), (5, 6), 7, (6,), shared=True, scale=None),
    "shared, masked": Case((5, 6), (5, 6), 4, (8,), shared=True, masked=True),
    "shared, patches": Case((5, 5), (5, 5), 7, (4,), shared=True, patch_size=3, rounds=2),
    "shared, one pixel": Case((1, 1), (1, 1), 7, (), shared=True),
    "shared, two rotations": Case((5, 6), (5, 6), 3, (4, 4), shared=True, rotation_buckets=2),
}


@functools.cache
def expected_of(name):
    """Inputs, upstream gradient, output and gradients by the loops."""
    case = CASES[name]
    q, k, v = case.inputs()
    seed = int(torch.randint(2**62, (), generator=seeded()))
    columns = case.rounds * sum(case.buckets) // 2
    rotations = torch.randn(3, case.patch_size**2, columns, generator=torch.Generator().manual_seed(seed)).flatten(0, 1)
    mask = case.mask()
    maps = []
    for b in range(2):
        alive = [True] * math.prod(case.key) if mask is None else mask[b].flatten().tolist()
        maps += [attend_by_loops(q[b, g], k[b, g], v[b, g], rotations.double(), case, alive) for g in range(2)]
    out = torch.stack(maps).view(2, 2, 4, *case.query)
    upstream = draw(*out.shape, seed=9).detach()
    leaves = (q, v) if case.shared else (q, k, v)
    return (q, k, v), upstream, out.detach(), torch.autograd.grad(out, leaves, upstream)


@pytest.mark.parametrize("kernel", [kernel.name for kernel in KERNELS])
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_match_the_loops(name, kernel):
    (q, k, v), upstream, out, gradients = expected_of(name)
    got = reformer_attention(q, k, v, generator=seeded(), kernel=kernel, **CASES[name].options)
    assert_close(got, out, "output")
    leaves = {"q": q, "v": v} if CASES[name].shared else {"q": q, "k": k, "v": v}
    found = torch.autograd.grad(got, list(leaves.values()), upstream)
    for what, one, other in zip(leaves, found, gradients, strict=True):
        assert_close(one, other, f"gradient of {what}")


def test_the_cases_reach_what_they_are_for():
    """Some queries meet no key, some tokens are alone, and hashing leaves most pairs apart."""
    (_, _, _), _, masked, _ = expected_of("two maps, masked")
    dead = (masked == 0).all(2)
    assert 0 < dead[1].double().mean() < 1
    (_, _, v), _, shared, _ = expected_of("shared, masked")
    mask = CASES["shared, masked"].mask()[1, 0]
    assert (shared[1][..., ~mask] == 0).all(1).any()
    torch.testing.assert_close(shared[1][..., mask], v[1][..., mask])  # the only key has but itself
    (_, _, v), _, alone, _ = expected_of("shared, one pixel")
    torch.testing.assert_close(alone, v)
    (q, k, v), _, hashed, _ = expected_of("two maps")
    assert (hashed - exact(q, k, v, 1.3)).abs().mean() > 0.1


def exact(q, k, v, scale=None):
    return dense_attention(q, k / k.norm(dim=2, keepdim=True), v, score="dot", scale=scale, kernel="reference")


@pytest.mark.parametrize("kernel", [kernel.name for kernel in KERNELS])
@pytest.mark.parametrize("scale", [None, 2.5])
def test_one_bucket_is_full_attention_to_keys_of_length_one(scale, kernel):
    q, k, v = draw(2, 2, 4, 6, 5, gain=3), draw(2, 2, 4, 4, 7, gain=3, seed=1), draw(2, 2, 3, 4, 7, seed=2)
    out = reformer_attention(q, k, v, bucket_size=58, hashes=1, scale=scale, kernel=kernel)
    expected = exact(q, k, v, scale)
    assert_close(out, expected, "output")
    upstream = draw(*out.shape, seed=3).detach()
    got, wanted = (torch.autograd.grad(x, (q, k, v), upstream) for x in (out, expected))
    for name, one, other in zip("qkv", got, wanted, strict=True):
        assert_close(one, other, f"gradient of {name}")


def clustered(side, centres=24, seed=0):
    """Maps whose vectors lie in clusters, each with a value of its own, as patches of photographs do."""
    generator = torch.Generator().manual_seed(seed)
    middle = 2 * torch.randn(centres, 8, generator=generator, dtype=torch.float64)
    value = torch.randn(centres, 4, generator=generator, dtype=torch.float64)

    def maps():
        which = torch.randint(centres, (side * side,), generator=generator)
        points = middle[which] + 0.5 * torch.randn(side * side, 8, generator=generator, dtype=torch.float64)
        return (rows.T.reshape(1, 1, -1, side, side) for rows in (points, value[which]))

    (q, _), (k, v) = maps(), maps()
    return q, k, v


@pytest.mark.parametrize("rotation_buckets", [None, 8])
def test_more_hashes_come_closer_to_full_attention(rotation_buckets):
    hashes, seeds = (1, 2, 4, 8, 16), 6
    errors = torch.zeros(len(hashes))
    for seed in range(seeds):
        q, k, v = clustered(24, seed=seed)
        full = exact(q, k, v, 1.0)
        for i, rounds in enumerate(hashes):
            options = {"bucket_size": 48, "hashes": rounds, "scale": 1.0, "rotation_buckets": rotation_buckets}
            out = reformer_attention(q, k, v, generator=seeded(seed), **options)
            errors[i] += (out - full).square().mean() / full.square().mean() / seeds
    assert (errors[1:] < 0.9 * errors[:-1]).all(), errors
    assert errors[-1] < errors[0] / 8, errors


@pytest.mark.parametrize("shared", [False, True])
def test_patches_are_their_vectors(shared):
    q, k, v = draw(1, 2, 3, 9, 7), draw(1, 2, 3, 9, 7, seed=1), draw(1, 2, 2, 9, 7, seed=2)
    options = {"bucket_size": 12, "hashes": 3, "shared_qk": shared}
    out = reformer_attention(q, k, v, patch_size=5, generator=seeded(), **options)
    vectors = as_vectors(q, k, 5, "dot")[:2]
    assert_close(out, reformer_attention(*vectors, v, generator=seeded(), **options), "output")


@pytest.mark.parametrize("entries", [1, 3000])
@pytest.mark.parametrize("shared", [False, True])
def test_spans_and_strips_change_nothing(shared, entries, monkeypatch):
    """Working memory decides how much is done at a time: all maps, some maps, some chunks of one, one chunk."""
    q, k, v = draw(3, 2, 4, 8, 9), draw(3, 2, 4, 8, 9, seed=1), draw(3, 2, 3, 8, 9, seed=2)
    options = {"bucket_size": 10, "hashes": 2, "shared_qk": shared, "patch_size": 3}
    upstream = draw(3, 2, 3, 8, 9, seed=3).detach()
    leaves = (q, v) if shared else (q, k, v)
    out = reformer_attention(q, k, v, generator=seeded(), **options)
    wanted = torch.autograd.grad(out, leaves, upstream)
    monkeypatch.setitem(reformer_sorted.SPAN_ENTRIES, "cpu", entries)
    monkeypatch.setitem(reformer_buckets.HASH_ENTRIES, "cpu", entries)
    again = reformer_attention(q, k, v, generator=seeded(), **options)
    assert_close(again, out, "output")
    for one, other in zip(torch.autograd.grad(again, leaves, upstream), wanted, strict=True):
        assert_close(one, other, "gradient")


def test_results_do_not_depend_on_how_a_batch_is_split():
    q, k, v = (
        x.detach().float() for x in (draw(3, 2, 4, 9, 9), draw(3, 2, 4, 9, 9, seed=1), draw(3, 2, 3, 9, 9, seed=2))
    )
    whole = reformer_attention(q, k, v, bucket_size=16, generator=seeded())
    for i in range(3):
        part = reformer_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], bucket_size=16, generator=seeded())
        torch.testing.assert_close(part, whole[i : i + 1], rtol=1e-5, atol=1e-6)


def test_the_generator_decides():
    q, k, v = (x.detach() for x in (draw(1, 1, 4, 9, 9), draw(1, 1, 4, 9, 9, seed=1), draw(1, 1, 3, 9, 9, seed=2)))
    first, again, other = (reformer_attention(q, k, v, bucket_size=16, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    torch.manual_seed(1)
    assert torch.equal(reformer_attention(q, k, v, bucket_size=16), first)


def test_masked_keys_have_no_part_in_anything():
    """Not through their values, nor through the places that they take in the sorted sequence."""
    q, k, v = (x.detach() for x in (draw(1, 1, 4, 9, 9), draw(1, 1, 4, 9, 9, seed=1), draw(1, 1, 3, 9, 9, seed=2)))
    mask = torch.rand(1, 1, 9, 9, generator=seeded()) > 0.5
    out = reformer_attention(q, k, v, bucket_size=16, key_mask=mask, generator=seeded())
    noise = 5 * draw(1, 1, 7, 9, 9, seed=4).detach() * ~mask.unsqueeze(1)
    changed = reformer_attention(
        q, k + noise[:, :, :4], v + noise[:, :, 4:], bucket_size=16, key_mask=mask, generator=seeded()
    )
    torch.testing.assert_close(changed, out, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_weights_bring_the_output(name):
    (q, k, v), _, out, _ = expected_of(name)
    rows, cols = CASES[name].query
    queries = torch.tensor([[0, 0], [rows - 1, cols - 1], [rows // 2, cols // 3]])
    indices, weights = reformer_weights(q, k, queries, generator=seeded(), **CASES[name].options)
    assert indices.shape == weights.shape
    values = v.flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, indices.unsqueeze(2).expand(-1, -1, 4, -1, -1)) * weights.unsqueeze(2)).sum(4)
    assert_close(brought, out[..., queries[:, 0], queries[:, 1]], "values brought by the weights")
    if CASES[name].keys_only and not CASES[name].masked:
        met = (weights > 0).any(3).to(weights.dtype)  # with chunks of one token some queries meet no key
        assert met.all() or CASES[name].bucket_size == 1
        torch.testing.assert_close(weights.sum(3), met)


SMALL = {"bucket_size": 5, "hashes": 2, "scale": 1.0}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kernel", [kernel.name for kernel in KERNELS])
def test_gradcheck(kernel, shared):
    q, k, v = draw(1, 2, 2, 3, 2), draw(1, 2, 2, 3, 2, seed=1), draw(1, 2, 1, 3, 2, seed=2)
    leaves = (q, v) if shared else (q, k, v)

    def attend(*x):
        maps = (x[0], k.detach(), x[1]) if shared else x
        return reformer_attention(*maps, shared_qk=shared, patch_size=3, generator=seeded(), kernel=kernel, **SMALL)

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_gradgradcheck(kernel):
    def attend(*x):
        with double_backward():
            return reformer_attention(*x, generator=seeded(), kernel=kernel, **SMALL)

    assert torch.autograd.gradgradcheck(attend, (draw(1, 1, 2, 3, 2), draw(1, 1, 2, 2, 3, seed=1), draw(1, 1, 1, 2, 3)))


def test_sorted_refuses_a_second_derivative():
    q, k, v = draw(1, 1, 2, 3, 2), draw(1, 1, 2, 3, 2, seed=1), draw(1, 1, 1, 3, 2, seed=2)
    out = reformer_attention(q, k, v, kernel="sorted", **SMALL)
    with pytest.raises(RuntimeError, match="twice differentiable"):
        torch.autograd.grad(out.square().sum(), q, create_graph=True)[0].square().sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_as_exact_as_its_inputs(dtype):
    """The order is taken from the inputs as they are; scores and sums are float32 at least."""
    q, k, v = (x.detach().to(dtype) for x in clustered(16))
    reach = _reach(q, k, 32, 4, False, True, None, 1.0, 3)
    order = _order(q, k, reach, None, seeded())
    got = KERNELS[0].run(q, k, v, order, reach, None)
    expected = KERNELS[-1].run(q.double(), k.double(), v.double(), order, reach, None)
    plain = KERNELS[-1].run(*(at_least_float32(x) for x in (q, k, v)), order, reach, None).to(dtype)
    assert got.dtype == dtype
    allowed = 2 * (plain.double() - expected).abs().max() + torch.finfo(dtype).eps * 1e-3
    assert (got.double() - expected).abs().max() <= allowed


def test_chunks_are_equal_and_as_few_as_can_be():
    for tokens in (1, 7, 63, 64, 65, 129, 1000, 8192):
        for bucket_size in (1, 3, 64, 2000):
            chunking = Chunking(tokens, bucket_size, 2, 16)
            assert chunking.length <= bucket_size
            assert chunking.count == math.ceil(tokens / bucket_size)
            assert tokens <= chunking.padded < tokens + chunking.length
            if chunking.count > 1:
                assert math.prod(chunking.factors) >= chunking.count
                assert all(factor % 2 == 0 for factor in chunking.factors)
                assert len(chunking.factors) == 1 + (chunking.count > 16)
    assert Chunking(8192, 64, 8, None).factors == (128,)


def _maps(q_size=(4, 4), kv_size=(4, 4)):
    return torch.randn(1, 1, 2, *q_size), torch.randn(1, 1, 2, *kv_size), torch.randn(1, 1, 3, *kv_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bucket_size": 0}, "bucket_size must be a whole number, 1 or more; got 0"),
        ({"bucket_size": 6.5}, "bucket_size must be a whole number, 1 or more; got 6.5"),
        ({"hashes": 0}, "hashes must be a whole number, 1 or more; got 0"),
        ({"rotation_buckets": 1}, "rotation_buckets must be a whole number, 2 or more, or None"),
        ({"patch_size": 4}, "odd"),
        ({"scale": float("inf")}, "scale must be a positive number"),
        ({"kernel": "lsh"}, "no kernel is called 'lsh'. Valid here: auto, sorted, reference"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        reformer_attention(*_maps(), **options)


def test_shared_queries_and_keys_must_be_of_one_size():
    with pytest.raises(ValueError, match=r"one size; got 4x4 and 4x5. Valid here: shared_qk=False"):
        reformer_attention(*_maps(kv_size=(4, 5)), shared_qk=True)
    assert reformer_attention(*_maps(kv_size=(4, 5))).shape == (1, 1, 3, 4, 4)


@pytest.mark.slow
def test_memory_at_256_is_far_below_that_of_unrolled_patches():
    """Table 1 of PSAL (arXiv 2202.03163) has 7.42 GB for Reformer at 256x256, patch 7, 16 channels."""
    code = (
        "import resource, torch\n"
        "from saccade.ops.reformer import reformer_attention\n"
        "torch.set_num_threads(1)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "small = [torch.randn(1, 1, 16, 32, 32, requires_grad=True) for _ in 'qkv']\n"
        "reformer_attention(*small, hashes=1, patch_size=7).sum().backward()\n"
        "q, k, v = (torch.randn(1, 1, 16, 256, 256, requires_grad=True) for _ in 'qkv')\n"
        "before = peak()\n"
        "reformer_attention(q, k, v, hashes=1, patch_size=7).sum().backward()\n"
        "print(peak() - before)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 400
