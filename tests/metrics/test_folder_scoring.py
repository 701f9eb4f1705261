"""Scoring folders of pictures: pairing by name, panels, sizes, and what is said when it does not work."""

import json

import numpy as np
import pytest
from PIL import Image

from saccade.metrics.folder import pair_files, score_folders
from saccade.metrics.ssim import SSIM_PROTOCOLS


def picture(rows, cols, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, rows // 8), max(1, cols // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((cols, rows), Image.Resampling.BICUBIC))


def save(folder, name, image):
    folder.mkdir(exist_ok=True)
    Image.fromarray(image).save(folder / name)


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "images", tmp_path / "reference"


@pytest.mark.parametrize(
    "name",
    [
        "to.png",
        "to.jpg.png",
        "from___to_vis.png",
        "from.jpg___to.jpg_vis.png",
        "from_2_to_vis.png",
        "a_2_from_2_to_vis.png",
        "from.jpg_to.jpg.png",
    ],
)
def test_names_of_the_released_codes(folders, name):
    images, reference = folders
    save(images, name, picture(16, 16, 0))
    save(reference, "to.png", picture(16, 16, 1))
    save(reference, "from.png", picture(16, 16, 2))
    (pair,) = pair_files(images, reference)
    assert pair.real.name == "to.png"


def test_a_name_that_itself_holds_a_separator(folders):
    images, reference = folders
    save(images, "x_2_a_2_b_vis.png", picture(16, 16, 0))
    save(reference, "a_2_b.png", picture(16, 16, 1))
    assert pair_files(images, reference)[0].real.name == "a_2_b.png"


def test_metrics_of_plain_pictures(folders):
    images, reference = folders
    for index in range(3):
        save(images, f"{index}.png", picture(32, 24, index))
        save(reference, f"{index}.png", picture(32, 24, index + (index == 2)))
    save(reference, "unused.png", picture(32, 24, 9))
    score = score_folders(images, reference, batch_size=2)
    assert set(score.metrics) == {"ssim_gaussian_32x24", "ssim_default_32x24", "psnr", "l1"}
    rows = {row["key"]: row for row in score.per_image}
    assert rows["0"]["l1"] == 0
    assert rows["1"]["ssim_gaussian_32x24"] == pytest.approx(1)
    wanted = SSIM_PROTOCOLS["ssim_gaussian"].score(picture(32, 24, 2), picture(32, 24, 3))
    assert rows["2"]["ssim_gaussian_32x24"] == pytest.approx(wanted, abs=1e-12)
    assert score.provenance["pairs"] == 3
    assert score.provenance["reference_unused"] == 1
    assert "ssim_patn" in score.provenance["left_out"]
    json.dumps(score.provenance)


@pytest.mark.parametrize(
    ("width", "real_width", "panels"), [(176, 176, 5), (176, 256, 5), (256, 256, 3), (256, 176, 5)]
)
def test_the_last_panel_counts(folders, width, real_width, panels):
    images, reference = folders
    generated, real = picture(256, width, 0), picture(256, real_width, 1)
    others = [picture(256, width, 2 + index) for index in range(panels - 1)]
    save(images, "a___b_vis.png", np.concatenate([*others, generated], 1))
    save(reference, "b.png", real)
    score = score_folders(images, reference, names=["ssim_patn", "l1"])
    cut = generated[:, 40:216] if width > real_width else generated
    wanted = real[:, 40:216] if real_width > width else real
    assert score.metrics["ssim_patn"] == pytest.approx(SSIM_PROTOCOLS["ssim_patn"].score(cut, wanted), abs=1e-12)
    assert score.provenance["panel"] == f"last of {panels}"
    assert score.provenance["size"] == f"256x{min(width, real_width)}"


def test_pictures_without_a_partner_are_named(folders):
    images, reference = folders
    for index in range(8):
        save(images, f"lost{index}.png", picture(16, 16, 0))
    save(images, "b.png", picture(16, 16, 0))
    save(reference, "b.png", picture(16, 16, 0))
    with pytest.raises(ValueError, match=r"8 of 9 pictures .* lost0.png, .*lost4.png and 3 more.*such as b"):
        pair_files(images, reference)


def test_folders_that_are_not_there_or_empty(folders):
    images, reference = folders
    with pytest.raises(ValueError, match="is not a folder"):
        pair_files(images, reference)
    images.mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        pair_files(images, reference)


def test_an_ambiguous_reference(folders):
    images, reference = folders
    save(images, "b.png", picture(16, 16, 0))
    save(reference, "b.png", picture(16, 16, 0))
    save(reference, "b.jpg", picture(16, 16, 0))
    with pytest.raises(ValueError, match=r"b.jpg and b.png .* same stem"):
        pair_files(images, reference)


def test_an_unreadable_picture_is_named(folders):
    images, reference = folders
    save(images, "b.png", picture(16, 16, 0))
    save(reference, "b.png", picture(16, 16, 0))
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"images.b\.png cannot be read"):
        score_folders(images, reference)


def test_sizes_that_do_not_fit(folders):
    images, reference = folders
    save(images, "a.png", picture(32, 32, 0))
    save(reference, "a.png", picture(32, 32, 0))
    save(images, "b.png", picture(24, 24, 0))
    save(reference, "b.png", picture(24, 24, 0))
    with pytest.raises(ValueError, match=r"b.png compares at 24x24, the first at 32x32"):
        score_folders(images, reference)
    save(images, "a.png", picture(32, 40, 0))
    with pytest.raises(ValueError, match=r"a.png is 32x40 and .*a.png 32x32"):
        score_folders(images, reference)
