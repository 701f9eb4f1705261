import pytest
import torch
from torch.nn.functional import pad

from saccade.ops import dense_attention, double_backward
from saccade.ops.nystromformer import chunked as nystrom_chunked
from saccade.ops.nystromformer import nystrom_attention, nystrom_weights
from saccade.ops.nystromformer.parts import Segments, pseudo_inverse


def _maps(q_size=(3, 5), kv_size=(4, 3), heads=2, channels=3, values=2, batch=2, dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(0)

    def draw(c, size):
        return (torch.randn(batch, heads, c, *size, generator=generator, dtype=torch.float64) + offset).to(dtype)

    return [x.requires_grad_() for x in (draw(channels, q_size), draw(channels, kv_size), draw(values, kv_size))]


def _mask(kv_size=(4, 3), seed=1):
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(seed)) > 0.5
    mask[0, 0, 0, 0] = True
    mask[1] = False
    mask[1, 0, 1:3, 0] = True  # most landmarks have no pixel left
    return mask


def _patches(maps, p):
    """One vector a pixel in scan-line order, (N, C * p * p), by loops: one entry of the batch, one head."""
    padded = pad(maps, [p // 2] * 4)
    rows, cols = maps.shape[1:]
    return torch.stack([padded[:, y : y + p, x : x + p].flatten() for y in range(rows) for x in range(cols)])


def _landmarks(vectors, count, allowed):
    """Means of the allowed pixels of each run, and which runs have any."""
    total = len(vectors)
    count = min(count, total)
    means, some = [], []
    for i in range(count):
        run = [j for j in range(i * total // count, (i + 1) * total // count) if allowed[j]]
        means.append(sum(vectors[j] for j in run) / len(run) if run else torch.zeros_like(vectors[0]))
        some.append(bool(run))
    return torch.stack(means), torch.tensor(some)


def _softmax(q, k, score, scale, allowed):
    rows = []
    for query in q:
        logits = [query @ key if score == "dot" else -(query - key).square().sum() for key in k]
        logits = [x if allowed[j] else x - float("inf") for j, x in enumerate(logits)]
        rows.append(torch.softmax(scale * torch.stack(logits), 0))
    return torch.stack(rows)


def _inverse(a, iterations):
    """The iteration of the paper as it is printed."""
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    eye = torch.eye(len(a), dtype=a.dtype)
    for _ in range(iterations):
        z = z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z))) / 4
    return z


def _loops(q, k, v, landmarks, iterations, score, scale, p, mask):
    """The formula by itself, one entry of the batch and one head at a time."""
    out = q.new_zeros(*q.shape[:2], v.shape[2], *q.shape[3:])
    for b in range(q.shape[0]):
        allowed = torch.ones(k.shape[3] * k.shape[4], dtype=torch.bool) if mask is None else mask[b].flatten()
        for g in range(q.shape[1]):
            queries, keys, kind = _patches(q[b, g], p), _patches(k[b, g], p), score
            if score in ("cosine", "unit_key"):
                keys, kind = keys / keys.norm(dim=1, keepdim=True), "dot"
                queries = queries / queries.norm(dim=1, keepdim=True) if score == "cosine" else queries
            factor = queries.shape[1] ** -0.5 if score in ("dot", "l2") else 1.0
            factor = factor if scale is None else scale
            q_marks, _ = _landmarks(queries, landmarks, [True] * len(queries))
            k_marks, some = _landmarks(keys, landmarks, allowed)
            left = _softmax(queries, k_marks, kind, factor, some)
            middle = _softmax(q_marks, k_marks, kind, factor, some)
            right = _softmax(q_marks, keys, kind, factor, allowed)
            values = v[b, g].flatten(1).T
            out[b, g] = (left @ _inverse(middle, iterations) @ (right @ values)).T.view(out[b, g].shape)
    return out


def _with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def _assert_near(found, expected, atol):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize(
    ("score", "scale"), [("dot", None), ("dot", 1.0), ("l2", None), ("cosine", 3.0), ("unit_key", None)]
)
@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_kernels_equal_plain_loops(monkeypatch, kernel, score, scale, patch_size, masked):
    monkeypatch.setitem(nystrom_chunked.CHUNK_ENTRIES, "cpu", 4 * 27)  # a row, or part of one, at a time
    maps, mask = _maps(), _mask() if masked else None
    expected = _with_gradients(_loops(*maps, 5, 6, score, scale, patch_size, mask), maps)
    options = {"score": score, "scale": scale, "patch_size": patch_size, "key_mask": mask, "kernel": kernel}
    found = _with_gradients(nystrom_attention(*maps, landmarks=5, **options), maps)
    _assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("score", ["cosine", "unit_key"])
def test_patches_of_zeros_are_divided_by_the_shortest_length(score, patch_size):
    q, k, v = _maps((5, 5), (5, 4))
    with torch.no_grad():
        q[..., :3, :3], k[..., :3, :3] = 0, 0
    options = {"landmarks": 7, "score": score, "patch_size": patch_size}
    found, expected = (
        _with_gradients(nystrom_attention(q, k, v, kernel=kernel, **options), (q, k, v))
        for kernel in ("chunked", "reference")
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-8)  # one over that length is 10,000


@pytest.mark.parametrize("landmarks", [1, 4, 13, 100])
@pytest.mark.parametrize(("q_size", "kv_size"), [((3, 5), (4, 3)), ((2, 3), (5, 5))])
def test_any_number_of_landmarks_on_any_two_maps(q_size, kv_size, landmarks):
    maps = _maps(q_size, kv_size, heads=1)
    expected = _with_gradients(_loops(*maps, landmarks, 4, "dot", None, 1, None), maps)
    options = {"landmarks": landmarks, "pinv_iterations": 4}
    for kernel in ("chunked", "reference"):
        _assert_near(_with_gradients(nystrom_attention(*maps, kernel=kernel, **options), maps), expected, 1e-12)


@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_as_many_landmarks_as_pixels_give_full_attention(score, masked, patch_size):
    """F A^+ B = A A^+ A = A, once the iteration has converged; gradients too."""
    maps, mask = _maps((4, 4), (4, 4), heads=1), None
    if masked:
        mask = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.4
    scale = 4.0 if score in ("cosine", "unit_key") else 1.0
    options = {"score": score, "scale": scale, "patch_size": patch_size, "key_mask": mask}
    found = nystrom_attention(*maps, landmarks=16, pinv_iterations=40, **options)
    exact = _full(*maps, score, scale, patch_size, mask)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)
    _assert_near(_with_gradients(found, maps), _with_gradients(exact, maps), 1e-6)
    six = nystrom_attention(*maps, landmarks=16, **options)
    assert (six - exact).abs().max() < 0.3


def _full(q, k, v, score, scale, p, mask):
    """Full attention on patch vectors, one entry of the batch at a time."""
    out = []
    for b in range(q.shape[0]):
        queries, keys, kind = _patches(q[b, 0], p), _patches(k[b, 0], p), score
        if score in ("cosine", "unit_key"):
            keys, kind = keys / keys.norm(dim=1, keepdim=True), "dot"
            queries = queries / queries.norm(dim=1, keepdim=True) if score == "cosine" else queries
        allowed = torch.ones(len(keys), dtype=torch.bool) if mask is None else mask[b].flatten()
        out.append((_softmax(queries, keys, kind, scale, allowed) @ v[b, 0].flatten(1).T).T)
    return torch.stack(out).view(q.shape[0], 1, v.shape[2], *q.shape[3:])


def test_the_error_against_full_attention_falls_with_the_landmarks():
    """On smooth maps, whose neighbours resemble each other, as landmarks assume."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 1, 6, 8, 8, generator=generator, dtype=torch.float64)
    q, k, v = (torch.nn.functional.interpolate(x, (16, 16), mode="bilinear")[None] for x in noise)
    exact = dense_attention(q, k, v, kernel="reference")

    def error(landmarks, iterations=6):
        found = nystrom_attention(q, k, v, landmarks=landmarks, pinv_iterations=iterations)
        return ((found - exact).square().mean().sqrt() / exact.std()).item()

    by_landmarks = [error(count) for count in (1, 4, 16, 32, 64, 128, 256)]
    assert by_landmarks == sorted(by_landmarks, reverse=True), by_landmarks
    assert by_landmarks[5] < 0.15 * by_landmarks[0], by_landmarks
    by_iterations = [error(256, n) for n in (4, 6, 10, 20, 40)]
    assert by_iterations == sorted(by_iterations, reverse=True), by_iterations
    assert by_iterations[-1] < 1e-9, by_iterations


@pytest.mark.parametrize("shape", [(6, 6), (4, 7), (7, 4)])
def test_the_iteration_finds_the_pseudo_inverse(shape):
    matrix = torch.softmax(3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).double(), -1)
    torch.testing.assert_close(pseudo_inverse(matrix, 60), torch.linalg.pinv(matrix), rtol=0, atol=1e-9)
    gaps = [(matrix @ pseudo_inverse(matrix, n) @ matrix - matrix).norm().item() for n in (1, 2, 3, 4)]
    assert gaps == sorted(gaps, reverse=True), gaps


@pytest.mark.parametrize(("pixels", "count"), [(12, 4), (13, 5), (7, 7), (5, 9), (1000, 37)])
def test_segments_share_out_every_pixel_once(pixels, count):
    segments = Segments(pixels, count, None, torch.zeros((), dtype=torch.float64))
    shares = segments.averages(slice(0, pixels))[0]
    torch.testing.assert_close(shares.sum(0), torch.ones(min(count, pixels), dtype=torch.float64))
    assert ((shares > 0).sum(1) == 1).all()
    sizes = (shares > 0).sum(0)
    assert sizes.max() - sizes.min() <= 1
    assert (shares.argmax(1).diff() >= 0).all()
    span = slice(pixels // 3, pixels - pixels // 4)
    torch.testing.assert_close(segments.averages(span)[0], shares[span, segments.reached(span)])


@pytest.mark.parametrize("score", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_chunks_and_batch_splits_do_not_change_the_result(monkeypatch, score, patch_size):
    maps, mask = _maps(), _mask()
    options = {"landmarks": 4, "score": score, "patch_size": patch_size}

    def run(part, entries):
        monkeypatch.setitem(nystrom_chunked.CHUNK_ENTRIES, "cpu", entries)
        return nystrom_attention(*(x[part] for x in maps), key_mask=mask[part], **options)

    whole = run(slice(None), 2**20)
    parts = torch.cat([run(slice(0, 1), 20), run(slice(1, 2), 20)])
    _assert_near(_with_gradients(parts, maps), _with_gradients(whole, maps), 1e-13)


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
def test_weights_bring_the_output(patch_size, score):
    maps, mask = [x.detach() for x in _maps()], _mask()
    options = {"landmarks": 4, "score": score, "patch_size": patch_size, "key_mask": mask}
    queries = torch.tensor([[0, 0], [2, 4], [1, 3]])
    indices, weights = nystrom_weights(*maps[:2], queries, **options)
    assert torch.equal(indices[1, 0, 2], torch.arange(12))
    assert not weights[:, 0][~mask.flatten(2).expand(-1, 3, -1)].any()
    brought = torch.einsum("bgqk,bgek->bgeq", weights, maps[2].flatten(3))
    expected = nystrom_attention(*maps, **options)[..., queries[:, 0], queries[:, 1]]
    torch.testing.assert_close(brought, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("score", "patch_size"), [("dot", 1), ("l2", 1), ("unit_key", 1), ("l2", 3), ("cosine", 3)])
def test_gradients_pass_gradcheck(monkeypatch, patch_size, score):
    monkeypatch.setitem(nystrom_chunked.CHUNK_ENTRIES, "cpu", 20)
    maps, mask = _maps((2, 2), (3, 2), heads=1, channels=2), _mask((3, 2))
    options = {"landmarks": 3, "pinv_iterations": 3, "score": score, "patch_size": patch_size, "key_mask": mask}
    assert torch.autograd.gradcheck(lambda *m: nystrom_attention(*m, kernel="chunked", **options), maps)
    reference = [x[:1].detach().requires_grad_() for x in maps]
    options["key_mask"] = mask[:1]
    again = torch.autograd.gradgradcheck
    assert again(lambda *m: nystrom_attention(*m, kernel="reference", **options), reference, fast_mode=True)


def test_only_the_reference_is_twice_differentiable():
    maps = _maps()
    out = nystrom_attention(*maps, landmarks=4, kernel="chunked")
    (first,) = torch.autograd.grad(out.sum(), maps[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="nystromformer's chunked kernel is not twice differentiable"):
        first.sum().backward()
    with double_backward(), pytest.raises(RuntimeError, match="chunked"):
        nystrom_attention(*maps, landmarks=4, kernel="chunked")


@pytest.mark.parametrize("score", ["dot", "l2", "cosine"])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_float32_is_as_exact_as_plain_pytorch(score, offset):
    """A common offset makes |k|^2 large; distances must not lose their digits to it."""
    maps = [x.detach() for x in _maps((6, 6), (6, 6), heads=1, channels=16, dtype=torch.float32, offset=offset)]
    options = {"landmarks": 9, "score": score}
    exact = nystrom_attention(*[x.double() for x in maps], kernel="reference", **options)
    plain = (nystrom_attention(*maps, kernel="reference", **options) - exact).abs().max()
    error = (nystrom_attention(*maps, **options) - exact).abs().max()
    assert error <= 2 * plain + 1e-5
    if score == "l2" and offset:
        assert error < 1e-3


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_near_the_rounding_of_the_maps(kernel, dtype):
    """The pseudo-inverse above all needs float32."""
    maps = [x.detach() for x in _maps((6, 6), (6, 6), channels=8, dtype=dtype)]
    exact = nystrom_attention(*[x.double() for x in maps], landmarks=9, kernel="reference")
    found = nystrom_attention(*maps, landmarks=9, kernel=kernel)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = nystrom_attention(*[x.float() for x in maps], landmarks=9, kernel=kernel)
    torch.testing.assert_close(cast.double(), exact, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 0}, "landmarks must be a whole number, 1 or more; got 0"),
        ({"pinv_iterations": 0}, "pinv_iterations must be a whole number, 1 or more"),
        ({"score": "cos"}, "no score is called 'cos'. Valid here: dot, l2, cosine, unit_key"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"patch_size": 4}, "patch_size must be an odd number of pixels, 1 or more; got 4. Valid here: 3 or 5"),
        ({"kernel": "fast"}, "no kernel is called 'fast'. Valid here: auto, chunked, reference"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        nystrom_attention(*_maps(), **options)
