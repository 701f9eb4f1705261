"""Masks against counts and fingerprints of the released arrays, and what every grid must keep: Full Information."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from oracles.ylg_loops import esa_cells, hilbert_cells, mask_loops, token_mask
from saccade.geometry import Size
from saccade.ops.ylg.patterns import (
    HEADS,
    MAPPINGS,
    ORDERS,
    PATTERNS,
    Pattern,
    grid_mask,
    key_cells,
    mapping_reasons,
    order_of,
    read_pattern,
    read_patterns,
    stride_of,
    ylg_mask,
)

# sha256 of np.packbits of the bool array, first 16 digits: n = 9, 64, 256 on a line; ESA grids 4x4, 8x8, 16x16; and
# 32x32 queries on 16x16 keys. The arrays of the first five and of strided1, strided2 are the released code's.
FINGERPRINTS = {
    "ltr1": "3f763939a5c13d2a 88897f9eba9593f3 5658238a77f477d7 22db640fb3b5c54d 9ea95b164e7f57a1 e6a811da016493ff "
    "7706f13790caded9",
    "ltr2": "e0906c6ef0efa1a4 eaab70280b2f21fc f2619ab09bfa8547 fa8d3b57b83cc6a0 00a437588dfa6045 944e1d3d1d027da9 "
    "4811a1d92c46e8b0",
    "rtl1": "7caf9b318fe63cbc d9184dafeffe1c37 30c5a378acb5f46c a66b1935d437c0b1 30c6a2969409f57d 60f43a6dd0980ea0 "
    "e36cf908cd9214a5",
    "rtl2": "f11ce010fd8db079 4db0448e66489431 ff1ef0973c11fbfa 1dc0a482c3dae578 34e61def34d91255 a703f62d7af04151 "
    "d5b6440f1ac3c574",
    "strided1": "daa77bc70b2dff76 9905172fbaa0d0f0 1efc468f08ff1d1f 2bb879a731c7646d 43436708be7a5836 "
    "16ccee24966e2e2c bbe294ed1c9e64c9",
    "strided2": "9a9d4946151cdab4 d4d8f8710719dd7c a5f2558673ebbf63 c4a39aedd1ebacb2 3dd9e67fe38ae6f5 "
    "86c89fbb2d274914 e3cf497f983714e9",
    "strided1_two_sided": "c0878830f51db511 9aff3f3020688034 3d6791328fda90fb 19f0cf7ce07a2846 ecdcd76beededa42 "
    "81aa5f6a952cf162 56ccfa42804adaa0",
    "strided1_circular": "9ab126df17562f9d 7f501c6312b05a86 754152c224a8c780 e810f0fe276a08e1 cf548235cbc786f9 "
    "f39e54a955c78f95 6164f4f24a375d99",
    "fixed2": "e46446995f04907f e55cf0a97f069bfc 9f85352ca8a295f4 47e9b2411869fd41 fbf3489841a25f5c 78dd57f272fd4427 "
    "7df1cfdfc4b40722",
}
STACKS = {  # eight heads at 32x32 on 16x16: fingerprint and number of pairs
    ("ylg", "esa"): ("cd18cbb2565c85de", 104192),
    ("ylg", "row"): ("d767a85c6f5e30e3", 104192),
    ("strided_released", "esa"): ("2a7dc3f4c61370c4", 129152),
    ("strided", "esa"): ("be9c862343bbd613", 188672),
    ("strided_circular", "esa"): ("1e46a4d757f86aed", 131072),
}
PAIRS = {  # (|M1|, |M2|, |M1 or M2|, |M1 and M2|) at n = 9, 16, 64, 256, 1024
    ("ltr1", "ltr2"): [
        (18, 33, 42, 9),
        (40, 76, 100, 16),
        (288, 568, 792, 64),
        (2176, 4336, 6256, 256),
        (16896, 33760, 49632, 1024),
    ],
    ("fixed1", "fixed2"): [
        (18, 18, 27, 9),
        (40, 40, 64, 16),
        (288, 288, 512, 64),
        (2176, 2176, 4096, 256),
        (16896, 16896, 32768, 1024),
    ],
    ("strided1", "strided2_causal"): [
        (24, 18, 33, 9),
        (58, 40, 82, 16),
        (484, 288, 708, 64),
        (3976, 2176, 5896, 256),
        (32272, 16896, 48144, 1024),
    ],
    ("strided1", "strided2"): [
        (24, 27, 42, 9),
        (58, 64, 106, 16),
        (484, 512, 932, 64),
        (3976, 4096, 7816, 256),
        (32272, 32768, 64016, 1024),
    ],
    ("strided1_two_sided", "strided2"): [
        (39, 27, 57, 9),
        (100, 64, 148, 16),
        (904, 512, 1352, 64),
        (7696, 4096, 11536, 256),
        (63520, 32768, 95264, 1024),
    ],
    ("strided1_circular", "strided2"): [
        (27, 27, 45, 9),
        (64, 64, 112, 16),
        (512, 512, 960, 64),
        (4096, 4096, 7936, 256),
        (32768, 32768, 64512, 1024),
    ],
}
PAIRS["rtl1", "rtl2"] = PAIRS["ltr1", "ltr2"]
FULL = [("ltr1", "ltr2"), ("rtl1", "rtl2"), ("strided1_two_sided", "strided2"), ("strided1_circular", "strided2")]
G, K = Size(32, 32), Size(16, 16)


def fingerprint(mask: Tensor) -> str:
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()[:16]


def missing(first: str, second: str, n: int) -> int:
    """Pairs of tokens without a path: information moves from a key to the queries that attend it."""
    paths = PATTERNS[second](n).double() @ PATTERNS[first](n).double()
    return int((paths == 0).sum())


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_masks_are_the_released_ones_bit_by_bit(name):
    masks = [PATTERNS[name](n) for n in (9, 64, 256)]
    masks += [grid_mask(name, Size(side, side)) for side in (4, 8, 16)]
    masks.append(ylg_mask(name, G, K))
    assert [fingerprint(mask) for mask in masks] == FINGERPRINTS[name].split()


@pytest.mark.parametrize(("heads", "order"), STACKS)
def test_stacks_of_heads_are_the_released_ones(heads, order):
    stack = torch.stack([ylg_mask(name, G, K, order) for name in HEADS[heads]])
    assert (fingerprint(stack), int(stack.sum())) == STACKS[heads, order]


def test_the_eight_heads_together_leave_every_query_46_keys():
    seen = torch.stack([ylg_mask(name, G, K) for name in HEADS["ylg"]]).any(0).sum(1)
    assert seen.unique().tolist() == [46]
    assert int(seen.sum()) == 47104


@pytest.mark.parametrize("pair", PAIRS)
def test_counts_of_pairs(pair):
    for n, counts in zip((9, 16, 64, 256, 1024), PAIRS[pair], strict=True):
        first, second = (PATTERNS[name](n) for name in pair)
        assert tuple(int(m.sum()) for m in (first, second, first | second, first & second)) == counts, n


def test_the_longest_rows_of_ltr_and_rtl():
    for n, longest in ((9, (3, 4)), (16, (4, 5)), (256, (16, 17)), (1024, (32, 33))):
        for pair in (("ltr1", "ltr2"), ("rtl1", "rtl2")):
            assert tuple(int(PATTERNS[name](n).sum(1).max()) for name in pair) == longest


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 12, 25, 40])
def test_patterns_against_loops(name, n):
    assert torch.equal(PATTERNS[name](n), token_mask(name, n))


@pytest.mark.parametrize("pair", FULL)
@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 12, 15, 23, 64, 128, 256])
def test_every_token_reaches_every_other_whatever_their_number(pair, n):
    assert missing(*pair, n) == 0


@pytest.mark.parametrize(
    ("pair", "counts"),
    [
        (("ltr2", "ltr1"), (39, 156, 3304, 59280)),
        (("fixed1", "fixed2"), (36, 120, 2016, 32640)),
        (("strided1", "strided2_causal"), (36, 120, 2016, 32640)),
        (("strided1", "strided2"), (9, 24, 224, 1920)),
        (("strided2", "strided1"), (9, 24, 224, 1920)),
        (("strided2", "strided1_two_sided"), (0, 0, 0, 0)),
        (("strided2", "strided1_circular"), (0, 0, 0, 0)),
    ],
)
def test_paths_that_are_missing(pair, counts):
    assert tuple(missing(*pair, n) for n in (9, 16, 64, 256)) == counts


def test_a_partial_block_without_its_own_summary_would_break_the_paths():
    for n, lost in ((10, 9), (128, 868)):
        l = stride_of(n)  # noqa: E741
        tokens = torch.arange(n)
        second = (tokens % l == l - 1).unsqueeze(0) | torch.eye(n, dtype=torch.bool)
        assert int((second.double() @ PATTERNS["ltr1"](n).double() == 0).sum()) == lost
    assert PATTERNS["ltr2"](10)[0].nonzero().flatten().tolist() == [0, 2, 5, 8, 9]
    assert PATTERNS["rtl2"](10)[1].nonzero().flatten().tolist() == [0, 1, 3, 6, 9]


ESA_HASHES = {4: "cd057be0cad81076", 8: "9497e6b21ed47b24", 16: "5cf1204c36d958bb", 32: "6914d40969a5584e"}


@pytest.mark.parametrize("side", ESA_HASHES)
def test_esa_order(side):
    order = order_of(Size(side, side))
    assert hashlib.sha256(order.numpy().astype("<i2").tobytes()).hexdigest()[:16] == ESA_HASHES[side]


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 3), (1, 7), (8, 16)])
def test_esa_order_of_any_grid(size):
    assert order_of(Size(*size)).tolist() == esa_cells(*size)


def test_esa_order_in_the_open():
    assert order_of(Size(4, 4)).tolist() == [0, 1, 4, 2, 5, 8, 3, 6, 9, 12, 7, 10, 13, 11, 14, 15]
    row = grid_mask("ltr1", K)[3 * 16 + 4].nonzero().squeeze(1).tolist()
    cells = "(0,6) (0,7) (1,4) (1,5) (1,6) (2,3) (2,4) (2,5) (3,2) (3,3) (3,4) (4,1) (4,2) (5,0) (5,1) (6,0)"
    assert row == [int(r) * 16 + int(c) for r, c in (cell.strip("()").split(",") for cell in cells.split())]


@pytest.mark.parametrize("side", [4, 8, 16])
def test_hilbert_order_walks_the_curve(side):
    assert order_of(Size(side, side), "hilbert").tolist() == hilbert_cells(side)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (6, 4), (8, 8)])
def test_orders_visit_every_cell_once(order, size):
    assert sorted(order_of(Size(*size), order).tolist()) == list(range(size[0] * size[1]))


@pytest.mark.parametrize(
    ("mapping", "q_size", "kv_size"),
    [
        ("released", (32, 32), (16, 16)),
        ("released", (6, 8), (4, 3)),
        ("tile", (32, 32), (16, 16)),
        ("tile", (6, 5), (3, 5)),
        ("nearest", (32, 32), (16, 16)),
        ("nearest", (5, 7), (3, 4)),
        ("nearest", (3, 3), (4, 4)),
    ],
)
def test_mappings_against_loops(mapping, q_size, kv_size):
    for name in ("rtl1", "ltr2"):
        assert torch.equal(
            ylg_mask(name, q_size, kv_size, "esa", mapping), mask_loops(name, q_size, kv_size, "esa", mapping)
        )


def test_what_the_mappings_bring_near():
    """Mean distance of query and key, in key cells and step-1 heads, and how many queries see the cell under them."""
    known = {"released": (7.36, 0.050), "tile": (7.14, 0.049), "nearest": (4.83, 1.0)}
    rows, cols = torch.arange(1024) // 32, torch.arange(1024) % 32
    under = (rows // 2) * 16 + cols // 2
    keys = torch.arange(256)
    near = torch.hypot(
        (rows.unsqueeze(1) + 0.5) / 2 - (keys // 16 + 0.5), (cols.unsqueeze(1) + 0.5) / 2 - (keys % 16 + 0.5)
    )
    for mapping in MAPPINGS:
        masks = [ylg_mask(name, G, K, "esa", mapping) for name in ("ltr1", "rtl1")]
        distance = sum(float(near[mask].sum()) for mask in masks) / sum(int(mask.sum()) for mask in masks)
        share = float(masks[0][torch.arange(1024), under].double().mean())
        assert distance == pytest.approx(known[mapping][0], abs=0.005)
        assert share == pytest.approx(known[mapping][1], abs=0.001)


@pytest.mark.parametrize(
    ("mapping", "q_size", "kv_size", "offers"),
    [
        ("released", (5, 5), (4, 4), ["mapping='nearest'", "query map 4x4"]),
        ("released", (3, 3), (4, 4), ["mapping='nearest'", "query map 4x4"]),
        ("tile", (8, 6), (4, 4), ["mapping='released'", "mapping='nearest'", "query map 8x4"]),
        ("tile", (7, 4), (4, 4), ["mapping='nearest'", "query map 8x4"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_what_would(mapping, q_size, kv_size, offers):
    if mapping == "tile" and q_size == (8, 6):  # 48 = 3 * 16
        assert not mapping_reasons(Size(*q_size), Size(*kv_size), "released")
    with pytest.raises(ValueError, match=r"Valid here: ") as caught:
        key_cells(Size(*q_size), Size(*kv_size), mapping)
    assert str(caught.value).split("Valid here: ")[1].rstrip(".").split(", ") == offers
    for offer in offers:
        if offer.startswith("mapping="):
            assert key_cells(Size(*q_size), Size(*kv_size), offer.split("'")[1]).shape == (q_size[0] * q_size[1],)
        else:
            size = Size(*map(int, offer.split()[-1].split("x")))
            assert mapping_reasons(size, Size(*kv_size), mapping) == []


def test_users_add_patterns_by_a_function():
    def diagonal(n):
        return torch.eye(n, dtype=torch.bool)

    assert read_pattern(diagonal).name == "diagonal"
    assert torch.equal(grid_mask(diagonal, Size(3, 3)), torch.eye(9, dtype=torch.bool))
    from_numpy = Pattern("lower", lambda n: np.tri(n, dtype=bool))
    assert torch.equal(grid_mask(from_numpy, Size(2, 2), "row"), torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: read_pattern("ltr3"), "no pattern is called 'ltr3'. Valid here: ltr1, ltr2"),
        (lambda: read_pattern(3), "no pattern is called 3"),
        (lambda: read_patterns("ylgs"), "no list of heads is called 'ylgs'. Valid here: ylg, ltr"),
        (lambda: read_patterns([]), "at least one head"),
        (lambda: order_of(Size(2, 2), "zigzag"), "no order is called 'zigzag'. Valid here: esa, hilbert, row"),
        (lambda: mapping_reasons(G, K, "shift"), "no mapping is called 'shift'. Valid here: released, tile, nearest"),
        (lambda: Pattern("floats", torch.eye)(4), "must give a bool mask of shape \\(4, 4\\) for n=4"),
        (lambda: Pattern("short", lambda n: torch.ones(n, 2) > 0)(4), "got torch.bool of shape \\(4, 2\\)"),
        (lambda: Pattern("strict", lambda n: torch.ones(n, n).tril(-1) > 0)(4), "'strict' leaves token 0 of 4 no key"),
        (lambda: Pattern("half", torch.eye, form="block"), "needs its rule too"),
    ],
)
def test_wrong_patterns_and_names_are_explained(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_patterns_do_not_depend_on_the_callers_mode():
    with torch.inference_mode(), torch.device("meta"):
        mask = ylg_mask("rtl2", (4, 4), (2, 2))
        order = order_of(Size(4, 4), "hilbert")
    assert mask.device.type == order.device.type == "cpu"
    assert not order.is_inference()
