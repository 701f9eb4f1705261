from __future__ import annotations

from itertools import islice

import pytest

from saccade.data.sampler import EpochSampler, StreamSampler, index_at, rng_at


def positions(sampler: StreamSampler, batches: int) -> list[list[int]]:
    return list(islice(iter(sampler), batches))


def test_every_lap_shows_everything_once_in_a_fresh_order() -> None:
    laps = [[index_at(7, lap * 50 + i, 50) for i in range(50)] for lap in range(3)]
    assert all(sorted(lap) == list(range(50)) for lap in laps)
    assert laps[0] != laps[1] != laps[2]
    assert laps[0] != [index_at(8, i, 50) for i in range(50)]
    assert laps[2][13] == index_at(7, 113, 50)  # out of order: no history


def test_random_numbers_belong_to_the_position() -> None:
    assert rng_at(0, 5).random() == rng_at(0, 5).random()
    assert len({rng_at(0, 5).random(), rng_at(0, 6).random(), rng_at(1, 5).random(), rng_at(0, 5, 1).random()}) == 4


def test_a_stream_goes_on_from_any_position() -> None:
    whole = positions(StreamSampler(3), 10)
    resumed = StreamSampler(3)
    resumed.set_position(12)
    assert positions(resumed, 6) == whole[4:]
    other = StreamSampler(3)
    other.load_state_dict(resumed.state_dict())
    assert positions(other, 6) == whole[4:]


def test_ranks_share_out_the_global_batches() -> None:
    one = positions(StreamSampler(4), 6)
    two = [positions(StreamSampler(2, rank=r, world_size=2), 6) for r in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one


def test_epochs_end_and_go_on() -> None:
    sampler = EpochSampler(4, epoch_images=10)  # rounded up to 12
    assert len(sampler) == 3
    first, second = list(sampler), list(sampler)
    assert first + second == positions(StreamSampler(4), 6)
    sampler.set_position(16)
    assert list(sampler) == second[1:]
    assert list(sampler) == [[24, 25, 26, 27], [28, 29, 30, 31], [32, 33, 34, 35]]


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"position 7 is no whole number of global batches \(6 images\)"):
        StreamSampler(3, world_size=2, position=7)
    with pytest.raises(ValueError, match="0 <= rank < world_size; got 3, rank 2 of 2"):
        StreamSampler(3, rank=2, world_size=2)
    with pytest.raises(ValueError, match="epoch_images is at least 1"):
        EpochSampler(3, epoch_images=0)
