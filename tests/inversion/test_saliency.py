"""Saliency: the measured numbers of uniform attention, and closed forms."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from saccade.attention import FullAttention, NoAttention, YourLocalAttention
from saccade.attention.pooled_block import PooledAttentionBlock
from saccade.geometry import Size, SlotSpec
from saccade.inversion import attention_rows, project, saliency
from saccade.inversion.saliency_maps import choose_heads, grid_points

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))  # the list of all backends

from every_backend import ATTENDING, make

PATTERNS = ("ltr1", "rtl1", "ltr2", "rtl2")


def block_of(mixer, channels=32, size=8):
    spec = SlotSpec("down", channels, channels, channels, Size.of(size), Size.of(size // 2))
    return PooledAttentionBlock(spec, mixer(spec)).double()


@pytest.fixture(scope="module")
def uniform():
    """SAGAN's discriminator layer, 32x32 queries over 16x16 keys, on a map where all keys look alike."""
    block = block_of(lambda spec: YourLocalAttention(spec, heads=4, patterns=PATTERNS), size=32)
    return block, torch.ones(1, 32, 32, 32, dtype=torch.float64)


# ratio of largest to smallest, the two, and the sum over keys: measured on the released masks, n = 256
MEASURED = {
    ("queries", "ltr1"): (54.1, 0.000244, 0.01321, 1.0),
    ("queries", "rtl1"): (54.1, 0.000244, 0.01321, 1.0),
    ("queries", "ltr2"): (257.0, 0.00023, 0.05905, 1.0),
    ("queries", "rtl2"): (257.0, 0.00023, 0.05905, 1.0),
    ("attending", "ltr1"): (3.38, 0.0625, 0.2113, 25.35),
    ("attending", "rtl1"): (3.38, 0.0625, 0.2113, 25.35),
    ("attending", "ltr2"): (1.004, 0.0588, 0.0591, 15.06),
    ("attending", "rtl2"): (1.004, 0.0588, 0.0591, 15.06),
    ("baseline", "ltr1"): (1.0, 1.0, 1.0, 256.0),
    ("baseline", "rtl2"): (1.0, 1.0, 1.0, 256.0),
}


@pytest.mark.parametrize(("normaliser", "pattern"), MEASURED)
def test_uniform_attention_gives_the_measured_numbers(uniform, normaliser, pattern):
    block, q_map = uniform
    found = saliency(block, q_map, normaliser=normaliser)[0, PATTERNS.index(pattern)]
    assert found.shape == (16, 16)
    ratio, least, most, total = MEASURED[normaliser, pattern]
    assert float(found.max() / found.min()) == pytest.approx(ratio, rel=0.003)
    assert float(found.min()) == pytest.approx(least, rel=0.02)
    assert float(found.max()) == pytest.approx(most, rel=0.002)
    assert float(found.sum()) == pytest.approx(total, rel=0.0005)


def test_of_dense_attention_all_three_are_the_mean_row():
    block = block_of(lambda spec: FullAttention(spec, heads=2, score="dot"))
    q_map = torch.randn(3, 32, 8, 8, dtype=torch.float64)
    q = block.query(q_map).unflatten(1, (2, -1)).flatten(3)
    k = nn.functional.max_pool2d(block.key(q_map), 2).unflatten(1, (2, -1)).flatten(3)
    rows = (q.transpose(2, 3) @ k / q.shape[2] ** 0.5).softmax(3)  # (B, G, n_q, n_k)
    mean = rows.mean(2).unflatten(2, (4, 4))
    torch.testing.assert_close(saliency(block, q_map), mean)
    torch.testing.assert_close(saliency(block, q_map, normaliser="attending"), mean)
    torch.testing.assert_close(saliency(block, q_map, normaliser="baseline"), mean * 16)


@pytest.mark.parametrize("name", ATTENDING)
def test_any_backend_gives_the_mean_of_its_queries_rows(name):
    block = block_of(lambda spec: make(name))
    q_map = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    maps = saliency(block, q_map)
    assert maps.shape == (2, block.mixer.heads, 4, 4)
    indices, weights = block.weights(q_map, q_map, grid_points(Size(8, 8), q_map.device))
    wanted = torch.zeros(2, block.mixer.heads, 16, dtype=torch.float64)
    for place in range(64):
        wanted.scatter_add_(2, indices[:, :, place], weights[:, :, place] / 64)
    torch.testing.assert_close(maps.flatten(2), wanted)
    assert ((maps.sum((2, 3)) > 0.5) & (maps.sum((2, 3)) < 1.001)).all()  # reformer: some queries' buckets are empty


def test_chunks_of_queries_change_nothing(monkeypatch):
    block = block_of(lambda spec: YourLocalAttention(spec, heads=4, patterns=PATTERNS))
    q_map = torch.randn(2, 32, 8, 8, dtype=torch.float64)
    for normaliser in ("queries", "attending", "baseline"):
        monkeypatch.undo()
        whole = saliency(block, q_map, normaliser=normaliser)
        monkeypatch.setattr("saccade.inversion.saliency_maps.CHUNK_ENTRIES", 2 * 4 * 16 * 5)
        torch.testing.assert_close(saliency(block, q_map, normaliser=normaliser), whole)


def test_rows_hold_the_attention_of_each_query():
    block = block_of(lambda spec: YourLocalAttention(spec, heads=4, patterns=PATTERNS))
    q_map = torch.randn(1, 32, 8, 8, dtype=torch.float64)
    rows = attention_rows(block, q_map, q_map, grid_points(Size(8, 8), q_map.device))
    assert rows.shape == (1, 4, 64, 16)
    torch.testing.assert_close(rows.sum(3), torch.ones_like(rows[..., 0]))
    assert (rows != 0).sum((2, 3)).tolist() == [[160, 160, 304, 304]]  # four queries a key, 40 and 76 pairs


def test_projection_repeats_cells():
    maps = torch.arange(4.0).view(1, 1, 2, 2)
    wanted = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])
    assert torch.equal(project(maps, Size(4, 4))[0, 0], wanted)


def test_a_backend_that_attends_nowhere_and_wrong_names_are_told():
    block, q_map = block_of(NoAttention), torch.ones(1, 32, 8, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="slot down: the backend none attends nowhere"):
        saliency(block, q_map)
    with pytest.raises(ValueError, match="Valid here: queries, attending, baseline"):
        saliency(block, q_map, normaliser="mean")
    assert choose_heads(8, None, "x") == list(range(8))
    for wrong in ((), (8,), (-1,), (1, 1)):
        with pytest.raises(ValueError, match="from 0 to 7"):
            choose_heads(8, wrong, "x")
