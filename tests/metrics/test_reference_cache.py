"""Cached statistics of a real set: complete keys, atomic files, honest misses."""

import dataclasses

import pytest
import torch

from saccade.geometry import Size
from saccade.metrics.features import RandomConvFeatures
from saccade.metrics.reference import ReferenceSet, hash_files, reference_moments

REAL = ReferenceSet("train", "f" * 64, 6, "32x24", "none")


class Source:
    """Six images in two batches, counting how often it was asked."""

    def __init__(self, count=6):
        self.asked = 0
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, 32, 24), dtype=torch.uint8, generator=generator)

    def __call__(self):
        self.asked += 1
        yield from self.images.split(4)


def test_a_second_call_reads_the_file(tmp_path):
    source, extractor = Source(), RandomConvFeatures()
    first = reference_moments(extractor, REAL, source, tmp_path / "cache")
    second = reference_moments(extractor, REAL, source, tmp_path / "cache")
    assert source.asked == 1
    assert second.count == first.count == 6
    assert torch.equal(second.mean, first.mean)
    assert torch.allclose(second.covariance, first.covariance, rtol=1e-12, atol=1e-15)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_without_a_folder_nothing_is_kept(tmp_path):
    source, extractor = Source(), RandomConvFeatures()
    for _ in range(2):
        reference_moments(extractor, REAL, source, None)
    assert source.asked == 2


@pytest.mark.parametrize(
    "change",
    [{"name": "test"}, {"files_sha256": "e" * 64}, {"padding": "white"}],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_reference_is_in_the_key(tmp_path, change):
    source, extractor = Source(), RandomConvFeatures()
    reference_moments(extractor, REAL, source, tmp_path)
    reference_moments(extractor, dataclasses.replace(REAL, **change), source, tmp_path)
    assert source.asked == 2


def test_weights_and_resizing_are_in_the_key(tmp_path):
    source = Source()
    reference_moments(RandomConvFeatures(), REAL, source, tmp_path)
    reference_moments(RandomConvFeatures(seed=1), REAL, source, tmp_path)
    other = RandomConvFeatures()
    other.resize = "bicubic"
    reference_moments(other, REAL, source, tmp_path)
    other = RandomConvFeatures()
    other.name = "another"
    reference_moments(other, REAL, source, tmp_path)
    assert source.asked == 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 torn", None])
def test_a_torn_file_is_computed_again(tmp_path, damage):
    source, extractor = Source(), RandomConvFeatures()
    wanted = reference_moments(extractor, REAL, source, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    again = reference_moments(extractor, REAL, source, tmp_path)
    assert source.asked == 2
    assert torch.equal(again.outer, wanted.outer)
    reference_moments(extractor, REAL, source, tmp_path)
    assert source.asked == 2


def test_a_set_that_is_not_what_it_says_is_refused_and_not_kept(tmp_path):
    extractor = RandomConvFeatures()
    with pytest.raises(ValueError, match="has 6 images; 5 came"):
        reference_moments(extractor, REAL, Source(5), tmp_path)
    with pytest.raises(ValueError, match="is 32x16, an image 32x24"):
        reference_moments(extractor, dataclasses.replace(REAL, size="32x16"), Source(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_hashed_by_name_and_content(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    files = [tmp_path / "a.png", tmp_path / "sub" / "b.png"]
    before = hash_files(files, tmp_path)
    assert hash_files(files[::-1], tmp_path) == before
    assert hash_files(files[:1], tmp_path) != before
    files[1].write_bytes(b"other")
    assert hash_files(files, tmp_path) != before
    assert ReferenceSet.of_files("train", files, tmp_path, Size(256, 176)).size == "256x176"
