"""Information flow graphs of Your Local GAN's patterns, against counts, brute force and SciPy's maximum flow."""

from __future__ import annotations

import itertools
import math
import random
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.attention.flow import (
    edges,
    full_information,
    max_flow,
    pair_flow,
    path_counts,
    reach,
    read_masks,
)
from saccade.attention.flow_picture import STEP_COLOURS, FlowRow, draw_flow, draw_flows, summary
from saccade.geometry import Size
from saccade.ops.ylg.patterns import PATTERNS, grid_mask


def _tokens(n):
    return np.arange(n)[:, None], np.arange(n)[None, :], math.isqrt(n)


# The oracle: the patterns' formulas, written here once more.
def _ltr(n):
    q, k, s = _tokens(n)
    return [(k <= q) & (k // s == q // s), (k == q) | (k % s == s - 1)]


def _rtl(n):
    q, k, s = _tokens(n)
    return [(k >= q) & (k // s == q // s), (k == q) | (k % s == 0)]


def _fixed(n):
    q, k, _ = _tokens(n)
    step1, step2 = _ltr(n)
    return [step1, step2 & (k <= q)]


def _fixed_without_diagonal(n):
    q, k, s = _tokens(n)
    return [_ltr(n)[0], (k % s == s - 1) & (k <= q)]


def _causal_window(n):
    q, k, s = _tokens(n)
    return (q >= k) & (q - k < s)


def _stride(n):
    q, k, s = _tokens(n)
    return (q - k) % s == 0


def _strided_original(n):
    q, k, _ = _tokens(n)
    return [_causal_window(n), _stride(n) & (k <= q)]


def _strided_released(n):
    return [_causal_window(n), _stride(n)]


def _strided_two_sided(n):
    q, k, s = _tokens(n)
    return [abs(q - k) < s, _stride(n)]


def _strided_circular(n):
    q, k, s = _tokens(n)
    return [(q - k) % n < s, _stride(n)]


def _dense(n):
    return [np.ones((n, n), bool)] * 2


def _star(n):
    """A relay token between both layers: all inputs reach it, and it reaches all outputs."""
    return [np.ones((1, n), bool), np.ones((n, 1), bool)]


NAMED = {
    "ltr": (_ltr, ("ltr1", "ltr2")),
    "rtl": (_rtl, ("rtl1", "rtl2")),
    "fixed": (_fixed, ("fixed1", "fixed2")),
    "strided original": (_strided_original, ("strided1", "strided2_causal")),
    "strided released": (_strided_released, ("strided1", "strided2")),
    "strided two-sided": (_strided_two_sided, ("strided1_two_sided", "strided2")),
    "strided circular": (_strided_circular, ("strided1_circular", "strided2")),
}
SIZES = (9, 16, 64, 256)
# Pairs without a path, in the direction of information and with the steps in reverse order, for n in SIZES.
MISSING = [
    (_ltr, (0, 0, 0, 0), (39, 156, 3304, 59280)),
    (_rtl, (0, 0, 0, 0), (39, 156, 3304, 59280)),
    (_fixed, (36, 120, 2016, 32640), (54, 192, 3584, 61440)),
    (_fixed_without_diagonal, (45, 144, 2240, 34560), (69, 228, 3864, 63600)),
    (_strided_original, (36, 120, 2016, 32640), (36, 120, 2016, 32640)),
    (_strided_released, (9, 24, 224, 1920), (9, 24, 224, 1920)),
    (_strided_two_sided, (0, 0, 0, 0), (0, 0, 0, 0)),
    (_strided_circular, (0, 0, 0, 0), (0, 0, 0, 0)),
    (_star, (0, 0, 0, 0), None),
    (_dense, (0, 0, 0, 0), (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("maker", "forward", "backward"), MISSING, ids=lambda x: getattr(x, "__name__", ""))
def test_missing_pairs_are_those_of_the_analysis(maker, forward, backward):
    for n, count, reverse in zip(SIZES, forward, backward or forward, strict=True):
        verdict = full_information(maker(n))
        assert (verdict.full, verdict.count) == (count == 0, count)
        assert bool(verdict) == verdict.full
        if backward:
            assert full_information(maker(n)[::-1]).count == reverse


def test_missing_pairs_at_1024():
    for maker, forward, backward in (
        (_ltr, 0, 998944),
        (_rtl, 0, 998944),
        (_strided_two_sided, 0, 0),
        (_strided_circular, 0, 0),
        (_star, 0, None),
    ):
        assert full_information(maker(1024)).count == forward
        if backward is not None:
            assert full_information(maker(1024)[::-1]).count == backward


def test_a_relay_read_in_reverse_is_full_too():
    for n in SIZES:  # one token in, all tokens between, one token out
        verdict = full_information(_star(n)[::-1])
        assert (verdict.full, verdict.count, edges(_star(n)[::-1])) == (True, 0, 2 * n)
        assert path_counts(_star(n)[::-1]).counts.tolist() == [[n]]


def test_missing_pairs_are_named_output_first():
    missing = full_information(_strided_released(9)).missing
    assert missing.tolist() == [[0, 7], [0, 8], [1, 8], [3, 7], [3, 8], [4, 8], [6, 7], [6, 8], [7, 8]]


def test_the_papers_examples_of_missing_paths():
    """Token 0 does not reach token 1 in fixed without the diagonal; nor token 2 token 1 where all look back."""
    assert not reach(_fixed_without_diagonal(9))[1, 0]
    assert reach(_fixed(9))[1, 0]
    assert not reach(_strided_original(9))[1, 2]
    for maker in (_fixed, _fixed_without_diagonal, _strided_original):
        assert not np.triu(reach(maker(9)), 1).any()


# Edges, paths (least, most, mean to three digits), pair flow of all pairs of pairs, at n = 9 and 16.
FLOWS = [
    (_ltr, (51, 1, 2, 1.111, 1086), (116, 1, 2, 1.094, 12316)),
    (_rtl, (51, 1, 2, 1.111, 1086), (116, 1, 2, 1.094, 12316)),
    (_strided_two_sided, (66, 1, 2, 1.444, 1272), (164, 1, 2, 1.562, 14280)),
    (_strided_circular, (54, 1, 1, 1.000, 1215), (128, 1, 1, 1.000, 13824)),
    (_strided_released, (51, 0, 1, 0.889, 1080), (122, 0, 1, 0.906, 12368)),
    (_fixed, (36, 0, 1, 0.556, 459), (80, 0, 1, 0.531, 4696)),
    (_dense, (162, 9, 9, 9, 1296), (512, 16, 16, 16, 14400)),
    (_star, (18, 1, 1, 1, 0), (32, 1, 1, 1, 0)),
]


@pytest.mark.parametrize(("maker", "nine", "sixteen"), FLOWS, ids=lambda x: getattr(x, "__name__", ""))
def test_paths_and_pair_flow_are_those_of_the_analysis(maker, nine, sixteen):
    for n, (count, least, most, mean, carried), pairs in ((9, nine, 1296), (16, sixteen, 14400)):
        masks, paths = maker(n), path_counts(maker(n))
        assert edges(masks) == count
        assert (paths.least, paths.most) == (least, most)
        assert paths.mean == pytest.approx(mean, abs=6e-4)
        flow = pair_flow(masks)
        assert (flow.carried, flow.pairs) == (carried, pairs)
        assert flow.share == carried / pairs


def _layers(sizes, density, seed):
    random_numbers = np.random.default_rng(seed)
    return [random_numbers.random((q, k)) < density for k, q in itertools.pairwise(sizes)]


RANDOM_GRAPHS = [((4, 3, 4), 0.5), ((5, 4, 3, 6), 0.4), ((3, 6), 0.5), ((6, 5, 5, 5, 4), 0.35), ((2, 1, 2), 0.9)]


@pytest.mark.parametrize(("sizes", "density"), RANDOM_GRAPHS)
def test_random_layers_against_walking_every_path(sizes, density):
    for seed in range(4):
        masks = _layers(sizes, density, seed)
        counts = np.zeros((sizes[-1], sizes[0]), int)
        for path in itertools.product(*map(range, sizes)):
            if all(mask[q, k] for mask, (k, q) in zip(masks, itertools.pairwise(path), strict=True)):
                counts[path[-1], path[0]] += 1
        assert np.array_equal(path_counts(masks).counts, counts)
        assert np.array_equal(reach(masks), counts > 0)
        expected = [[b, a] for b in range(sizes[-1]) for a in range(sizes[0]) if not counts[b, a]]
        assert full_information(masks).missing.tolist() == expected


def _served(masks):
    """Pairs of pairs with a maximum flow of 2, one flow problem each."""
    inputs, outputs = masks[0].shape[1], masks[-1].shape[0]
    return sum(
        max_flow(masks, a, b) == 2
        for a in itertools.combinations(range(inputs), 2)
        for b in itertools.combinations(range(outputs), 2)
    )


@pytest.mark.parametrize(("sizes", "density"), RANDOM_GRAPHS)
def test_pair_flow_is_the_maximum_flow_of_every_pair(sizes, density):
    for seed in range(3):
        masks = _layers(sizes, density, seed)
        assert pair_flow(masks).carried == _served(masks)


def test_pair_flow_is_the_maximum_flow_on_samples_of_the_patterns():
    """Two inputs and two outputs cut out of the masks: their pair flow is 1 where the maximum flow is 2, else 0."""
    chance = random.Random(0)
    seen = []
    for maker in (_ltr, _rtl, _fixed, _strided_released, _strided_two_sided):
        masks = maker(16)
        for _ in range(100):
            a, b = chance.sample(range(16), 2), chance.sample(range(16), 2)
            seen.append(max_flow(masks, a, b))
            assert pair_flow([masks[0][:, a], masks[1][b]]).carried == (seen[-1] == 2)
    assert min(seen.count(0), seen.count(1), seen.count(2)) > 5, "the samples hardly tell flows apart"


def test_maximum_flow_counts_tokens_that_carry_one_unit():
    assert max_flow(_dense(9), range(9), range(9)) == 9
    assert max_flow(_star(9), range(9), range(9)) == 1
    masks = _ltr(9)
    assert max_flow(masks, [0, 1, 2], [3, 4, 5]) == 1  # one block has one summary token, and theirs is all they have
    assert max_flow(masks, [0, 3, 6], [1, 4, 7]) == 3


@pytest.mark.parametrize("name", NAMED)
def test_the_librarys_patterns_are_the_formulas(name):
    maker, names = NAMED[name]
    for n in (9, 64):
        for ours, formula in zip(names, maker(n), strict=True):
            assert np.array_equal(PATTERNS[ours](n).numpy(), formula)


@pytest.mark.parametrize("n", [*range(2, 41), 128])
def test_the_librarys_pairs_have_full_information_at_any_number_of_tokens(n):
    for names in (
        ("ltr1", "ltr2"),
        ("rtl1", "rtl2"),
        ("strided1_two_sided", "strided2"),
        ("strided1_circular", "strided2"),
    ):
        assert full_information([PATTERNS[name](n) for name in names])


def test_without_a_summary_token_in_a_shorter_last_block_paths_are_missing():
    """What the library mends in the released masks, whose RTL wants whole blocks."""
    q, k, stride = _tokens(128)
    rtl = [_rtl(128)[0], (k == q) | ((k % stride == 0) & (k + stride - 1 < 128))]
    assert [full_information(masks).count for masks in (_ltr(10), _ltr(12), _ltr(128), rtl)] == [9, 0, 868, 868]


@pytest.mark.parametrize("order", ["esa", "hilbert"])
def test_orders_of_a_grid_change_no_verdict(order):
    for name in ("ltr", "strided released", "strided two-sided"):
        maker, names = NAMED[name]
        masks = [grid_mask(step, Size(4, 4), order) for step in names]
        line = maker(16)
        assert not np.array_equal(masks[0].numpy(), line[0])
        assert full_information(masks).count == full_information(line).count
        assert edges(masks) == edges(line)
        assert sorted(path_counts(masks).counts.flatten()) == sorted(path_counts(line).counts.flatten())
        assert pair_flow(masks) == pair_flow(line)


def test_tensors_and_arrays_are_alike():
    masks = _ltr(9)
    tensors = [torch.from_numpy(mask) for mask in masks]
    assert np.array_equal(path_counts(tensors).counts, path_counts(masks).counts)
    assert all(np.array_equal(one, other) for one, other in zip(read_masks(tensors), masks, strict=True))


def test_counts_beyond_a_double_stay_exact():
    counts = path_counts([np.ones((64, 64), bool)] * 12).counts
    assert counts.dtype == object
    assert int(counts[0, 0]) == 64**11


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: full_information([]), "at least one mask"),
        (lambda: reach([np.ones((3, 3))]), "step 1 must be a boolean matrix.*float64"),
        (lambda: reach([np.ones((3, 3, 3), bool)]), "boolean matrix"),
        (lambda: reach([np.ones((3, 4), bool), np.ones((5, 4), bool)]), "step 2 attends 4 tokens, but step 1 has 3"),
        (lambda: pair_flow([np.ones((1, 4), bool)]), "two inputs and two outputs; got 4 and 1"),
        (lambda: max_flow(_ltr(9), [0, 0], [1]), "inputs must be different tokens from 0 to 8"),
        (lambda: max_flow(_ltr(9), [0], [9]), "outputs must be different tokens from 0 to 8"),
    ],
)
def test_wrong_masks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_flow_imports_neither_scipy_nor_matplotlib():
    code = (
        "import sys, saccade.attention.flow, saccade.attention.flow_picture\n"
        "print([name for name in ('scipy', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def _pixels(path, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - wanted).max(2) <= 2).sum())


RED = "#c8273a"


def test_pictures_show_as_much_colour_as_the_masks_allow(tmp_path):
    """Areas of colour are in proportion to the allowed pairs; red shows missing paths, and only those."""
    for maker, n in ((_ltr, 9), (_strided_two_sided, 16), (_fixed, 9)):
        masks = maker(n)
        path = draw_flow(tmp_path / "deep" / f"{n}.png", [torch.from_numpy(mask) for mask in masks], heading="masks")
        blue, orange = (_pixels(path, colour) for colour in STEP_COLOURS[:2])
        assert blue / orange == pytest.approx(masks[0].sum() / masks[1].sum(), rel=0.06)
        assert (_pixels(path, RED) > 500) == (maker is _fixed)
    assert [file.suffix for file in (tmp_path / "deep").iterdir()] == [".png", ".png"]


def test_pictures_of_steps_that_are_not_square(tmp_path):
    path = draw_flows(
        tmp_path / "flow.png", [FlowRow("relay", _star(5)), FlowRow("random", _layers((5, 4, 3, 6), 0.4, 1))]
    )
    for colour in (*STEP_COLOURS[:3], RED):
        assert _pixels(path, colour) > 300


def test_summary_says_the_verdict():
    assert summary(_ltr(9)) == (
        "51 edges  ·  Full Information  ·  1 to 2 paths a pair, 1.11 on average  ·  pair flow 83.8%"
    )
    assert "no Full Information: 1920 of 65536 pairs have no path" in summary(_strided_released(256))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (FlowRow("a", _ltr(9), titles=["one"]), "'a' has 2 masks and 1 titles"),
        (FlowRow("a", _ltr(9), grid=Size(2, 4)), "grid of 2x4, so every mask must be square with 8"),
        (FlowRow("a", _ltr(9), order=range(9)), "every cell of its grid"),
        (FlowRow("a", _ltr(9), grid=Size(3, 3), order=[0] * 9), "every cell of its grid"),
        (FlowRow("a", _ltr(9), grid=Size(3, 3), query=9), "query of 'a' must be a cell of its grid; got 9"),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_written(row, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_flows(tmp_path / "flow.png", [row])
    with pytest.raises(ValueError, match="at least one row"):
        draw_flows(tmp_path / "flow.png", [])
    assert not list(tmp_path.iterdir())


def test_the_script_draws_lines_and_grids(tmp_path, capsys):
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "draw_flow.py"))["main"]
    out = tmp_path / "flow.png"
    assert main(["--patterns", "ltr", "strided_released", "--out", str(out)]) == 0
    assert _pixels(out, RED) > 300
    assert "51 edges" in capsys.readouterr().out
    assert main(["--patterns", "ltr1,strided2", "--grid", "3", "4", "--query", "5", "--out", str(out)]) == 0
    assert "3x4 cells" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--patterns", "diagonal", "--out", str(out)])
    assert "no pattern is called 'diagonal'. Valid here: ltr, rtl, fixed, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "flow.pdf"], "--out must end in .png; got flow.pdf, nearest: flow.png"),
        (["--query", "0"], "--query names a cell of a grid; give --grid"),
        (["--patterns", "ltr1,up", "--grid", "3", "3"], "no pattern is called 'up'"),
    ],
)
def test_the_script_refuses_what_it_cannot_draw(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "draw_flow.py"))["main"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_told_with_the_command_that_installs_them(tmp_path, monkeypatch):
    for name in ("scipy.sparse", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    mask = np.ones((2, 2), bool)
    with pytest.raises(RuntimeError, match=r"SciPy.*pip install -e '\.\[experiments\]'"):
        max_flow([mask], [0], [1])
    with pytest.raises(RuntimeError, match=r"Matplotlib.*pip install -e '\.\[experiments\]'"):
        draw_flow(tmp_path / "flow.png", [mask])
    assert not list(tmp_path.iterdir())
