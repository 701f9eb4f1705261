"""Contextual attention against the released numbers and a float64 oracle; what it skips, and what it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from every_backend import ATTENDING, make
from torch import Tensor

from oracles import contextual_loops
from saccade.attention import FullAttention, NoAttention, PatchBasedStochasticAttention, SpatialAttention
from saccade.attention.contextual import ContextualAttention, ContextualBlock
from saccade.attention.slots import SlotPolicy
from saccade.callbacks.allocation import count_allocations
from saccade.geometry import AttentionShape, Size, SlotSpec
from saccade.ops.contextual import diagonal_sum, matching_bytes


def slot(channels: int, rows: int, cols: int) -> SlotSpec:
    size = Size(rows, cols)
    return SlotSpec(f"fine.{rows}", channels, channels, channels, size, size)


def block(mixer: SpatialAttention | None = None, channels: int = 4, size: tuple[int, int] = (8, 12), **options: object):
    mixer = ContextualAttention() if mixer is None else mixer
    return ContextualBlock(slot(channels, *size), mixer, **options)  # type: ignore[arg-type]


def closed(shape: tuple[int, ...], shift: float) -> Tensor:
    """sin(0.7 t + shift), t the number of the element."""
    count = torch.Size(shape).numel()
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + shift).float().view(shape)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask_of(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Tensor:
    """(1, Y, X) bool, True = known, without the boxes (top, bottom, left, right)."""
    known = torch.ones(1, *size, dtype=torch.bool)
    for top, bottom, left, right in boxes:
        known[:, top:bottom, left:right] = False
    return known


# The first and the second sample of a batch have other holes.
KNOWN = torch.stack([mask_of((8, 12), (2, 5, 3, 7)), mask_of((8, 12), (0, 2, 8, 12), (6, 7, 1, 2))])


def test_the_released_layers_numbers() -> None:
    x = closed((1, 8, 16, 16), 0.3).relu()
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 16:48, 16:48] = 1
    with torch.no_grad():
        out = block(channels=8, size=(16, 16))(x, x, mask[:, :, ::4, ::4] == 0)
    flat = out.flatten()
    expected = {
        "mean": (flat.mean(), 0.2341688),
        "absmean": (flat.abs().mean(), 0.2341688),
        "rms": (flat.square().mean().sqrt(), 0.373995),
    }
    for name, (got, wanted) in expected.items():
        assert float(got) == pytest.approx(wanted, rel=3e-6), name
    samples = [0.0738801, 0.420735, 0.495832, 0.337732, 0.182253, 0.499273, 0.399225, 0.111416]
    torch.testing.assert_close(torch.cat([flat[:4], flat[1024:1028]]), torch.tensor(samples), rtol=1e-5, atol=0)
    last = torch.tensor([0, 3.75362e-34, 1.72665e-27, 0.148043])
    torch.testing.assert_close(flat[-4:], last, rtol=2e-4, atol=0)  # exponents of -75: their rounding shows


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize(
    ("matching", "options"),
    [
        ({}, {}),
        ({"fuse": 1}, {}),
        ({"fuse": 5, "scale": 2.5}, {"known_window": 1}),
        ({"masked": "drop"}, {}),
        ({"patch_size": 1, "fuse": 3}, {"rate": 1}),
        ({"patch_size": 5, "fuse": 3, "scale": 3.0}, {"rate": 4, "known_window": 1}),
        ({"masked": "drop", "scale": None}, {"rate": 1, "known_window": 5}),
    ],
)
def test_equals_the_oracle(matching: dict[str, object], options: dict[str, int], recorded: bool) -> None:
    size = (4, 6) if options.get("rate") == 1 else (8, 12)
    known = KNOWN[:, :, : size[0], : size[1]]
    x = drawn(2, 3, *size).requires_grad_(recorded)
    out = block(ContextualAttention(**matching), 3, size, **options)(x, x, known)  # type: ignore[arg-type]
    names = {"patch_size": "side", "fuse": "count", "scale": "scale"}
    given = {names[name]: value for name, value in matching.items() if name in names}
    if given.get("scale", 0) is None:
        given["scale"] = 1.0
    for sample in range(2):
        wanted = contextual_loops.attend(
            x[sample].detach(),
            ~known[sample, 0],
            rate=options.get("rate", 2),
            window=options.get("known_window", 3),
            drop=matching.get("masked") == "drop",
            **given,
        )
        torch.testing.assert_close(out[sample].detach(), wanted, rtol=1e-11, atol=1e-13)


def test_gradients_and_theirs() -> None:
    known = mask_of((4, 4), (2, 4, 0, 2))[None]
    layer = partial(block(ContextualAttention(scale=2.0), 1, (4, 4), known_window=1), key_mask=known)
    x = drawn(1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x, x), (x,))


def test_heads_match_for_themselves() -> None:
    x = drawn(1, 4, 8, 12)
    both = block(ContextualAttention(heads=2))(x, x, KNOWN[:1])
    halves = [block(channels=2)(part, part, KNOWN[:1]) for part in x.split(2, 1)]
    torch.testing.assert_close(both, torch.cat(halves, 1))


def test_a_diagonal_sum_is_its_own_transpose() -> None:
    a, b = drawn(2, 7, 5), drawn(2, 7, 5, seed=1)
    assert float((diagonal_sum(a, 5) * b).sum()) == pytest.approx(float((a * diagonal_sum(b, 5)).sum()))
    assert torch.equal(diagonal_sum(torch.ones(1, 3, 1), 9), torch.ones(1, 3, 1))  # nothing to reach


@pytest.mark.parametrize("matches", [1, 3])
def test_psal_fills_holes_alone(matches: int) -> None:
    """With an exact search, rate 1 and a known centre: the masked layer of the PSAL paper."""
    mixer = PatchBasedStochasticAttention(matches=matches, patch_size=3, search="exact")
    x = drawn(2, 4, 8, 12)
    out = block(mixer, rate=1, everywhere=False, known_window=1)(x, x, KNOWN)
    for sample in range(2):
        wanted = contextual_loops.nearest_known(x[sample], ~KNOWN[sample, 0], matches=matches, side=3)
        torch.testing.assert_close(out[sample], wanted, rtol=1e-9, atol=1e-10)
    known = KNOWN.expand_as(x)
    assert torch.equal(out[known], x[known])


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize(
    "mixer",
    [
        FullAttention(patch_size=3, score="l2"),
        ContextualAttention(fuse=1),
        *(
            PatchBasedStochasticAttention(patch_size=3, search="exact", readout=readout, matches=2)
            for readout in ("centre", "aggregate", "fold")
        ),
    ],
    ids=lambda mixer: f"{mixer.name}-{mixer.query_rim()}",
)
def test_looking_at_holes_alone_changes_nothing(
    mixer: SpatialAttention, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = drawn(3, 4, 24, 28).requires_grad_()
    known = torch.stack(
        [
            mask_of((24, 28), (3, 6, 4, 9), (18, 24, 20, 23)),
            mask_of((24, 28)),
            mask_of((24, 28), (0, 2, 0, 3), (10, 11, 26, 28), (20, 23, 2, 9)),
        ]
    )
    filling = block(mixer, size=(24, 28), rate=rate, everywhere=False, known_window=1)
    seen: list[int] = []
    attend = mixer.attend
    monkeypatch.setattr(mixer, "attend", lambda q, *rest: seen.append(q[:, 0, 0].numel()) or attend(q, *rest))
    parts = filling(x, x, known)
    of_parts = torch.autograd.grad(parts.square().sum(), x)[0]
    whole_map = 3 * 24 * 28 // rate**2
    assert 0 < sum(seen) < whole_map or (sum(seen) == whole_map and rate * (mixer.query_rim() or 0) == 4)
    monkeypatch.setattr(mixer, "query_rim", lambda: None)
    whole = filling(x, x, known)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(of_parts, torch.autograd.grad(whole.square().sum(), x)[0], rtol=1e-9, atol=1e-11)
    assert torch.equal(parts[1], x[1])


def test_fused_scores_need_the_whole_map() -> None:
    x = drawn(1, 4, 8, 12)
    everywhere = block(rate=1, known_window=1)(x, x, KNOWN[:1])
    holes = block(rate=1, known_window=1, everywhere=False)(x, x, KNOWN[:1])
    torch.testing.assert_close(holes, torch.where(KNOWN[:1], x, everywhere))


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_sample_without_usable_keys(everywhere: bool) -> None:
    x = drawn(2, 4, 8, 12)
    known = KNOWN.clone()
    known[1] = False
    known[1, 0, 0, 0] = True  # its window is not free
    out = block(everywhere=everywhere)(x, x, known)
    assert torch.equal(out[1], x[1] if everywhere is False else torch.zeros_like(x[1]))
    alone = block(everywhere=everywhere)(x[:1], x[:1], known[:1])
    torch.testing.assert_close(out[:1], alone)


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("name", ATTENDING)
def test_hardly_a_usable_key(name: str, everywhere: bool) -> None:
    """One known key is enough, or, for a search that keeps more, as good as none."""
    x = drawn(2, 4, 16, 16).float()
    known = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    known[0, :, 5, 5:7] = True
    known[1, :, 15, 15] = True
    filling = block(make(name), size=(16, 16), rate=1, everywhere=everywhere, known_window=1)
    out = filling(x, x, known)
    assert bool(torch.isfinite(out).all())
    assert filling.mixer.fewest_keys() == (2 if name == "psal" else 1)
    if name == "psal":
        assert torch.equal(out[1], torch.zeros_like(x[1]) if everywhere else x[1])
        assert not torch.equal(out[0], torch.zeros_like(x[0]) if everywhere else x[0])


@pytest.mark.parametrize("options", [{}, {"rate": 1, "everywhere": False, "known_window": 1}])
def test_without_holes_or_attention(options: dict[str, int]) -> None:
    x = drawn(1, 4, 8, 12)
    assert block(NoAttention(), **options)(x, x, KNOWN[:1]) is x
    all_known = torch.ones_like(KNOWN[:1])
    filled, unmasked = (block(**options)(x, x, mask) for mask in (all_known, None))
    torch.testing.assert_close(filled, unmasked)
    assert torch.equal(filled, x) == bool(options)


@pytest.mark.parametrize("options", [{"rate": 2}, {"rate": 1, "everywhere": False, "known_window": 1}])
@pytest.mark.parametrize("name", ATTENDING)
def test_any_backend_fills_holes(name: str, options: dict[str, int]) -> None:
    x = drawn(2, 4, 16, 16).float().requires_grad_()
    known = torch.stack([mask_of((16, 16), (4, 9, 5, 12)), mask_of((16, 16), (0, 3, 0, 3), (12, 16, 2, 7))])
    filling = block(make(name), size=(16, 16), **options)
    assert not filling.mixer.reasons_against(filling.shape())
    out = filling(x, x, known)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(x.grad).all())
    changed = torch.where(known, x.detach(), x.detach() + 5)  # what a hole holds steers, but is never read
    values = filling(x.detach(), changed, known)
    assert values.shape == out.shape
    if options["rate"] == 1:
        assert torch.equal(out.detach()[known.expand_as(x)], x.detach()[known.expand_as(x)])


def test_holes_are_never_copied() -> None:
    x = drawn(1, 4, 16, 16).abs()
    known = mask_of((16, 16), (4, 9, 5, 12))[None]
    marked = torch.where(known, x, torch.full_like(x, 1e6))
    mixer = FullAttention(score="cosine")
    out = block(mixer, size=(16, 16), rate=1, everywhere=False, known_window=1)(marked, marked, known)
    assert float(out.max()) <= float(x.max()) * (1 + 1e-9)


class TestMemory:
    @pytest.mark.parametrize("recorded", [False, True])
    def test_what_it_says_is_what_it_takes(self, recorded: bool) -> None:
        x = torch.randn(2, 4, 28, 28, requires_grad=recorded)
        mixer = ContextualAttention()
        with count_allocations() as counted:
            out = mixer(x, x, x, torch.ones(2, 1, 28, 28, dtype=torch.bool))
            if recorded:
                out.sum().backward()
        shape = AttentionShape(2, 1, 4, 4, Size(28, 28), Size(28, 28))
        said = matching_bytes(shape, 4, recorded)
        assert counted.peak <= 1.1 * said
        assert said <= 1.3 * counted.peak

    def test_a_matrix_that_does_not_fit_is_refused(self) -> None:
        mixer = ContextualAttention(slot(4, 64, 64), memory_mib=31)
        x = torch.zeros(1, 4, 64, 64)
        with pytest.raises(RuntimeError, match=r"full, slot fine\.64: .*128\.0 MiB.*31\.0 MiB.*up to 44x44.*psal"):
            mixer(x, x, x)
        fits = torch.zeros(1, 4, 44, 44)
        assert mixer(fits, fits, fits).shape == fits.shape
        with torch.no_grad():
            shape = AttentionShape(1, 1, 4, 4, Size(64, 64), Size(64, 64))
            assert "128.0 MiB" in mixer.reasons_against(shape)[0]
        assert not ContextualAttention(memory_mib=512).reasons_against(shape)

    def test_the_machine_is_asked_where_no_number_is_given(self) -> None:
        shape = AttentionShape(1, 1, 128, 2048, Size(4000, 4000), Size(4000, 4000))
        assert "GiB" in ContextualAttention().reasons_against(shape)[0]

    def test_saved_bytes(self) -> None:
        x = torch.randn(1, 4, 24, 24, requires_grad=True)
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        mixer = ContextualAttention()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = mixer(x, x, x, torch.ones(1, 1, 24, 24, dtype=torch.bool))
        said = mixer.cost(AttentionShape(1, 1, 4, 4, Size(24, 24), Size(24, 24))).saved_bytes
        assert sum(seen.values()) == pytest.approx(said, rel=0.05)
        assert out.requires_grad


class TestWhereItLooks:
    def shifted(self) -> tuple[Tensor, Tensor]:
        """A map whose hole holds what lies 8 rows below and 6 cols to the right of it."""
        x = drawn(1, 6, 20, 24)
        x[:, :, 2:10, 4:12] = x[:, :, 10:18, 10:18]
        return x, mask_of((20, 24), (4, 8, 6, 10))[None]

    @pytest.mark.parametrize(
        ("mixer", "options"),
        [
            (ContextualAttention(fuse=1), {"rate": 2}),
            (ContextualAttention(), {"rate": 1}),
            (FullAttention(patch_size=3, scale=4.0), {"rate": 1, "everywhere": False, "known_window": 1}),
            (
                PatchBasedStochasticAttention(patch_size=3, search="exact"),
                {"rate": 1, "everywhere": False, "known_window": 1},
            ),
        ],
    )
    def test_offsets_find_the_copy(self, mixer: SpatialAttention, options: dict[str, int]) -> None:
        x, known = self.shifted()
        rate = options["rate"]
        filling = block(mixer, channels=6, size=(20, 24), **options)
        offsets = filling.offsets(x, x, known)
        assert offsets.shape == (1, 2, 20 // rate, 24 // rate)
        inside = offsets[0, :, 4 // rate : 8 // rate, 6 // rate : 10 // rate].flatten(1)
        assert inside.t().unique(dim=0).tolist() == [[8 // rate, 6 // rate]]

    def test_weights_are_those_of_the_pass(self) -> None:
        x = drawn(1, 4, 8, 12)
        filling = block()
        queries = torch.tensor([[0, 0], [3, 4], [7, 11]])
        found = filling.weights(x, x, queries, KNOWN[:1])
        assert filling.key_size(Size(8, 12)) == Size(4, 6)
        usable = torch.tensor(contextual_loops.usable(~KNOWN[0, 0], 2, 3))
        assert not bool(found.weights[..., ~usable[found.indices[0, 0, 0]]].any())
        values = torch.nn.functional.unfold(x, 4, padding=1, stride=2)[0]  # (C * 16, keys)
        read = torch.stack([(values[:, found.indices[0, 0, n]] * found.weights[0, 0, n]).sum(1) for n in range(3)], 1)
        whole = filling.mixer(x[:, :, ::2, ::2], x[:, :, ::2, ::2], values.view(1, -1, 4, 6), usable.view(1, 1, 4, 6))
        picked = whole[0][:, queries[:, 0] // 2, queries[:, 1] // 2]
        torch.testing.assert_close(read, picked)

    def test_nothing_attends_nowhere(self) -> None:
        x = drawn(1, 4, 8, 12)
        assert not bool(block(NoAttention()).offsets(x, x).any())


class TestWrongInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rate": 3}, "rate must be 1 or even; got 3"),
            ({"rate": 8}, "rate=8 does not divide a map of 8x12"),
            ({"rate": 0}, "rate must be a whole number"),
            ({"known_window": 2}, "known_window must be odd.*1, 3"),
            ({"everywhere": 1}, "everywhere must be True or False"),
        ],
    )
    def test_block_options(self, options: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            block(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fuse": 2}, "fuse must be odd; got 2. Valid here: 1, 3"),
            ({"masked": "out"}, "'out'. Valid here: zero, drop"),
            ({"score": "l2"}, "score=unit_key; got 'l2'"),
            ({"key_stride": 2}, "key_stride=1; got 2"),
            ({"keys": "inside"}, "keys=all"),
            ({"kernel": "sdpa"}, "'sdpa'. Valid here: auto, reference"),
            ({"memory_mib": 0}, "memory_mib must be a whole number"),
            ({"patch_size": 4}, "patch_size must be an odd number"),
            ({"scale": -1.0}, "scale must be a positive number"),
        ],
    )
    def test_matching_options(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ContextualAttention(**options)  # type: ignore[arg-type]

    def test_slots_that_do_not_fit(self) -> None:
        uneven = SlotSpec("fine.8", 4, 8, 4, Size(8, 8), Size(8, 8))
        policy = SlotPolicy(ContextualAttention, exact_up_to=0, block=ContextualBlock)
        with pytest.raises(ValueError, match=r"slot fine\.8: .*same channels; got 4, 8 and 4"):
            policy.build([uneven])
        apart = SlotSpec("fine.8", 4, 4, 4, Size(8, 8), Size(4, 4))
        with pytest.raises(ValueError, match="everywhere=False needs maps of one size"):
            ContextualBlock(apart, ContextualAttention(), everywhere=False)

    def test_maps_and_masks(self) -> None:
        x = drawn(1, 4, 8, 12)
        with pytest.raises(ValueError, match=r"key_mask must be bool \(1, 1, 8, 12\)"):
            block()(x, x, KNOWN[:1, :, ::2, ::2])
        with pytest.raises(ValueError, match="rate=2 must divide"):
            block()(x[:, :, :7], x[:, :, :7])
        with pytest.raises(ValueError, match="maps of one size"):
            block(everywhere=False)(x, x[:, :, :4])


def test_keys_of_another_map() -> None:
    x, other = drawn(1, 4, 8, 12), drawn(1, 4, 6, 4, seed=1)
    assert block()(x, other).shape == x.shape


def test_low_precision_is_read_in_float32() -> None:
    x = drawn(1, 4, 8, 12)
    exact = block()(x, x, KNOWN[:1])
    rough = block()(x.bfloat16(), x.bfloat16(), KNOWN[:1])
    rounded = block()(x.bfloat16().double(), x.bfloat16().double(), KNOWN[:1])
    assert rough.dtype == torch.bfloat16
    assert float((rough.double() - rounded).norm() / rounded.norm()) < 0.01
    assert float((rounded - exact).norm() / exact.norm()) < 0.2
