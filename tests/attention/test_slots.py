from functools import partial

import pytest
import torch
from torch import nn

from saccade.attention import (
    AttentionBlock,
    FullAttention,
    GridPartitionedAttention,
    NoAttention,
    SlotPolicy,
    SpatialAttention,
)
from saccade.geometry import Size, SlotSpec


def _specs(*sizes, channels=6):
    return [
        SlotSpec(f"up.{rows}", channels, channels, channels, Size(rows, cols), Size(rows, cols)) for rows, cols in sizes
    ]


class _Drawing(FullAttention):
    """A backend with parameters of its own, drawn at random."""

    def __init__(self, spec=None):
        super().__init__(spec)
        self.table = nn.Parameter(torch.randn(5))
        torch.rand(7)


def test_small_maps_get_exact_attention_and_large_ones_the_backend():
    slots = SlotPolicy(GridPartitionedAttention).build(_specs((32, 32), (64, 64), (120, 32), (128, 64), (256, 176)))
    assert [type(block.mixer) for block in slots.values()] == [FullAttention] * 3 + [GridPartitionedAttention] * 2
    pair = SlotPolicy(GridPartitionedAttention, exact_up_to=(128, 64)).build(_specs((128, 64), (256, 128)))
    assert [type(block.mixer) for block in pair.values()] == [FullAttention, GridPartitionedAttention]


def test_none_respects_the_exact_levels():
    slots = SlotPolicy(NoAttention).build(_specs((64, 64), (128, 128)))
    assert [type(block.mixer) for block in slots.values()] == [FullAttention, NoAttention]
    every = SlotPolicy(NoAttention, exact_up_to=0).build(_specs((8, 8), (128, 128)))
    assert [type(block.mixer) for block in every.values()] == [NoAttention] * 2


def test_factories_for_exact_attention_and_blocks_are_used():
    policy = SlotPolicy(
        partial(GridPartitionedAttention, keys_per_cell=3),
        exact=partial(FullAttention, score="dot", heads=2),
        block=partial(AttentionBlock, fusion="gamma"),
    )
    small, large = policy.build(_specs((8, 8), (128, 128))).values()
    assert (small.mixer.score, small.mixer.heads) == ("dot", 2)
    assert large.mixer.keys_per_cell == 3
    assert small.fusion == large.fusion == "gamma"
    assert large.mixer.spec.name == "up.128"


def test_slots_are_found_by_name_and_stable_in_the_state_dict():
    slots = SlotPolicy(FullAttention).build(_specs((8, 8), (16, 16)))
    assert list(slots) == list(slots.keys()) == ["up.8", "up.16"]
    assert len(slots) == 2
    assert "up.8" in slots
    assert "up.9" not in slots
    assert slots["up.16"].spec.q_size == (16, 16)
    assert dict(slots.items())["up.8"] is slots["up.8"]
    assert {name.split(".")[0] for name in slots.state_dict()} == {"up_8", "up_16"}
    with pytest.raises(KeyError, match=r"no attention slot is called 'up\.9'. Valid here: up\.8, up\.16"):
        slots["up.9"]


def test_all_misfits_are_in_one_error_with_the_choices():
    specs = [*_specs((96, 80), (100, 100), (128, 128)), *_specs((130, 130), channels=7)]
    policy = SlotPolicy(partial(GridPartitionedAttention, heads=2, coarse=(48, 40), cells=(16, 16)), exact_up_to=8)
    with pytest.raises(ValueError, match="slot") as caught:
        policy.build(specs)
    message = str(caught.value)
    assert "gpa, slot up.96: query map 96x80, pooled to 48x40, does not split into 16x16 cells" in message
    assert "(40 is not a multiple of 16). Valid here: 8x8, 4x4, 2x2." in message
    assert "gpa, slot up.100: query map 100x100 does not pool to 48x40" in message
    assert "gpa, slot up.128" in message
    assert "gpa, slot up.130: 7 channels do not split into 2 heads" in message
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (partial(GridPartitionedAttention, coarse=0), "coarse must be a whole number, 1 or more"),
        (partial(GridPartitionedAttention, coarsest=4), "unexpected keyword argument 'coarsest'"),
        (lambda spec: GridPartitionedAttention(spec, heads=True), "heads must be a whole number, 1 or more; got True"),
    ],
)
def test_every_misfit_starts_with_backend_and_slot(mixer, message):
    with pytest.raises(ValueError, match=message) as caught:
        SlotPolicy(mixer, exact_up_to=8).build(_specs((96, 80), (8, 8), (64, 64)))
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["gpa, slot up.96", "gpa, slot up.64"]


def test_equal_slot_names_are_refused():
    with pytest.raises(ValueError, match=r"distinct names.*up\.8"):
        SlotPolicy(FullAttention).build(_specs((8, 8), (8, 4)))
    with pytest.raises(ValueError, match=r"distinct names.*up\.8, up_8"):
        SlotPolicy(FullAttention).build(
            [*_specs((8, 8)), SlotSpec("up_8", 6, 6, 6, Size(4, 4), Size(4, 4))],
        )


@pytest.mark.parametrize("other", [_Drawing, GridPartitionedAttention, NoAttention, partial(NoAttention)])
def test_parameters_outside_the_mixers_do_not_depend_on_the_backend(other):
    def build(mixer):
        torch.manual_seed(3)
        slots = SlotPolicy(mixer, exact_up_to=16).build(_specs((16, 16), (128, 128), (256, 256)))
        after = nn.Linear(3, 3)
        outside = {name: value for name, value in slots.state_dict().items() if ".mixer." not in name}
        return outside, after.weight

    expected, after = build(FullAttention)
    found, also = build(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert torch.equal(after, also)


def test_each_mixer_draws_its_own_reproducible_numbers():
    def tables():
        torch.manual_seed(3)
        slots = SlotPolicy(_Drawing, exact_up_to=0).build(_specs((16, 16), (32, 32)))
        return [block.mixer.table.detach() for block in slots.values()]

    first, second = tables()
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(tables(), (first, second), strict=True))


@pytest.mark.parametrize("mixer", [NoAttention, FullAttention, GridPartitionedAttention, _Drawing])
def test_slots_build_on_the_meta_device(mixer):
    with torch.device("meta"):
        slots = SlotPolicy(mixer).build(_specs((64, 64), (256, 256), channels=160))
        assert isinstance(slots["up.256"].mixer, SpatialAttention)
        out = slots["up.256"](torch.empty(1, 160, 256, 256), torch.empty(1, 160, 256, 256))
    assert out.shape == (1, 160, 256, 256)
    assert all(p.device.type == "meta" for p in slots.parameters())
