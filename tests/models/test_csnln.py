"""CSNLN: counts, keys and shapes of the release, the published network in float64, any backend, any size, the skip."""

import hashlib

import pytest
import torch
import torch.nn.functional as F

from oracles import csnln_patches as oracle
from oracles.cross_scale_backends import BACKENDS
from saccade.attention import (
    FullAttention,
    GridPartitionedAttention,
    LocalAttention,
    NoAttention,
    PatchBasedStochasticAttention,
    SlotPolicy,
)
from saccade.attention.cross_scale import cross_scale_attention, in_scale_attention
from saccade.geometry import Size
from saccade.models.csnln import CrossScaleNet

# Of the lines "<key> <shape>", in order of the alphabet, of the released networks at full width.
RELEASED = {
    2: (3_061_289, 3_061_265, 51, "c2b9064e19de7d8754b6a2351d61731aa981c441666f2a883566c8253b15773f"),
    3: (6_010_409, 6_010_385, 51, "805081e320d32ce964648843cf8d2a0dd3099330530b6ec48e6c32c18288393f"),
    4: (6_568_627, 6_568_603, 84, "b12f5ec3981b6fb6721933b36afb6ab40f79a372b9d46e2e01d692382bae575b"),
}


def small(scale=2, **options):
    torch.manual_seed(0)
    attention = options.pop("attention", None) or cross_scale_attention()
    return CrossScaleNet(**{"scale": scale, "channels": 8, "depth": 2, "size": 12, **options}, attention=attention)


def pictures(size=(6, 6), batch=2, dtype=torch.float64):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("scale", RELEASED)
def test_counts_keys_and_shapes_of_the_release(scale):
    parameters, trainable, tensors, digest = RELEASED[scale]
    with torch.device("meta"):
        net = CrossScaleNet(scale=scale, attention=cross_scale_attention())
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert len(shapes) == tensors
    lines = "".join(f"{name} {shape}\n" for name, shape in sorted(shapes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == digest
    assert shapes["SEM.multi_source_projection.up_attention.conv_match_1.0.weight"] == (64, 128, 1, 1)
    assert shapes["tail.0.weight"] == (3, 1536, 3, 3)


@pytest.mark.parametrize("scale", RELEASED)
def test_equals_the_published_network(scale):
    net, size = small(scale).double(), {2: (4, 6), 3: (6, 3), 4: (2, 4)}[scale]
    low = pictures(size, batch=1).requires_grad_()
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    results = []
    for out in (net(low), oracle.network(low, state, scale, 2)):
        assert out.shape == (1, 3, scale * size[0], scale * size[1])
        trained = [low, *(p for p in net.parameters() if p.requires_grad)]
        results.append((out, *torch.autograd.grad(out.square().sum(), trained)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


def test_buffers_and_means_are_the_released_constants():
    state = small().state_dict()
    assert state["SEM.multi_source_projection.up_attention.escape_NaN"].tolist() == [pytest.approx(1e-4)]
    assert state["sub_mean.bias"].tolist() == pytest.approx([-0.4488, -0.4371, -0.4040])
    assert torch.equal(state["add_mean.bias"], -state["sub_mean.bias"])
    for name in ("sub_mean", "add_mean"):
        assert torch.equal(state[f"{name}.weight"][:, :, 0, 0], torch.eye(3))
    assert not any(p.requires_grad for p in [*small().sub_mean.parameters(), *small().add_mean.parameters()])


@pytest.mark.parametrize("scale", RELEASED)
def test_slots_of_both_kinds_and_steps(scale):
    net = small(scale, in_scale=in_scale_attention(LocalAttention, window=3))
    sizes = {name: (block.spec.q_size, block.spec.kv_size) for name, block in net.attention_blocks.items()}
    factor = 3 if scale == 3 else 2
    wanted = {"cross_scale": (Size(12, 12), Size(12 // factor, 12 // factor)), "in_scale": (Size(12, 12), Size(12, 12))}
    if scale == 4:
        wanted |= {"cross_scale_2": (Size(24, 24), Size(12, 12)), "in_scale_2": (Size(24, 24), Size(24, 24))}
    assert sizes == wanted
    kinds = {name: block.mixer.name for name, block in net.attention_blocks.items()}
    assert {name: "local" if name.startswith("in") else "full" for name in wanted} == kinds


def other_policies():
    psal = PatchBasedStochasticAttention
    return {
        "psal": {"attention": cross_scale_attention(psal)},
        "psal fold": {"attention": cross_scale_attention(psal, readout="fold", fold_divisor=6.0)},
        "gpa": {"attention": cross_scale_attention(GridPartitionedAttention, coarse=6, cells=3, keys_per_cell=4)},
        "local": {"in_scale": in_scale_attention(LocalAttention, window=3)},
        "none": {"attention": cross_scale_attention(NoAttention), "in_scale": in_scale_attention(NoAttention)},
    }


@pytest.mark.parametrize("name", other_policies())
def test_weights_are_alike_and_load_whatever_the_attention(name):
    plain, other = small(), small(**other_policies()[name])
    states = plain.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other.load_state_dict(plain.state_dict(), strict=True)


def test_psal_with_all_keys_is_the_network_itself():
    low = pictures((12, 12), batch=1)
    all_keys = cross_scale_attention(PatchBasedStochasticAttention, matches=36, search="exact")
    with torch.no_grad():
        ours, wanted = small(attention=all_keys).double()(low), small().double()(low)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)
    three = cross_scale_attention(PatchBasedStochasticAttention, matches=3, search="exact")
    with torch.no_grad():
        assert not torch.allclose(small(attention=three).double()(low), wanted, atol=1e-9)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_builds_and_runs_also_on_the_meta_device(name):
    backend, options = BACKENDS[name]
    policies = {"attention": cross_scale_attention(backend, **options)}
    with torch.device("meta"):
        net = small(**policies)
        assert net(torch.empty(1, 3, 12, 12)).shape == (1, 3, 24, 24)
    net = small(**policies)
    net(pictures((12, 12), dtype=torch.float32)).square().sum().backward()
    trained = {key for key, parameter in net.named_parameters() if parameter.requires_grad}
    assert {key for key, parameter in net.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (13, 4)])
@pytest.mark.parametrize("scale", RELEASED)
def test_any_size_of_picture(scale, size):
    with torch.no_grad():
        out = small(scale)(pictures(size, dtype=torch.float32))
    assert out.shape == (2, 3, scale * size[0], scale * size[1])
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("scale", RELEASED)
def test_skip_starts_as_bicubic_and_learns(scale):
    net, low = small(scale, skip="bicubic").double(), pictures((6, 7))
    out = net(low)
    cubic = F.interpolate(low, scale_factor=scale, mode="bicubic", antialias=True)
    torch.testing.assert_close(out, cubic, rtol=0, atol=1e-7)  # means are float32 numbers
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (net(low) - 0.5).square().mean().backward()
        optimiser.step()
    still = {key for key, p in net.named_parameters() if p.requires_grad and not p.grad.any()}
    assert still == set()
    assert not torch.allclose(net(low), cubic, atol=1e-5)


def test_bicubic_is_catmull_rom():
    """Not PyTorch's a = -0.75 but -0.5: a quarter of a pixel away the taps are (-9, 111, 29, -3) / 128."""
    low = torch.zeros(1, 3, 1, 9, dtype=torch.float64)
    low[..., 4] = 1
    out = small(2, skip="bicubic").double()(low).detach()[0, 0, 0]
    wanted = torch.tensor([-3, -9, 29, 111, 111, 29, -9, -3], dtype=torch.float64) / 128
    torch.testing.assert_close(out[5:13], wanted, rtol=0, atol=1e-6)


def test_rounds_change_the_tail_alone():
    shallow, deep = small(depth=1), small(depth=3)
    shapes = [{key: tuple(v.shape) for key, v in net.state_dict().items()} for net in (shallow, deep)]
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == {"tail.0.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale is one of 2, 3, 4; got 5"),
        ({"skip": "nearest"}, "skip is one of none, bicubic; got 'nearest'"),
        ({"size": 13}, "training size 13x13 must be a multiple of 2 .* Nearest valid: 12x12"),
        ({"scale": 3, "size": (12, 1)}, "training size 12x1 must be a multiple of 3 .* Nearest valid: 12x3"),
        ({"depth": 0}, "depth must be a whole number, 1 or more"),
        ({"channels": 1}, "channels must be a whole number, 2 or more"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^CrossScaleNet: .*{message}"):
        small(**options)


def test_misfits_of_a_backend_name_the_slot():
    gpa = cross_scale_attention(GridPartitionedAttention, coarse=64)
    with pytest.raises(ValueError, match=r"gpa, slot cross_scale: .*12x12.*Valid here: 12, 6, 4"):
        small(attention=gpa)
    both = SlotPolicy(lambda spec: FullAttention(spec, heads=3), exact_up_to=0, block=cross_scale_attention().block)
    with pytest.raises(
        ValueError, match=r"(?s)full, slot cross_scale: 4 channels.*full, slot cross_scale_2: 4 channels"
    ):
        small(4, attention=both)


@pytest.mark.parametrize("shape", [(3, 6, 6), (1, 1, 6, 6), (1, 3, 0, 6)])
def test_wrong_pictures_are_refused(shape):
    with pytest.raises(ValueError, match=r"pictures must be \(batch, 3, rows, cols\)"):
        small()(torch.zeros(shape))


def test_mixed_precision_runs_with_the_skip():
    net = CrossScaleNet(
        scale=2, channels=8, depth=1, size=8, skip="bicubic", attention=cross_scale_attention(), in_scale=None
    )
    low = torch.rand(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        made = net(low)
    plain = F.interpolate(low, scale_factor=2, mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(made.float(), plain, atol=0.02, rtol=0)  # it starts as bicubic
