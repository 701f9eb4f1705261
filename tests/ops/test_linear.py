"""Linear attention against loops over pixels and patches, and against the weights of all pairs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from saccade.ops import double_backward, ledger, reset_ledger
from saccade.ops.linear import KERNELS, linear_attention, linear_weights
from saccade.ops.linear import convolution as linear_convolution

NAMES = [kernel.name for kernel in KERNELS]
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def peak_bytes(call):
    """Peak of PyTorch's CPU memory during a call, as the benchmark counts it."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    from attention_bench.measure import cpu_peak_bytes

    return cpu_peak_bytes(call)


def draw(q_size, kv_size=None, batch=2, heads=2, channels=3, values=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kv_size = kv_size or q_size
    sizes = ((channels, q_size), (channels, kv_size), (values, kv_size))
    maps = [torch.randn(batch, heads, c, *size, generator=generator, dtype=torch.float64) for c, size in sizes]
    return [x.to(dtype).requires_grad_() for x in maps]


def some_keys(kv_size, batch=2, seed=1):
    mask = torch.rand(batch, 1, *kv_size, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, 0, 0, 0] = True
    return mask


def feature(x):
    return x + 1 if x > 0 else math.exp(x)


def by_loops(q, k, v, side, mask):
    """The definition in Python's own numbers: a feature for every place of every patch, a weight for every pair."""
    half = side // 2

    def vector(maps, row, col):
        channels, rows, cols = len(maps), len(maps[0]), len(maps[0][0])
        places = [(row + i - half, col + j - half) for i in range(side) for j in range(side)]
        return [
            feature(maps[c][y][x]) if 0 <= y < rows and 0 <= x < cols else 1.0
            for c in range(channels)
            for y, x in places
        ]

    out = torch.zeros(*v.shape[:3], *q.shape[3:], dtype=v.dtype)
    for b in range(q.shape[0]):
        for g in range(q.shape[1]):
            queries, keys = q[b, g].tolist(), k[b, g].tolist()
            pixels = [(y, x) for y in range(k.shape[3]) for x in range(k.shape[4]) if mask is None or mask[b, 0, y, x]]
            vectors = [vector(keys, *pixel) for pixel in pixels]
            for row in range(q.shape[3]):
                for col in range(q.shape[4]):
                    query = vector(queries, row, col)
                    weights = [math.fsum(a * c for a, c in zip(query, key, strict=True)) for key in vectors]
                    total = math.fsum(weights) + 1e-6
                    for e in range(v.shape[2]):
                        parts = [w * v[b, g, e, y, x].item() for w, (y, x) in zip(weights, pixels, strict=True)]
                        out[b, g, e, row, col] = math.fsum(parts) / total
    return out


def by_pairs(q, k, v, side, mask):
    """The weights of all pairs of unfolded patches."""

    def vectors(maps):
        flat = F.unfold(maps.flatten(0, 1), side, padding=side // 2)
        flat = torch.where(flat > 0, flat + 1, flat.clamp_max(0).exp())
        return flat.view(*maps.shape[:2], -1, flat.shape[-1])  # (B, G, V, N)

    weights = vectors(q).transpose(2, 3) @ vectors(k)  # (B, G, Nq, Nk)
    if mask is not None:
        weights = weights * mask.flatten(2).unsqueeze(2)
    out = weights @ v.flatten(3).transpose(2, 3) / (weights.sum(3, keepdim=True) + 1e-6)
    return out.transpose(2, 3).unflatten(3, q.shape[3:])


def with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def assert_equal(found, expected, what=""):
    for name, one, other in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        size = max(1.0, other.detach().abs().max().item())
        error = (one - other).abs().max().item()
        assert error <= 1e-12 * size, f"{what} {name}: off by {error:.2e}"


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("kv_size", "side"), [((3, 4), 1), ((3, 4), 3), ((5, 2), 3), ((5, 2), 1), ((2, 3), 7)])
def test_kernels_equal_loops(kv_size, side, masked, kernel):
    maps = [x.detach() for x in draw((3, 4), kv_size)]
    mask = some_keys(kv_size) if masked else None
    out = linear_attention(*maps, patch_size=side, key_mask=mask, kernel=kernel)
    torch.testing.assert_close(out, by_loops(*maps, side, mask), rtol=0, atol=1e-12)


SIZES = [((9, 7), (9, 7)), ((6, 11), (8, 5)), ((36, 33), (34, 40)), ((5, 6), (40, 32))]


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("side", [1, 3, 7])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_outputs_and_gradients_equal_all_pairs(sizes, side, kernel):
    maps = draw(*sizes)
    mask = some_keys(sizes[1])
    expected = with_gradients(by_pairs(*maps, side, mask), maps)
    out = linear_attention(*maps, patch_size=side, key_mask=mask, kernel=kernel)
    assert_equal(with_gradients(out, maps), expected)


def test_products_over_a_few_rows_at_a_time_change_nothing(monkeypatch):
    maps = draw((33, 32), (35, 34))
    whole = with_gradients(linear_attention(*maps, patch_size=5), maps)
    monkeypatch.setattr(linear_convolution, "ROW_ENTRIES", 2**12)
    assert_equal(with_gradients(linear_attention(*maps, patch_size=5), maps), whole)
    monkeypatch.setattr(linear_convolution, "ROW_AREA", 10**9)  # the convolutions that other devices take
    assert_equal(with_gradients(linear_attention(*maps, patch_size=5), maps), whole)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("side", [1, 3])
def test_gradcheck_and_gradgradcheck(side, kernel):
    maps = draw((3, 4), (4, 2), batch=1, channels=2)
    mask = some_keys((4, 2), batch=1)

    def attend(*x):
        with double_backward():
            return linear_attention(*x, patch_size=side, key_mask=mask, kernel=kernel)

    assert torch.autograd.gradcheck(attend, maps)
    assert torch.autograd.gradgradcheck(attend, maps)


def test_double_backward_where_rows_are_used_equals_the_reference():
    maps = draw((33, 32), batch=1, heads=1)

    def penalty(kernel):
        with double_backward():
            out = linear_attention(*maps, patch_size=3, kernel=kernel)
        grads = torch.autograd.grad(out.square().sum(), maps, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in grads), maps)

    reset_ledger()
    found = penalty("auto")
    assert [entry["kernel"] for entry in ledger()] == ["convolution"]
    for one, other in zip(found, penalty("reference"), strict=True):
        assert (one - other).abs().max() <= 1e-12 * max(1.0, other.abs().max().item())


def test_only_what_is_asked_for_gets_a_gradient():
    q, k, v = (x.detach() for x in draw((6, 6)))
    v.requires_grad_()
    linear_attention(q, k, v, patch_size=3).sum().backward()
    assert v.grad is not None
    (grad,) = torch.autograd.grad(linear_attention(q, k, v, patch_size=3).square().sum(), v, create_graph=True)
    grad.square().sum().backward()
    assert q.grad is None


@pytest.mark.parametrize("size", [(7, 9), (34, 32)])
def test_layouts_and_batches_do_not_matter(size):
    maps = draw(size, batch=3)
    expected = with_gradients(linear_attention(*maps, patch_size=3), maps)
    turned = [x.transpose(3, 4).contiguous().transpose(3, 4) for x in maps]
    assert not turned[0].is_contiguous()
    assert_equal(with_gradients(linear_attention(*turned, patch_size=3), maps), expected)
    parts = [linear_attention(*(x[n : n + 1] for x in maps), patch_size=3) for n in range(3)]
    torch.testing.assert_close(torch.cat(parts), expected[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", [1, 7])
@pytest.mark.parametrize(("size", "channels"), [((12, 12), 8), ((36, 36), 8), ((36, 36), 16), ((33, 37), 35)])
def test_float32_is_as_exact_as_plain_pytorch(size, channels, side):
    """Blocks of 16 channels take another way than the rest."""
    maps = draw(size, heads=1, channels=channels, values=channels + 1, dtype=torch.float32)
    options = {"patch_size": side}
    exact = with_gradients(linear_attention(*(x.double() for x in maps), **options, kernel="reference"), maps)
    plain = with_gradients(linear_attention(*maps, **options, kernel="reference"), maps)
    found = with_gradients(linear_attention(*maps, **options), maps)
    for one, other, right in zip(found, plain, exact, strict=True):
        rounding = 1e-6 * right.abs().max().item()
        assert (one - right).abs().max().item() <= 2 * (other - right).abs().max().item() + rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("size", [(7, 8), (40, 40)])
def test_half_precision_stays_near_the_rounding_of_its_inputs(size, kernel, dtype):
    """The sums over all keys exceed fp16's range at 40 x 40 patches of 7 x 7; they must not be held in it."""
    maps = draw(size, heads=1, channels=16, dtype=dtype)
    exact = with_gradients(linear_attention(*(x.double() for x in maps), patch_size=7, kernel="reference"), maps)
    found = with_gradients(linear_attention(*maps, patch_size=7, kernel=kernel), maps)
    for one, right in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert (one.double() - right.double()).abs().max() <= 4 * torch.finfo(dtype).eps * right.double().abs().max()


@pytest.mark.parametrize("kernel", NAMES)
def test_autocast_does_not_lower_the_products(kernel):
    maps = draw((34, 32), dtype=torch.float32)
    expected = with_gradients(linear_attention(*maps, patch_size=3, kernel=kernel), maps)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(*maps, patch_size=3, kernel=kernel)
    for one, other in zip(with_gradients(out, maps), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [1, 5])
def test_weights_of_a_few_queries_bring_the_output(side):
    maps = draw((6, 5), (4, 7))
    queries = torch.tensor([[0, 0], [5, 4], [2, 1]])
    for mask in (None, some_keys((4, 7))):
        indices, weights = linear_weights(*maps[:2], queries, patch_size=side, key_mask=mask)
        assert torch.equal(indices, torch.arange(28).expand(2, 2, 3, 28))
        brought = maps[2].flatten(3) @ weights.transpose(2, 3)
        out = by_pairs(*maps, side, mask)[..., queries[:, 0], queries[:, 1]]
        torch.testing.assert_close(brought, out, rtol=0, atol=1e-12)


def test_wrong_options_are_refused():
    maps = draw((4, 4))
    with pytest.raises(ValueError, match="linear: patch_size must be an odd number"):
        linear_attention(*maps, patch_size=4)
    with pytest.raises(ValueError, match="Valid here: auto, convolution, reference"):
        linear_attention(*maps, kernel="rows")
    with pytest.raises(ValueError, match=r"linear: q .* and k .* must agree"):
        linear_attention(maps[0][:, :, :2], *maps[1:])


@pytest.mark.slow
@pytest.mark.parametrize(("side", "bar"), [(256, 100e6), (512, 400e6)])
def test_memory_is_that_of_a_few_maps(side, bar):
    """At the sizes of PSAL's Table 1, where the paper's layer takes 1.85 GB (256) and 7.5 GB (512)."""
    q, k, v = draw((side, side), batch=1, heads=1, channels=16, values=16, dtype=torch.float32)
    assert peak_bytes(lambda: linear_attention(q, k, v, patch_size=7).sum().backward()) <= bar
