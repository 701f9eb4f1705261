import pytest
import torch
import torch.nn.functional as F

from saccade.attention import AttentionBlock, FullAttention, GridPartitionedAttention, NoAttention
from saccade.geometry import Size, SlotSpec


def _spec(q=6, kv=7, out=5, q_size=(8, 8), kv_size=(8, 8), name="up.8"):
    return SlotSpec(name, q, kv, out, Size(*q_size), Size(*kv_size))


def _maps(spec):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, spec.q_channels, *spec.q_size, generator=generator),
        torch.randn(2, spec.kv_channels, *spec.kv_size, generator=generator),
    )


@pytest.mark.parametrize(("channels", "expected"), [(64, 20_736), (160, 128_640), (320, 513_280), (640, 2_050_560)])
def test_parameter_count_is_the_released_layers(channels, expected):
    spec = _spec(channels, channels, channels)
    with torch.device("meta"):
        block = AttentionBlock(spec, GridPartitionedAttention())
    assert sum(p.numel() for p in block.parameters()) == expected == 5 * channels**2 + 4 * channels


def test_state_dict_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in AttentionBlock(_spec(), FullAttention()).state_dict().items()}
    assert shapes == {
        "value.weight": (5, 7, 1, 1),
        "value.bias": (5,),
        "key.weight": (7, 7, 1, 1),
        "key.bias": (7,),
        "query.weight": (7, 6, 1, 1),
        "query.bias": (7,),
        "fuse.weight": (5, 11, 1, 1),
        "fuse.bias": (5,),
    }
    gamma = AttentionBlock(_spec(), FullAttention(), fusion="gamma").state_dict()
    assert "fuse.weight" not in gamma
    torch.testing.assert_close(gamma["gamma"], torch.tensor([0.1]))


@pytest.mark.parametrize("fusion", ["concat", "concat_plain", "gamma"])
def test_forward_is_projections_attention_fusion(fusion):
    spec = _spec(q_size=(4, 6), kv_size=(8, 4))
    block = AttentionBlock(spec, FullAttention(score="dot"), fusion=fusion)
    q_map, kv_map = _maps(spec)
    q, k, v = (m(x).flatten(2) for m, x in ((block.query, q_map), (block.key, kv_map), (block.value, kv_map)))
    attention = torch.softmax(q.transpose(1, 2) @ k / 7**0.5, -1) @ v.transpose(1, 2)
    brought = attention.transpose(1, 2).unflatten(2, (4, 6))
    residual = q_map[:, :5]
    if fusion == "gamma":
        expected = residual + 0.1 * brought
    else:
        expected = F.conv2d(torch.cat([q_map, brought], 1), block.fuse.weight, block.fuse.bias)
        expected = expected + residual if fusion == "concat" else expected
    torch.testing.assert_close(block(q_map, kv_map), expected)


def test_every_parameter_gets_a_gradient():
    spec = _spec()
    for fusion in ("concat", "concat_plain", "gamma"):
        block = AttentionBlock(spec, GridPartitionedAttention(coarse=4, cells=2, keys_per_cell=3), fusion=fusion)
        block(*_maps(spec)).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in block.parameters()), fusion


def test_block_fits_its_mixers_heads_and_reports_its_shape():
    block = AttentionBlock(_spec(8, 8, 4), FullAttention(heads=2), qk_channels=6)
    shape = block.shape(batch=3)
    assert (shape.batch, shape.heads, shape.qk_channels, shape.v_channels) == (3, 2, 3, 2)
    with pytest.raises(ValueError, match=r"full, slot up\.8: 7 channels do not split into 2 heads"):
        AttentionBlock(_spec(), FullAttention(heads=2))


def test_gain_widens_queries_and_keys_alone():
    torch.manual_seed(0)
    plain = AttentionBlock(_spec(), FullAttention())
    torch.manual_seed(0)
    wide = AttentionBlock(_spec(), FullAttention(), qk_gain=4.0)
    for name, value in wide.state_dict().items():
        factor = 4.0 if name in ("query.weight", "key.weight") else 1.0
        assert torch.equal(value, plain.state_dict()[name] * factor)


def test_none_keeps_the_state_dict_and_applies_the_fusion_to_nothing():
    spec = _spec()
    torch.manual_seed(0)
    block = AttentionBlock(spec, NoAttention())
    torch.manual_seed(0)
    full = AttentionBlock(spec, FullAttention())
    assert all(torch.equal(value, full.state_dict()[name]) for name, value in block.state_dict().items())
    assert block.state_dict().keys() == full.state_dict().keys()
    q_map, kv_map = _maps(spec)
    padded = torch.cat([q_map, torch.zeros(2, 5, 8, 8)], 1)
    torch.testing.assert_close(block(q_map, kv_map), q_map[:, :5] + block.fuse(padded))
    block(q_map, kv_map).sum().backward()
    unused = {name for name, p in block.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == set()  # distributed training waits for every parameter that wants a gradient
    gamma = AttentionBlock(spec, NoAttention(), fusion="gamma")
    torch.testing.assert_close(gamma(q_map, kv_map), q_map[:, :5])


def test_dropped_block_is_the_identity_and_draws_what_the_others_draw():
    spec = _spec()
    torch.manual_seed(0)
    block = AttentionBlock(spec, NoAttention(), empty="drop")
    after = torch.rand(3)
    torch.manual_seed(0)
    AttentionBlock(spec, FullAttention())
    assert torch.equal(torch.rand(3), after)
    assert block.state_dict() == {}
    q_map, kv_map = _maps(spec)
    assert torch.equal(block(q_map, kv_map), q_map[:, :5])
    with pytest.raises(RuntimeError, match=r"slot up\.8: the block is empty"):
        block.weights(q_map, kv_map, torch.tensor([[0, 0]]))
    assert AttentionBlock(spec, FullAttention(), empty="drop").state_dict() != {}


def test_weights_are_those_of_the_projected_maps():
    spec = _spec()
    block = AttentionBlock(spec, FullAttention())
    q_map, kv_map = _maps(spec)
    queries = torch.tensor([[1, 2]])
    expected = block.mixer.weights(block.query(q_map), block.key(kv_map), queries).weights
    torch.testing.assert_close(block.weights(q_map, kv_map, queries).weights, expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 1, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "add"}, "no fusion is called 'add'. Valid here: concat, concat_plain, gamma"),
        ({"empty": "skip"}, "no way to be empty is called 'skip'. Valid here: keep, drop"),
        ({"spec": _spec(q=4, out=5)}, r"out_channels \(5\) must not exceed q_channels \(4\)"),
    ],
)
def test_wrong_options_are_named(options, message):
    options = {"spec": _spec(), "mixer": FullAttention(), **options}
    with pytest.raises(ValueError, match=rf"full, slot up\.8: .*{message}|{message}"):
        AttentionBlock(**options)


def test_plain_concatenation_may_widen():
    spec = _spec(q=4, out=5)
    assert AttentionBlock(spec, FullAttention(), fusion="concat_plain")(*_maps(spec)).shape == (2, 5, 8, 8)
