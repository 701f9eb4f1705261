"""Dense attention that pastes patches of values, against patches unfolded, weighted and folded, in float64."""

import pytest
import torch
import torch.nn.functional as F

from saccade.geometry import Size
from saccade.ops.dense import dense_attention, paste
from saccade.ops.dense.paste import dense_paste, diagonal_sums


def maps(q_size=(5, 7), kv_size=(4, 3), heads=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, q_size), (3, kv_size), (2, kv_size))
    drawn = [torch.randn(2, heads, c, *size, generator=generator, dtype=torch.float64) + 0.3 for c, size in sizes]
    return [x.to(dtype).requires_grad_() for x in drawn]


def unfolded(q, k, v, side, divisor, **options):
    """The definition: attend with whole patches as values, fold what was brought."""
    patches = F.unfold(v.flatten(0, 1), side, padding=side // 2).unflatten(2, v.shape[3:]).unflatten(0, v.shape[:2])
    brought = dense_attention(q, k, patches, kernel="reference", **options)
    folded = F.fold(brought.flatten(0, 1).flatten(2), q.shape[3:], side, padding=side // 2)
    return folded.unflatten(0, q.shape[:2]) / divisor


def check(inputs, side, divisor, **options):
    upstream = torch.randn(2, inputs[0].shape[1], 2, *inputs[0].shape[3:], dtype=torch.float64)
    results = []
    for brought in (
        dense_paste(*inputs, side=side, divisor=divisor, **options),
        unfolded(*inputs, side, divisor, **options),
    ):
        results.append((brought, *torch.autograd.grad((brought * upstream).sum(), inputs)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("score", ["dot", "l2", "cosine", "unit_key"])
def test_equals_unfolded_patches_for_every_score(score, patch_size):
    check(maps(), 3, 6.0, score=score, patch_size=patch_size, scale=0.7)


@pytest.mark.parametrize("side", [1, 3, 5, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_unfolded_patches_of_every_side(side, masked):
    mask = None
    if masked:
        mask = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(1)) > 0.4
        mask[:, :, 1, 1] = True
    check(maps(), side, 2.5, score="unit_key", patch_size=3, key_mask=mask)


@pytest.mark.parametrize("score", ["l2", "cosine"])
@pytest.mark.parametrize(("entries", "kept"), [(800, 0), (1500, 0), (1500, 2**22), (10**6, 0)])
def test_bands_and_weights_made_again_change_nothing(score, entries, kept, monkeypatch):
    monkeypatch.setattr(paste, "BAND_ENTRIES", {"cpu": entries})
    monkeypatch.setattr(paste, "KEPT_ENTRIES", kept)
    mask = torch.ones(2, 1, 4, 3, dtype=torch.bool)
    mask[0, 0, 2:] = False
    check(maps(q_size=(7, 3)), 3, 6.0, score=score, patch_size=3, key_mask=mask)


def test_weights_of_many_rows_are_never_held_at_once(monkeypatch):
    monkeypatch.setattr(paste, "BAND_ENTRIES", {"cpu": 20_000})
    q, k, v = maps(q_size=(40, 8), kv_size=(20, 4), heads=1)
    seen = []
    whole = paste.diagonal_sums
    monkeypatch.setattr(
        paste,
        "diagonal_sums",
        lambda pairs, *args, **options: seen.append(pairs.numel()) or whole(pairs, *args, **options),
    )
    with torch.no_grad():
        out = dense_paste(q, k, v, score="unit_key", patch_size=3)
    assert max(seen) <= 20_000 < 2 * 40 * 8 * 80
    monkeypatch.undo()
    torch.testing.assert_close(out, dense_paste(q, k, v, score="unit_key", patch_size=3))


def test_maps_smaller_than_the_patches():
    check(maps(q_size=(1, 2), kv_size=(2, 1)), 5, 6.0, score="unit_key", patch_size=5)
    check(maps(q_size=(2, 1), kv_size=(1, 1)), 3, 6.0, score="l2", patch_size=3)


def test_diagonal_sums_are_sums_over_patches_of_pairs():
    generator = torch.Generator().manual_seed(2)
    pairs = torch.randn(2, 5, 4, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    whole = diagonal_sums(pairs, 3)
    q_size, kv_size = Size(5, 4), Size(3, 6)
    for at in ((0, 0, 0, 0), (2, 3, 1, 5), (4, 1, 2, 3)):
        total = torch.zeros(2, dtype=torch.float64)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                y, x, i, j = (place + step for place, step in zip(at, (down, right, down, right), strict=True))
                if 0 <= y < q_size.rows and 0 <= x < q_size.cols and 0 <= i < kv_size.rows and 0 <= j < kv_size.cols:
                    total = total + pairs[:, y, x, i, j]
        torch.testing.assert_close(whole[(slice(None), *at)], total)
    torch.testing.assert_close(diagonal_sums(pairs, 3, cropped=True), whole[:, 1:-1])
    assert torch.autograd.gradcheck(lambda x: diagonal_sums(x, 3, cropped=True), pairs)
    assert torch.autograd.gradgradcheck(
        lambda x: diagonal_sums(x, 3), pairs[:1, :3, :2, :2, :2].detach().requires_grad_()
    )


def test_half_precision_sums_in_float32():
    exact = dense_paste(*(x.detach() for x in maps()), score="unit_key", patch_size=3, scale=10.0)
    halves = [x.detach().half() for x in maps()]
    rounded = dense_paste(*(x.double() for x in halves), score="unit_key", patch_size=3, scale=10.0)
    brought = dense_paste(*halves, score="unit_key", patch_size=3, scale=10.0)
    assert brought.dtype == torch.float16
    assert (brought.double() - rounded).abs().max() < 2 * 2**-11 * exact.abs().max()  # the rounding of the result


def test_wrong_options_are_refused():
    q, k, v = maps()
    with pytest.raises(ValueError, match=r"^full: patch_size must be an odd"):
        dense_paste(q, k, v, side=2)
    with pytest.raises(ValueError, match=r"^full: divisor must be a positive number"):
        dense_paste(q, k, v, divisor=0)
    with pytest.raises(ValueError, match=r"^full: no score is called 'angle'"):
        dense_paste(q, k, v, score="angle")
    with pytest.raises(ValueError, match=r"^full: v .* must agree with k"):
        dense_paste(q, k, v[..., :2])
