"""What every backend owes its users: one call, one set of errors, one kind of weights, whatever the algorithm."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from every_backend import ATTENDING, MAKERS, RANDOM, make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.attention import AttentionBlock, SlotPolicy
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops import finite_inputs, gpa_attention


def maps(q_size=(8, 8), kv_size=None, qk=4, values=6, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kv_size = q_size if kv_size is None else kv_size
    sizes = ((qk, q_size), (qk, kv_size), (values, kv_size))
    return tuple(torch.randn(batch, c, *size, generator=generator, dtype=torch.float64).to(dtype) for c, size in sizes)


def broken(which, change):
    return [change(x) if name == which else x for name, x in zip("qkv", maps(), strict=True)]


def with_nan(x):
    x = x.clone()
    x[0, 0, 1, 2] = float("nan")
    return x


WRONG = {
    "rank": (lambda: (broken("q", lambda x: x[0]), None), r"\(B, channels, rows, cols\)"),
    "channels of q and k": (lambda: (broken("k", lambda x: x[:, :2]), None), "agree in batch, heads and channels"),
    "batch": (lambda: (broken("q", lambda x: x[:1]), None), "agree in batch"),
    "size of v": (lambda: (broken("v", lambda x: x[..., :4]), None), "must agree with k"),
    "integers": (lambda: (broken("q", lambda x: x.long()), None), "must be floating"),
    "complex": (lambda: (tuple(x.to(torch.complex64) for x in maps()), None), "must be floating"),
    "no tensor": (lambda: (broken("k", lambda x: x.numpy()), None), "must be a tensor"),
    "mask of a list": (lambda: (maps(), [True]), "key_mask must be a bool"),
    "two dtypes": (lambda: (broken("k", lambda x: x.double()), None), "share one floating dtype"),
    "two devices": (lambda: (broken("v", lambda x: x.to("meta")), None), "one device"),
    "empty": (lambda: (broken("q", lambda x: x[..., :0]), None), "empty|no rows|at least 1"),
    "nan": (lambda: (broken("k", with_nan), None), "k holds NaN"),
    "infinity": (lambda: (broken("v", lambda x: x / 0), None), "v holds NaN or infinite"),
    "mask of numbers": (lambda: (maps(), torch.ones(2, 1, 8, 8)), "key_mask must be a bool"),
    "mask of another size": (lambda: (maps(), torch.ones(2, 1, 4, 8, dtype=torch.bool)), "key_mask must be a bool"),
    "mask without keys": (lambda: (maps(), torch.zeros(2, 1, 8, 8, dtype=torch.bool)), "at least one"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("name", MAKERS)
def test_wrong_input_is_refused_with_what_would_be_right(name, case):
    inputs, mask = WRONG[case][0]()
    with pytest.raises(ValueError, match=WRONG[case][1]) as caught:
        make(name)(*inputs, mask)
    assert str(caught.value).split(":")[0].split(",")[0] == name


OPTIONS = {
    "heads": ({"heads": 0}, "heads must be"),
    "kernel": ({"kernel": "fastest"}, "no kernel is called 'fastest'. Valid here: auto"),
    "even patch": ({"patch_size": 4}, r"odd.*got 4.*3 or 5"),
    "no patch": ({"patch_size": 0}, "odd"),
    "score": ({"score": "angle"}, "no score is called 'angle'. Valid here: "),
    "scale": ({"scale": float("nan")}, "scale must be a positive number"),
}
# Options that an algorithm cannot have are absent from its constructor: a misspelt or senseless one is a TypeError.
ABSENT = {"score": ("linear", "reformer"), "scale": ("linear",)}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ATTENDING)
def test_wrong_options_are_refused_in_the_constructor(name, option):
    options, message = OPTIONS[option]
    if name in ABSENT.get(option, ()):
        with pytest.raises(TypeError):
            make(name, **options)
        return
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("psal", {"matches": 65}, "65.*64"),
        ("psal", {"matches": 0}, "matches"),
        ("psal", {"iterations": -1}, "iterations"),
        ("psal", {"readout": "edge"}, "centre, aggregate, fold"),
        ("psal", {"search": "walk"}, "jump"),
        ("local", {"window": 0}, "window"),
        ("performer", {"features": 0}, "features"),
        ("nystromformer", {"landmarks": 0}, "landmarks"),
        ("reformer", {"hashes": 0}, "hashes"),
        ("reformer", {"bucket_size": 0}, "bucket_size"),
        ("ylg", {"patterns": ["ltr1", "diagonal"]}, "ltr1"),
        ("ylg", {"mapping": "mirror"}, "released, tile, nearest"),
        ("full", {"key_stride": 0}, "key_stride"),
        ("gpa", {"selection": "maybe"}, "hard, soft"),
    ],
)
def test_own_options_are_checked_before_anything_is_computed(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)(*maps())


# Every option that is a number or a flag, with a value that is right: wrong kinds are refused, NumPy's kinds taken.
SHAPE = AttentionShape(1, 2, 2, 3, Size(8, 8), Size(8, 8))
SHARED_NUMBERS = {"heads": 2, "patch_size": 3}
NUMBERS = {
    "none": {},
    "full": {"key_stride": 2},
    "gpa": {"coarse": 4, "cells": 2, "keys_per_cell": 3, "candidates": 4},
    "ylg": {},
    "psal": {"matches": 2, "iterations": 2, "coarse_start": 2, "seed": 1},
    "local": {"window": 5},
    "linear": {},
    "performer": {"features": 8, "seed": 1},
    "reformer": {"bucket_size": 8, "hashes": 2, "rotation_buckets": 16, "seed": 1},
    "nystromformer": {"landmarks": 8, "pinv_iterations": 6, "value_conv": 3},
}
FLOATS = {
    "full": {"scale": 0.5},
    "gpa": {"scale": 0.5, "temperature": 0.5},
    "ylg": {"scale": 0.5},
    "psal": {"scale": 0.5, "fold_divisor": 4.0},
    "local": {"scale": 0.5},
    "performer": {"scale": 0.5, "eps": 0.5},
    "reformer": {"scale": 0.5},
    "nystromformer": {"scale": 0.5},
}
FLAGS = [("gpa", "causal"), ("performer", "centre"), ("reformer", "shared_qk"), ("reformer", "keys_only")]
BESIDE = {"candidates": {"selection": "soft"}, "fold_divisor": {"readout": "fold"}}
WHOLE = [
    (name, option, value)
    for name, own in NUMBERS.items()
    for option, value in {**({"heads": 2} if name == "none" else SHARED_NUMBERS), **own}.items()
]
REAL = [(name, option, value) for name, own in FLOATS.items() for option, value in own.items()]


@pytest.mark.parametrize("wrong", [True, 2.0, "3", -1, [True, 2]])
@pytest.mark.parametrize(("name", "option", "value"), WHOLE)
def test_whole_numbers_are_nothing_else(name, option, value, wrong):
    with pytest.raises(ValueError, match=rf"^{name}: {option} must be .*got {re.escape(repr(wrong))}"):
        make(name, **{option: wrong}, **BESIDE.get(option, {}))


@pytest.mark.parametrize("wrong", [True, "0.5", [0.5], -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize(("name", "option", "value"), REAL)
def test_numbers_are_nothing_else(name, option, value, wrong):
    with pytest.raises(ValueError, match=rf"^{name}: {option} must be .*got {re.escape(repr(wrong))}"):
        make(name, **{option: wrong}, **BESIDE.get(option, {}))


@pytest.mark.parametrize("wrong", [1, "yes", None])
@pytest.mark.parametrize(("name", "option"), FLAGS)
def test_flags_are_true_or_false(name, option, wrong):
    with pytest.raises(ValueError, match=f"^{name}: {option} must be True or False; got {wrong!r}"):
        make(name, **{option: wrong})


@pytest.mark.parametrize(("name", "option", "value"), WHOLE + REAL)
def test_numbers_of_numpy_are_taken(name, option, value):
    given = np.int64(value) if isinstance(value, int) else np.float32(value)
    beside = {"seed": 0} if name in RANDOM and option != "seed" else {}
    mixer, plain = (make(name, **{option: x}, **BESIDE.get(option, {}), **beside) for x in (given, value))
    assert repr(mixer) == repr(plain)
    assert mixer.cost(SHAPE) == plain.cost(SHAPE)
    if option != "value_conv":  # whose weights are drawn
        torch.testing.assert_close(mixer(*maps()), plain(*maps()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_channels": 4}, r"head_channels must hold 2 positive whole numbers, one a head; got 4"),
        ({"head_values": True}, r"head_values must hold 2"),
        ({"head_values": [1, True]}, r"head_values must hold 2"),
        ({"patterns": 3}, "patterns must be a list with an entry for each head"),
        ({"patterns": lambda n: torch.ones(n, n, dtype=torch.bool)}, "patterns must be a list"),
    ],
)
def test_lists_of_ylg_are_lists(options, message):
    with pytest.raises(ValueError, match=f"^ylg: {message}"):
        make("ylg", **options)


@pytest.mark.parametrize("coarse", [4, "4", [4], (4, True)])
def test_gpa_attention_names_the_axes_of_its_maps(coarse):
    q, k, v = (x.unflatten(1, (1, -1)) for x in maps())
    with pytest.raises(ValueError, match=r"^gpa: coarse must be 2 .*\(B, heads, channels, \*axes\)"):
        gpa_attention(q, k, v, coarse=coarse, cells=(2, 2), keys_per_cell=3)
    sides = np.array([4, 4]), np.array([2, 2])
    given, plain = (gpa_attention(q, k, v, coarse=x, cells=y, keys_per_cell=3) for x, y in (sides, ((4, 4), (2, 2))))
    assert torch.equal(given, plain)
    with pytest.raises(ValueError, match=r"^gpa: .*\(B, heads, channels, \*axes\)"):
        gpa_attention(*maps(), coarse=(4, 4), cells=(2, 2), keys_per_cell=3)


@pytest.mark.parametrize("name", MAKERS)
def test_queries_that_are_no_tensor_are_refused(name):
    q, k, _ = maps()
    with pytest.raises(ValueError, match=f"^{name}: queries must be a"):
        make(name, heads=2).weights(q, k, [[0, 0]])
    with pytest.raises(ValueError, match=f"^{name}: a map must be a tensor"):
        make(name, heads=2).weights(q.tolist(), k, torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("name", ATTENDING)
def test_nan_in_training_is_for_the_loop_unless_asked(name):
    q, k, v = maps()
    q = with_nan(q).requires_grad_()
    make(name)(q, k, v)
    with finite_inputs(), pytest.raises(ValueError, match="q holds NaN"):
        make(name)(q, k, v)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ATTENDING)
def test_weights_bring_the_output(name, masked):
    """`weights` is what pictures and saliency read: applied to the values it must give what the layer gives."""
    mixer = make(name, heads=2)
    q, k, v = maps(dtype=torch.float64)
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    queries = torch.tensor([[0, 0], [7, 7], [5, 3]])
    indices, weights = mixer.weights(q, k, queries, mask)
    assert indices.shape == weights.shape
    assert indices.shape[:3] == (2, 2, 3)
    values = v.unflatten(1, (2, 3)).flatten(3)  # (B, G, E, K)
    picked = values.unsqueeze(3).expand(-1, -1, -1, 3, -1).gather(4, indices.unsqueeze(2).expand(-1, -1, 3, -1, -1))
    brought = (picked * weights.unsqueeze(2)).sum(4).flatten(1, 2)  # (B, G*E, Q)
    torch.testing.assert_close(brought, mixer(q, k, v, mask)[:, :, queries[:, 0], queries[:, 1]])


@pytest.mark.parametrize("name", MAKERS)
def test_results_do_not_depend_on_how_a_batch_is_split(name):
    mixer = make(name)
    whole = maps(batch=3)
    apart = [mixer(*(x[i : i + 1] for x in whole)) for i in range(3)]
    torch.testing.assert_close(mixer(*whole), torch.cat(apart), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_the_global_seed_decides_where_the_module_has_none(name):
    mixer = make(name, seed=None)
    inputs = maps(q_size=(12, 12), seed=3)
    torch.manual_seed(5)
    first = mixer(*inputs)
    other = mixer(*inputs)
    torch.manual_seed(5)
    assert torch.equal(mixer(*inputs), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize("name", MAKERS)
def test_state_dicts_are_alike_whatever_the_backend(name):
    spec = SlotSpec("up.8", 8, 8, 8, Size(8, 8), Size(8, 8))

    def slots(maker):
        torch.manual_seed(0)
        return SlotPolicy(lambda spec: maker(), exact_up_to=0).build([spec])

    reference, other = slots(MAKERS["full"]).state_dict(), slots(MAKERS[name]).state_dict()
    assert reference.keys() == other.keys()
    assert all(torch.equal(reference[key], other[key]) for key in reference)


@pytest.mark.parametrize("name", MAKERS)
def test_meta_device_copies_and_layouts(name):
    mixer = make(name)
    with torch.device("meta"):
        shaped = mixer(torch.empty(2, 4, 8, 8), torch.empty(2, 4, 8, 8), torch.empty(2, 6, 8, 8))
    assert shaped.shape == (2, 6, 8, 8)
    plain = maps()
    turned = [x.contiguous(memory_format=torch.channels_last) for x in plain]
    expected = mixer(*plain)
    torch.testing.assert_close(mixer(*turned), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(mixer)(*plain), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_modules_are_pickled_and_take_options_by_name(name):
    mixer = make(name)
    inputs = maps()
    torch.testing.assert_close(pickle.loads(pickle.dumps(mixer))(*inputs), mixer(*inputs))
    with pytest.raises(ValueError, match="the first argument is the slot to fill"):
        type(mixer)(9)


@pytest.mark.parametrize("name", ATTENDING)
def test_gradients_reach_values_under_autocast(name):
    q, k, v = (x.requires_grad_() for x in maps())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        make(name)(q, k, v).square().sum().backward()
    assert torch.isfinite(v.grad).all()
    assert v.grad.abs().sum() > 0


SIDE = st.integers(1, 13)


@pytest.mark.parametrize("name", ATTENDING)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(rows=SIDE, cols=SIDE, k_rows=SIDE, k_cols=SIDE, same=st.booleans(), heads=st.integers(1, 3), patch=st.booleans())
def test_reasons_against_tell_exactly_what_cannot_run(name, rows, cols, k_rows, k_cols, same, heads, patch):
    """Any two sizes: either there is a reason and the call raises it, or there is none and the call runs."""
    options = {"heads": heads, "patch_size": 3 if patch else 1}
    if name == "ylg":
        options["patterns"] = ["ltr1", "rtl2", "dense"][:heads]
    mixer = make(name, **options)
    q_size = (rows, cols)
    kv_size = q_size if same else (k_rows, k_cols)
    q, k, v = (x.requires_grad_() for x in maps(q_size, kv_size, qk=2 * heads, values=heads, batch=1))
    reasons = mixer.reasons_against(AttentionShape(1, heads, 2, 1, Size(*q_size), Size(*kv_size)))
    if reasons:
        with pytest.raises(ValueError, match=re.escape(reasons[0])):
            mixer(q, k, v)
        return
    out = mixer(q, k, v)
    assert out.shape == (1, heads, *q_size)
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in (q, k, v))


@pytest.mark.parametrize("name", ATTENDING)
def test_blocks_explain_channels_that_do_not_split(name):
    with pytest.raises(ValueError, match=r"slot up\.8: 7 channels do not split into 2 heads"):
        AttentionBlock(SlotSpec("up.8", 7, 7, 7, Size(8, 8), Size(8, 8)), make(name, heads=2))
