"""PSAL as an op: against dense attention on patches where that is possible, gradients, masks, precision, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from oracles.psal_loops import costs_loops, read_loops
from saccade.ops import double_backward, ledger, reset_ledger
from saccade.ops.psal import psal_attention, psal_search, psal_weights

SCORES = ("l2", "dot", "cosine", "unit_key")
READOUTS = ("centre", "aggregate", "fold")
KERNELS = ("torch", "reference")
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


def _maps(q_size=(6, 5), kv_size=(5, 7), batch=2, heads=2, channels=3, values=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = ((channels, q_size), (channels, kv_size), (values, kv_size))
    return [torch.randn(batch, heads, count, *size, generator=generator, dtype=dtype) for count, size in sizes]


def _mask(batch=2, size=(5, 7)):
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(1)) < 0.4


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _logits(q, k, patch, score) -> Tensor:
    """Scores of all pairs of unfolded patches, (B * G, n_q, n_k)."""
    queries, keys = (F.unfold(x.flatten(0, 1), patch, padding=patch // 2).mT for x in (q, k))
    if score == "l2":
        return -(queries.unsqueeze(2) - keys.unsqueeze(1)).square().sum(3)
    if score == "cosine":
        queries = F.normalize(queries, dim=2)
    if score in ("cosine", "unit_key"):
        keys = F.normalize(keys, dim=2)
    return queries @ keys.mT


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("patch", [1, 3])
def test_with_every_key_it_is_full_attention_on_patches(score, kernel, patch):
    q, k, v = _maps()
    out = psal_attention(q, k, v, matches=35, patch_size=patch, iterations=1, score=score, scale=0.6, kernel=kernel)
    weights = torch.softmax(0.6 * _logits(q, k, patch, score), 2)
    expected = (v.flatten(0, 1).flatten(2) @ weights.mT).view(out.shape)
    torch.testing.assert_close(out, expected, **TOLERANCE)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("masked", [False, True])
def test_with_all_keys_searched_it_is_attention_to_the_best(score, masked):
    q, k, v = _maps()
    mask = _mask() if masked else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = psal_attention(*leaves, matches=4, patch_size=3, score=score, search="exact", key_mask=mask, kernel="torch")
    logits = _logits(q, k, 3, score)
    if mask is not None:
        logits = logits.masked_fill(~mask.flatten(2).repeat_interleave(2, 0), -float("inf"))
    kept = logits >= logits.topk(4, 2).values[..., -1:]
    weights = torch.softmax(logits.masked_fill(~kept, -float("inf")), 2)
    expected = (v.flatten(0, 1).flatten(2) @ weights.mT).view(out.shape)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    upstream = torch.randn(out.shape, generator=_generator(), dtype=torch.float64)
    grads, dense = (torch.autograd.grad((x * upstream).sum(), leaves) for x in (out, expected))
    for grad, other in zip(grads, dense, strict=True):
        torch.testing.assert_close(grad, other, **TOLERANCE)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("border", ["zeros", "released"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_is_the_search_read_by_loops(readout, border, kernel):
    q, k, v = _maps(heads=1)
    options = {"matches": 2, "patch_size": 3, "border": border}
    out = psal_attention(q, k, v, **options, readout=readout, scale=0.3, generator=_generator(), kernel=kernel)
    found, _ = psal_search(q, k, **options, generator=_generator(), kernel="torch")
    for n in range(2):
        costs = costs_loops(q[n, 0], k[n, 0], found[n, 0], 3, "l2", border)
        expected = read_loops(found[n, 0], costs, v[n, 0], patch_size=3, scale=0.3, readout=readout, border=border)
        torch.testing.assert_close(out[n, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("score", SCORES)
def test_gradients_with_matches_held_fixed(readout, score):
    maps = [x.requires_grad_() for x in _maps((4, 4), (3, 4), batch=1, heads=1, channels=2, values=1)]

    def call(*x):
        return psal_attention(
            *x, matches=2, patch_size=3, iterations=0, score=score, scale=0.5, readout=readout, generator=_generator(),
            kernel="torch",
        )  # fmt: skip

    assert gradcheck(call, maps, fast_mode=True)


@pytest.mark.parametrize("readout", READOUTS)
def test_the_reference_is_twice_differentiable(readout):
    maps = [x.requires_grad_() for x in _maps((3, 3), (3, 3), batch=1, heads=1, channels=2, values=1)]

    def call(*x):
        with double_backward():
            return psal_attention(
                *x, matches=2, patch_size=3, iterations=0, scale=0.2, readout=readout, generator=_generator()
            )

    reset_ledger()
    call(*maps)
    assert [entry["kernel"] for entry in ledger()] == ["reference"]
    assert gradgradcheck(call, maps, fast_mode=True)


def test_the_other_kernels_refuse_second_derivatives_by_name():
    q, k, v = (x.requires_grad_() for x in _maps())
    out = psal_attention(q, k, v, matches=2, patch_size=3, kernel="torch")
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"psal.*not twice differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("readout", ["centre", "fold"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_match_has_no_gradient_in_q_and_k(readout, kernel):
    q, k, v = (x.requires_grad_() for x in _maps())
    psal_attention(q, k, v, matches=1, patch_size=3, readout=readout, kernel=kernel).square().sum().backward()
    assert (q.grad == 0).all()
    assert (k.grad == 0).all()
    assert v.grad.abs().sum() > 0


def test_one_match_aggregated_has_a_gradient_in_q_and_k():
    q, k, v = (x.requires_grad_() for x in _maps())
    psal_attention(q, k, v, matches=1, patch_size=3, readout="aggregate", scale=0.1).square().sum().backward()
    assert q.grad.abs().sum() > 0
    assert k.grad.abs().sum() > 0


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_same_result_on_any_batch_split(readout, kernel):
    q, k, v = _maps(batch=3)
    mask = _mask(3)

    def run(part):
        return psal_attention(
            q[part], k[part], v[part], patch_size=3, readout=readout, key_mask=mask[part], generator=_generator(),
            kernel=kernel,
        )  # fmt: skip

    whole = run(slice(None))
    torch.testing.assert_close(torch.cat([run(slice(0, 1)), run(slice(1, 3))]), whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("readout", ["centre", "aggregate"])
def test_masked_keys_bring_nothing_where_patches_are_centres(readout):
    q, k, v = _maps()
    mask = _mask()
    hidden = torch.where(mask.unsqueeze(2), v, 1e9)
    options = {"matches": 2, "patch_size": 1, "readout": readout, "key_mask": mask}
    out, expected = (psal_attention(q, k, x, **options, generator=_generator()) for x in (hidden, v))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_low_precision_maps_are_compared_in_float32(dtype, readout, kernel):
    low = [x.to(dtype).requires_grad_() for x in _maps()]
    wide = [x.detach().float().requires_grad_() for x in low]
    results = []
    for maps in (low, wide):
        out = psal_attention(
            *maps, matches=2, patch_size=3, readout=readout, scale=0.2, generator=_generator(), kernel=kernel
        )
        assert out.dtype == maps[0].dtype
        results.append([out, *torch.autograd.grad(out.float().square().sum(), maps)])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        error = (found.float() - expected).abs().max() / expected.abs().max()
        assert error < 8 * torch.finfo(dtype).eps


def test_autocast_does_not_lower_the_comparison():
    maps = [x.float() for x in _maps()]
    expected = psal_attention(*maps, patch_size=3, search="exact", generator=_generator())
    with torch.autocast("cpu", torch.bfloat16):
        out = psal_attention(*maps, patch_size=3, search="exact", generator=_generator())
    assert torch.equal(out, expected)


def test_maps_need_not_be_contiguous():
    q, k, v = _maps()
    options = {"matches": 2, "patch_size": 3, "readout": "aggregate"}
    expected = psal_attention(q, k, v, **options, generator=_generator())
    strided = [x.transpose(3, 4).contiguous().transpose(3, 4) for x in (q, k, v)]
    assert torch.equal(psal_attention(*strided, **options, generator=_generator()), expected)


def test_the_global_generator_decides_where_none_is_given():
    q, k, v = _maps()
    options = {"matches": 2, "patch_size": 3, "iterations": 0}
    torch.manual_seed(1)
    first, second = (psal_attention(q, k, v, **options) for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(psal_attention(q, k, v, **options), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize(("border", "masked"), [("zeros", True), ("released", False)])
def test_weights_bring_the_output(readout, border, masked):
    q, k, v = _maps()
    mask = _mask() if masked else None
    queries = torch.tensor([[0, 0], [5, 4], [2, 3]])
    options = {"matches": 2, "patch_size": 3, "readout": readout, "border": border, "key_mask": mask, "scale": 0.2}
    indices, weights = psal_weights(q, k, queries, **options, generator=_generator())
    assert indices.shape == weights.shape == (2, 2, 3, 2 if readout == "centre" else 18)
    picked = (
        v.flatten(3).unsqueeze(3).expand(-1, -1, -1, 3, -1).gather(4, indices.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    )
    out = psal_attention(q, k, v, **options, generator=_generator())
    torch.testing.assert_close((picked * weights.unsqueeze(2)).sum(4), out[..., queries[:, 0], queries[:, 1]])
    assert (weights.sum(3) <= 1 + 1e-12).all()


def test_the_default_scale_is_one_and_none_counts_the_channels_compared():
    q, k, v = _maps()
    options = {"matches": 3, "patch_size": 3, "search": "exact"}

    def run(**others):
        return psal_attention(q, k, v, **options, **others)

    assert torch.equal(run(), run(scale=1.0))
    assert torch.equal(run(scale=None), run(scale=27**-0.5))
    assert torch.equal(run(scale=None, score="cosine"), run(scale=1.0, score="cosine"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_sweeps_are_refused_where_they_do_not_exist(kernel):
    with pytest.raises(RuntimeError, match=f"{kernel}.*sweep.*compiled"):
        psal_attention(*_maps(), patch_size=3, search="sweep", kernel=kernel)


def test_the_meta_device_gives_shapes_and_gradients():
    q, k, v = (x.to("meta").requires_grad_() for x in _maps())
    out = psal_attention(q, k, v, patch_size=3)
    assert (out.shape, out.device.type, out.dtype) == ((2, 2, 2, 6, 5), "meta", torch.float64)
    assert [x.shape for x in torch.autograd.grad(out.sum(), (q, k, v))] == [q.shape, k.shape, v.shape]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"matches": 36}, "matches=36 is more than the 35 keys of the 5x7 map. Valid here: 1 to 35"),
        ({"matches": 0}, "matches must be a whole number, 1 or more; got 0"),
        ({"iterations": -1}, "iterations must be a whole number, 0 or more"),
        ({"patch_size": 4}, "Valid here: 3 or 5"),
        ({"score": "l1"}, "Valid here: dot, l2, cosine, unit_key"),
        ({"readout": "mean"}, "Valid here: centre, aggregate, fold"),
        ({"border": "reflect"}, "Valid here: zeros, released"),
        ({"search": "walk"}, "Valid here: jump, sweep, exact"),
        ({"kernel": "fast"}, "Valid here: auto, .*torch, reference"),
        ({"scale": 0.0}, "scale must be a positive number"),
        ({"coarse_start": 1}, "coarse_start must be a whole number, 2 or more"),
        ({"coarse_start": 2, "search": "exact"}, "leave coarse_start None"),
        ({"fold_divisor": 3.0}, "belongs to readout='fold'"),
        ({"fold_divisor": 0.0, "readout": "fold"}, "fold_divisor must be a positive number"),
        ({"border": "released", "patch_size": 7}, "patches of 7 inside the query map of 6x5. Valid here: patch_size=5"),
        ({"border": "released", "patch_size": 5, "matches": 4}, "more than the 3 keys of the 5x7 map"),
    ],
)
def test_wrong_options_are_refused_with_the_valid_ones(options, words):
    with pytest.raises(ValueError, match=f"^psal: .*{words}"):
        psal_attention(*_maps(), **{"patch_size": 3, **options})


def test_a_mask_with_too_few_keys_is_refused():
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    mask[0, 0, 2, 3] = mask[1, 0, 1:3, 1:5] = True
    with pytest.raises(ValueError, match=r"matches=2 is more than the 1 keys that key_mask allows.*Valid here: 1 to 1"):
        psal_attention(*_maps(), patch_size=3, matches=2, key_mask=mask)
    assert torch.isfinite(psal_attention(*_maps(), patch_size=3, matches=1, key_mask=mask)).all()
    mask[0, 0, 2, 3], mask[0, 0, 0, 0] = False, True
    with pytest.raises(ValueError, match="keys whose patch lies inside the map"):
        psal_attention(*_maps(), patch_size=3, matches=1, key_mask=mask, border="released")


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2)])
@pytest.mark.parametrize("readout", READOUTS)
def test_tiny_maps_and_large_patches(size, readout):
    q, k, v = _maps(size, size)
    out = psal_attention(q, k, v, matches=1, patch_size=9, readout=readout, kernel="torch")
    assert out.shape == (2, 2, 2, *size)
    assert torch.isfinite(out).all()


@pytest.mark.slow
def test_reconstruction_errors_stand_in_the_papers_order():
    """Tables 2 and 3, a photograph rebuilt from a moved copy: aggregated, PSAL-3, then PSAL-1 and strided full."""
    photo = torch.from_numpy(np.ascontiguousarray(data.astronaut())).permute(2, 0, 1).unsqueeze(0).float() / 255
    k = F.interpolate(photo, (128, 128), mode="area")
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    grid = torch.stack([0.9 * x + 0.1 * torch.sin(2.5 * y + 0.3), 0.85 * y + 0.08 * torch.cos(3 * x)], -1)
    q = F.grid_sample(k, grid.unsqueeze(0), align_corners=True, padding_mode="reflection")

    def error(out):
        return float((out.view(q.shape) - q)[..., 3:-3, 3:-3].square().mean())

    def ours(**options):
        return error(psal_attention(q[None], k[None], k[None], iterations=10, generator=_generator(), **options))

    keys = F.unfold(k, 7, stride=2)[0]  # the paper's stride at 128
    values = k[..., 3:-3, 3:-3][..., ::2, ::2].flatten(2)[0]
    parts = F.unfold(q, 7, padding=3)[0].T.split(2048)
    strided = [values @ torch.softmax(-torch.cdist(part, keys.T).square(), 1).T for part in parts]
    aggregated, three, one = ours(matches=1, readout="aggregate"), ours(matches=3), ours(matches=1)
    assert aggregated < three < one
    assert three < error(torch.cat(strided, 1))
