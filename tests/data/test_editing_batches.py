"""Batches of the editing tasks."""

from __future__ import annotations

import pytest
import torch

from saccade.data.editing_batches import (
    FramePairSample,
    ImageSample,
    ResolutionSample,
    collate_frame_pairs,
    collate_images,
    collate_resolutions,
)


def picture(value: int, size: int = 4) -> torch.Tensor:
    return torch.full((3, size, size), value, dtype=torch.uint8)


def test_pictures_come_in_minus_one_to_one() -> None:
    batch = collate_images([ImageSample(picture(0), "a"), ImageSample(picture(255), "b")])
    assert len(batch) == 2
    assert batch.keys == ["a", "b"]
    assert batch.images[0].unique().tolist() == [-1.0]
    assert batch.images[1].unique().tolist() == [1.0]


def test_every_tensor_moves() -> None:
    pairs = collate_frame_pairs([FramePairSample(picture(1), picture(2), "s/1-2", 1)]).to("meta")
    assert {pairs.target.device.type, pairs.reference.device.type, pairs.distances.device.type} == {"meta"}
    assert pairs.keys == ["s/1-2"]


def test_sizes_of_a_batch_agree() -> None:
    samples = [ResolutionSample(picture(0, side), picture(0, 2 * side), str(side)) for side in (4, 6)]
    assert collate_resolutions(samples[:1]).high.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match="one size"):
        collate_resolutions(samples)


@pytest.mark.parametrize("collate", [collate_images, collate_frame_pairs, collate_resolutions])
def test_no_samples_are_refused(collate) -> None:
    with pytest.raises(ValueError, match="none"):
        collate([])
