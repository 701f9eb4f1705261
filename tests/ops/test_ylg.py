"""Your Local GAN attention against a masked dense product in float64: outputs, all gradients, and what it may hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oracles.ylg_loops import mask_loops, masked_dense
from saccade.ops.dispatch import double_backward, ledger, reset_ledger
from saccade.ops.patches import patchify
from saccade.ops.ylg import KERNELS, ylg_attention, ylg_weights
from saccade.ops.ylg import structured as ylg_structured
from saccade.ops.ylg.patterns import HEADS, PATTERNS, Pattern

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from attention_bench.measure import cpu_peak_bytes

TOLERANCE = 1e-12  # relative to the largest entry of the expected tensor, or absolute where that is below 1
NAMES = [kernel.name for kernel in KERNELS]
GENERATOR_HEADS, DISCRIMINATOR_HEADS = (4, 16), (2, 8)  # channels of queries and keys, of values
GEOMETRIES = [((32, 32), (16, 16)), ((16, 16), (8, 8)), ((16, 16), (16, 16))]


def draw(q_size, kv_size, heads=8, channels=(3, 5), batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((channels[0], *q_size), (channels[0], *kv_size), (channels[1], *kv_size))
    maps = [torch.randn(batch, heads, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in maps]


def masks_of(patterns, q_size, kv_size, order="esa", mapping="released") -> Tensor:
    each = {name: mask_loops(name, q_size, kv_size, order, mapping) for name in dict.fromkeys(patterns)}
    return torch.stack([each[name] for name in patterns]).unsqueeze(0)


def with_gradients(out: Tensor, maps: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad((out * upstream.to(out.dtype)).sum(), maps)]


def assert_equal(got: list[Tensor], expected: list[Tensor], tolerance: float = TOLERANCE) -> None:
    for what, a, b in zip(("output", "dq", "dk", "dv"), got, expected, strict=True):
        assert a.shape == b.shape, what
        error = (a - b).abs().max().item()
        assert error <= tolerance * max(1.0, b.abs().max().item()), f"{what}: off by {error:.2e}"


@pytest.mark.parametrize("channels", [GENERATOR_HEADS, DISCRIMINATOR_HEADS], ids=["G", "D"])
@pytest.mark.parametrize(("q_size", "kv_size"), GEOMETRIES, ids=["1024-256", "256-64", "256-256"])
@pytest.mark.parametrize("kernel", NAMES)
def test_the_released_layer_in_float64(kernel, q_size, kv_size, channels):
    maps = draw(q_size, kv_size, channels=channels)
    masks = masks_of(HEADS["ylg"], q_size, kv_size)
    expected = with_gradients(masked_dense(*maps, masks), maps)
    assert_equal(with_gradients(ylg_attention(*maps, kernel=kernel), maps), expected)


@pytest.mark.parametrize("mapping", ["released", "tile", "nearest"])
@pytest.mark.parametrize(
    ("q_size", "kv_size"), [((8, 8), (4, 4)), ((5, 5), (5, 5)), ((6, 10), (3, 5)), ((4, 8), (2, 1)), ((9, 4), (3, 4))]
)
@pytest.mark.parametrize("kernel", ["structured", "gathered"])
def test_every_pattern_with_every_mapping(kernel, q_size, kv_size, mapping):
    maps = draw(q_size, kv_size, heads=len(PATTERNS))
    masks = masks_of(PATTERNS, q_size, kv_size, "esa", mapping)
    expected = with_gradients(masked_dense(*maps, masks), maps)
    out = ylg_attention(*maps, patterns=list(PATTERNS), mapping=mapping, kernel=kernel)
    assert_equal(with_gradients(out, maps), expected)


@pytest.mark.parametrize(
    ("q_size", "kv_size", "mapping"),
    [
        ((5, 7), (3, 4), "nearest"),  # cells of 1, 2, 4 queries
        ((3, 3), (4, 4), "nearest"),  # cells without queries
        ((6, 8), (4, 3), "released"),
        ((1, 1), (1, 1), "released"),
        ((2, 3), (1, 3), "tile"),
    ],
)
@pytest.mark.parametrize("kernel", NAMES)
def test_uneven_maps(kernel, q_size, kv_size, mapping):
    maps = draw(q_size, kv_size, heads=len(PATTERNS))
    masks = masks_of(PATTERNS, q_size, kv_size, "esa", mapping)
    expected = with_gradients(masked_dense(*maps, masks), maps)
    out = ylg_attention(*maps, patterns=list(PATTERNS), mapping=mapping, kernel=kernel)
    assert_equal(with_gradients(out, maps), expected)


def test_without_esa():
    maps = draw((8, 8), (4, 4))
    expected = masked_dense(*maps, masks_of(HEADS["ylg"], (8, 8), (4, 4), "row"))
    assert_equal(
        with_gradients(ylg_attention(*maps, order="row", kernel="structured"), maps), with_gradients(expected, maps)
    )


@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("kernel", NAMES)
def test_scores_and_patches(kernel, patch_size, score):
    maps = draw((8, 8), (4, 4))
    vectors = [patchify(x, patch_size) for x in maps[:2]]
    masks = masks_of(HEADS["ylg"], (8, 8), (4, 4))
    for scale in (0.7, None):
        width = 3 * patch_size**2
        factor = scale or (width**-0.5 if score in ("dot", "l2") else 1.0)
        expected = masked_dense(*vectors, maps[2], masks, score, factor)
        out = ylg_attention(*maps, score=score, scale=scale, patch_size=patch_size, kernel=kernel)
        assert_equal(with_gradients(out, maps), with_gradients(expected, maps))


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize(("q_size", "kv_size", "mapping"), [((6, 8), (3, 4), "tile"), ((5, 7), (3, 4), "nearest")])
def test_key_masks_leave_zeros_where_no_key_is_left(kernel, q_size, kv_size, mapping):
    maps = draw(q_size, kv_size, heads=len(PATTERNS))
    key_mask = torch.rand(2, 1, *kv_size, generator=torch.Generator().manual_seed(3)) > 0.6
    key_mask[..., -1, -1] = True
    masks = masks_of(PATTERNS, q_size, kv_size, "esa", mapping) & key_mask.flatten(2).unsqueeze(2)
    assert not masks.any(3).all()
    expected = with_gradients(masked_dense(*maps, masks), maps)
    out = ylg_attention(*maps, patterns=list(PATTERNS), mapping=mapping, key_mask=key_mask, kernel=kernel)
    assert_equal(with_gradients(out, maps), expected)


@pytest.mark.parametrize(("entries", "parts"), [(1, 9), (500, 3), (900, 2)])
def test_chunks_change_nothing(monkeypatch, entries, parts):
    maps = draw((6, 8), (3, 4), heads=len(PATTERNS), batch=3)
    key_mask = torch.rand(3, 1, 3, 4, generator=torch.Generator().manual_seed(3)) > 0.3
    options = {"patterns": list(PATTERNS), "mapping": "tile", "key_mask": key_mask}
    whole = {name: with_gradients(ylg_attention(*maps, **options, kernel=name), maps) for name in NAMES[:2]}
    monkeypatch.setattr("saccade.ops.ylg.structured.CHUNK_ENTRIES", entries)
    monkeypatch.setattr("saccade.ops.ylg.gathered.CHUNK_ENTRIES", entries)
    # the block heads are three, each with 4 blocks of 3 keys and 12 queries
    assert len(ylg_structured._parts(3, 3, 4 * 3 * 12, torch.device("cpu"))) == parts
    for name, expected in whole.items():
        assert_equal(with_gradients(ylg_attention(*maps, **options, kernel=name), maps), expected)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize(("q_size", "mapping"), [((2, 6), "tile"), ((3, 4), "nearest")])
def test_gradients_of_gradients(kernel, q_size, mapping):
    patterns = ["rtl1", "ltr2", "strided1_circular", "fixed2", "strided2"]
    maps = draw(q_size, (2, 3), heads=len(patterns), channels=(2, 2), batch=1)

    def call(*inputs):
        return ylg_attention(*inputs, patterns=patterns, mapping=mapping, kernel=kernel)

    assert torch.autograd.gradcheck(call, maps, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, maps, fast_mode=True)


def test_gradients_of_gradients_with_masks_distances_and_a_dense_head():
    patterns = ["rtl1", "ltr2", "dense"]
    maps = draw((2, 3), (2, 3), heads=len(patterns), channels=(2, 1), batch=1)
    key_mask = torch.tensor([[[[True, False, True], [True, True, False]]]])

    def call(*inputs):
        with double_backward():
            return ylg_attention(
                *inputs, patterns=patterns, mapping="tile", score="l2", key_mask=key_mask, kernel="structured"
            )

    assert torch.autograd.gradgradcheck(call, maps, fast_mode=True)


def diagonal_and_thirds(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.bool) | (torch.arange(n) % 3 == 0)


def test_a_users_pattern_gets_the_gathered_path_and_the_others_keep_theirs():
    patterns = ["ltr1", diagonal_and_thirds, "rtl2", Pattern("mine", diagonal_and_thirds)]
    maps = draw((8, 8), (4, 4), heads=4)
    reset_ledger()
    out = ylg_attention(*maps, patterns=patterns)
    entries = {entry["kernel"]: entry for entry in ledger() if entry["op"] == "ylg"}
    assert set(entries) == {"structured", "gathered"}
    assert "pattern 'mine' is a bare mask" in entries["gathered"]["skipped"]["structured"][1]
    rows = [cell // 8 % 2 * 8 + cell % 8 for cell in range(64)]  # released: number modulo 16
    order = sorted(range(16), key=lambda cell: (cell // 4 + cell % 4, cell // 4))
    rank = torch.argsort(torch.tensor(order))
    mine = diagonal_and_thirds(16)[rank][:, rank][rows]
    built_in = masks_of(["ltr1", "rtl2"], (8, 8), (4, 4))[0]
    masks = torch.stack([built_in[0], mine, built_in[1], mine]).unsqueeze(0)
    assert_equal(with_gradients(out, maps), with_gradients(masked_dense(*maps, masks), maps))
    with pytest.raises(RuntimeError, match="'diagonal_and_thirds' is a bare mask"):
        ylg_attention(*maps, patterns=patterns, kernel="structured")


def test_structured_is_what_runs_also_under_double_backward():
    maps = draw((4, 4), (2, 2))
    reset_ledger()
    with double_backward():
        ylg_attention(*maps)
    ylg_attention(*maps)
    assert [(entry["kernel"], entry["calls"]) for entry in ledger()] == [("structured", 2)]
    assert all(kernel.double_backward for kernel in KERNELS)


@pytest.mark.parametrize(
    ("options", "maps", "words"),
    [
        ({"patterns": "ltr9"}, {}, "no list of heads is called 'ltr9'"),
        ({"patterns": ["ltr1", "ltr2"]}, {}, "2 patterns for 8 heads: ltr1, ltr2"),
        ({"mapping": "shift"}, {}, "no mapping is called"),
        ({"order": "zigzag"}, {}, "no order is called"),
        ({"kernel": "flex"}, {}, "Valid here: auto, structured, gathered, reference"),
        ({"scale": 0.0}, {}, "scale must be a positive number"),
        ({"patch_size": 2}, {}, "patch_size must be an odd number"),
        ({"score": "angle"}, {}, "no score is called"),
        ({}, {"q_size": (5, 5)}, "not a whole multiple of key map 4x4"),
        ({"mapping": "tile"}, {"q_size": (8, 6)}, "not tiled by key map 4x4"),
        ({"patterns": [lambda n: torch.ones(n, n) < 0] * 8}, {}, "leaves token 0 of 16 no key"),
    ],
)
def test_wrong_calls_are_refused(options, maps, words):
    with pytest.raises(ValueError, match=words):
        ylg_attention(*draw(**{"q_size": (8, 8), "kv_size": (4, 4), **maps}), **options)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_bring_the_output(masked):
    patterns = [*PATTERNS, diagonal_and_thirds]
    q, k, v = draw((6, 8), (3, 4), heads=len(patterns))
    key_mask = torch.rand(2, 1, 3, 4, generator=torch.Generator().manual_seed(3)) > 0.4 if masked else None
    queries = torch.tensor([[0, 0], [5, 7], [3, 2]])
    options = {"patterns": patterns, "mapping": "nearest", "score": "l2", "patch_size": 3, "key_mask": key_mask}
    indices, weights = ylg_weights(q, k, queries, **options)
    assert indices.shape == weights.shape == (2, len(patterns), 3, 12)
    values = v.flatten(3).transpose(2, 3)  # (B, G, K, E)
    picked = values.unsqueeze(2).expand(-1, -1, 3, -1, -1).gather(3, indices.unsqueeze(4).expand(-1, -1, -1, -1, 5))
    brought = (weights.unsqueeze(4) * picked).sum(3).transpose(2, 3)  # (B, G, E, Q)
    out = ylg_attention(q, k, v, **options)
    torch.testing.assert_close(brought, out[..., queries[:, 0], queries[:, 1]], rtol=0, atol=1e-12)
    sparse, _ = ylg_weights(q[:, :2], k[:, :2], queries, patterns=["ltr1", "ltr2"])
    assert sparse.shape == (2, 2, 3, 5)  # l = 3: three or four summaries and the query's own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", NAMES)
def test_half_precision_maps_are_computed_in_float32(kernel, dtype):
    maps = draw((16, 16), (8, 8), channels=GENERATOR_HEADS, dtype=dtype)
    exact = ylg_attention(*(x.detach().double() for x in maps), kernel="reference")
    out = ylg_attention(*maps, kernel=kernel)
    assert out.dtype == dtype
    error = (out.double() - exact).abs().max().item()
    assert error <= torch.finfo(dtype).eps * exact.abs().max().item()
    assert all(grad.dtype == dtype for grad in torch.autograd.grad(out.float().sum(), maps))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = [x.detach().float() for x in maps]
        torch.testing.assert_close(ylg_attention(*full, kernel=kernel), exact.float(), rtol=0, atol=1e-5)


def test_plans_made_in_inference_mode_serve_training_and_strides_do_not_matter():
    maps = draw((6, 6), (3, 2), seed=4)
    with torch.inference_mode():
        first = ylg_attention(*maps, mapping="nearest")
    with_gradients(ylg_attention(*maps, mapping="nearest"), maps)
    strided = [x.detach().transpose(3, 4).contiguous().transpose(3, 4) for x in maps]
    assert torch.equal(ylg_attention(*strided, mapping="nearest"), first)
    assert ylg_attention(*(x.to("meta") for x in maps), mapping="nearest").device.type == "meta"


def test_batch_entries_do_not_see_each_other():
    maps = draw((8, 8), (4, 4), batch=3, seed=5)
    whole = ylg_attention(*maps)
    torch.testing.assert_close(torch.cat([ylg_attention(*(x[i : i + 1] for x in maps)) for i in range(3)]), whole)


def test_nothing_of_all_pairs_is_held():
    q_size, kv_size = (64, 64), (32, 32)
    maps = draw(q_size, kv_size, channels=GENERATOR_HEADS, batch=1, dtype=torch.float32)
    pairs_of_a_head = 4 * 4096 * 1024
    ylg_attention(*maps)  # plans are made once

    def step():
        out = ylg_attention(*maps)
        torch.autograd.grad(out, maps, out.detach())

    with torch.no_grad():
        assert cpu_peak_bytes(lambda: ylg_attention(*maps)) < 0.7 * pairs_of_a_head
    assert cpu_peak_bytes(step) < 0.9 * pairs_of_a_head  # eight dense heads would hold 8 and more of these
