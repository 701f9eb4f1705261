"""All pair metrics together: labels, means, masks, references, refusals."""

import json
import math

import numpy as np
import pytest
import torch

from saccade.geometry import Size
from saccade.metrics.frechet import FeatureMoments, frechet_distance
from saccade.metrics.pairs import METRIC_NAMES, PROXY, ImagePairMetrics, fitting_names, required_weights
from saccade.metrics.pixels import to_uint8
from saccade.metrics.ssim import SSIM_PROTOCOLS


def batch(count=5, rows=32, cols=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(count, 3, rows, cols, generator=generator) * 2 - 1
    generated = (target + 0.3 * torch.randn(target.shape, generator=generator)).clamp(-1, 1)
    mask = torch.zeros(count, 1, rows, cols, dtype=torch.bool)
    mask[..., rows // 4 : rows // 2, cols // 4 : cols // 2] = True
    return generated, target, mask


def test_default_at_a_small_size_leaves_out_what_does_not_fit():
    metrics = ImagePairMetrics((32, 32))
    metrics.update(*batch())
    values = metrics.compute()
    assert set(values) == {"ssim_gaussian_32x32", "ssim_default_32x32", "psnr", "l1", "l1_figure"}
    assert "ssim_patn" in metrics.left_out
    assert all(isinstance(value, float) for value in values.values())


def test_names_at_256():
    metrics = ImagePairMetrics(256, ["ssim_patn", "ssim_window51_176", "ssim_gaussian"])
    metrics.update(*batch(1, 256, 256))
    assert set(metrics.compute()) == {"ssim_patn", "ssim_window51_256x176", "ssim_gaussian_256x256"}


def test_values_are_means_of_rows_whatever_the_batches():
    generated, target, mask = batch(7)
    whole, parts = (ImagePairMetrics(32, ["ssim_gaussian", "l1", "psnr", "l1_figure"]) for _ in range(2))
    whole.update(generated, target, mask)
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        parts.update(generated[part], target[part], mask[part])
    assert whole.compute() == pytest.approx(parts.compute(), rel=1e-12)
    rows = whole.per_image()
    assert len(rows) == 7
    levels = [to_uint8(images[2]).permute(1, 2, 0).numpy() for images in (generated, target)]
    assert rows[2]["ssim_gaussian_32x32"] == SSIM_PROTOCOLS["ssim_gaussian"].score(*levels)
    assert rows[2]["l1"] == pytest.approx((generated[2] - target[2]).abs().mean().item(), rel=1e-6)
    inside = (generated - target)[2, :, 8:16, 8:16].abs().mean().item()
    assert rows[2]["l1_figure"] == pytest.approx(inside, rel=1e-6)
    assert whole.compute()["l1"] == pytest.approx(np.mean([row["l1"] for row in rows]), rel=1e-12)


def test_values_outside_the_range_are_clamped():
    generated, target, _ = batch()
    metrics = ImagePairMetrics(32, ["l1"])
    metrics.update(generated * 0 + 9, target * 0 + 1)
    assert metrics.compute() == {"l1": 0.0}


def test_images_without_a_figure_do_not_count_for_its_error():
    generated, target, mask = batch(2)
    mask[1] = False
    metrics = ImagePairMetrics(32, ["l1_figure"])
    metrics.update(generated, target, mask)
    rows = metrics.per_image()
    assert math.isnan(rows[1]["l1_figure"])
    assert metrics.compute()["l1_figure"] == rows[0]["l1_figure"]


def test_repeated_keys_count_once():
    generated, target, _ = batch(3)
    metrics = ImagePairMetrics(32, ["l1"])
    metrics.update(generated, target, keys=["a", "b", "c"])
    once = metrics.compute()
    metrics.update(generated[:1], target[:1], keys=["a"])
    assert metrics.compute() == once
    assert [row["key"] for row in metrics.per_image()] == ["a", "b", "c"]


def test_frechet_proxy_against_targets_and_against_a_fixed_set():
    generated, target, _ = batch(12)
    metrics = ImagePairMetrics(32, [PROXY])
    metrics.update(generated[:5], target[:5])
    metrics.update(generated[5:], target[5:])
    extractor = metrics.extractor(PROXY)
    sets = []
    for images in (generated, target):
        moments = FeatureMoments(extractor.channels)
        moments.update(extractor(to_uint8(images)))
        sets.append(moments)
    wanted = frechet_distance(*sets)
    assert metrics.compute() == pytest.approx({"frechet_proxy_random_conv_vs_targets_32x32": wanted}, rel=1e-6)
    metrics.set_reference(PROXY, sets[0], "train")
    ((name, value),) = metrics.compute().items()
    assert name == "frechet_proxy_random_conv_vs_train_32x32"
    assert value < 1e-6 * wanted
    record = metrics.provenance[name]
    assert (record["generated_count"], record["reference_count"], record["reference"]) == (12, 12, "train")
    json.dumps(metrics.provenance)


def test_one_image_has_no_frechet_distance():
    generated, target, _ = batch(1)
    metrics = ImagePairMetrics(32, [PROXY, "l1"])
    metrics.update(generated, target)
    assert set(metrics.compute()) == {"l1"}


def test_reset_forgets_images():
    metrics = ImagePairMetrics(32, ["l1", PROXY])
    metrics.update(*batch())
    before = metrics.compute()
    metrics.update(*batch(seed=1))
    metrics.reset()
    with pytest.raises(ValueError, match="no images"):
        metrics.compute()
    metrics.update(*batch())
    assert metrics.compute() == before


def test_random_networks_are_renamed_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("SACCADE_OFFLINE", "1")
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    metrics = ImagePairMetrics(32, ["lpips_alex"])
    generated, target, _ = batch(2)
    metrics.update(generated, target)
    assert list(metrics.compute()) == ["lpips_alex_random_weights_32x32"]
    assert metrics.provenance["lpips_alex_random_weights_32x32"]["weights"] == "random"
    assert "RANDOM FEATURES" in metrics.notices[0]


def test_weights_may_be_chosen_for_each_network():
    made = ImagePairMetrics(32, ["l1", "lpips_alex"], weights={"lpips_alex": "random"})
    assert len(made.notices) == 1
    with pytest.raises(ValueError, match="names no mode for lpips_alex"):
        ImagePairMetrics(32, ["l1", "lpips_alex"], weights={})


def test_required_weights():
    assert required_weights(["l1", "ssim_patn"]) == []
    assert required_weights(["fid_tf_inception", "fid_pytorch_fid", "lpips_vgg"]) == ["inception_tf", "vgg16"]


def test_names_that_do_not_fit_are_all_named():
    with pytest.raises(ValueError, match=r"ssim_patn needs.*ssim_window51 needs.*Valid here: .*ssim_gaussian"):
        ImagePairMetrics(32, ["ssim_patn", "ssim_window51", "l1"])
    fitting, reasons = fitting_names(Size(32, 32), METRIC_NAMES)
    assert "lpips_alex" in fitting
    assert "ssim_patn" in reasons
    skipped = ImagePairMetrics(32, ["ssim_patn", "l1"], skip_unfit=True)
    assert list(skipped.left_out) == ["ssim_patn"]


def test_wrong_input():
    with pytest.raises(ValueError, match=r"unknown or repeated names .*fid_clean"):
        ImagePairMetrics(32, ["fid_clean"])
    with pytest.raises(ValueError, match="repeated"):
        ImagePairMetrics(32, ["l1", "l1"])
    metrics = ImagePairMetrics(32, ["l1", "l1_figure"])
    generated, target, mask = batch(2)
    with pytest.raises(ValueError, match="needs the figure's mask"):
        metrics.update(generated, target)
    with pytest.raises(ValueError, match=r"must be \(B, 3, 32, 32\)"):
        metrics.update(generated[..., :16], target, mask)
    with pytest.raises(ValueError, match="mask must be"):
        metrics.update(generated, target, mask[..., :16])
    with pytest.raises(ValueError, match="2 different keys"):
        metrics.update(generated, target, mask, keys=["a", "a"])
    generated[1, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="generated image second holds values that are not finite"):
        metrics.update(generated, target, mask, keys=["first", "second"])
    with pytest.raises(ValueError, match="no images"):
        metrics.compute()
    with pytest.raises(ValueError, match="not among the Frechet distances"):
        metrics.set_reference(PROXY, FeatureMoments(64), "train")
    with pytest.raises(ValueError, match="64 channels, the reference 5"):
        ImagePairMetrics(32, [PROXY]).set_reference(PROXY, FeatureMoments(5), "train")
