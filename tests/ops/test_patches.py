"""The one definition of patches that all backends share, pixel by pixel."""

import pytest
import torch

from saccade.ops.patches import SHORTEST, as_vectors, box_sum, check_patch_size, patch_length, patchify


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def around(maps, b, g, y, x, side):
    """Channel by channel the p x p pixels around (y, x), row by row, zeros outside the map."""
    values = []
    for c in range(maps.shape[2]):
        for i in range(y - side // 2, y + side // 2 + 1):
            for j in range(x - side // 2, x + side // 2 + 1):
                inside = 0 <= i < maps.shape[3] and 0 <= j < maps.shape[4]
                values.append(maps[b, g, c, i, j].item() if inside else 0.0)
    return values


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_patchify_lists_the_neighbourhood_channel_by_channel(side):
    maps = draw(2, 2, 3, 4, 5)
    patches = patchify(maps, side)
    assert patches.shape == (2, 2, 3 * side**2, 4, 5)
    for b, g, y, x in [(0, 0, 0, 0), (1, 0, 3, 4), (0, 1, 2, 1), (1, 1, 1, 4)]:
        assert patches[b, g, :, y, x].tolist() == around(maps, b, g, y, x, side)


@pytest.mark.parametrize("side", [1, 3, 7])
def test_box_sums_and_lengths_are_those_of_the_patches(side):
    maps = draw(2, 1, 3, 5, 4)
    patches = patchify(maps, side)
    torch.testing.assert_close(box_sum(maps, side), patches.unflatten(2, (3, -1)).sum(3), rtol=0, atol=1e-12)
    lengths = patches.square().sum(2, keepdim=True).sqrt()
    torch.testing.assert_close(patch_length(maps, side), lengths, rtol=0, atol=1e-12)


def test_no_patch_is_shorter_than_the_shortest_length():
    maps = draw(1, 1, 2, 6, 6)
    maps[..., :4] = 0
    lengths = patch_length(maps, 3)
    assert lengths[..., :3].unique().tolist() == [pytest.approx(SHORTEST)]
    assert lengths[..., 3:].min() > SHORTEST
    assert patch_length(maps.half(), 3).dtype == torch.float32


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
def test_vectors_have_the_score_that_was_asked_for(score, side):
    q, k = draw(1, 2, 3, 3, 4), draw(1, 2, 3, 2, 5, seed=1)
    a, b, plain = as_vectors(q, k, side, score)
    for at, to in [((0, 0), (1, 4)), ((2, 3), (0, 0)), ((1, 2), (1, 1))]:
        query = torch.tensor(around(q, 0, 1, *at, side), dtype=torch.float64)
        key = torch.tensor(around(k, 0, 1, *to, side), dtype=torch.float64)
        wanted = {
            "dot": query @ key,
            "l2": -(query - key).square().sum(),
            "cosine": torch.cosine_similarity(query, key, dim=0),
            "unit_key": query @ key / key.norm(),
        }[score]
        one, other = a[0, 1, :, at[0], at[1]], b[0, 1, :, to[0], to[1]]
        found = one @ other if plain == "dot" else -(one - other).square().sum()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert plain == ("l2" if score == "l2" else "dot")


def test_gradients_of_vectors():
    q, k = draw(1, 1, 2, 3, 3).requires_grad_(), draw(1, 1, 2, 3, 2, seed=1).requires_grad_()
    for score in ("dot", "cosine", "unit_key"):
        assert torch.autograd.gradcheck(lambda *x, score=score: as_vectors(*x, 3, score)[:2], (q, k))


@pytest.mark.parametrize(
    ("size", "valid"), [(2, "1 or 3"), (8, "7 or 9"), (0, "1, 3, 5, 7"), (-3, "1, 3"), (3.0, "1, 3"), ("7", "1, 3")]
)
def test_a_patch_has_a_centre(size, valid):
    with pytest.raises(ValueError, match=f"psal: patch_size must be an odd number .* Valid here: {valid}"):
        check_patch_size("psal", size)


@pytest.mark.parametrize("size", [1, 3, 13])
def test_odd_sizes_are_taken(size):
    check_patch_size("psal", size)
