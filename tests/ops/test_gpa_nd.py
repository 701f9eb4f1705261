"""Sequences, images and video volumes against loops that know no layout: outputs and gradients in float64."""

import math

import pytest
import torch

from oracles.gpa_nd_loops import gpa_nd_loops
from saccade.ops import dense_attention, gpa_attention, gpa_select, gpa_weights
from saccade.ops.gpa import layout as gpa_layout

CASES = {
    "sequence": {"q": (12,), "k": (18,), "coarse": (6,), "cells": (3,), "keys_per_cell": 3},
    "image": {"q": (6, 8), "k": (4, 6), "coarse": (3, 4), "cells": (3, 2), "keys_per_cell": 2},
    "volume": {"q": (4, 4, 2), "k": (2, 8, 4), "coarse": (2, 2, 1), "cells": (2, 1, 1), "keys_per_cell": 2},
    "odd volume": {"q": (3, 3, 4), "k": (3, 6, 2), "coarse": (3, 1, 2), "cells": (1, 1, 2), "keys_per_cell": 4},
}
IMAGE = {name: value for name, value in CASES["image"].items() if name not in ("q", "k")}
each_case = pytest.mark.parametrize("case", CASES)


def draw(*shape, gain=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (gain * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def setup(case, channels=3, values=2):
    options = dict(CASES[case])
    q_size, k_size = options.pop("q"), options.pop("k")
    maps = draw(1, 2, channels, *q_size, gain=2, seed=1), draw(1, 2, channels, *k_size, gain=2, seed=2)
    return (*maps, draw(1, 2, values, *k_size, seed=3)), options


def mask_of(k):
    mask = torch.rand(1, 1, *k.shape[3:], generator=torch.Generator().manual_seed(4)) > 0.5
    mask.flatten(2)[..., -1] = True
    return mask


def assert_same(found, expected, maps, atol=1e-12):
    upstream = draw(*expected.shape, seed=9).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    for one, other in zip(
        *(torch.autograd.grad(out, maps, upstream, retain_graph=True) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=atol * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score", ["dot", "l2"])
@each_case
def test_maps_of_any_axes_match_the_loops(case, score, masked):
    maps, options = setup(case)
    mask = mask_of(maps[1]) if masked else None
    loops = gpa_nd_loops(*maps, key_mask=mask, score=score, **options)
    assert loops.smallest_gap > 1e-9
    for kernel in ("recompute", "reference"):
        found = gpa_attention(*maps, key_mask=mask, score=score, kernel=kernel, **options)
        assert_same(found, loops.output, maps)


def test_chunks_do_not_change_the_result(monkeypatch):
    maps, options = setup("volume")
    expected = gpa_attention(*maps, kernel="reference", **options)
    monkeypatch.setitem(gpa_layout.CHUNK_ENTRIES, "cpu", 100)
    monkeypatch.setitem(gpa_layout.WEIGHT_ENTRIES, "cpu", 100)
    assert_same(gpa_attention(*maps, kernel="recompute", **options), expected, maps)


@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
@each_case
def test_all_keys_is_dense_attention(case, score):
    maps, options = setup(case)
    options["keys_per_cell"] = 999
    lines = [x.flatten(3).unsqueeze(3) for x in maps]
    dense = dense_attention(*lines, score=score, kernel="reference").squeeze(3)
    found = gpa_attention(*maps, score=score, **options)
    torch.testing.assert_close(found.flatten(3), dense, rtol=0, atol=1e-12)


@each_case
def test_weights_bring_the_output_and_name_pixels_of_the_map(case):
    maps, options = setup(case)
    mask, generator = mask_of(maps[1]), torch.Generator().manual_seed(0)
    places = torch.stack([torch.randint(side, (5,), generator=generator) for side in maps[0].shape[3:]], 1)
    out = gpa_attention(*maps, key_mask=mask, **options)
    pixels, weights = gpa_weights(*maps[:2], places, key_mask=mask, **options)
    values = maps[2].flatten(3).unsqueeze(3).expand(-1, -1, -1, 5, -1)
    picked = values.gather(4, pixels.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close((picked * weights.unsqueeze(2)).sum(4), out[(..., *places.T)], rtol=0, atol=1e-12)


def test_a_volume_of_one_frame_is_the_image():
    maps, options = setup("image")
    for name in ("coarse", "cells"):
        options[name] = (1, *options[name])
    expected = gpa_attention(*maps, **{**IMAGE, "score": "l2"})
    found = gpa_attention(*(x.unsqueeze(3) for x in maps), score="l2", **options)
    torch.testing.assert_close(found.squeeze(3), expected, rtol=0, atol=1e-12)
    assert torch.equal(
        gpa_select(*(x.unsqueeze(3) for x in maps[:2]), score="l2", **options),
        gpa_select(*maps[:2], **{**IMAGE, "score": "l2"}),
    )


def test_time_may_be_pooled_otherwise_than_space():
    """The paper's outlook: a video volume (frames, rows, cols) pooled by (2, 4, 4)."""
    q, k, v = draw(1, 1, 4, 4, 16, 16, gain=2), draw(1, 1, 4, 4, 16, 16, gain=2, seed=1), draw(1, 1, 2, 4, 16, 16)
    options = {"coarse": (2, 4, 4), "cells": (2, 2, 2), "keys_per_cell": 3}
    out = gpa_attention(q, k, v, **options)
    assert out.shape == v.shape
    chosen = gpa_select(q, k, **options)
    assert chosen.shape == (1, 1, 8, 3)
    assert math.prod((2, 4, 4)) > int(chosen.max())
    assert len({tuple(row) for row in chosen.flatten(0, 2).tolist()}) > 4


@pytest.mark.parametrize("case", ["sequence", "odd volume"])
def test_meta_device_and_half_precision(case):
    maps, options = setup(case)
    assert gpa_attention(*(x.detach().to("meta") for x in maps), **options).shape == (1, 2, 2, *maps[0].shape[3:])
    half = [x.detach().to(torch.bfloat16) for x in maps]
    exact = gpa_attention(*(x.double() for x in half), **options)
    found = gpa_attention(*half, **options)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coarse": (2, 2)}, r"coarse must be 3 positive integers, one for each axis"),
        ({"cells": (2, 1, 0)}, r"cells must be 3 positive integers"),
        ({"coarse": (2, 3, 1)}, r"along axis 1 4 queries and 8 keys do not pool to 3 .* Valid here: 4, 2, 1"),
        ({"cells": (2, 1, 4)}, r"along axis 2 1 coarse queries do not split into 4 cells. Valid here: 1"),
        ({"keys_per_cell": 0}, r"keys_per_cell must be a whole number, 1 or more"),
        ({"patch_size": 3}, r"patches are for maps of two axes; these have 3"),
        ({"key_mask": torch.ones(1, 1, 4, 4, 2, dtype=torch.bool)}, r"key_mask must be of shape \(1, 1, 2, 8, 4\)"),
        ({"causal": True}, r"causal attention needs maps of one size"),
    ],
)
def test_misfits_name_the_axis_and_the_nearest_choices(change, message):
    maps, options = setup("volume")
    with pytest.raises(ValueError, match=message):
        gpa_attention(*maps, **{**options, **change})


def test_maps_must_have_the_same_axes():
    q, k, v = setup("volume")[0]
    options = setup("volume")[1]
    with pytest.raises(ValueError, match=r"v .* must have 3 spatial axes"):
        gpa_attention(q, k, v[..., 0], **options)
    with pytest.raises(ValueError, match=r"must be \(B, G, channels, rows, cols\)"):
        gpa_attention(q.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-1), **options)
