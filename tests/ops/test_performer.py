import math

import pytest
import torch
from torch.nn.functional import pad

from saccade.ops import dense_attention, double_backward
from saccade.ops.performer import chunked as performer_chunked
from saccade.ops.performer import performer_attention, performer_weights
from saccade.ops.performer.features import default_features, kept_projection, performer_projection


def _maps(
    q_size=(3, 5),
    kv_size=(4, 3),
    heads=2,
    channels=3,
    values=2,
    batch=2,
    dtype=torch.float64,
    seed=0,
    scale=1.0,
    offset=0.0,
):
    generator = torch.Generator().manual_seed(seed)

    def draw(c, size):
        return (torch.randn(batch, heads, c, *size, generator=generator, dtype=torch.float64) * scale + offset).to(
            dtype
        )

    return [x.requires_grad_() for x in (draw(channels, q_size), draw(channels, kv_size), draw(values, kv_size))]


def _mask(kv_size=(4, 3), seed=1):
    mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(seed)) > 0.5
    mask[0, 0, 0, 0] = True
    mask[1] = False
    mask[1, 0, -1, -1] = True
    return mask


def _patches(maps, p):
    """One vector a pixel, (B, G, Y, X, C * p * p), by loops."""
    rows, cols = maps.shape[3:]
    padded = pad(maps, [p // 2] * 4)
    return torch.stack(
        [torch.stack([padded[..., y : y + p, x : x + p].flatten(2) for x in range(cols)], 2) for y in range(rows)],
        2,
    )


def _loops(q, k, v, projection, score, scale, p, mask, centre=False):
    """The estimate pair by pair, from its definition: sums of products of unstabilised features.

    About the means, score = s(q - a, k - b) + what is the same for every key + c.(k - b), and that is taken exactly.
    """
    queries, keys = _patches(q, p), _patches(k, p)
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    width, decay = (math.sqrt(2 * scale), 1.0) if score == "l2" else (math.sqrt(scale), 0.5)

    def feature(x):
        x = x * width
        return torch.exp(projection @ x - decay * (x @ x))

    out = q.new_zeros(*q.shape[:2], v.shape[2], *q.shape[3:])
    for b in range(q.shape[0]):
        places = [(y, x) for y in range(k.shape[3]) for x in range(k.shape[4]) if mask is None or mask[b, 0, y, x]]
        for g in range(q.shape[1]):
            of_keys = [feature(keys[b, g, y, x]) for y, x in places]
            values = torch.stack([v[b, g, :, y, x] for y, x in places])
            exact = torch.ones(len(places), dtype=q.dtype)
            if centre:
                mine = torch.stack([keys[b, g, y, x] for y, x in places])
                of_q, of_k = queries[b, g].flatten(0, 1).mean(0).detach(), mine.mean(0).detach()
                of_keys = [feature(key - of_k) for key in mine]
                known = 2 * (of_q - of_k) if score == "l2" else of_q
                exact = torch.exp(scale * (mine - of_k) @ known)
            for y in range(q.shape[3]):
                for x in range(q.shape[4]):
                    query = feature(queries[b, g, y, x] - (of_q if centre else 0))
                    kernel = torch.stack([query @ key for key in of_keys]) * exact
                    out[b, g, :, y, x] = (kernel / kernel.sum()) @ values
    return out


def _with_gradients(out, maps):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), maps)]


def _assert_near(found, expected, atol):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize(("score", "scale"), [("dot", None), ("dot", 1.0), ("l2", None)])
@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_kernels_equal_plain_loops(monkeypatch, kernel, score, scale, patch_size, masked):
    monkeypatch.setitem(performer_chunked.CHUNK_ENTRIES, "cpu", 4 * 27)  # a row, or part of one, at a time
    maps = _maps(scale=0.7)
    mask = _mask() if masked else None
    projection = performer_projection(10, 3 * patch_size**2, 3)
    expected = _with_gradients(_loops(*maps, projection, score, scale, patch_size, mask), maps)
    options = {"score": score, "scale": scale, "patch_size": patch_size, "key_mask": mask, "kernel": kernel}
    found = _with_gradients(performer_attention(*maps, projection=projection, **options), maps)
    _assert_near(found, expected, 1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("score", "patch_size"), [("dot", 1), ("l2", 1), ("dot", 3), ("l2", 3)])
@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_estimates_about_the_means_equal_plain_loops(monkeypatch, kernel, score, patch_size, masked):
    monkeypatch.setitem(performer_chunked.CHUNK_ENTRIES, "cpu", 4 * 27)
    maps, mask = _maps(scale=0.7, offset=0.5), _mask() if masked else None
    projection = performer_projection(10, 3 * patch_size**2, 3)
    expected = _with_gradients(_loops(*maps, projection, score, None, patch_size, mask, centre=True), maps)
    options = {"score": score, "centre": True, "patch_size": patch_size, "key_mask": mask, "kernel": kernel}
    found = _with_gradients(performer_attention(*maps, projection=projection, **options), maps)
    _assert_near(found, expected, 1e-12)


def _released(q, k, v, projection, eps):
    """The features of the released layers: one maximum over all keys, and eps; (N, D), (N, D), (N, E)."""
    width = q.shape[1] ** -0.25

    def feature(x, largest):
        along = width * x @ projection.T
        decay = (width * x).square().sum(1, keepdim=True) / 2
        return torch.exp(along - decay - largest(along).detach()) + eps

    phi_q = feature(q, lambda along: along.amax(1, keepdim=True))
    phi_k = feature(k, lambda along: along.max())
    kernel = phi_q @ phi_k.T
    return kernel / kernel.sum(1, keepdim=True) @ v


@pytest.mark.parametrize("eps", [1e-4, 1e-1])
@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_eps_gives_the_released_layers_features(monkeypatch, kernel, eps):
    monkeypatch.setitem(performer_chunked.CHUNK_ENTRIES, "cpu", 4 * 12)
    maps = _maps(heads=1, batch=1)
    projection = performer_projection(12, 3, 0)
    q, k, v = (x.flatten(3)[0, 0].T for x in maps)
    expected = _released(q, k, v, projection, eps).T.view(1, 1, 2, 3, 5)
    found = performer_attention(*maps, projection=projection, eps=eps, kernel=kernel)
    _assert_near(_with_gradients(found, maps), _with_gradients(expected, maps), 1e-13)


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_masked_keys_are_as_if_they_were_not_there(patch_size, eps):
    """A mask over whole columns at the border, against the map without them; patches see zeros there either way."""
    q, k, v = _maps(kv_size=(4, 5))
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[..., :3] = True
    k = torch.where(mask.unsqueeze(1), k, 0.0)  # the patches of the allowed keys then see zeros beyond, as at a border
    projection = performer_projection(20, 3 * patch_size**2, 0)
    options = {"projection": projection, "patch_size": patch_size, "eps": eps}
    found = performer_attention(q, k, v, key_mask=mask, **options)
    expected = performer_attention(q, k[..., :3], v[..., :3], **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize(("eps", "centre"), [(0.0, False), (1e-2, False), (0.0, True)])
@pytest.mark.parametrize("patch_size", [1, 3])
def test_chunks_and_batch_splits_do_not_change_the_result(monkeypatch, score, eps, centre, patch_size):
    maps, mask = _maps(), _mask()
    options = {"features": 16, "score": score, "eps": eps, "centre": centre, "patch_size": patch_size}

    def run(part, entries):
        monkeypatch.setitem(performer_chunked.CHUNK_ENTRIES, "cpu", entries)
        generator = torch.Generator().manual_seed(5)
        return performer_attention(*(x[part] for x in maps), key_mask=mask[part], generator=generator, **options)

    whole = run(slice(None), 2**20)
    parts = torch.cat([run(slice(0, 1), 70), run(slice(1, 2), 70)])
    _assert_near(_with_gradients(parts, maps), _with_gradients(whole, maps), 1e-13)


def _error(maps, exact, features, seed, orthogonal=True, **options):
    projection = performer_projection(features, maps[0].shape[2], seed, orthogonal=orthogonal)
    found = performer_attention(*maps, projection=projection, **options)
    return (found - exact).square().mean().item()


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_the_error_against_full_attention_falls_as_one_over_root_features(score, centre):
    maps = [x.detach() for x in _maps((8, 8), (8, 8), heads=1, channels=8, values=4, batch=1, scale=0.3)]
    exact = dense_attention(*maps, score=score, kernel="reference")
    counts = [64, 256, 1024, 4096]
    errors = [
        math.sqrt(sum(_error(maps, exact, m, s, score=score, centre=centre) for s in range(12)) / 12) for m in counts
    ]
    logs = [(math.log(m), math.log(e)) for m, e in zip(counts, errors, strict=True)]
    mean_x, mean_y = (sum(x) / len(logs) for x in zip(*logs, strict=True))
    slope = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    assert -0.65 < slope < -0.35, (slope, errors)
    assert errors[-1] < 0.06 * exact.std().item(), errors


@pytest.mark.parametrize("score", ["dot", "l2"])
def test_estimates_about_the_means_are_closer_where_vectors_have_much_in_common(score):
    maps = [x.detach() for x in _maps((8, 8), (8, 8), heads=1, channels=8, batch=1, scale=0.5, offset=0.8)]
    exact = dense_attention(*maps, score=score, kernel="reference")
    plain, about = (sum(_error(maps, exact, 128, s, score=score, centre=c) for s in range(20)) for c in (False, True))
    assert about < 0.25 * plain, (about, plain)  # of the squares


def test_orthogonal_directions_lower_the_variance():
    """Of the kernel's estimate (the paper's Theorem 2), and with it of attention's error."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 16, generator=generator, dtype=torch.float64) * 0.35

    def spread(orthogonal):
        estimates = []
        for seed in range(1500):
            w = performer_projection(16, 16, seed, orthogonal=orthogonal)
            estimates.append((torch.exp(w @ x - x @ x / 2) * torch.exp(w @ y - y @ y / 2)).mean())
        return torch.stack(estimates)

    found = {orthogonal: spread(orthogonal) for orthogonal in (True, False)}
    for estimates in found.values():  # both are unbiased: within four standard errors
        assert abs(estimates.mean() - torch.exp(x @ y)) < 4 * estimates.std() / 1500**0.5
    assert found[True].var() < 0.9 * found[False].var()

    maps = [m.detach() for m in _maps((6, 6), (6, 6), heads=1, channels=16, batch=1, scale=0.8)]
    exact = dense_attention(*maps, kernel="reference")
    means = [sum(_error(maps, exact, 32, s, orthogonal) for s in range(60)) / 60 for orthogonal in (True, False)]
    assert means[0] < means[1], means


def test_directions_are_orthogonal_in_blocks_and_gaussian_one_by_one():
    w = performer_projection(20, 8, seed=1)
    assert w.shape == (20, 8)
    for block in (w[:8], w[8:16], w[16:]):
        angles = block @ block.T
        torch.testing.assert_close(angles, torch.diag(angles.diagonal()), rtol=0, atol=1e-12)
    assert torch.equal(w, performer_projection(20, 8, seed=1))
    assert not torch.equal(w, performer_projection(20, 8, seed=2))
    many = torch.cat([performer_projection(6, 6, seed) for seed in range(1500)])  # 9000 x 6
    error = 1 / len(many) ** 0.5
    assert many.mean(0).abs().max() < 5 * error
    assert (many.square().mean(0) - 1).abs().max() < 5 * 2**0.5 * error
    assert ((many**4).mean(0) - 3).abs().max() < 5 * 96**0.5 * error
    first = torch.stack([performer_projection(6, 6, seed)[0] for seed in range(1500)])  # a QR without signs fails here
    assert first.mean(0).abs().max() < 5 / 1500**0.5


def test_features_default_to_d_log_d_and_are_kept_once():
    assert default_features(784) == 5224
    assert default_features(1) == 1
    like = torch.zeros(1)
    first = kept_projection(6, 4, 9, like)
    assert kept_projection(6, 4, 9, like) is first
    assert first.dtype == torch.float32
    assert kept_projection(6, 4, 9, like.half()).dtype == torch.float32
    assert kept_projection(6, 4, 9, like.double()).dtype == torch.float64
    with torch.inference_mode():
        kept = kept_projection(6, 4, 10, like)
    assert not kept.is_inference()


def test_the_generator_decides_the_directions():
    maps = [x.detach() for x in _maps()]

    def run(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return performer_attention(*maps, features=8, generator=generator)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(1)
    assert torch.equal(run(), run(1))


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize(("eps", "centre"), [(0.0, False), (1e-2, False), (0.0, True)])
def test_weights_bring_the_output(patch_size, score, eps, centre):
    maps, mask = [x.detach() for x in _maps()], _mask()
    options = {
        "projection": performer_projection(9, 3 * patch_size**2, 0),
        "score": score,
        "patch_size": patch_size,
        "eps": eps,
        "centre": centre,
        "key_mask": mask,
    }
    queries = torch.tensor([[0, 0], [2, 4], [1, 3]])
    indices, weights = performer_weights(*maps[:2], queries, **options)
    assert torch.equal(indices[1, 0, 2], torch.arange(12))
    assert not weights[:, 0][~mask.flatten(2).expand(-1, 3, -1)].any()
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 2, 3, dtype=torch.float64))
    brought = torch.einsum("bgqk,bgek->bgeq", weights, maps[2].flatten(3))
    expected = performer_attention(*maps, **options)[..., queries[:, 0], queries[:, 1]]
    torch.testing.assert_close(brought, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_gradients_pass_gradcheck(monkeypatch, patch_size, score):
    monkeypatch.setitem(performer_chunked.CHUNK_ENTRIES, "cpu", 40)
    maps, mask = _maps((2, 3), (3, 2), heads=1), _mask((3, 2))
    projection = performer_projection(7, 3 * patch_size**2, 0)
    options = {"projection": projection, "score": score, "patch_size": patch_size, "key_mask": mask}
    assert torch.autograd.gradcheck(lambda *m: performer_attention(*m, kernel="chunked", **options), maps)
    reference = [x[:1].detach().requires_grad_() for x in maps]
    options["key_mask"] = mask[:1]
    again = torch.autograd.gradgradcheck
    assert again(lambda *m: performer_attention(*m, kernel="reference", **options), reference, fast_mode=True)


def test_only_the_reference_is_twice_differentiable():
    maps = _maps()
    out = performer_attention(*maps, features=4, kernel="chunked")
    (first,) = torch.autograd.grad(out.sum(), maps[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="performer's chunked kernel is not twice differentiable"):
        first.sum().backward()
    with double_backward(), pytest.raises(RuntimeError, match="chunked"):
        performer_attention(*maps, features=4, kernel="chunked")


@pytest.mark.parametrize("length", [1.0, 8.0])
@pytest.mark.parametrize("score", ["dot", "l2"])
def test_float32_holds_for_long_vectors(length, score):
    """The released stabiliser underflows for such lengths: every sum would be zero."""
    maps = [x.detach() for x in _maps((6, 6), (6, 6), heads=1, channels=32, batch=1, dtype=torch.float32, scale=length)]
    projection = performer_projection(64, 32, 0)
    options = {"projection": projection, "score": score, "scale": 1.0}
    exact = performer_attention(*[x.double() for x in maps], kernel="reference", **options)
    error = (performer_attention(*maps, **options) - exact).abs().max()
    plain = (performer_attention(*maps, kernel="reference", **options) - exact).abs().max()
    assert error <= 2 * plain + 1e-6
    maps = [x.requires_grad_() for x in maps]
    assert all(x.isfinite().all() for x in _with_gradients(performer_attention(*maps, **options), maps))


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_near_the_rounding_of_the_maps(kernel, dtype):
    maps = [x.detach() for x in _maps((6, 6), (6, 6), channels=8, dtype=dtype, scale=2.0)]
    projection = performer_projection(32, 8, 0)
    exact = performer_attention(*[x.double() for x in maps], projection=projection, kernel="reference")
    found = performer_attention(*maps, projection=projection, kernel=kernel)
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = performer_attention(*[x.float() for x in maps], projection=projection, kernel=kernel)
    torch.testing.assert_close(cast.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features must be a whole number, 1 or more"),
        ({"features": 5, "projection": torch.zeros(4, 3)}, r"projection must be .* = \(5, 3\); got \(4, 3\)"),
        ({"patch_size": 3, "projection": torch.zeros(4, 3)}, r"= \(4, 27\)"),
        ({"score": "cosine"}, "no score is called 'cosine'. Valid here: dot, l2"),
        ({"scale": 0.0}, "scale must be a positive number"),
        ({"patch_size": 2}, "patch_size must be an odd number"),
        ({"eps": 1e-4, "centre": True}, "centre=True needs eps=0; got eps=0.0001"),
        ({"eps": -1.0}, "eps must be a number, 0 or more"),
        ({"kernel": "fast"}, "no kernel is called 'fast'. Valid here: auto, chunked, reference"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        performer_attention(*_maps(), **options)
