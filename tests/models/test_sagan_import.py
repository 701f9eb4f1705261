"""Released weights: the table of variables, the layouts, and both networks against the released form in NHWC."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from oracles import sagan_released as released
from saccade.attention.ylg import YourLocalAttention
from saccade.models.sagan import SaganDiscriminator, SaganGenerator, sagan_attention
from saccade.models.sagan_import import import_released, released_variables

# Every map another width, so that none can stand in for another; attention needs 8 channels of queries for 8 heads.
GENERATOR = (20, 12, 16, 64, 10, 6)  # coarsest first
DISCRIMINATOR = (24, 18, 12, 14, 64, 10)
CLASSES, LATENT = 3, 11
WIDTHS = {"channels": GENERATOR, "discriminator_channels": DISCRIMINATOR, "classes": CLASSES, "latent": LATENT}
# sha256 of "name shape", a line each, of all 380 variables that the released graph has with its optimisers: it was
# built once with TensorFlow 2.15 from the published code at 64 base channels and 1000 classes.
RELEASED_TABLE = "442c82838083275a"


def shapes_at(generator, discriminator, classes, latent=128):
    return released.generator_shapes(generator, classes, latent) | released.discriminator_shapes(
        discriminator[::-1], classes
    )


@pytest.fixture(scope="module")
def arrays():
    return released.random_arrays(shapes_at(GENERATOR, DISCRIMINATOR, CLASSES, LATENT))


@pytest.fixture(scope="module")
def networks(arrays):
    imported = import_released(arrays, **WIDTHS)
    attention = sagan_attention("ylg")
    with torch.device("cpu"):
        generator = SaganGenerator(
            image_size=128, channels=GENERATOR, classes=CLASSES, latent=LATENT, attention=attention
        )
        discriminator = SaganDiscriminator(image_size=128, channels=DISCRIMINATOR, classes=CLASSES, attention=attention)
    generator.load_state_dict(imported.generator)
    discriminator.load_state_dict(imported.discriminator)
    return tuple(network.double().eval().requires_grad_(False) for network in (generator, discriminator))


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0.05
    assert (ours - theirs).abs().max() <= 1e-11 * max(1.0, theirs.abs().max().item())


# The table


def test_the_table_is_that_of_the_released_graph():
    widths = [64 * times for times in (16, 16, 8, 4, 2, 1)]
    shapes = shapes_at(widths, widths, 1000)
    assert {variable.name: variable.shape for variable in released_variables()} == shapes
    complete = shapes | released.optimiser_shapes(shapes)
    lines = "\n".join(f"{name} {shape}" for name, shape in sorted(complete.items()))
    assert len(complete) == 380
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == RELEASED_TABLE


def test_every_tensor_of_the_full_networks_is_read_once():
    with torch.device("meta"):
        networks = {
            "generator": SaganGenerator(
                image_size=128, channels=(1024, 1024, 512, 256, 128, 64), attention=sagan_attention("ylg")
            ),
            "discriminator": SaganDiscriminator(
                image_size=128, channels=(1024, 1024, 512, 256, 128, 64), attention=sagan_attention("ylg")
            ),
        }
    table = released_variables()
    for target, network in networks.items():
        sizes = {key: value.numel() for key, value in network.state_dict().items()}
        read = [(v.key, int(np.prod(v.shape))) for v in table if v.target == target]
        assert len(read) == len(dict(read))
        assert dict(read) == sizes


# The layouts, part by part


def test_attention_with_tiled_masks_and_interleaved_heads(arrays, networks):
    for network, slot, scope in (
        (networks[0], "up.32", "Generator/generator/g_ops"),
        (networks[1], "down.32", "Discriminator/discriminator/d_ops"),
    ):
        block = network.attention[slot]
        assert isinstance(block.mixer, YourLocalAttention)
        x = draw(2, 64, 32, 32)
        theirs = released.Released(arrays).attention(nhwc(x), scope)
        assert (theirs - nhwc(x)).abs().max() > 0.05  # sigma_ratio is not 0
        assert_same(nhwc(block(x, x)), theirs)


def test_dense_heads_are_interleaved_too(arrays):
    imported = import_released(arrays, **WIDTHS)
    network = SaganGenerator(
        image_size=128,
        channels=GENERATOR,
        classes=CLASSES,
        latent=LATENT,
        attention=sagan_attention("full", heads=8),
    )
    network.load_state_dict(imported.generator)
    x = draw(1, 64, 32, 32)
    theirs = released.Released(arrays, released.DENSE).attention(nhwc(x), "Generator/generator/g_ops")
    block = network.double().eval().attention["up.32"]
    assert_same(nhwc(block(x, x)), theirs)


def test_first_linear_layer(arrays, networks):
    z = draw(3, LATENT)
    ours = networks[0].linear(z).view(3, GENERATOR[0], 4, 4)
    assert_same(nhwc(ours), released.Released(arrays).first_linear(z))


def test_class_conditional_norm_and_blocks(arrays, networks):
    oracle, labels = released.Released(arrays), torch.tensor([2, 0])
    block, scope = networks[0].blocks["16"], "Generator/generator/g_block2"
    x = draw(2, GENERATOR[1], 8, 8)
    assert_same(nhwc(block.norm0(x, labels)), oracle.norm(nhwc(x), f"{scope}/cbn_0", labels))
    assert_same(nhwc(block(x, labels)), oracle.up_block(nhwc(x), labels, scope))
    top = "Discriminator/discriminator"
    for key, channels, scope, how in (
        ("64", 3, "d_optimized_block1", {"first": True}),
        ("16", DISCRIMINATOR[4], "d_block3", {}),
    ):
        x = draw(2, channels, 8, 8)
        assert_same(nhwc(networks[1].blocks[key](x)), oracle.down_block(nhwc(x), f"{top}/{scope}", **how))


def test_whole_networks(arrays, networks):
    oracle, labels = released.Released(arrays), torch.tensor([1, 2])
    z, images = draw(2, LATENT), draw(2, 3, 128, 128).tanh()
    assert_same(nhwc(networks[0](z, labels)), oracle.generator(z, labels))
    assert_same(nhwc(networks[1].features(images)), oracle.features(nhwc(images)))
    assert_same(networks[1](images, labels), oracle.discriminator(nhwc(images), labels))


# What a checkpoint holds besides, and what is wrong with it


def test_what_training_leaves_in_a_checkpoint_is_left_out_and_counted(arrays):
    others = released.random_arrays(released.optimiser_shapes({name: a.shape for name, a in arrays.items()}))
    others |= {"Generator/generator/g_bn/gamma/ExponentialMovingAverage": np.zeros(6, np.float32)}
    plain, full = import_released(arrays, **WIDTHS), import_released(arrays | others, **WIDTHS)
    assert full.step == 900_000
    assert plain.step is None
    assert plain.ignored == {}
    assert full.ignored == {"optimiser slots": 210, "optimiser counters": 4, "averages of weights": 1}
    for key, value in plain.generator.items():
        assert torch.equal(value, full.generator[key])
        assert value.dtype == torch.float32
        assert value.is_contiguous()


def test_everything_that_is_wrong_is_told_at_once(arrays):
    broken = dict(arrays)
    del broken["Generator/generator/g_ops/sigma_ratio"]
    del broken["Discriminator/discriminator/d_embedding/embedding_map"]
    broken["Generator/generator/g_block9/cbn_0/gamma"] = np.zeros(3)
    broken["Generator/generator/g_bn/beta"] = np.zeros((1, 1, 1, 7))
    broken["Discriminator/discriminator/d_sn_linear/dense/bias"] = np.array([np.nan], np.float32)
    broken["Discriminator/discriminator/d_block2/sn_conv1/sn_conv1/bias"] = np.zeros(64, np.int64)
    with pytest.raises(ValueError, match="of these channels, classes, latent and heads") as caught:
        import_released(broken, **WIDTHS)
    words = str(caught.value)
    for expected in (
        "2 missing:\n",
        "g_ops/sigma_ratio",
        "d_embedding/embedding_map",
        "1 unknown:\n",
        "g_block9/cbn_0/gamma",
        "1 of another shape:\n",
        "g_bn/beta: (1, 1, 1, 7), expected (1, 1, 1, 6)",
        "2 of wrong values:\n",
        "d_sn_linear/dense/bias: not finite",
        "sn_conv1/sn_conv1/bias: of type int64",
    ):
        assert expected in words


def test_a_checkpoint_of_other_widths_is_refused(arrays):
    with pytest.raises(ValueError, match=r"g_snh0/dense/kernel: \(11, 320\), expected \(128, 16384\)"):
        import_released(arrays)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": (64, 32)}, "the generator has 6 maps, 4x4 to 128x128"),
        ({"discriminator_channels": (8,)}, "the discriminator has 6 maps"),
        ({"heads": 3}, "3 heads do not divide the attention of the generator, 32 channels"),
        ({"heads": 0}, "0 heads do not divide"),
        ({"discriminator_channels": (64, 64, 64, 64, 40, 64)}, "8 heads do not divide the attention of the discrim"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        released_variables(**options)
