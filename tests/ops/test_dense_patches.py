"""Dense attention on patches, thinned-out keys, unit vectors and causal maps, against loops over pixels in float64."""

import math
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.geometry import Size
from saccade.ops import dense_attention, double_backward, ledger, reset_ledger
from saccade.ops.dense import boxes as dense_boxes
from saccade.ops.dense import chunked as dense_chunked
from saccade.ops.dense import dense_weights
from saccade.ops.dense import op as dense
from saccade.ops.dense import patches as dense_patches
from saccade.ops.dense.keys import key_grid

KERNELS = ("sdpa", "chunked", "reference")
SCORES = ("dot", "l2", "cosine", "unit_key")
each_kernel = pytest.mark.parametrize("kernel", KERNELS)
each_score = pytest.mark.parametrize("score", SCORES)


def draw(q_size=(4, 5), kv_size=(6, 5), heads=1, channels=3, values=2, offset=0.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def one(c, size):
        maps = torch.randn(2, heads, c, *size, generator=generator, dtype=torch.float64) + offset
        return maps.to(dtype).requires_grad_()

    return one(channels, q_size), one(channels, kv_size), one(values, kv_size)


def mask_of(kv_size):
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[:, :, 2, 2] = True
    return mask


def patch(maps, y, x, side):
    """The vector of one pixel: p x p pixels of (D, Y, X), zeros outside."""
    half = side // 2
    pixels = []
    for row, col in product(range(y - half, y + half + 1), range(x - half, x + half + 1)):
        inside = 0 <= row < maps.shape[1] and 0 <= col < maps.shape[2]
        pixels.append(maps[:, row, col] if inside else torch.zeros_like(maps[:, 0, 0]))
    return torch.cat(pixels)


def compare(query, key, score, scale):
    if score == "l2":
        return -scale * (query - key).square().sum()
    if score == "cosine":
        query = query / query.square().sum().clamp_min(1e-8).sqrt()
    if score in ("cosine", "unit_key"):
        key = key / key.square().sum().clamp_min(1e-8).sqrt()
    return scale * (query @ key)


def loops(q, k, v, score="dot", scale=None, side=1, stride=1, keys="all", mask=None, causal=False):
    """Every query with every key that is one, by itself."""
    rows, cols = k.shape[3:]
    first = side // 2 if keys == "inside" else 0
    places = list(product(range(first, rows - first, stride), range(first, cols - first, stride)))
    if scale is None:
        scale = (k.shape[2] * side**2) ** -0.5 if score in ("dot", "l2") else 1.0
    images = []
    for b, g in product(range(q.shape[0]), range(q.shape[1])):
        kept = [at for at in places if mask is None or mask[b, 0][at]]
        vectors = {at: patch(k[b, g], *at, side) for at in kept}
        columns = []
        for y, x in product(range(q.shape[3]), range(q.shape[4])):
            seen = [at for at in kept if not causal or at <= (y, x)]
            if not seen:
                columns.append(torch.zeros_like(v[b, g, :, 0, 0]))
                continue
            query = patch(q[b, g], y, x, side)
            logits = torch.stack([compare(query, vectors[at], score, scale) for at in seen])
            columns.append(torch.softmax(logits, 0) @ torch.stack([v[b, g, :, at[0], at[1]] for at in seen]))
        images.append(torch.stack(columns, 1))
    return torch.stack(images).view(*q.shape[:2], -1, *q.shape[3:])


def with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def assert_same(found, expected, atol=1e-12):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


# side, stride, keys, masked: each option alone and together
PLACES = [
    (3, 1, "all", False),
    (1, 2, "all", True),
    (3, 2, "inside", False),
    (5, 1, "inside", True),
    (5, 3, "all", True),
]


@pytest.mark.parametrize(("side", "stride", "keys", "masked"), PLACES)
@each_score
def test_every_kernel_equals_the_loops(score, side, stride, keys, masked):
    maps, mask = draw(), mask_of((6, 5)) if masked else None
    expected = with_gradients(loops(*maps, score, None, side, stride, keys, mask), maps)
    for kernel in KERNELS if stride > 1 else ("boxes", *KERNELS):
        options = {"patch_size": side, "key_stride": stride, "keys": keys, "key_mask": mask, "kernel": kernel}
        assert_same(with_gradients(dense_attention(*maps, score=score, **options), maps), expected)


@pytest.mark.parametrize("stride", [1, 2])
@each_score
def test_bands_of_rows_do_not_change_the_result(monkeypatch, score, stride):
    """One row of queries against one row of keys at a time."""
    maps, mask = draw((7, 4), (6, 5)), mask_of((6, 5))
    options = {"score": score, "scale": 0.7, "patch_size": 3, "key_stride": stride, "key_mask": mask}
    expected = with_gradients(loops(*maps, score, 0.7, 3, stride, "all", mask), maps)
    monkeypatch.setitem(dense_patches.VECTOR_ENTRIES, "cpu", 1)
    monkeypatch.setitem(dense_patches.SCORE_ENTRIES, "cpu", 1)
    assert_same(with_gradients(dense_attention(*maps, kernel="chunked", **options), maps), expected)


@pytest.mark.parametrize("keys", ["all", "inside"])
@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("entries", [1, 120, 2**15])
def test_bundles_of_key_rows_do_not_change_the_result(monkeypatch, entries, side, keys):
    """One key row at a time, three, all at once: diagonals of every patch size, and keys beyond the last row."""
    maps = draw((5, 4), (8, 7), heads=2)
    mask = mask_of((8, 7))
    mask[:, :, 3, 3] = True
    monkeypatch.setattr(dense_boxes, "BUNDLE_ENTRIES", entries)
    for score in SCORES:
        options = {"score": score, "patch_size": side, "keys": keys, "key_mask": mask}
        expected = with_gradients(dense_attention(*maps, kernel="reference", **options), maps)
        assert_same(with_gradients(dense_attention(*maps, kernel="boxes", **options), maps), expected)


def test_boxes_are_for_patches_of_all_keys():
    maps = draw()
    with pytest.raises(RuntimeError, match="it is for patches"):
        dense_attention(*maps, kernel="boxes")
    with pytest.raises(RuntimeError, match="it cannot leave out rows and cols of keys"):
        dense_attention(*maps, kernel="boxes", patch_size=3, key_stride=2)
    with pytest.raises(RuntimeError, match="for a CPU"):
        dense_attention(*(x.to("meta") for x in maps), kernel="boxes", patch_size=3)


@pytest.mark.parametrize("score", ["dot", "l2"])
def test_scores_far_below_the_best_do_not_slow_or_spoil_the_softmax(score):
    """Most weights underflow, as with squared distances of whole patches and scale 1."""
    maps = [x.detach() for x in draw((6, 6), (6, 6), channels=8, dtype=torch.float32)]
    exact = dense_attention(*(x.double() for x in maps), score=score, scale=30.0, patch_size=3, kernel="reference")
    for kernel in ("boxes", *KERNELS):
        found = dense_attention(*maps, score=score, scale=30.0, patch_size=3, kernel=kernel)
        assert (found - exact).abs().max() < 2e-3


def test_queries_whose_kept_keys_are_all_masked_get_zeros():
    """The mask leaves keys, but none where the stride keeps any."""
    maps, mask = draw(), torch.zeros(2, 1, 6, 5, dtype=torch.bool)
    mask[0], mask[1, 0, 1, 1] = True, True
    for side, kernel in product((1, 3), KERNELS):
        found = with_gradients(
            dense_attention(*maps, patch_size=side, key_stride=2, key_mask=mask, kernel=kernel), maps
        )
        assert found[0][0].all()
        assert not any(x[1].any() for x in found)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@each_score
def test_causal_attention_equals_the_loops(monkeypatch, score, stride, masked):
    maps, mask = draw((4, 5), (4, 5)), mask_of((4, 5)) if masked else None
    expected = with_gradients(loops(*maps, score, None, 1, stride, "all", mask, causal=True), maps)
    options = {"score": score, "causal": True, "key_stride": stride, "key_mask": mask}
    for kernel in KERNELS:
        if kernel == "sdpa" and (masked or stride > 1):
            with pytest.raises(RuntimeError, match="the causal mask of every pair"):
                dense_attention(*maps, kernel=kernel, **options)
            continue
        assert_same(with_gradients(dense_attention(*maps, kernel=kernel, **options), maps), expected)
    monkeypatch.setitem(dense_chunked.CHUNK_ENTRIES, "cpu", 3 * 4 * 20)
    assert_same(with_gradients(dense_attention(*maps, kernel="chunked", **options), maps), expected)


@each_score
def test_nothing_hears_of_the_future(score):
    maps = [x.detach() for x in draw((4, 5), (4, 5))]
    before = dense_attention(*maps, score=score, causal=True, kernel="chunked").flatten(3)
    for last in (0, 7, 18):
        changed = [x.clone() for x in maps]
        for x in changed:
            x.flatten(3)[..., last + 1 :] = 50.0
        after = dense_attention(*changed, score=score, causal=True, kernel="chunked").flatten(3)
        assert torch.equal(after[..., : last + 1], before[..., : last + 1])
        assert not torch.equal(after, before)


@pytest.mark.parametrize(("side", "kernel"), [*((side, kernel) for side in (1, 3) for kernel in KERNELS), (3, "boxes")])
@each_score
def test_gradcheck(score, kernel, side):
    maps = draw((2, 3), (3, 3), heads=1, channels=2, values=1)

    def attend(*x):
        return dense_attention(*x, score=score, patch_size=side, kernel=kernel)

    assert torch.autograd.gradcheck(attend, maps)


def test_reference_is_twice_differentiable_and_others_say_that_they_are_not():
    maps = draw((2, 2), (3, 2), heads=1, channels=2, values=1)
    reset_ledger()

    def attend(*x):
        with double_backward():
            return dense_attention(*x, score="cosine", patch_size=3, key_stride=2)

    assert torch.autograd.gradgradcheck(attend, maps)
    assert {entry["kernel"] for entry in ledger()} == {"reference"}
    for kernel in ("chunked", "boxes"):
        out = dense_attention(*maps, patch_size=3, kernel=kernel)
        (gradient,) = torch.autograd.grad(out.sum(), maps[0], create_graph=True)
        with pytest.raises(RuntimeError, match=f"{kernel} kernel is not twice differentiable"):
            gradient.square().sum().backward()


def test_patches_of_zeros_have_a_length():
    """A flat black region: unit vectors and their gradients stay finite."""
    q, k, v = (x.detach() for x in draw(heads=1))
    k[..., :3] = 0
    maps = [x.requires_grad_() for x in (q, k, v)]
    for score in ("cosine", "unit_key"):
        expected = with_gradients(loops(*maps, score, side=3), maps)
        for kernel in ("boxes", *KERNELS):
            found = with_gradients(dense_attention(*maps, score=score, patch_size=3, kernel=kernel), maps)
            assert all(torch.isfinite(x).all() for x in found)
            assert_same(found, expected, atol=1e-9)  # gradients there are 10,000 times larger


@pytest.mark.parametrize(("side", "stride", "keys", "masked"), PLACES)
@each_score
def test_weights_bring_the_output(score, side, stride, keys, masked):
    maps, mask = draw(), mask_of((6, 5)) if masked else None
    options = {"score": score, "patch_size": side, "key_stride": stride, "keys": keys, "key_mask": mask}
    places = torch.tensor([[0, 0], [3, 4], [1, 2]])
    pixels, weights = dense_weights(*maps[:2], places, **options)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    expected = dense_attention(*maps, **options)[..., places[:, 0], places[:, 1]]
    torch.testing.assert_close(brought, expected, rtol=0, atol=1e-12)


def test_weights_of_causal_maps():
    maps, places = draw((4, 5), (4, 5)), torch.tensor([[0, 0], [2, 3]])
    pixels, weights = dense_weights(*maps[:2], places, causal=True)
    assert not weights[:, :, 0, 1:].any()
    assert not weights[:, :, 1, 14:].any()
    values = (
        maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 2, -1).gather(4, pixels.unsqueeze(2).expand(2, 1, 2, 2, 20))
    )
    expected = dense_attention(*maps, causal=True)[..., places[:, 0], places[:, 1]]
    torch.testing.assert_close((values * weights.unsqueeze(2)).sum(4), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "stride", "count"), [(256, 3, 84), (512, 10, 51), (256, 5, 50), (128, 2, 61), (64, 1, 58)]
)
def test_the_psal_papers_numbers_of_keys(side, stride, count):
    """arXiv 2202.03163: 7x7 patches inside the map, every so many pixels."""
    assert key_grid("dense", Size(side, side), 7, stride, "inside").size == (count, count)


class Largest(TorchDispatchMode):
    """The largest storage that any operation returns, in entries."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("score", ["l2", "cosine"])
def test_vectors_of_a_whole_map_never_exist(monkeypatch, score):
    monkeypatch.setitem(dense_patches.VECTOR_ENTRIES, "cpu", 2**12)
    monkeypatch.setitem(dense_patches.SCORE_ENTRIES, "cpu", 2**13)
    maps = draw((20, 20), (20, 20), heads=1, channels=4, values=4)
    vectors, pairs = 2 * 20**2 * 4 * 25, 2 * 20**4
    with Largest() as chunked:
        with_gradients(dense_attention(*maps, score=score, patch_size=5, kernel="chunked"), maps)
    with Largest() as reference:
        with_gradients(dense_attention(*maps, score=score, patch_size=5, kernel="reference"), maps)
    assert reference.numel >= pairs
    assert chunked.numel <= 2**14 < vectors < pairs
    monkeypatch.setattr(dense_boxes, "BUNDLE_ENTRIES", 2**10)
    with Largest() as boxes:
        with_gradients(dense_attention(*maps, score=score, patch_size=5, kernel="boxes"), maps)
    assert boxes.numel <= 2**13


def test_many_patches_take_kernels_that_make_no_vectors_and_few_do_not(monkeypatch):
    q, k, v = (torch.empty(1, 1, 16, 128, 128, device="meta") for _ in range(3))
    reset_ledger()
    dense_attention(q, k, v, patch_size=7)
    dense_attention(q[..., :16, :16], k[..., :16, :16], v[..., :16, :16], patch_size=7)
    monkeypatch.setattr(dense, "SDPA_VECTOR_BYTES", 100)
    small = [x.detach() for x in draw()]
    dense_attention(*small, patch_size=3)
    dense_attention(*small, patch_size=3, key_stride=2)
    large, few, all_keys, strided = ledger()
    assert (large["kernel"], few["kernel"]) == ("chunked", "sdpa")
    assert any("MiB of patches as vectors" in reason for reason in large["skipped"]["sdpa"])
    assert (all_keys["kernel"], strided["kernel"]) == ("boxes", "chunked")


def test_boxes_are_taken_where_they_are_faster(monkeypatch):
    """Vectors of one map count, not those of the batch; more threads speak for SDPA, and thinned-out keys too."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(dense, "SDPA_FAST_BYTES", 2 * 36 * 4 * 9 * 4)  # of 6x6 maps of 4 channels
    fits, larger, wider = (
        [x.detach().float() for x in draw(n, n, channels=c)] for n, c in [((6, 6), 4), ((6, 7), 4), ((6, 6), 5)]
    )
    chosen = []
    for maps, options in [(fits, {}), (larger, {}), (wider, {}), (wider, {"key_stride": 2})]:
        reset_ledger()
        dense_attention(*maps, patch_size=3, **options)
        chosen.append(ledger()[0]["kernel"])
    assert chosen == ["sdpa", "boxes", "boxes", "sdpa"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    reset_ledger()
    dense_attention(*wider, patch_size=3)
    assert ledger()[0]["kernel"] == "sdpa"


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_float32_patches_are_as_exact_as_plain_pytorch(score, offset):
    """A common offset makes |k|^2 large; distances must not lose their digits to it."""
    maps = [x.detach() for x in draw((6, 6), (6, 6), heads=1, channels=8, offset=offset, dtype=torch.float32)]
    exact = dense_attention(*(x.double() for x in maps), score=score, patch_size=3, kernel="reference")
    plain = (dense_attention(*maps, score=score, patch_size=3, kernel="reference") - exact).abs().max()
    for kernel in ("sdpa", "boxes", "chunked"):
        error = (dense_attention(*maps, score=score, patch_size=3, kernel=kernel) - exact).abs().max()
        assert error <= 2 * plain + 1e-6
    places = torch.tensor([[0, 0], [5, 5], [2, 3]])
    pixels, weights = dense_weights(*maps[:2], places, score=score, patch_size=3)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1)
    brought = (values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1)) * weights.unsqueeze(2)).sum(4)
    assert (brought - exact[..., places[:, 0], places[:, 1]]).abs().max() <= 2 * plain + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["boxes", *KERNELS])
@each_score
def test_half_precision_and_autocast(score, kernel, dtype):
    maps = [x.detach().to(dtype).requires_grad_() for x in draw(heads=1)]
    exact = [x.detach().double().requires_grad_() for x in maps]
    expected = with_gradients(dense_attention(*exact, score=score, patch_size=3, kernel="reference"), exact)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(dense_attention(*maps, score=score, patch_size=3, kernel=kernel), maps)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).detach().abs().max() <= 8 * torch.finfo(dtype).eps * max(
            1.0, float(other.detach().abs().max())
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 2}, r"patch_size must be an odd number .* got 2. Valid here: 1 or 3"),
        ({"patch_size": 0}, "patch_size must be an odd number"),
        ({"key_stride": 0}, "key_stride must be a whole number, 1 or more; got 0"),
        ({"keys": "none"}, "no choice of keys is called 'none'. Valid here: all, inside"),
        ({"keys": "inside", "patch_size": 7}, r"key map 6x5 holds no whole 7x7 patch, .* Valid here: patch_size=5"),
        ({"causal": True}, "causal attention needs maps of one size; the query map is 4x5, the key map 6x5"),
        ({"scale": float("inf")}, "scale must be a positive number"),
    ],
)
def test_wrong_options_are_named_with_valid_ones(options, message):
    maps = draw()
    with pytest.raises(ValueError, match=message):
        dense_attention(*maps, **options)
    with pytest.raises(ValueError, match=message):
        dense_weights(*maps[:2], torch.tensor([[0, 0]]), **options)


def test_causal_patches_are_refused():
    with pytest.raises(ValueError, match="causal attention needs patch_size=1"):
        dense_attention(*draw((4, 4), (4, 4)), causal=True, patch_size=3)


def test_strided_keys_are_a_map_of_their_own():
    """Without patches a stride is nothing but a smaller key map."""
    q, k, v = (x.detach() for x in draw())
    expected = dense_attention(q, k[..., ::2, ::2], v[..., ::2, ::2], scale=1 / math.sqrt(3))
    torch.testing.assert_close(dense_attention(q, k, v, key_stride=2), expected)
