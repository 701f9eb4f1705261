"""Windowed attention against loops over every window, and against masked dense attention on unfolded patches."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from saccade.geometry import AttentionShape, Size
from saccade.ops import dense_attention, double_backward, ledger, reset_ledger
from saccade.ops.dispatch import SCORES
from saccade.ops.local import KERNELS, local_attention, local_flops, local_weights
from saccade.ops.local import shift as local_shift
from saccade.ops.local import tiles as local_tiles

NAMES = [kernel.name for kernel in KERNELS]
FAST = ["shift", "tiles"]


SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def peak_bytes(call):
    """Peak of PyTorch's CPU memory during a call, as the benchmark counts it."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    from attention_bench.measure import cpu_peak_bytes

    return cpu_peak_bytes(call)


def draw(q_size, kv_size, batch=2, heads=2, channels=3, values=2, dtype=torch.float64, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((channels, q_size), (channels, kv_size), (values, kv_size))
    maps = [torch.randn(batch, heads, c, *size, generator=generator, dtype=torch.float64) + offset for c, size in sizes]
    return [x.to(dtype).requires_grad_() for x in maps]


def some_keys(kv_size, batch=2, share=0.4, seed=1):
    mask = torch.rand(batch, 1, *kv_size, generator=torch.Generator().manual_seed(seed)) < share
    mask[:, 0, 0, 0] = True
    return mask


def window_of(place, queries, keys, side):
    """Key positions of one axis: the window around the key under the query's centre, inside the map."""
    centre = math.floor((place + 0.5) * keys / queries)
    first = centre - (side - 1) // 2 if side % 2 else centre - side // 2
    return [at for at in range(first, first + side) if 0 <= at < keys]


def patch(maps, row, col, side):
    """The side x side neighbourhood of a pixel of (D, Y, X), zeros outside, as a vector."""
    half = side // 2
    return F.pad(maps, [half] * 4)[:, row : row + side, col : col + side].flatten()


def score_of(query, key, score):
    if score == "l2":
        return -(query - key).square().sum()
    if score == "dot":
        return query @ key
    query = query / query.square().sum().clamp_min(1e-8).sqrt() if score == "cosine" else query
    return query @ (key / key.square().sum().clamp_min(1e-8).sqrt())


def by_loops(q, k, v, window, score, scale, side, mask):
    """Every query and every key of its window by itself."""
    outs = torch.zeros(*v.shape[:3], *q.shape[3:], dtype=v.dtype)
    for b, g, row, col in torch.cartesian_prod(*(torch.arange(n) for n in (*q.shape[:2], *q.shape[3:]))).tolist():
        rows, cols = (window_of(at, q.shape[3 + i], k.shape[3 + i], window[i]) for i, at in enumerate((row, col)))
        places = [(y, x) for y in rows for x in cols if mask is None or mask[b, 0, y, x]]
        if not places:
            continue
        query = patch(q[b, g], row, col, side)
        logits = torch.stack([scale * score_of(query, patch(k[b, g], y, x, side), score) for y, x in places])
        weights = torch.softmax(logits, 0)
        outs[b, g, :, row, col] = torch.stack([v[b, g, :, y, x] for y, x in places], 1) @ weights
    return outs


def by_mask(q, k, v, window, score, scale, side, mask):
    """All pairs of unfolded patches; those that no window holds get no weight."""

    def vectors(maps):
        flat = F.unfold(maps.flatten(0, 1), side, padding=side // 2)
        return flat.view(*maps.shape[:2], -1, flat.shape[-1]).transpose(2, 3)  # (B, G, N, V)

    queries, keys = vectors(q), vectors(k)
    if score == "cosine":
        queries = queries / queries.square().sum(3, keepdim=True).clamp_min(1e-8).sqrt()
    if score in ("cosine", "unit_key"):
        keys = keys / keys.square().sum(3, keepdim=True).clamp_min(1e-8).sqrt()
    logits = queries @ keys.transpose(2, 3)
    if score == "l2":
        logits = 2 * logits - keys.square().sum(3).unsqueeze(2)
    seen = []
    for axis in (0, 1):
        count, size = q.shape[3 + axis], k.shape[3 + axis]
        seen.append(torch.zeros(count, size, dtype=torch.bool))
        for at in range(count):
            seen[axis][at, window_of(at, count, size, window[axis])] = True
    allowed = torch.einsum("ac,bd->abcd", *(x.double() for x in seen)).bool().flatten(2).flatten(0, 1)
    if mask is not None:
        allowed = allowed & mask.flatten(2).unsqueeze(2)
    weights = (scale * logits).masked_fill(~allowed, -1e30).softmax(3) * allowed.any(-1, keepdim=True)
    return (weights @ v.flatten(3).transpose(2, 3)).transpose(2, 3).unflatten(3, q.shape[3:])


def with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def assert_equal(found, expected, what=""):
    for name, one, other in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        assert one.dtype == other.dtype
        size = max(1.0, other.detach().abs().max().item())
        error = (one - other).abs().max().item()
        assert error <= 1e-12 * size, f"{what} {name}: off by {error:.2e}"


CASES = {
    "odd": ((5, 6), (5, 6), (3, 5), 3),
    "even": ((5, 6), (5, 6), (4, 2), 3),
    "pixels": ((6, 5), (6, 5), (3, 4), 1),
    "one key": ((4, 3), (4, 3), (1, 1), 3),
    "wider than the map": ((4, 3), (4, 3), (50, 9), 5),
    "more keys": ((3, 4), (7, 6), (4, 3), 3),
    "fewer keys": ((7, 5), (3, 2), (2, 3), 3),
    "more keys, pixels": ((3, 4), (6, 8), (3, 5), 1),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_loops(case, score):
    q_size, kv_size, window, side = CASES[case]
    maps = draw(q_size, kv_size, batch=1)
    mask = some_keys(kv_size, batch=1) if case != "even" else None
    expected = with_gradients(by_loops(*maps, window, score, 0.6, side, mask), maps)
    for kernel in NAMES:
        if kernel == "shift" and q_size != kv_size:
            continue
        out = local_attention(
            *maps, window=window, score=score, scale=0.6, patch_size=side, key_mask=mask, kernel=kernel
        )
        assert_equal(with_gradients(out, maps), expected, kernel)


@pytest.mark.parametrize(
    ("side", "score"), [(1, "dot"), (1, "cosine"), (3, "unit_key"), (3, "dot"), (7, "l2"), (7, "cosine")]
)
def test_many_tiles_and_chunks_equal_masked_dense_attention(monkeypatch, side, score):
    """Tiles of a few queries and planes of a few shifts: every seam of the kernels lies inside the map."""
    monkeypatch.setattr(local_shift, "TILE_COLS", 5)
    monkeypatch.setattr(local_shift, "TILE_ROWS", 4)
    monkeypatch.setitem(local_shift.PLANE_ENTRIES, "cpu", 2000)
    monkeypatch.setattr(local_tiles, "SMALL_TILE", 3)
    monkeypatch.setitem(local_tiles.ENTRIES, "cpu", 3000)
    for q_size, kv_size, masked in (((13, 17), (13, 17), True), ((14, 11), (14, 11), False), ((13, 9), (7, 16), True)):
        maps = draw(q_size, kv_size)
        mask = some_keys(kv_size) if masked else None
        expected = with_gradients(by_mask(*maps, (6, 5), score, 0.4, side, mask), maps)
        for kernel in FAST[q_size != kv_size :]:
            out = local_attention(
                *maps, window=(6, 5), score=score, scale=0.4, patch_size=side, key_mask=mask, kernel=kernel
            )
            assert_equal(with_gradients(out, maps), expected, kernel)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "window"), [(((64, 64), (64, 64)), 50), (((30, 48), (56, 40)), 21)], ids=str)
def test_the_sizes_of_the_memory_benchmark_equal_masked_dense_attention(sizes, window):
    maps = draw(*sizes, batch=1, heads=1, channels=2, values=2)
    expected = with_gradients(by_mask(*maps, (window, window), "l2", 0.05, 7, None), maps)
    for kernel in FAST[sizes[0] != sizes[1] :]:
        out = local_attention(*maps, window=window, score="l2", scale=0.05, patch_size=7, kernel=kernel)
        assert_equal(with_gradients(out, maps), expected, kernel)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_a_window_over_the_whole_map_is_full_attention(score, kernel):
    maps = draw((5, 7), (5, 7))
    expected = with_gradients(dense_attention(*maps, score=score, kernel="reference"), maps)
    for window in (14, (9, 13), 1000):
        out = local_attention(*maps, window=window, score=score, kernel=kernel)
        assert_equal(with_gradients(out, maps), expected)


@pytest.mark.parametrize("kernel", NAMES)
def test_defaults_are_distances_over_the_root_of_the_channels_compared(kernel):
    maps = [x.detach() for x in draw((5, 4), (5, 4), batch=1)]
    out = local_attention(*maps, window=3, patch_size=3, kernel=kernel)
    expected = by_loops(*maps, (3, 3), "l2", (3 * 9) ** -0.5, 3, None)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    out = local_attention(*maps, window=3, patch_size=3, score="cosine", kernel=kernel)
    expected = by_loops(*maps, (3, 3), "cosine", 1.0, 3, None)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("side", [1, 3])
def test_a_query_without_keys_gives_zeros_and_no_gradient(side, kernel):
    maps = draw((8, 8), (8, 8))
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, :3] = True
    for score in SCORES:
        out = local_attention(*maps, window=3, score=score, patch_size=side, key_mask=mask, kernel=kernel)
        grads = torch.autograd.grad(out.square().sum(), maps)
        assert not out[:, :, :, 4:].any()
        assert out[:, :, :, :3].all()
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert not grads[2][:, :, :, 3:].any()


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize(("score", "side"), [("dot", 1), ("l2", 3), ("cosine", 3)])
def test_gradcheck(score, side, kernel):
    maps = draw((4, 3), (4, 3), batch=1, heads=1, channels=2, values=2)
    mask = some_keys((4, 3), batch=1, share=0.7)

    def attend(*x):
        return local_attention(*x, window=(2, 3), score=score, patch_size=side, key_mask=mask, kernel=kernel)

    assert torch.autograd.gradcheck(attend, maps)


@pytest.mark.parametrize("score", SCORES)
def test_gradgradcheck_of_what_double_backward_takes(score):
    maps = draw((3, 3), (3, 3), batch=1, heads=1, channels=2, values=1)

    def attend(*x):
        with double_backward():
            return local_attention(*x, window=2, score=score, patch_size=3)

    reset_ledger()
    assert torch.autograd.gradgradcheck(attend, maps)
    assert {entry["kernel"] for entry in ledger()} == {"reference"}


@pytest.mark.parametrize("kernel", FAST)
def test_a_second_derivative_is_refused(kernel):
    maps = draw((4, 4), (4, 4), batch=1)
    out = local_attention(*maps, window=3, patch_size=3, kernel=kernel)
    (grad,) = torch.autograd.grad(out.square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f"{kernel} kernel is not twice differentiable"):
        grad.square().sum().backward()


def test_auto_takes_shift_planes_unless_maps_are_small_or_of_two_sizes():
    def used(q_size, kv_size, side):
        reset_ledger()
        local_attention(*draw(q_size, kv_size, batch=1, heads=1, dtype=torch.float32), window=3, patch_size=side)
        (entry,) = ledger()
        return entry["kernel"], entry["skipped"]

    assert used((40, 40), (40, 40), 1) == ("shift", {})
    assert used((12, 12), (12, 12), 3) == ("shift", {})
    assert used((8, 8), (8, 8), 1) == ("tiles", {})
    kernel, skipped = used((12, 12), (4, 8), 3)
    assert kernel == "tiles"
    assert "12x12 and key map 4x8 must be of one size" in skipped["shift"][0]
    with pytest.raises(RuntimeError, match="of one size"):
        local_attention(*draw((8, 8), (4, 8)), window=3, kernel="shift")


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("score", SCORES)
def test_layouts_do_not_matter(score, kernel):
    maps = draw((9, 10), (9, 10))
    expected = with_gradients(local_attention(*maps, window=4, score=score, patch_size=3, kernel=kernel), maps)
    turned = [x.transpose(3, 4).contiguous().transpose(3, 4) for x in maps]  # columns outermost in memory
    spread = [torch.stack([x, x], -1)[..., 0] for x in maps]
    for views in (turned, spread):
        assert not views[0].is_contiguous()
        out = local_attention(*views, window=4, score=score, patch_size=3, kernel=kernel)
        assert_equal(with_gradients(out, maps), expected)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize(("score", "offset"), [("dot", 0.0), ("l2", 0.0), ("l2", 30.0), ("cosine", 2.0)])
def test_float32_is_as_exact_as_plain_pytorch(score, offset, kernel):
    """A common offset makes |k|^2 large; distances must not lose their digits to it."""
    maps = draw((12, 12), (12, 12), heads=1, channels=8, dtype=torch.float32, offset=offset)
    options = {"window": 6, "score": score, "patch_size": 3}
    exact = with_gradients(local_attention(*(x.double() for x in maps), **options, kernel="reference"), maps)
    plain = with_gradients(local_attention(*maps, **options, kernel="reference"), maps)
    found = with_gradients(local_attention(*maps, **options, kernel=kernel), maps)
    for one, other, right in zip(found, plain, exact, strict=True):
        size = right.abs().max().item()
        assert (one - right).abs().max().item() <= 2 * (other - right).abs().max().item() + 2e-7 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("score", SCORES)
def test_half_precision_stays_near_the_rounding_of_its_inputs(score, kernel, dtype):
    maps = draw((7, 8), (7, 8), channels=8, dtype=dtype)
    options = {"window": 5, "score": score, "patch_size": 3}
    exact = with_gradients(local_attention(*(x.double() for x in maps), **options, kernel="reference"), maps)
    found = with_gradients(local_attention(*maps, **options, kernel=kernel), maps)
    plain = with_gradients(local_attention(*maps, **options, kernel="reference"), maps)
    for one, other, right in zip(found, plain, exact, strict=True):
        assert one.dtype == dtype
        right = right.double()
        error, rounding = (one.double() - right).abs().max(), torch.finfo(dtype).eps * right.abs().max()
        assert error <= 2 * (other.double() - right).abs().max() + rounding


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("score", SCORES)
def test_autocast_does_not_lower_the_products(score, kernel):
    maps = draw((6, 6), (6, 6), dtype=torch.float32, offset=2.0)
    expected = with_gradients(local_attention(*maps, window=3, score=score, patch_size=3, kernel=kernel), maps)
    with torch.autocast("cpu", torch.bfloat16):
        out = local_attention(*maps, window=3, score=score, patch_size=3, kernel=kernel)
    for one, other in zip(with_gradients(out, maps), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", FAST)
def test_a_batch_is_its_entries(kernel):
    maps = draw((9, 9), (9, 9), batch=3)
    whole = local_attention(*maps, window=4, patch_size=3, kernel=kernel)
    for n in range(3):
        part = local_attention(*(x[n : n + 1] for x in maps), window=4, patch_size=3, kernel=kernel)
        torch.testing.assert_close(whole[n : n + 1], part, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", FAST)
def test_only_what_is_asked_for_needs_a_gradient(kernel):
    q, k, v = (x.detach() for x in draw((6, 6), (6, 6)))
    out = local_attention(q, k, v.requires_grad_(), window=3, kernel=kernel)
    out.sum().backward()
    assert v.grad is not None
    assert q.grad is None


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("case", CASES)
def test_weights_of_a_few_queries_bring_the_output(case, score):
    q_size, kv_size, window, side = CASES[case]
    maps = draw(q_size, kv_size)
    queries = torch.tensor([[0, 0], [q_size[0] - 1, q_size[1] - 1], [1, 2]])
    for mask in (None, some_keys(kv_size)):
        options = {"window": window, "score": score, "patch_size": side, "key_mask": mask}
        indices, weights = local_weights(*maps[:2], queries, **options)
        values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
        brought = (values.gather(4, indices.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
        out = local_attention(*maps, **options, kernel="reference")
        torch.testing.assert_close(brought, out[..., queries[:, 0], queries[:, 1]], rtol=0, atol=1e-12)
        sums = weights.sum(3)
        assert torch.allclose(sums[sums > 0.5], torch.ones((), dtype=sums.dtype))


@pytest.mark.parametrize("window", [0, -3, (3, 0), (1, 2, 3), 2.5, "wide"])
def test_windows_that_are_none_are_refused(window):
    with pytest.raises(ValueError, match=r"local: window must be .* Valid here: 7, 50"):
        local_attention(*draw((4, 4), (4, 4)), window=window)


def test_other_options_that_are_wrong_are_refused():
    maps = draw((4, 4), (4, 4))
    for options, words in (
        ({"score": "angle"}, "no score is called 'angle'"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"patch_size": 2}, "patch_size must be an odd number"),
        ({"kernel": "planes", "patch_size": 13}, "Valid here: auto, shift, tiles, reference"),
    ):
        with pytest.raises(ValueError, match=words):
            local_attention(*maps, window=3, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "window", "bar"), [(64, 50, 50e6), (256, 20, 100e6)])
def test_memory_is_that_of_a_few_maps(side, window, bar):
    """PSAL's Table 1 has 3.2 GB at 256 for w = 50. What a tile holds is bounded, and the rest does not depend on w."""
    q, k, v = draw((side, side), (side, side), batch=1, heads=1, channels=16, values=16, dtype=torch.float32)

    def both():
        local_attention(q, k, v, window=window, score="l2", patch_size=7).sum().backward()

    assert peak_bytes(both) <= bar


def test_cost_counts_a_shape_of_several_tiles():
    """The number of pairs that the kernel meets is between those of the windows and four times as many."""
    shape = AttentionShape(1, 1, 16, 16, Size(128, 128), Size(128, 128))
    scores, values = local_flops(shape, Size(16, 16), "l2", 7)
    pairs = 128 * 128 * 16 * 16
    assert pairs <= values / 32 <= 4 * pairs
    assert pairs <= scores / 34 <= 8 * pairs
