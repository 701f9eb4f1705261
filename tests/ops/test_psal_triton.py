"""PSAL's Triton kernels: the matches of plain loops and of PyTorch, gradients of unfolded patches, code for GPUs.

They run on a GPU where there is one, else in Triton's interpreter (TRITON_INTERPRET=1 before Python starts), which is
slow: maps are a few pixels wide. Compilation for GPUs needs triton but neither a GPU nor the interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from oracles.psal_loops import Loops, costs_loops
from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Request
from saccade.ops.psal import psal_attention
from saccade.ops.psal import triton as psal_triton
from saccade.ops.psal.search import SearchPlan, allowed_keys
from saccade.ops.psal.search import search as torch_search
from saccade.ops.psal.triton import cost_gradients, given_costs, reasons_against, search

SEED = 5 * 2**50 + 987654321
SCORES = ("l2", "dot", "cosine", "unit_key")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INSTALLED = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(not INSTALLED, reason="triton is not installed")
needs_to_run = pytest.mark.skipif(
    not INSTALLED or not (INTERPRETED or torch.cuda.is_available()),
    reason="triton kernels run on CUDA, or on the CPU with TRITON_INTERPRET=1 set before Python starts",
)


@pytest.fixture
def wide_tiles(monkeypatch):
    """Few programs: the interpreter's time is theirs."""
    for name, number in (("SIDE", 16), ("DIFFERENCES", 2**16), ("LISTS", 2**14)):
        monkeypatch.setattr(psal_triton, name, number)


def _maps(q_size, kv_size, maps=2, channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(maps, channels, *size, generator=generator, dtype=torch.float64) for size in (q_size, kv_size)]
    return [x.to(DEVICE, dtype) for x in drawn]


def _request(device="cuda", dtype=torch.float32, channels=16, q_size=(256, 256), requires_grad=False):
    shape = AttentionShape(1, 1, channels, 16, Size(*q_size), Size(64, 64))
    return Request(torch.device(device), dtype, shape, "l2", False, requires_grad)


def _same(q, k, allowed, plan, tolerance=1e-12, seed=SEED):
    found, costs = search(q, k, allowed, plan, seed)
    expected, expected_costs = torch_search(q, k, allowed, plan, seed)
    assert torch.equal(found, expected), (found != expected).sum()
    torch.testing.assert_close(costs, expected_costs, rtol=tolerance, atol=tolerance)


@needs_to_run
@pytest.mark.parametrize(
    ("score", "border", "matches", "patch", "masked"),
    [
        ("l2", "zeros", 3, 3, False),
        pytest.param("l2", "released", 2, 3, True, marks=pytest.mark.slow),
        pytest.param("dot", "zeros", 1, 1, True, marks=pytest.mark.slow),
        pytest.param("cosine", "released", 4, 3, False, marks=pytest.mark.slow),
        pytest.param("unit_key", "zeros", 3, 5, True, marks=pytest.mark.slow),
    ],
)
def test_the_matches_are_those_of_plain_loops(wide_tiles, score, border, matches, patch, masked):
    q, k = _maps((9, 7), (6, 10))
    mask = torch.rand(1, 1, 6, 10, generator=torch.Generator().manual_seed(2)) < 0.8 if masked else None
    plan = SearchPlan(matches, patch, 2, score, border, heads=2)
    allowed = allowed_keys(k[None], None if mask is None else mask.to(DEVICE), plan)
    found, costs = (x.cpu() for x in search(q, k, allowed, plan, SEED))
    for head in range(2):
        loops = Loops(
            q[head].cpu(),
            k[head].cpu(),
            matches=matches,
            patch_size=patch,
            score=score,
            border=border,
            allowed=None if mask is None else mask[0, 0],
            seed=SEED,
            head=head,
        )
        expected = loops.jump(2)
        assert torch.equal(found[head].long(), expected[0])
        torch.testing.assert_close(costs[head], expected[1], rtol=1e-12, atol=1e-12)


@needs_to_run
@pytest.mark.slow
def test_tiles_cut_maps_anywhere_and_batches_have_their_masks():
    q, k = _maps((9, 11), (8, 10), maps=4)
    mask = torch.rand(2, 80, generator=torch.Generator().manual_seed(3)) < 0.7
    _same(q, k, mask.to(DEVICE), SearchPlan(2, 3, 1, "l2", heads=2), seed=2**62 - 3)


@needs_to_run
@pytest.mark.slow
@pytest.mark.parametrize(
    ("q_size", "kv_size", "channels", "plan"),
    [
        ((16, 16), (12, 9), 1, SearchPlan(7, 1, 1, "l2")),
        ((12, 10), (9, 13), 3, SearchPlan(3, 3, 1, "l2", coarse_start=4)),
        ((5, 6), (4, 6), 5, SearchPlan(20, 3, 1, "l2")),
        ((7, 5), (1, 1), 2, SearchPlan(1, 3, 1, "l2")),
    ],
)
def test_the_matches_are_those_of_pytorch(wide_tiles, q_size, kv_size, channels, plan):
    q, k = _maps(q_size, kv_size, maps=1, channels=channels)
    _same(q, k, None, plan)


@needs_to_run
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_read_as_it_is_and_compared_in_float32(wide_tiles, dtype):
    q, k = _maps((8, 8), (8, 8), maps=1, dtype=dtype)
    _same(q, k, None, SearchPlan(2, 3, 1, "l2"), tolerance=1e-5)
    assert search(q, k, None, SearchPlan(1, 1, 0, "l2"), SEED)[1].dtype == torch.float32


@needs_to_run
def test_matches_are_distinct_keys_whatever_the_maps_hold(wide_tiles):
    q, k = _maps((6, 5), (5, 6), maps=1, dtype=torch.float32)
    q[:, :, 2:4], k[:, 0, 3] = torch.nan, torch.inf
    found = search(q, k, None, SearchPlan(3, 3, 1, "l2"), SEED)[0]
    assert int(found.min()) >= 0
    assert int(found.max()) < 30
    assert bool((found.sort(1).values.diff(dim=1) > 0).all())


@needs_to_run
@pytest.mark.parametrize("score", SCORES)
def test_costs_of_given_matches_are_those_of_plain_loops(wide_tiles, score):
    q, k = _maps((5, 4), (6, 3), maps=2, channels=2)
    found = torch.randint(18, (2, 3, 5, 4), generator=torch.Generator().manual_seed(4))
    costs = given_costs(q, k, found.flatten(2).to(DEVICE), 3, score).cpu()
    for entry in range(2):
        expected = costs_loops(q[entry].cpu(), k[entry].cpu(), found[entry], 3, score)
        torch.testing.assert_close(costs[entry].view(expected.shape), expected, rtol=1e-12, atol=1e-12)


@needs_to_run
@pytest.mark.parametrize(("count", "patch", "channels"), [(1, 1, 3), (2, 3, 5)])
@pytest.mark.parametrize("score", SCORES)
def test_gradients_are_those_of_the_unfolded_patches(wide_tiles, score, count, patch, channels):
    q, k = (x.requires_grad_() for x in _maps((6, 7), (7, 4), channels=channels))
    generator = torch.Generator().manual_seed(4)
    matches = torch.randint(28, (2, count, 42), generator=generator, dtype=torch.int32).to(DEVICE)
    queries, keys = (F.unfold(x, patch, padding=patch // 2) for x in (q, k))  # (N, D * p * p, pixels)
    if score == "cosine":
        queries = queries / queries.norm(dim=1, keepdim=True)
    if score in ("cosine", "unit_key"):
        keys = keys / keys.norm(dim=1, keepdim=True)
    chosen = keys.gather(2, matches.long().flatten(1)[:, None].expand(-1, keys.shape[1], -1)).unflatten(2, (count, 42))
    costs = (
        (queries.unsqueeze(2) - chosen).square().sum(1) if score == "l2" else -(queries.unsqueeze(2) * chosen).sum(1)
    )
    grad = torch.randn(costs.shape, generator=generator, dtype=torch.float64).to(DEVICE)
    expected = torch.autograd.grad(costs, (q, k), grad)
    found = cost_gradients(q.detach(), k.detach(), matches, costs.detach(), grad, patch, score)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@needs_to_run
@pytest.mark.slow
def test_gradients_over_many_tiles_and_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(psal_triton, "LONGEST", 4)
    q, k = _maps((9, 10), (8, 9), channels=6, dtype=torch.float32)
    matches = torch.randint(72, (2, 2, 90), generator=torch.Generator().manual_seed(5), dtype=torch.int32).to(DEVICE)
    costs = given_costs(q, k, matches, 3, "l2")
    found = cost_gradients(q, k, matches, costs, costs, 3, "l2")
    expected = psal_triton.psal_patches.cost_gradients(q.double(), k.double(), matches, costs, costs.double(), 3, "l2")
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-4)


@needs_to_run
def test_the_op_through_triton_is_the_reference(wide_tiles):
    generator = torch.Generator().manual_seed(5)
    sizes = ((2, 2, 3, 6, 5), (2, 2, 3, 4, 7), (2, 2, 4, 4, 7))
    maps = [torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE) for size in sizes]
    results = []
    for kernel in ("triton", "reference"):
        leaves = [x.clone().requires_grad_() for x in maps]
        options = {"matches": 2, "patch_size": 3, "iterations": 1, "readout": "aggregate", "kernel": kernel}
        out = psal_attention(*leaves, **options, generator=torch.Generator().manual_seed(6))
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture
def volta(monkeypatch):
    """As if triton were installed and CUDA devices were V100s."""
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_what_triton_cannot_serve_is_said(volta, monkeypatch):
    plan = SearchPlan(3, 7, 5, "l2")
    assert reasons_against(_request(), plan) == []
    assert reasons_against(_request("cpu"), plan) == ["it runs on CUDA; the maps are on cpu"]
    for request, other, words in (
        (_request(dtype=torch.float8_e4m3fn), plan, "float8"),
        (_request(), SearchPlan(3, 7, 5, "l2", search="sweep"), "search='sweep'"),
        (_request(), SearchPlan(33, 7, 5, "l2"), "matches=33"),
        (_request(channels=2**15), plan, "32 bits"),
    ):
        (reason,) = reasons_against(request, other)
        assert words in reason
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "has 6.1" in reasons_against(_request(), plan)[0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.2.0"))
    assert reasons_against(_request(), plan) == ["it needs triton 3.3 or newer; 3.2.0 is installed"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reasons_against(_request(), plan)[0] == "triton is not installed"


def test_gradients_are_refused_where_their_order_must_be_fixed(volta, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    plan = SearchPlan(3, 7, 5, "l2")
    assert reasons_against(_request(), plan) == []
    (reason,) = reasons_against(_request(requires_grad=True), plan)
    assert "deterministic" in reason


def test_maps_on_the_cpu_cannot_ask_for_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    maps = [torch.randn(1, 1, 2, 5, 5) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"triton: .*the maps are on cpu"):
        psal_attention(*maps, matches=1, patch_size=3, iterations=1, kernel="triton")


@pytest.mark.parametrize(("run", "block"), [(112, 16), (1, 4), (147, 32), (64, 64), (1792, 64), (21, 8)])
def test_runs_are_cut_with_little_waste(run, block):
    assert psal_triton._block(run) == block


def test_importing_saccade_imports_no_triton():
    script = "import sys, saccade.ops, saccade.attention; print([m for m in sys.modules if 'kernels.psal_triton' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Stands in for the GPU's driver: every launch compiles, as a GPU of that capability would have it, and ends there.
COMPILE = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from saccade.kernels import psal_triton as kernels
from saccade.ops.psal import triton as psal_triton
from saccade.ops.psal.search import SearchPlan

class Driver:
    capability = 70
    def get_current_device(self): return self.capability
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", self.capability, 32)

class Compiled:
    def __init__(self, name): self.name = name
    def __getitem__(self, grid):
        def launch(*arguments, **words):
            made = getattr(kernels, self.name).run(*arguments, grid=grid, warmup=True, **words)
            assert len(made.asm["cubin"]) > 0 and f"sm_{Driver.capability}" in made.asm["ptx"]
            assert "bf16" not in made.asm["ptx"] or Driver.capability >= 80, self.name
            seen.add((Driver.capability, self.name))
        return launch

seen = set()
triton.runtime.driver.set_active(Driver())
psal_triton._kernel = Compiled
for Driver.capability in map(int, sys.argv[1].split(",")):
    for dtype, score, matches, patch, masked in (
        (torch.float32, "l2", 3, 7, False), (torch.float16, "cosine", 1, 3, True), (torch.bfloat16, "l2", 2, 1, True),
    ):
        q, k = torch.zeros(2, 16, 20, 20, dtype=dtype), torch.zeros(2, 16, 16, 1, dtype=dtype)
        plan = SearchPlan(matches, patch, 1, score)
        allowed = torch.ones(2, 16, dtype=torch.bool) if masked else None
        found, costs = psal_triton.search(q, k, allowed, plan, 2**61)
        found = torch.zeros_like(found)
        psal_triton.given_costs(q, k, found, patch, score)
        psal_triton.cost_gradients(q, k, found, torch.zeros_like(costs), torch.zeros_like(costs), patch, score)
print(*(f"{name}-{capability}" for capability, name in sorted(seen)))
"""


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_for_volta_ampere_and_hopper(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "70,80,90"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("given", "gradient_k", "gradient_q", "improve", "start")
    assert done.stdout.split() == [f"{name}-{capability}" for capability in (70, 80, 90) for name in names]
