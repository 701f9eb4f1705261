"""Options and stated costs of the full and the gpa backend, checked against what PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from saccade.attention import FullAttention, GridPartitionedAttention
from saccade.geometry import AttentionShape, Size
from saccade.ops import dense_attention, gpa_attention

SIDE, QK, VALUES, BATCH = 16, 5, 3, 2
GPA = {"coarse": 8, "cells": 4, "keys_per_cell": 5}

COSTED = {
    **{
        f"full {kernel} p{p} {score} s{s}": FullAttention(
            heads=2, kernel=kernel, patch_size=p, score=score, key_stride=s
        )
        for kernel in ("chunked", "sdpa", "auto")
        for p, s in ((1, 1), (1, 2), (3, 1), (3, 2))
        for score in ("dot", "l2", "cosine")
    },
    **{
        f"full boxes p3 {score} {keys}": FullAttention(heads=2, kernel="boxes", patch_size=3, score=score, keys=keys)
        for score in ("dot", "l2", "cosine", "unit_key")
        for keys in ("all", "inside")
    },
    **{
        f"gpa {chosen} p{p} {score}": GridPartitionedAttention(
            heads=2, selection=chosen, patch_size=p, score=score, **GPA
        )
        for chosen in ("hard", "soft")
        for p in (1, 3)
        for score in ("dot", "l2", "cosine", "unit_key")
    },
    "gpa causal": GridPartitionedAttention(causal=True, heads=2, **GPA),
    "gpa causal of all": GridPartitionedAttention(causal=True, **{**GPA, "keys_per_cell": 99}),
    "gpa of all": GridPartitionedAttention(**{**GPA, "keys_per_cell": 99}),
    "gpa soft of all": GridPartitionedAttention(selection="soft", **{**GPA, "keys_per_cell": 99}),
    "gpa soft of five": GridPartitionedAttention(selection="soft", candidates=5, **GPA),
}


def maps_of(mixer):
    generator = torch.Generator().manual_seed(0)
    channels = (QK * mixer.heads, QK * mixer.heads, VALUES * mixer.heads)
    return [torch.randn(BATCH, c, SIDE, SIDE, generator=generator).requires_grad_() for c in channels]


def cost_of(mixer):
    size = Size(SIDE, SIDE)
    return mixer.cost(AttentionShape(BATCH, mixer.heads, QK, VALUES, size, size))


@pytest.mark.parametrize("name", [name for name in COSTED if "sdpa" not in name and "auto" not in name])
def test_flops_are_those_that_the_profiler_counts(name):
    mixer = COSTED[name]
    maps = maps_of(mixer)
    with FlopCounterMode(display=False) as forward:
        out = mixer(*maps)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    cost = cost_of(mixer)
    assert forward.get_total_flops() == pytest.approx(cost.forward_flops, rel=0.05)
    assert backward.get_total_flops() == pytest.approx(cost.backward_flops, rel=0.05)


@pytest.mark.parametrize("name", COSTED)
def test_saved_bytes_are_those_that_autograd_keeps(name):
    mixer = COSTED[name]
    maps, kept = maps_of(mixer), {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = mixer(*maps)
    inputs = {x.untyped_storage().data_ptr() for x in maps}
    found = sum(x.untyped_storage().nbytes() for at, x in kept.items() if at not in inputs)
    expected = cost_of(mixer).saved_bytes
    assert out.requires_grad
    assert found == pytest.approx(expected, rel=0.05)


def test_full_passes_its_options_on():
    q, k, v = (x.detach() for x in maps_of(FullAttention()))
    options = {"score": "unit_key", "scale": 2.0, "patch_size": 3, "key_stride": 2, "keys": "inside"}
    expected = dense_attention(*(x.unsqueeze(1) for x in (q, k, v)), **options)
    mixer = FullAttention(**options)
    torch.testing.assert_close(mixer(q, k, v), expected.squeeze(1))
    for name, value in options.items():
        assert f"{name}={value}" in repr(mixer)
    assert mixer.cost(AttentionShape(1, 1, QK, VALUES, Size(16, 16), Size(16, 16))).forward_flops == (
        2 * 256 * 7 * 7 * (9 * QK + VALUES)
    )


def test_full_says_where_no_patch_fits():
    mixer = FullAttention(patch_size=7, keys="inside")
    (reason,) = mixer.reasons_against(AttentionShape(1, 1, 4, 4, Size(16, 16), Size(16, 6)))
    assert "key map 16x6 holds no whole 7x7 patch" in reason
    assert mixer.reasons_against(AttentionShape(1, 1, 4, 4, Size(3, 3), Size(7, 7))) == []
    with pytest.raises(ValueError, match=reason[:40]):
        mixer(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 6), torch.zeros(1, 4, 16, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"score": "cosine", "patch_size": 3},
        {"score": "unit_key", "scale": 3.0},
        {"causal": True},
        {"selection": "soft", "temperature": 0.7, "candidates": 9},
    ],
)
def test_gpa_passes_its_options_on(options):
    q, k, v = (x.detach() for x in maps_of(FullAttention()))
    mixer = GridPartitionedAttention(**{"score": "dot", **GPA, **options})
    sizes = {"coarse": (8, 8), "cells": (4, 4), "keys_per_cell": 5}
    expected = gpa_attention(*(x.unsqueeze(1) for x in (q, k, v)), **sizes, **options).squeeze(1)
    torch.testing.assert_close(mixer(q, k, v), expected)
    for name, value in options.items():
        assert f"{name}={value}" in repr(mixer)
    places = torch.tensor([[0, 0], [15, 3]])
    indices, weights = mixer.weights(q, k, places)
    picked = v.flatten(2)[:, None, :, None].expand(-1, -1, -1, 2, -1).gather(
        4, indices.unsqueeze(2).expand(-1, -1, VALUES, -1, -1)
    )  # fmt: skip
    brought = (picked * weights.unsqueeze(2)).sum(4).squeeze(1)
    torch.testing.assert_close(brought, expected[:, :, places[:, 0], places[:, 1]])


def test_soft_training_and_hard_testing_share_a_state_dict():
    soft, hard = (GridPartitionedAttention(selection=selection, **GPA) for selection in ("soft", "hard"))
    assert soft.state_dict() == hard.state_dict() == {}


def test_causal_reasons_name_both_maps():
    mixer = GridPartitionedAttention(causal=True, **GPA)
    (reason,) = mixer.reasons_against(AttentionShape(1, 1, 4, 4, Size(16, 16), Size(16, 8)))
    assert reason == "causal attention needs maps of one size; the query map is 16x16, the key map 16x8."
