"""The attentions that reconstruct: what a name means, and that what it makes is what the paper writes down."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from saccade.geometry import Size
from saccade.run import reconstruct_methods as methods
from saccade.run.config import CONF
from saccade.run.reconstruct_methods import Settings, method_named, method_of_backend, paper_stride, reconstruct

BACKENDS = sorted(file.stem for file in (CONF / "attention").glob("*.yaml") if file.stem != "none")


def pictures(rows: int, cols: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(1, 3, rows, cols, generator=generator) for _ in range(2))


def dense(target: torch.Tensor, reference: torch.Tensor, patch: int, stride: int, temperature: float) -> torch.Tensor:
    """The paper's Full in float64, all weights at once: queries padded with zeros, keys with their patch inside."""
    target, reference = target.double(), reference.double()
    half = patch // 2
    q = F.unfold(F.pad(target, [half] * 4), patch)[0].T
    k = F.unfold(reference, patch, stride=stride)[0].T
    v = reference[..., half : reference.shape[2] - half : stride, half : reference.shape[3] - half : stride]
    weights = torch.softmax(-torch.cdist(q, k).square() / temperature, 1)
    return (weights @ v.flatten(2)[0].T).T.view_as(target)


@pytest.mark.parametrize(("side", "stride"), [(64, 1), (128, 2), (256, 5), (512, 10)])
def test_strides_are_the_papers(side, stride):
    keys = Size(side, side)
    assert paper_stride(keys) == stride
    assert method_named("full").settled(keys, 1.0)["key_stride"] == stride
    assert method_named("full").label(keys) == f"Full (stride {stride})"
    assert method_named("full", Settings(stride=3)).settled(keys, 1.0)["key_stride"] == 3


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("stride", [1, 2])
def test_full_is_the_dense_formula(temperature, stride):
    target, reference = pictures(13, 12)
    mixer = method_named("full", Settings(patch_size=5, stride=stride)).build(Size(13, 12), temperature)
    torch.testing.assert_close(
        reconstruct(mixer, target, reference).double(),
        dense(target, reference, 5, stride, temperature),
        rtol=1e-5,
        atol=1e-6,
    )


def test_exact_search_for_all_keys_is_full_attention_over_all_keys():
    target, reference = pictures(6, 5)
    keys = Size(6, 5)
    everything = method_named("exact30", Settings(patch_size=3)).build(keys, 0.5)
    full = method_of_backend("full", {"keys": "all", "key_stride": "1", "patch_size": "3"}).build(keys, 0.5)
    torch.testing.assert_close(
        reconstruct(everything, target, reference), reconstruct(full, target, reference), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["psal1", "psal3", "aggregate", "exact", "exact_aggregate"])
def test_a_shifted_picture_is_recovered_where_its_pixels_are(name):
    reference, _ = pictures(24, 24)
    target = torch.roll(reference, (3, 5), (2, 3))
    mixer = method_named(name).build(Size(24, 24), 0.01)
    rebuilt = reconstruct(mixer, target, reference)
    inside = (slice(None), slice(None), slice(10, -4), slice(12, -4))
    error = (rebuilt - target).square()
    assert error[inside].mean() < 1e-3
    assert (
        error[..., :5].mean() > 10 * error[inside].mean() + 1e-3
    )  # what came around the edge is not there to be found


def test_aggregation_keeps_one_match_unless_told():
    assert method_named("aggregate").options["matches"] == 1
    assert method_named("aggregate3").options == {**method_named("psal3").options, "readout": "aggregate"}
    assert method_named("psal15").options["matches"] == 15


def test_settings_reach_the_methods_that_have_them():
    settings = Settings(patch_size=5, iterations=3, window=9, seed=7)
    options = {name: method_named(name, settings).options for name in (*methods.FIXED, "psal3")}
    assert {name: one["patch_size"] for name, one in options.items()} == dict.fromkeys(options, 5)
    assert options["local"]["window"] == 9
    assert options["psal3"]["iterations"] == 3
    assert options["psal3"]["seed"] == options["performer"]["seed"] == 7
    assert "iterations" not in options["exact"]


@pytest.mark.parametrize("name", [*methods.FIXED, "psal1", "exact3", "aggregate3"])
def test_named_methods_serve_the_papers_sizes(name):
    for side in (64, 128, 256, 512):
        assert methods.refusals([method_named(name)], Size(side, side), Size(side, side)) == []


def test_temperature_is_the_inverse_scale_of_l2_alone():
    assert method_named("psal3").settled(Size(8, 8), 0.25)["scale"] == 4.0
    assert "scale" not in method_named("linear").settled(Size(8, 8), 0.25)
    assert not method_of_backend("full", {"score": "dot"}).tempered
    assert method_of_backend("full", {"scale": "2.0"}).settled(Size(8, 8), 0.25)["scale"] == 2.0


@pytest.mark.parametrize("attention", BACKENDS)
def test_every_backend_is_a_method_or_says_why_not(attention):
    size = Size(16, 16)
    small = {"gpa": {"coarse": "16", "cells": "4"}, "ylg": {"heads": "3", "patterns": "[ltr1,ltr2,rtl1]"}}
    method = method_of_backend(attention, small.get(attention, {}))
    if "patch_size" in methods.backend_options(attention):
        assert method.options["patch_size"] == 7
    assert methods.refusals([method], size, size) == []
    target, reference = pictures(16, 16)
    assert reconstruct(method.build(size, 1.0), target, reference).shape == target.shape


def test_misfits_are_told_together():
    found = methods.refusals(
        [method_of_backend("ylg", {}), method_of_backend("gpa", {"coarse": "128"}), method_named("psal3")],
        Size(64, 64),
        Size(64, 64),
    )
    assert len(found) == 2
    assert "3 channels do not split into 8 heads" in found[0]
    assert "coarse=128" in found[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("psal0", "no method is called that"),
        ("agregate", "did you mean aggregate?"),
        ("psal3@", "only sizes to run at"),
        ("psal3@64,128", "only sizes to run at"),
    ],
)
def test_wrong_names_end_in_one_message(name, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        method_named(name)


@pytest.mark.parametrize(
    ("attention", "given", "words"),
    [
        ("psla", {}, "did you mean psal"),
        ("none", {}, "is unknown"),
        ("psal", {"matchs": "7"}, "did you mean matches="),
        ("local", {"iterations": "7"}, "neither an option of the command nor of attention=local"),
    ],
)
def test_wrong_backends_end_in_one_message(attention, given, words):
    with pytest.raises(ValueError, match=words):
        method_of_backend(attention, given)


def test_schema_is_the_file_of_the_backend():
    listed = methods.backend_options("psal")
    text = (Path(CONF) / "attention" / "psal.yaml").read_text(encoding="utf-8")
    assert "_target_" not in listed
    assert all(f"{option}:" in text for option in listed)
