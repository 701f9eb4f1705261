"""The pose-morph generator: tables of the paper on the meta device, options, sizes, gradients, and who reads what."""

import copy

import pytest
import torch
from torch.nn import functional as F

from saccade.attention.block import AttentionBlock
from saccade.attention.full import FullAttention
from saccade.attention.gpa import GridPartitionedAttention
from saccade.attention.none import NoAttention
from saccade.attention.slots import SlotPolicy
from saccade.geometry import Size
from saccade.models.posemorph import PoseMorphGenerator, level_sizes

DEEPFASHION = (640, 640, 640, 640, 320, 160)
HIGH = (768, 768, 768, 512, 256, 128)
SMALL = {"image_size": 16, "channels": (8, 6, 4)}


def no_attention():
    return SlotPolicy(NoAttention, exact_up_to=0)


def gpa_policy(exact_up_to=4):
    return SlotPolicy(
        lambda spec: GridPartitionedAttention(spec, coarse=8, cells=4, keys_per_cell=3), exact_up_to=exact_up_to
    )


def small(policy=None, **options):
    torch.manual_seed(0)
    return PoseMorphGenerator(**{**SMALL, **options}, attention=policy or SlotPolicy(FullAttention))


def inputs(batch=2, size=(16, 16), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 3, *size, generator=generator, dtype=dtype) * 2 - 1
    poses = torch.rand(2, batch, 18, *size, generator=generator, dtype=dtype)
    return image, poses[0], poses[1]


def parameters_by_formula(channels):
    """From the description alone: two encoders, two decoders, RGB, and GPA's 5 C^2 + 4 C a slot."""
    style = channels[0]
    total = 0

    def conv(wide, narrow, side, styled):
        return side * side * wide * narrow + narrow + (style * wide + wide if styled else 0)

    for width in (21, 18):
        for channel in reversed(channels):
            total += conv(width, channel, 3, False) + conv(channel, channel, 3, False)
            width = channel
        for level, channel in enumerate(channels):
            before = channels[max(level - 1, 0)]
            joined = channel if level else 0
            total += conv(before, channel, 3, True) + conv(channel + joined, channel, 3, True)
    for channel in channels:
        total += conv(channel, 3, 1, True) + 5 * channel**2 + 4 * channel
    return total


@pytest.mark.parametrize(
    ("image_size", "channels", "levels"),
    [
        (256, DEEPFASHION, [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256)]),
        ((512, 256), HIGH, [(16, 8), (32, 16), (64, 32), (128, 64), (256, 128), (512, 256)]),
    ],
    ids=["256x256", "512x256"],
)
def test_tables_of_the_paper(image_size, channels, levels):
    coarse = Size(64, 64) if image_size == 256 else Size(64, 32)
    cells = Size(32, 32) if image_size == 256 else Size(64, 32)

    def mixer(spec):
        return GridPartitionedAttention(spec, coarse=coarse, cells=cells, keys_per_cell=12)

    with torch.device("meta"):
        net = PoseMorphGenerator(image_size=image_size, channels=channels, attention=SlotPolicy(mixer, exact_up_to=64))
    assert all(parameter.is_meta for parameter in net.parameters())
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters_by_formula(channels)
    specs = net.slot_specs()
    assert [spec.q_size for spec in specs] == levels
    assert [spec.kv_size for spec in specs] == levels
    assert [spec.q_channels for spec in specs] == list(channels)
    assert [spec.name for spec in specs] == [f"up.{rows}" for rows, _ in levels]
    full = [isinstance(block.mixer, FullAttention) for block in net.attention_blocks.values()]
    # tables 2 and 4: exact up to 64x64, and up to 64x32
    assert full == ([True] * 4 + [False] * 2 if image_size == 256 else [True] * 3 + [False] * 3)


def test_attention_parameters_at_256():
    with torch.device("meta"):
        net = PoseMorphGenerator(image_size=256, channels=DEEPFASHION, attention=no_attention())
    total = sum(parameter.numel() for block in net.attention_blocks.values() for parameter in block.parameters())
    assert total == 8_844_160  # about 8.84 M for the six blocks


def test_forward_shape_and_gradients_of_all_parameters():
    net = small()
    y = net(*inputs())
    assert y.shape == (2, 3, 16, 16)
    (y - inputs()[0]).abs().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    # the softmax does not see a bias that is the same for all keys
    assert [name for name in silent if not name.endswith("key.bias")] == []


@pytest.mark.parametrize(
    "options",
    [
        {"style": "own"},
        {"style": "both"},
        {"style_mlp": "linear"},
        {"skip": "add"},
        {"normalisation": "pixel"},
        {"normalisation": "both"},
        {"noise": True},
        {"output": "tanh"},
        {"style": "both", "style_mlp": "linear", "skip": "add", "normalisation": "both", "noise": True},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_options_run_and_learn(options):
    net = small(gpa_policy(), **options)
    y = net(*inputs())
    assert y.shape == (2, 3, 16, 16)
    assert torch.isfinite(y).all()
    if options.get("output") == "tanh":
        assert y.abs().max() < 1
    y.square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("style", ["source", "own", "both"])
def test_style_source(style):
    """Without attention the picture depends on the source through the style only, and on the encoder that is named."""
    net = small(no_attention(), style=style)
    image, source_pose, target_pose = inputs()
    first = net(image, source_pose, target_pose)
    moved = (net(image.flip(0), source_pose, target_pose) - first).abs().max()
    assert (moved > 1e-4) == (style != "own")
    assert (net(image, source_pose, target_pose.flip(0)) - first).abs().max() > 1e-4


def test_the_source_reaches_the_picture_through_attention():
    """With its own style the target hears of the source through the slots only; every slot carries something."""
    net = small(style="own")
    image, source_pose, target_pose = inputs()
    y = net(image, source_pose, target_pose)
    assert (net(-image, source_pose, target_pose) - y).abs().max() > 1e-4
    for block in net.attention_blocks.values():
        silenced = copy.deepcopy(block.fuse.weight)
        with torch.no_grad():
            block.fuse.weight[:, block.spec.q_channels :] = 0
        assert (net(image, source_pose, target_pose) - y).abs().max() > 1e-5, block.spec.name
        with torch.no_grad():
            block.fuse.weight.copy_(silenced)


def test_slots_read_the_target_as_query_and_the_source_as_key():
    net = small()
    seen = {}
    for name, block in net.attention_blocks.items():
        block.register_forward_hook(lambda _m, args, out, name=name: seen.__setitem__(name, (args, out)))
    decoded = {}
    for side in ("source", "target"):
        for rows, block in getattr(net, f"{side}_decoder").items():
            block.register_forward_hook(lambda _m, _a, out, key=(side, rows): decoded.__setitem__(key, out))
    rgb = {}
    for rows, block in net.to_rgb.items():
        block.register_forward_hook(lambda _m, args, _o, rows=rows: rgb.__setitem__(rows, args[0]))
    net(*inputs())
    assert list(seen) == ["up.4", "up.8", "up.16"]
    for name, ((query, key_value, *_), out) in seen.items():
        rows = name.removeprefix("up.")
        assert query is decoded["target", rows]
        assert key_value is decoded["source", rows]
        assert out is rgb[rows]


def test_the_picture_is_the_sum_of_the_levels():
    net = small()
    layers = {}
    for rows, block in net.to_rgb.items():
        block.register_forward_hook(lambda m, args, out, rows=rows: layers.__setitem__(rows, (m, args, out)))
    y = net(*inputs())
    total = None
    for module, args, out in layers.values():
        own = module(args[0], args[1], None)
        total = own if total is None else own + F.interpolate(total, scale_factor=2, mode="bilinear")
        # borders differ: the filter pads with zeros
        torch.testing.assert_close(out[:, :, 4:-4, 4:-4], total[:, :, 4:-4, 4:-4])
        total = out
    torch.testing.assert_close(y, total)


def test_rectangles():
    policy = SlotPolicy(
        lambda spec: GridPartitionedAttention(spec, coarse=(8, 4), cells=(4, 2), keys_per_cell=3), exact_up_to=4
    )
    net = PoseMorphGenerator(image_size=(16, 8), channels=(8, 6, 4), attention=policy)
    assert net(*inputs(size=(16, 8))).shape == (2, 3, 16, 8)


def test_the_targets_size_may_differ_from_the_sources():
    net = small()
    image, source_pose, _ = inputs(size=(16, 16))
    _, _, target_pose = inputs(size=(8, 24))
    assert net(image, source_pose, target_pose).shape == (2, 3, 8, 24)


def test_weights_outside_the_mixer_do_not_depend_on_the_backend():
    nets = [small(policy) for policy in (no_attention(), SlotPolicy(FullAttention), gpa_policy())]
    states = [net.state_dict() for net in nets]
    for key, value in states[0].items():
        for state in states[1:]:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("style", ["source", "own"])
def test_source_levels_that_no_slot_reads_are_left_out(style):
    policy = SlotPolicy(NoAttention, exact_up_to=8)
    net = small(policy, style=style)
    ran = []
    for rows, block in net.source_decoder.items():
        block.register_forward_hook(lambda _m, _a, _o, rows=rows: ran.append(rows))
    net(*inputs()).square().mean().backward()
    assert ran == ["4", "8"]
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        name for name, p in net.named_parameters() if p.grad is not None
    }
    assert net.state_dict().keys() == small(gpa_policy(), style=style).state_dict().keys()
    ran.clear()
    alone = small(no_attention(), style=style, style_mlp="linear")
    alone(*inputs()).square().mean().backward()
    assert {name for name, p in alone.named_parameters() if p.requires_grad} == {
        name for name, p in alone.named_parameters() if p.grad is not None
    }


def test_a_copy_makes_the_same_picture():
    net = small(gpa_policy())
    other = copy.deepcopy(net)
    assert torch.equal(net(*inputs()), other(*inputs()))


def test_autocast_keeps_the_picture_in_float32():
    net = small()
    wanted = net(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = net(*inputs())
    assert got.dtype == torch.float32
    # bfloat16 has 8 bits; through some twenty layers a few per cent remain
    assert (got - wanted).abs().mean() < 0.05 * wanted.abs().mean() + 0.02


def test_second_derivatives_through_the_generator():
    """Path-length penalties and the like need them; attention passes them on by its reference paths."""
    policy = SlotPolicy(
        lambda spec: GridPartitionedAttention(spec, coarse=8, cells=4, keys_per_cell=3, kernel="reference"),
        exact_up_to=4,
        exact=lambda spec: FullAttention(spec, kernel="reference"),
    )
    net = small(policy).double()
    image, source_pose, target_pose = inputs(1, dtype=torch.float64)
    image.requires_grad_()
    y = net(image, source_pose, target_pose)
    (gradient,) = torch.autograd.grad(y.square().sum(), image, create_graph=True)
    gradient.square().sum().backward()
    assert net.source_encoder.blocks["16"].conv0.conv.weight.grad.abs().max() > 0


def test_misfits_are_reported_together():
    def mixer(spec):
        return GridPartitionedAttention(spec, coarse=8, cells=(5, 5), keys_per_cell=3)

    with pytest.raises(ValueError, match=r"(?s)up\.8\b.*up\.16\b"):
        small(SlotPolicy(mixer, exact_up_to=4))


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"image_size 256x176: 6 levels.*multiples of 32.*256x160"):
        PoseMorphGenerator(image_size=(256, 176), channels=DEEPFASHION, attention=no_attention())
    assert level_sizes(Size(256, 160), 6)[0] == Size(8, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "target"}, "style is one of source, own, both; got 'target'"),
        ({"style_mlp": "deep"}, "style_mlp is one of none, linear; got 'deep'"),
        ({"output": "sigmoid"}, "output is one of none, tanh; got 'sigmoid'"),
        ({"skip": "mul"}, "skip is one of concat, add"),
        ({"normalisation": "batch"}, "normalisation is one of"),
    ],
)
def test_unknown_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_inputs_that_do_not_fit_are_named():
    net = small()
    image, source_pose, target_pose = inputs()
    with pytest.raises(ValueError, match=r"source_pose must be \(batch, 18"):
        net(image, source_pose[:, :17], target_pose)
    with pytest.raises(ValueError, match="target_pose must be"):
        net(image, source_pose, target_pose[:1])
    with pytest.raises(ValueError, match="source_pose must be"):
        net(image, source_pose[:, :, :8], target_pose)
    with pytest.raises(ValueError, match="multiples of 4"):
        net(*inputs(size=(18, 16)))


def test_the_slots_give_their_blocks_by_name():
    net = small(gpa_policy())
    blocks = net.attention_blocks
    assert list(blocks) == ["up.4", "up.8", "up.16"]
    assert all(isinstance(block, AttentionBlock) for block in blocks.values())
