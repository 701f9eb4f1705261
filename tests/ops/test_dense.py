import pytest
import torch

from saccade.geometry import AttentionShape, Size
from saccade.ops import dense_attention, double_backward, ledger, reset_ledger
from saccade.ops.dense import chunked as dense_chunked
from saccade.ops.dense import op as dense
from saccade.ops.dispatch import Request


def _maps(q_size=(3, 5), kv_size=(4, 3), heads=2, channels=5, values=3, dtype=torch.float64, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(c, size):
        return (torch.randn(2, heads, c, *size, generator=generator, dtype=torch.float64) + offset).to(dtype)

    return [x.requires_grad_() for x in (draw(channels, q_size), draw(channels, kv_size), draw(values, kv_size))]


def _mask(kv_size, seed=1):
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(seed)) > 0.5
    mask[0, 0, 0, 0] = True
    mask[1] = False
    mask[1, 0, -1, -1] = True
    return mask


def _loops(q, k, v, score, scale, mask):
    """Every pair by itself, as the words say."""
    batch, heads, channels, rows, cols = q.shape
    scale = channels**-0.5 if scale is None else scale
    out = q.new_zeros(batch, heads, v.shape[2], rows, cols)
    for b in range(batch):
        places = [(y, x) for y in range(k.shape[3]) for x in range(k.shape[4]) if mask is None or mask[b, 0, y, x]]
        for g in range(heads):
            for y in range(rows):
                for x in range(cols):
                    query = q[b, g, :, y, x]
                    logits = []
                    for at in places:
                        key = k[b, g, :, at[0], at[1]]
                        logits.append(scale * (query @ key if score == "dot" else -(query - key).square().sum()))
                    if logits:
                        weights = torch.softmax(torch.stack(logits), 0)
                        values = torch.stack([v[b, g, :, at[0], at[1]] for at in places])
                        out[b, g, :, y, x] = weights @ values
    return out


def _with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("kernel", ["sdpa", "chunked", "reference"])
def test_kernels_equal_plain_loops(kernel, score, scale, masked):
    maps = _maps(offset=2.0)
    mask = _mask((4, 3)) if masked else None
    expected = _with_gradients(_loops(*maps, score, scale, mask), maps)
    found = _with_gradients(
        dense_attention(*maps, score=score, scale=scale, key_mask=mask, kernel=kernel),
        maps,
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-13)


@pytest.mark.parametrize("score", ["dot", "l2"])
def test_chunks_do_not_change_the_result(monkeypatch, score):
    maps = _maps(heads=1)
    whole = _with_gradients(dense_attention(*maps, score=score, kernel="chunked"), maps)
    monkeypatch.setitem(dense_chunked.CHUNK_ENTRIES, "cpu", 2 * 4 * 12)  # four queries at a time
    parts = _with_gradients(dense_attention(*maps, score=score, kernel="chunked"), maps)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", ["sdpa", "chunked"])
@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_float32_is_as_exact_as_plain_pytorch(kernel, score, offset):
    """A common offset makes |k|^2 large; distances must not lose their digits to it."""
    maps = [x.detach() for x in _maps((6, 6), (6, 6), heads=1, channels=16, dtype=torch.float32, offset=offset)]
    exact = dense_attention(*[x.double() for x in maps], score=score, kernel="reference")
    plain = (dense_attention(*maps, score=score, kernel="reference") - exact).abs().max()
    error = (dense_attention(*maps, score=score, kernel=kernel) - exact).abs().max()
    assert error <= 2 * plain + 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["sdpa", "chunked", "reference"])
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_half_precision_stays_near_the_rounding_of_its_inputs(dtype, kernel, score):
    maps = [x.detach() for x in _maps((4, 4), (4, 4), heads=1, channels=8, values=8, dtype=dtype, offset=4.0)]
    exact = dense_attention(*[x.double() for x in maps], score=score, kernel="reference")
    found = dense_attention(*maps, score=score, kernel=kernel)
    assert found.dtype == dtype
    # one rounding of the output (values near 4), one of the weights
    assert (found.double() - exact).abs().max() <= 3 * torch.finfo(dtype).eps * 6


@pytest.mark.parametrize("kernel", ["sdpa", "chunked", "reference"])
def test_autocast_does_not_lower_the_products(kernel):
    maps = [x.detach().float() for x in _maps(offset=4.0)]
    for score in ("dot", "l2"):
        expected = dense_attention(*maps, score=score, kernel=kernel)
        with torch.autocast("cpu", torch.bfloat16):
            found = dense_attention(*maps, score=score, kernel=kernel)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_reference_is_twice_differentiable():
    maps = _maps((2, 3), (3, 1), heads=1, channels=2, values=2)
    for score in ("dot", "l2"):

        def attend(q, k, v, score=score):
            return dense_attention(q, k, v, score=score, kernel="reference")

        assert torch.autograd.gradcheck(attend, maps)
        assert torch.autograd.gradgradcheck(attend, maps)


def test_double_backward_takes_the_reference_and_without_it_the_chunked_kernel_says_so():
    maps = _maps()
    reset_ledger()
    with double_backward():
        out = dense_attention(*maps)
    assert [entry["kernel"] for entry in ledger()] == ["reference"]
    (gradient,) = torch.autograd.grad(out.sum(), maps[0], create_graph=True)
    gradient.square().sum().backward()
    reset_ledger()
    (gradient,) = torch.autograd.grad(dense_attention(*maps, kernel="chunked").sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"chunked kernel is not twice differentiable"):
        gradient.square().sum().backward()


def test_chunked_keeps_only_its_inputs():
    maps = _maps()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dense_attention(*maps, score="l2", kernel="chunked")
    held = {tensor.untyped_storage().data_ptr() for tensor in saved}
    assert held == {x.untyped_storage().data_ptr() for x in maps}


def _request(device, dtype, channels, side, score="dot"):
    shape = AttentionShape(1, 1, channels, channels, Size(side, side), Size(side, side))
    return Request(torch.device(device), dtype, shape, score, masked=False, requires_grad=True)


@pytest.mark.parametrize(
    ("device", "dtype", "channels", "side", "served"),
    [
        ("cpu", torch.float32, 640, 256, True),
        ("cuda", torch.float32, 640, 64, True),  # 64 MiB of scores at the worst
        ("cuda", torch.float16, 256, 256, True),
        ("cuda", torch.float16, 320, 256, False),
        ("cuda", torch.float64, 64, 256, False),
        ("mps", torch.float32, 64, 256, False),
    ],
)
def test_sdpa_gives_way_where_it_might_hold_the_score_matrix(device, dtype, channels, side, served):
    reasons = dense.KERNELS[0].reasons_against(_request(device, dtype, channels, side))
    assert (reasons == []) == served
    if not served:
        assert "MiB" in reasons[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 3, 3)}, r"q must be \(B, G, channels, rows, cols\)"),
        ({"k": torch.zeros(2, 2, 4, 4, 3)}, r"agree in batch, heads and channels"),
        ({"v": torch.zeros(2, 2, 3, 3, 3)}, r"v .* must agree with k"),
        ({"v": torch.zeros(2, 2, 3, 4, 3, dtype=torch.float64)}, r"share one floating dtype"),
        ({"key_mask": torch.ones(2, 1, 3, 3, dtype=torch.bool)}, r"key_mask must be a bool tensor of shape"),
        ({"key_mask": torch.ones(2, 1, 4, 3)}, r"key_mask must be a bool tensor"),
        ({"key_mask": torch.zeros(2, 1, 4, 3, dtype=torch.bool)}, r"key_mask leaves batch entry 0 no key"),
        ({"score": "angle"}, r"no score is called 'angle'. Valid here: dot, l2, cosine, unit_key"),
        ({"scale": -1.0}, r"scale must be a positive number"),
        ({"kernel": "flash"}, r"no kernel is called 'flash'. Valid here: auto, sdpa, boxes, chunked, reference"),
    ],
)
def test_wrong_input_is_named(change, message):
    q, k, v = (x.detach().float() for x in _maps())
    arguments = {"q": q, "k": k, "v": v, **change}
    with pytest.raises(ValueError, match=message):
        dense_attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
