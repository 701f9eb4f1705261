"""SSIM protocols against a restatement of the definition in plain numpy, and the regions they look at."""

import numpy as np
import pytest

from saccade.geometry import Size
from saccade.metrics.ssim import SSIM_PROTOCOLS


def images(rows, cols, seed=0, noise=40):
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(rows), np.arange(cols))[..., None] * np.array([3, 2, 1]) % 200
    target = np.clip(ramp + rng.integers(0, 30, (rows, cols, 3)), 0, 255).astype(np.uint8)
    generated = np.clip(target.astype(int) + rng.integers(-noise, noise + 1, target.shape), 0, 255).astype(np.uint8)
    return generated, target


def ssim_by_loops(generated, target, kernel, sample_covariance, data_range):
    """Every window that lies inside the image, each channel, then the mean: Wang et al. 2004, equation 13."""
    side = kernel.shape[0]
    correction = kernel.size / (kernel.size - 1) if sample_covariance else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    x, y = target.astype(float), generated.astype(float)
    for channel in range(3):
        for row in range(x.shape[0] - side + 1):
            for col in range(x.shape[1] - side + 1):
                a = x[row : row + side, col : col + side, channel]
                b = y[row : row + side, col : col + side, channel]
                ma, mb = (kernel * a).sum(), (kernel * b).sum()
                va = correction * ((kernel * a * a).sum() - ma * ma)
                vb = correction * ((kernel * b * b).sum() - mb * mb)
                vab = correction * ((kernel * a * b).sum() - ma * mb)
                values.append((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def gaussian_kernel():
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return np.outer(line, line) / line.sum() ** 2


@pytest.mark.parametrize("noise", [5, 40])
def test_gaussian_equals_the_definition(noise):
    generated, target = images(18, 16, noise=noise)
    spread = float(generated.max()) - float(generated.min())
    wanted = ssim_by_loops(generated, target, gaussian_kernel(), False, spread)
    assert SSIM_PROTOCOLS["ssim_gaussian"].score(generated, target) == pytest.approx(wanted, abs=1e-9)


def test_default_equals_the_definition():
    generated, target = images(12, 14)
    wanted = ssim_by_loops(generated, target, np.full((7, 7), 1 / 49), True, 255.0)
    assert SSIM_PROTOCOLS["ssim_default"].score(generated, target) == pytest.approx(wanted, abs=1e-9)


def test_window51_equals_the_definition():
    generated, target = images(52, 53)
    wanted = ssim_by_loops(generated, target, np.full((51, 51), 1 / 2601), True, 255.0)
    assert SSIM_PROTOCOLS["ssim_window51"].score(generated, target) == pytest.approx(wanted, abs=1e-9)


def test_data_range_is_that_of_the_generated_image():
    generated, target = images(20, 20)
    narrow = (generated // 4 + 60).astype(np.uint8)
    spread = float(narrow.max()) - float(narrow.min())
    wanted = ssim_by_loops(narrow, target, gaussian_kernel(), False, spread)
    protocol = SSIM_PROTOCOLS["ssim_gaussian"]
    assert protocol.score(narrow, target) == pytest.approx(wanted, abs=1e-9)
    assert protocol.score(narrow, target) != pytest.approx(protocol.score(target, narrow), abs=1e-4)


def test_regions_at_256():
    generated, target = images(256, 256)
    centre = generated[:, 40:216], target[:, 40:216]
    white = tuple(np.pad(image, ((0, 0), (40, 40), (0, 0)), constant_values=255) for image in centre)
    score = {name: protocol.score(generated, target) for name, protocol in SSIM_PROTOCOLS.items()}
    assert score["ssim_gaussian_176"] == SSIM_PROTOCOLS["ssim_gaussian"].score(*centre)
    assert score["ssim_default_176"] == SSIM_PROTOCOLS["ssim_default"].score(*centre)
    assert score["ssim_window51_176"] == SSIM_PROTOCOLS["ssim_window51"].score(*centre)
    assert score["ssim_patn"] == SSIM_PROTOCOLS["ssim_gaussian"].score(*white)
    assert score["ssim_patn"] == SSIM_PROTOCOLS["ssim_patn"].score(*centre), "256x176 is padded, not cropped"
    assert score["ssim_patn"] > score["ssim_gaussian_176"] + 0.03, "constant borders raise SSIM"
    # what lies in the border does not count
    generated[:, :40], generated[:, 216:] = 0, 7
    assert SSIM_PROTOCOLS["ssim_patn"].score(generated, target) == score["ssim_patn"]


def test_equal_images_score_one_everywhere():
    _, target = images(256, 256)
    for protocol in SSIM_PROTOCOLS.values():
        assert protocol.score(target, target) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("level", [0, 130])
def test_a_constant_generated_image_has_a_finite_score(level):
    _, target = images(32, 32)
    assert np.isfinite(SSIM_PROTOCOLS["ssim_gaussian"].score(np.full_like(target, level), target))


def test_labels_say_the_size():
    square, narrow, tiny = Size(256, 256), Size(256, 176), Size(32, 32)
    assert SSIM_PROTOCOLS["ssim_patn"].label(square) == SSIM_PROTOCOLS["ssim_patn"].label(narrow) == "ssim_patn"
    assert SSIM_PROTOCOLS["ssim_gaussian"].label(tiny) == "ssim_gaussian_32x32"
    assert SSIM_PROTOCOLS["ssim_gaussian"].label(square) == "ssim_gaussian_256x256"
    assert SSIM_PROTOCOLS["ssim_window51_176"].label(square) == "ssim_window51_256x176"


@pytest.mark.parametrize(
    ("name", "size", "match"),
    [
        ("ssim_patn", (32, 32), "needs 256x256 or 256x176 images, these are 32x32"),
        ("ssim_gaussian_176", (256, 176), "needs 256x256 images"),
        ("ssim_window51", (32, 64), "sides of at least 51"),
        ("ssim_gaussian", (10, 64), "sides of at least 11"),
    ],
)
def test_a_protocol_refuses_sizes_it_is_not_defined_at(name, size, match):
    protocol = SSIM_PROTOCOLS[name]
    assert match in protocol.reason_against(Size(*size))
    with pytest.raises(ValueError, match=match):
        protocol.score(*images(*size))


def test_wrong_input():
    generated, target = images(16, 16)
    protocol = SSIM_PROTOCOLS["ssim_gaussian"]
    with pytest.raises(ValueError, match="uint8 of one shape"):
        protocol.score(generated / 255, target)
    with pytest.raises(ValueError, match="uint8 of one shape"):
        protocol.score(generated[:15], target)
    with pytest.raises(ValueError, match=r"must be \(Y, X, 3\)"):
        protocol.score(generated[..., 0], target[..., 0])
