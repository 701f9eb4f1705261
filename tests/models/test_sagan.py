"""SAGAN's networks: counts of the release, projection head, sizes, every backend, gradients, two processes as one."""

from __future__ import annotations

import copy
import inspect
import sys
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from saccade.attention import FullAttention, SlotPolicy, YourLocalAttention
from saccade.geometry import Size
from saccade.layers.batch_norm import BatchNorm
from saccade.layers.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear
from saccade.models import sagan
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention

PAPER = (1024, 1024, 512, 256, 128, 64)
SMALL = {"image_size": 32, "channels": (64, 64, 64, 64), "attention_at": 16, "classes": 10}
# Options with which backends fit 16x16 queries and 8x8 keys.
BACKENDS = {
    "none": {},
    "full": {},
    "gpa": {"coarse": 8, "cells": 4, "keys_per_cell": 4},
    "ylg": {},
    "psal": {"patch_size": 3, "seed": 0},
    "local": {"window": 5},
    "linear": {},
    "performer": {"features": 16},
    "reformer": {"bucket_size": 16, "seed": 0},
    "nystromformer": {"landmarks": 16},
}


def pair(attention="full", sigma=0.5, **options):
    """Both networks, small, whose attention does something."""
    policy = sagan_attention(attention) if isinstance(attention, str) else attention
    nets = [make(**{**SMALL, **options}, attention=policy) for make in (SaganGenerator, SaganDiscriminator)]
    for net in nets:
        for block in net.attention_blocks.values():
            nn.init.constant_(block.sigma, sigma)
    return nets


def drawn(batch=3, classes=10, dtype=torch.float32):
    return torch.randn(batch, 128, dtype=dtype), torch.randint(classes, (batch,))


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


ABLATIONS = {
    "SAGAN, 1 head": ("full", {}),
    "SAGAN, 8 heads": ("full", {"heads": 8}),
    "YLG": ("ylg", {}),
    "no ESA": ("ylg", {"order": "row"}),
    "strided": ("ylg", {"patterns": "strided"}),
    "strided, circular": ("ylg", {"patterns": "strided_circular"}),
    "strided, released": ("ylg", {"patterns": "strided_released"}),
    "dense and sparse": ("ylg", {"patterns": ["rtl1", "rtl2", "ltr1", "ltr2", *["dense"] * 4]}),
    "Hilbert": ("ylg", {"order": "hilbert"}),
    "nearest": ("ylg", {"mapping": "nearest"}),
    "none": ("none", {}),
    "local": ("local", {"window": 7}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_counts_of_the_release_for_every_ablation(name):
    backend, options = ABLATIONS[name]
    policy = sagan_attention(backend, **options)
    with torch.device("meta"):
        generator = SaganGenerator(image_size=128, channels=PAPER, attention=policy)
        discriminator = SaganDiscriminator(image_size=128, channels=PAPER, attention=policy)
    assert numel(generator) == 42_078_852
    assert numel(discriminator) == 39_463_618
    assert numel(generator.attention_blocks["up.32"]) == 81_921
    assert numel(discriminator.attention_blocks["down.32"]) == 20_481
    tables = [
        parameter for norm in generator.modules() if isinstance(norm, BatchNorm) for parameter in norm.parameters()
    ]
    assert sum(p.numel() for p in tables if p.dim() == 2) == 9_856_000


def test_widths_of_heads_leave_the_count():
    def policy(shares):
        return sagan_attention("ylg", patterns="dense", head_channels=shares, head_values=[1] * 8)

    with torch.device("meta"):
        generator = SaganGenerator(image_size=128, channels=PAPER, attention=policy([2] * 4 + [6] * 4))
        discriminator = SaganDiscriminator(image_size=128, channels=PAPER, attention=policy([1] * 4 + [3] * 4))
    assert (numel(generator), numel(discriminator)) == (42_078_852, 39_463_618)


def test_everything_but_the_tables_is_normalised_and_in_the_right_form():
    for net in pair():
        plain = [
            m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding)) and not hasattr(m, "u")
        ]
        assert plain == []
        forms = {name: m.form for name, m in net.named_modules() if hasattr(m, "form")}
        assert {form for name, form in forms.items() if name.startswith("attention.")} == {"equal"}
        assert {form for name, form in forms.items() if not name.startswith("attention.")} == {"bounded"}
    for net in pair(spectral="equal"):
        assert {m.form for m in net.modules() if hasattr(m, "form")} == {"equal"}


def test_where_attention_sits_at_128():
    with torch.device("meta"):
        generator = SaganGenerator(image_size=128, channels=PAPER, attention=sagan_attention())
        discriminator = SaganDiscriminator(image_size=128, channels=PAPER, attention=sagan_attention())
    up, down = generator.attention_blocks["up.32"], discriminator.attention_blocks["down.32"]
    assert (up.spec.q_channels, up.shape().qk_channels, up.shape().v_channels) == (256, 4, 16)
    assert (down.spec.q_channels, down.shape().qk_channels, down.shape().v_channels) == (128, 2, 8)
    for block in (up, down):
        assert (block.spec.q_size, block.spec.kv_size) == (Size(32, 32), Size(16, 16))
    assert list(generator.blocks) == ["8", "16", "32", "64", "128"]
    assert list(discriminator.blocks) == ["64", "32", "16", "8", "4"]
    assert discriminator.last.shortcut is None


@pytest.mark.parametrize(
    ("size", "channels", "finest"),
    [(8, (8, 8), 8), (32, (16, 16, 8, 8), 32), (64, (16, 16, 16, 8, 8), 64), (256, (8,) * 7, 32)],
)
def test_other_sizes(size, channels, finest):
    options = {"image_size": size, "channels": channels, "attention": sagan_attention("full"), "classes": 4}
    generator = SaganGenerator(**options, attention_at=[8, finest])
    discriminator = SaganDiscriminator(**options, attention_at=[finest // 2, 4])
    assert list(generator.attention_blocks) == list(dict.fromkeys(["up.8", f"up.{finest}"]))
    assert list(discriminator.attention_blocks) == list(dict.fromkeys([f"down.{finest // 2}", "down.4"]))
    z, labels = drawn(2, 4)
    with torch.no_grad():
        images = generator(z, labels)
        logits = discriminator(images, labels)
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert logits.shape == (2,)


def test_projection_head_is_linear_plus_inner_product():
    discriminator = pair()[1].double().eval()
    seen = []
    discriminator.last.register_forward_hook(lambda *args: seen.append(args[2]))
    images, labels = torch.rand(3, 3, 32, 32, dtype=torch.float64) * 2 - 1, torch.tensor([4, 0, 9])
    logits = discriminator(images, labels)
    features = seen[0].clamp_min(0).sum((2, 3))  # a sum over space, not a mean

    def normalised(layer):
        left = layer.weight @ layer.u
        right = layer.weight.T @ (left / left.norm())
        return layer.weight / max(1, right.norm().item())

    expected = features @ normalised(discriminator.linear)[0] + discriminator.linear.bias
    expected = expected + (features * normalised(discriminator.embedding)[labels]).sum(1)
    torch.testing.assert_close(logits, expected)


def test_unconditional():
    generator, discriminator = pair(classes=None)
    assert not any("embedding" in name for name in discriminator.state_dict())
    assert all(m.classes is None for m in generator.modules() if isinstance(m, BatchNorm))
    images = generator(torch.randn(2, 128))
    assert discriminator(images).shape == (2,)
    with pytest.raises(ValueError, match="unconditional"):
        generator(*drawn(2))
    bare = SaganGenerator(**{**SMALL, "classes": None}, attention=None)
    assert bare.attention_blocks == {}
    assert bare(torch.randn(2, 128)).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_builds_and_trains_every_parameter(name):
    generator, discriminator = pair(sagan_attention(name, **BACKENDS[name]))
    z, labels = drawn()
    discriminator(generator(z, labels), labels).sum().backward()
    for net in (generator, discriminator):
        silent = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert silent == []


@pytest.mark.parametrize("name", BACKENDS)
def test_weights_outside_the_mixer_do_not_depend_on_the_backend(name):
    def weights(backend, **options):
        torch.manual_seed(3)
        nets = pair(sagan_attention(backend, **options))
        return {n: t for net in nets for n, t in net.state_dict().items() if ".mixer." not in n}, torch.rand(1)

    expected, after = weights("full")
    found, also = weights(name, **BACKENDS[name])
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert torch.equal(after, also)


def test_sigma_0_makes_the_attention_the_identity():
    for attending, without in zip(pair("ylg", sigma=0.0), pair("none"), strict=True):
        without.load_state_dict(attending.state_dict())
        images = torch.rand(3, 3, 32, 32) * 2 - 1
        z, labels = drawn()
        args = (z, labels) if isinstance(attending, SaganGenerator) else (images, labels)
        assert torch.equal(attending.eval()(*args), without.eval()(*args))


def test_features_are_what_enters_the_first_attention():
    discriminator = pair()[1].eval()
    seen = []
    discriminator.attention["down.16"].register_forward_pre_hook(lambda _, maps: seen.append(maps))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    discriminator(images, torch.tensor([1, 2]))
    torch.testing.assert_close(discriminator.features(images), seen[0][0])
    assert seen[0][0] is seen[0][1]
    several = pair(attention_at=[16, 8])[1]
    assert several.features(images).shape == (2, 64, 16, 16)


def test_several_forwards_before_one_backward():
    generator, discriminator = pair("ylg")
    z, labels = drawn()
    fake = generator(z, labels)
    real = torch.rand_like(fake)
    loss = F.relu(1 - discriminator(real, labels)).mean() + F.relu(1 + discriminator(fake, labels)).mean()
    (loss - discriminator(fake, labels).mean() - generator(z, labels).mean()).backward()
    assert all(p.grad is not None for net in (generator, discriminator) for p in net.parameters())


def test_evaluation_repeats_itself_and_training_moves_the_vectors():
    generator, discriminator = pair("ylg")
    z, labels = drawn()
    for net, args in ((generator, (z, labels)), (discriminator, (torch.rand(3, 3, 32, 32), labels))):
        before = copy.deepcopy(net.state_dict())
        net.eval()
        assert torch.equal(net(*args), net(*args))
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        net.train()(*args)
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        assert {name for name in before if name.endswith((".u", "running_mean", "running_var"))} == moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_comes_near_full_precision(dtype):
    for net in pair("ylg"):
        net.eval()
        z, labels = drawn()
        args = (z, labels) if isinstance(net, SaganGenerator) else (torch.rand(3, 3, 32, 32), labels)
        exact = net(*args)
        with torch.autocast("cpu", dtype=dtype):
            found = net(*args)
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() < 30 * torch.finfo(dtype).eps * exact.abs().max().clamp_min(1)


def test_biases_start_at_0_gains_at_1_and_weights_uniform():
    generator, discriminator = pair()
    for net in (generator, discriminator):
        for module in net.modules():
            if isinstance(module, (SpectralConv2d, SpectralLinear, SpectralEmbedding)):
                fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
                assert module.weight.abs().max() <= (6 / (fan_in + fan_out)) ** 0.5
                bias = getattr(module, "bias", None)
                assert bias is None or not bias.any()
            elif isinstance(module, BatchNorm):
                assert bool((module.weight == 1).all())
                assert not module.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, r"image_size 48x48 is no square of side 4 times a power of 2. Nearest valid: 32, 64"),
        ({"image_size": (32, 64)}, r"image_size 32x64 is no square"),
        ({"channels": (8, 8)}, r"images of 32x32 have 4 maps, .*got 2 channels, \[8, 8\]. Valid here: 4 numbers"),
        ({"channels": (8, 8, 0, 8)}, r"got 4 channels, \[8, 8, 0, 8\]. Valid here: 4 numbers of 1 or more"),
        ({"attention_at": 64}, r"attention_at \[64\] is no map of this network. Valid here: "),
        ({"attention_at": []}, r"attention_at \[\] is no map of this network"),
        ({"classes": 0}, r"classes must be 1 or more, or None for an unconditional network; got 0"),
        ({"init": "zeros"}, r"init is one of xavier, orthogonal; got 'zeros'"),
        ({"spectral": "max"}, r"form is one of bounded, equal, none; got 'max'"),
        ({"attention": sagan_attention("ylg", heads=6)}, r"ylg, slot (up|down)\.16: 8 channels do not split into 6"),
    ],
)
@pytest.mark.parametrize("make", [SaganGenerator, SaganDiscriminator])
def test_wrong_options_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{**SMALL, "attention": None, **options})


def test_wrong_input_is_named():
    generator, discriminator = pair()
    z, labels = drawn()
    images = torch.zeros(3, 3, 32, 32)
    for call, message in (
        (lambda: generator(z[:, :100], labels), r"z must be \(batch, 128\); got \(3, 100\)"),
        (lambda: generator(z), r"labels must be long of shape \(3,\), one a sample; got none"),
        (lambda: generator(z, labels.float()), r"labels must be long .* got torch.float32"),
        (lambda: discriminator(images, labels + 10), r"labels must lie in 0 \.\.\. 9; got 1\d \.\.\. 1\d"),
        (lambda: discriminator(images[..., :16], labels), r"images must be \(batch, 3, 32, 32\); got \(3, 3, 32, 16\)"),
        (lambda: discriminator.features(images[0]), r"images must be \(batch, 3, 32, 32\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=r"image_size 4 leaves nothing to halve. Nearest valid: 8"):
        SaganDiscriminator(image_size=4, channels=(8,))


def test_policies_for_python():
    policy = sagan_attention("full", heads=2)
    for net in pair(policy):
        (block,) = net.attention_blocks.values()
        assert (block.mixer.score, block.mixer.scale, block.mixer.heads) == ("dot", 1.0, 2)
    own = sagan_attention(partial(FullAttention, score="l2"))
    assert isinstance(own, SlotPolicy)
    assert pair(own)[0].attention["up.16"].mixer.score == "l2"
    exact = sagan_attention("ylg", exact_up_to=16)
    assert isinstance(pair(exact)[0].attention["up.16"].mixer, FullAttention)
    assert isinstance(pair(sagan_attention())[0].attention["up.16"].mixer, YourLocalAttention)
    with pytest.raises(ValueError, match=r"no backend is called 'dense'. Valid here: full, gpa, .* ylg"):
        sagan_attention("dense")
    with pytest.raises(ValueError, match=r"options \(heads\) belong to a backend given by name"):
        sagan_attention(FullAttention, heads=2)
    assert all("scale" in inspect.signature(sagan._named(name)).parameters for name in ("full", "ylg", "gpa", "psal"))


def losses(generator, discriminator, z, labels, images):
    fake = generator(z, labels)
    return F.relu(1 - discriminator(images, labels)).mean() + discriminator(fake, labels).square().mean()


def two_batches():
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(8, 128, generator=generator, dtype=torch.float64)
    images = torch.rand(8, 3, 32, 32, generator=generator, dtype=torch.float64)
    return z, torch.randint(10, (8,), generator=generator), images


def one_process(rank, file, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.manual_seed(0)
    nets = [nn.parallel.DistributedDataParallel(net.double()) for net in pair("ylg")]
    part = slice(4 * rank, 4 * rank + 4)
    losses(*nets, *(tensor[part] for tensor in two_batches())).backward()
    results[rank] = [{n: p.grad.numpy() for n, p in net.module.named_parameters()} for net in nets]
    results[f"buffers{rank}"] = [{n: b.numpy() for n, b in net.module.named_buffers()} for net in nets]
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file as set up here")
def test_two_processes_have_the_gradients_of_one_with_the_doubled_batch(tmp_path):
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(one_process, (str(tmp_path / "meet"), results), nprocs=2)
    torch.manual_seed(0)
    nets = [net.double() for net in pair("ylg")]
    losses(*nets, *two_batches()).backward()
    for rank in (0, 1):
        for net, found, buffers in zip(nets, results[rank], results[f"buffers{rank}"], strict=True):
            for name, parameter in net.named_parameters():
                torch.testing.assert_close(
                    torch.from_numpy(found[name]), parameter.grad, rtol=1e-9, atol=1e-11, msg=name
                )
            for name, buffer in net.named_buffers():
                if buffer.is_floating_point():
                    torch.testing.assert_close(torch.from_numpy(buffers[name]), buffer, rtol=1e-9, atol=1e-11, msg=name)
