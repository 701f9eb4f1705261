import subprocess
import sys

import pytest
import torch

from saccade.attention import FullAttention, GridPartitionedAttention, NoAttention
from saccade.attention.gpa import PAPER
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops import dense_attention, gpa_attention, gpa_coverage


def _maps(q_size=(16, 8), kv_size=(16, 8), qk=6, values=4, batch=2):
    generator = torch.Generator().manual_seed(0)

    def draw(channels, size):
        return torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)

    return draw(qk, q_size) * 2, draw(qk, kv_size) * 2, draw(values, kv_size)


def _heads(maps, heads):
    return [x.unflatten(1, (heads, -1)) for x in maps]


def _shape(q_size, kv_size=None, heads=1, channels=4):
    return AttentionShape(1, heads, channels, channels, Size(*q_size), Size(*(kv_size or q_size)))


@pytest.mark.parametrize("heads", [1, 2])
def test_full_is_dense_attention_with_heads_split_in_order(heads):
    maps = _maps()
    expected = dense_attention(*_heads(maps, heads), score="l2", kernel="reference").flatten(1, 2)
    torch.testing.assert_close(FullAttention(heads=heads)(*maps), expected)
    each = [
        FullAttention()(*(x.chunk(heads, 1)[g] for x in maps))  # a head is a run of channels
        for g in range(heads)
    ]
    torch.testing.assert_close(torch.cat(each, 1), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_gpa_derives_its_sizes_and_calls_the_op(heads):
    maps = _maps()
    mixer = GridPartitionedAttention(coarse=8, cells=2, keys_per_cell=3, heads=heads)
    expected = gpa_attention(
        *_heads(maps, heads), cells=Size(4, 2), keys_per_cell=3, coarse=Size(8, 4), score="l2"
    ).flatten(1, 2)
    assert torch.equal(mixer(*maps), expected)
    explicit = GridPartitionedAttention(coarse=(8, 4), cells=[4, 2], keys_per_cell=3, heads=heads)
    assert torch.equal(explicit(*maps), expected)


def test_defaults_are_the_released_layer_and_the_paper_is_a_preset():
    mixer = GridPartitionedAttention()
    assert (mixer.coarse, mixer.cells, mixer.keys_per_cell, mixer.heads) == (64, 32, 12, 1)
    assert (mixer.score, mixer.scale) == ("l2", None)
    paper = GridPartitionedAttention(coarse=8, cells=2, keys_per_cell=3, **PAPER)
    maps = _maps()
    options = {"cells": Size(4, 2), "keys_per_cell": 3, "coarse": Size(8, 4)}
    expected = gpa_attention(*_heads(maps, 1), **options, score="dot", scale=1.0).flatten(1, 2)
    assert torch.equal(paper(*maps), expected)


@pytest.mark.parametrize(
    ("q_size", "coarse", "cells"),
    [  # section 2.3 of the notes on the released layer, SHIERARCHY 64, splitM 32
        ((128, 128), (64, 64), (32, 32)),
        ((256, 256), (64, 64), (32, 32)),
        ((128, 64), (64, 32), (64, 32)),
        ((512, 256), (64, 32), (64, 32)),
        ((160, 160), (80, 80), (40, 40)),
        ((256, 176), (64, 44), (64, 44)),
        ((176, 256), (88, 128), (44, 64)),
        ((192, 192), (64, 64), (32, 32)),
    ],
)
def test_integer_sizes_follow_the_released_rule(q_size, coarse, cells):
    mixer = GridPartitionedAttention()
    assert mixer.reasons_against(_shape(q_size)) == []
    assert mixer.coarse_size(Size(*q_size)) == coarse
    assert mixer.cell_count(Size(*coarse)) == cells


@pytest.mark.parametrize(
    ("options", "q_size", "kv_size", "words"),
    [
        (
            {"coarse": (96, 80), "cells": (32, 32)},
            (96, 80),
            None,
            ["32x32", "80 is not a multiple of 32", "16x16, 8x8"],
        ),
        ({}, (32, 32), None, ["fewer rows than coarse=64", "32, 16, 8"]),
        ({}, (200, 101), None, ["factor 3", "coarse=200"]),
        ({"cells": 16}, (176, 256), None, ["square cells of 5", "11, 22, 44"]),
        ({"cells": 64}, (128, 64), None, ["cells=64", "Valid here: 32, 16, 8"]),
        ({}, (128, 128), (63, 64), ["key map 63x64 does not pool", "128x128"]),
    ],
)
def test_misfits_are_explained_with_the_nearest_choices(options, q_size, kv_size, words):
    mixer = GridPartitionedAttention(SlotSpec("up.96", 4, 4, 4, Size(*q_size), Size(*(kv_size or q_size))), **options)
    (reason,) = mixer.reasons_against(_shape(q_size, kv_size))
    for word in words:
        assert word in reason
    with pytest.raises(ValueError, match=r"^gpa, slot up\.96: ") as caught:
        mixer(torch.zeros(1, 4, *q_size), *(torch.zeros(1, 4, *(kv_size or q_size)) for _ in range(2)))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("q_size", "options", "option"),
    [
        ((96, 80), {"coarse": 48, "cells": 12}, "cells"),
        ((72, 48), {"coarse": 24, "cells": 3}, "cells"),
        ((72, 48), {"coarse": 24, "cells": 17}, "cells"),
        ((200, 101), {"coarse": 64}, "coarse"),
        ((200, 104), {"coarse": 64}, "coarse"),
        ((48, 96), {"coarse": 64}, "coarse"),
        ((96, 80), {"coarse": (24, 24)}, "coarse"),
        ((96, 80), {"coarse": 48, "cells": (32, 20)}, "cells"),
    ],
)
def test_the_choices_that_a_reason_offers_are_valid(q_size, options, option):
    (reason,) = GridPartitionedAttention(**options).reasons_against(_shape(q_size))
    offers = reason.split("Valid here: ")[1].rstrip(".").removeprefix("coarse=").split(", ")
    for offer in offers:
        value = tuple(map(int, offer.split("x"))) if "x" in offer else int(offer)
        changed = GridPartitionedAttention(**{"cells": (1, 1), **options, option: value})
        assert changed.reasons_against(_shape(q_size)) == [], offer


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mixer", [FullAttention(heads=2), GridPartitionedAttention(coarse=8, cells=2, heads=2)])
def test_weights_bring_the_output(mixer, masked):
    q, k, v = _maps()
    mask = torch.rand(2, 1, 16, 8, generator=torch.Generator().manual_seed(1)) > 0.5 if masked else None
    queries = torch.tensor([[0, 0], [15, 7], [5, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    assert indices.shape == weights.shape
    assert indices.shape[:3] == (2, 2, 3)
    values = v.unflatten(1, (2, 2)).flatten(3)  # (B, G, E, K)
    picked = values.unsqueeze(3).expand(-1, -1, -1, 3, -1).gather(4, indices.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    brought = (picked * weights.unsqueeze(2)).sum(4).flatten(1, 2)  # (B, G*E, Q)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[:, :, queries[:, 0], queries[:, 1]])


def test_none_brings_nothing():
    q, k, v = _maps(q_size=(4, 6))
    out = NoAttention(heads=2)(q, k, v)
    assert out.shape == (2, 4, 4, 6)
    assert not out.any()
    indices, weights = NoAttention(heads=2).weights(q, k, torch.tensor([[0, 1]]))
    assert indices.shape == weights.shape == (2, 2, 1, 0)
    assert NoAttention().reasons_against(_shape((3, 5))) == []


@pytest.mark.parametrize("mixer", [NoAttention(), FullAttention(), GridPartitionedAttention(coarse=8, cells=2)])
@pytest.mark.parametrize(
    "queries", [torch.tensor([[0, 8]]), torch.tensor([[-1, 0]]), torch.tensor([0, 1]), torch.tensor([[0.0, 1.0]])]
)
def test_queries_outside_the_map_are_refused(mixer, queries):
    with pytest.raises(ValueError, match="queries must"):
        mixer.weights(*_maps()[:2], queries)


def test_channels_must_split_into_heads():
    with pytest.raises(
        ValueError, match=r"full: 6 channels do not split into 4 heads. Valid numbers of heads here: 2, 3, 6"
    ):
        FullAttention(heads=4)(*_maps())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FullAttention(heads=0), "heads must be a whole number, 1 or more"),
        (lambda: FullAttention(heads=2.0), "heads must be a whole number, 1 or more"),
        (lambda: FullAttention(score="angle"), "no score is called 'angle'. Valid here: dot, l2, cosine, unit_key"),
        (lambda: FullAttention(scale=0.0), "scale must be a positive number"),
        (lambda: FullAttention(patch_size=4), "patch_size must be an odd number .* Valid here: 3 or 5"),
        (lambda: FullAttention(key_stride=0), "key_stride must be a whole number, 1 or more; got 0"),
        (lambda: FullAttention(keys="outside"), "no choice of keys is called 'outside'. Valid here: all, inside"),
        (lambda: FullAttention(kernel="flash"), "no kernel is called 'flash'. Valid here: auto, sdpa"),
        (lambda: GridPartitionedAttention(kernel="flash"), "no kernel is called 'flash'. Valid here: auto, recompute"),
        (lambda: GridPartitionedAttention(keys_per_cell=0), "keys_per_cell must be a whole number, 1 or more"),
        (lambda: GridPartitionedAttention(coarse=0), "gpa: coarse must be a whole number, 1 or more, or"),
        (lambda: GridPartitionedAttention(cells=(4, -1)), "gpa: cells must be a whole number"),
    ],
)
def test_wrong_options_are_named_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_costs_are_those_of_the_papers_tables():
    """Performance notes 2.1: Phase 1 at one pass 10.7 GFLOP at 128x128, Phase 2 1.0 forward and 2.5 backward."""
    shape = AttentionShape(1, 1, 320, 320, Size(128, 128), Size(128, 128))
    cost = GridPartitionedAttention().cost(shape)
    assert cost.forward_flops == 2 * 4096**2 * 320 + 4 * 16384 * 48 * 320
    assert cost.backward_flops == 10 * 16384 * 48 * 320
    assert cost.saved_bytes == 8 * 1024 * 12
    full = FullAttention().cost(shape)
    assert full.forward_flops == 4 * 16384**2 * 320
    assert NoAttention().cost(shape).forward_flops == 0
    with pytest.raises(ValueError, match="fewer rows"):
        GridPartitionedAttention().cost(_shape((32, 32)))


def test_coverage_of_the_module_is_that_of_the_op():
    q, k, _ = _maps()
    mixer = GridPartitionedAttention(coarse=8, cells=2, keys_per_cell=3)
    expected = gpa_coverage(
        q.unsqueeze(1), k.unsqueeze(1), cells=Size(4, 2), keys_per_cell=3, coarse=Size(8, 4), score="l2"
    )
    torch.testing.assert_close(mixer.coverage(q, k), expected)


def test_import_needs_torch_alone_and_compiles_nothing():
    code = (
        "import sys, saccade.attention, saccade.ops\n"
        "heavy = ('pytorch_lightning', 'hydra', 'wandb', 'torchmetrics', 'lpips', 'triton', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules], 'torch._inductor' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[] False"
