"""SAGAN's attention block against dense attention written out; its parameters, options and slots."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from saccade.attention import (
    AttentionBlock,
    FullAttention,
    NoAttention,
    PooledAttentionBlock,
    SlotBlock,
    SlotPolicy,
    YourLocalAttention,
)
from saccade.callbacks.memory import measure_attention_blocks
from saccade.geometry import Size, SlotSpec
from saccade.layers.spectral import spectral_pointwise


def spec(channels=16, size=(8, 8), pool=2, **options):
    keys = Size(size[0] // pool, size[1] // pool)
    return SlotSpec(
        **{
            **dict(zip(("name", "q_channels", "kv_channels", "out_channels"), ("up.8", *[channels] * 3), strict=True)),
            "q_size": Size(*size),
            "kv_size": keys,
            **options,
        }
    )


def block(mixer=None, sigma=0.7, **options):
    made = PooledAttentionBlock(spec(), FullAttention(score="dot", scale=1.0) if mixer is None else mixer, **options)
    torch.nn.init.constant_(made.sigma, sigma)
    return made


@pytest.mark.parametrize(("channels", "expected"), [(256, 81_921), (128, 20_481)])
@pytest.mark.parametrize("heads", [1, 4, 8])
def test_parameter_count_is_the_released_layers_whatever_the_heads(channels, expected, heads):
    with torch.device("meta"):
        mixer = YourLocalAttention(heads=heads) if heads > 1 else FullAttention()
        made = PooledAttentionBlock(spec(channels, (32, 32)), mixer, convolution=spectral_pointwise)
    assert sum(p.numel() for p in made.parameters()) == expected == channels**2 * 5 // 4 + 1


def test_forward_is_the_released_layer():
    made = block().double()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    q = made.query(x).flatten(2)  # (B, D, Q)
    k, v = (F.max_pool2d(conv(x), 2).flatten(2) for conv in (made.key, made.value))
    assert (q.shape[1], v.shape[1], k.shape[2]) == (2, 8, 16)
    weights = torch.softmax(q.transpose(1, 2) @ k, -1)  # not scaled
    brought = (weights @ v.transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))
    torch.testing.assert_close(made(x, x), x + 0.7 * made.out(brought))
    queries = torch.tensor([[2, 3], [7, 0]])
    found = made.weights(x, x, queries)
    torch.testing.assert_close(found.weights[:, 0], weights[:, [19, 56]])
    assert found.indices.max() < 16


def test_sigma_starts_at_0_and_the_block_as_the_identity():
    made = PooledAttentionBlock(spec(), FullAttention())
    assert made.sigma.shape == ()
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(made(x, x), x)
    made(x, x).sum().backward()
    assert made.sigma.grad != 0  # so it can leave


def test_every_parameter_gets_a_gradient():
    made = block(convolution=spectral_pointwise)
    x = torch.randn(2, 16, 8, 8)
    made(x, x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())


def test_without_attention_the_map_passes_and_the_state_dict_stays():
    made = block(NoAttention())
    x = torch.randn(2, 16, 8, 8)
    assert made(x, x) is x
    assert made.state_dict().keys() == block().state_dict().keys()
    assert not any(p.requires_grad for p in made.parameters())


def test_ratios_pooling_and_key_mask():
    made = block(qk_ratio=4, v_ratio=1, pool=1)
    shape = made.shape(batch=3)
    assert (shape.batch, shape.qk_channels, shape.v_channels) == (3, 4, 16)
    x = torch.randn(1, 16, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2, 1] = True
    brought = made.value(x)[:, :, 2:3, 1:2].expand(1, 16, 4, 4)
    torch.testing.assert_close(made(x, x, mask), x + 0.7 * made.out(brought))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qk_ratio": 32}, r"full, slot up\.8: qk_ratio=32 leaves no channel of 16. Valid here: up to 16"),
        ({"pool": 0}, r"full, slot up\.8: pool must be a whole number, 1 or more; got 0"),
        ({"spec": spec(out_channels=8)}, r"out_channels \(8\) must equal q_channels \(16\)"),
        ({"mixer": YourLocalAttention()}, r"ylg, slot up\.8: 2 channels do not split into 8 heads. .* 1, 2\."),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PooledAttentionBlock(**{"spec": spec(), "mixer": FullAttention(), **options})


def test_slots_hold_both_kinds_of_block():
    policy = SlotPolicy(FullAttention, block=partial(PooledAttentionBlock, convolution=spectral_pointwise))
    slots = policy.build([spec()])
    assert isinstance(slots["up.8"], PooledAttentionBlock)
    assert all(isinstance(made, SlotBlock) for made in (slots["up.8"], AttentionBlock(spec(), FullAttention())))
    slots.up_8 = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"slot up\.8 was replaced by a Identity, which is no SlotBlock"):
        slots["up.8"]


def test_sizes_of_the_map_and_of_the_keys():
    made = block()
    assert (made.kv_map_size, made.key_size(Size(8, 12))) == (Size(8, 8), Size(4, 6))
    plain = AttentionBlock(spec(), FullAttention())
    assert (plain.kv_map_size, plain.key_size(Size(8, 12))) == (Size(4, 4), Size(8, 12))
    sizes = []
    made.register_forward_pre_hook(lambda _, maps: sizes.extend(tuple(x.shape[2:]) for x in maps))
    measure_attention_blocks({"up.8": made})
    assert set(sizes) == {(8, 8)}  # keys are measured after the pooling, as they are in the model
