"""Every backend and every kernel on CUDA in fp32, fp16 and bf16, under an error budget relative to plain PyTorch's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "tests" / "attention", ROOT / "tests" / "gpu"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from budget import CHOOSING, compare, draw, error, kernel_names, outcomes  # noqa: E402
from every_backend import ATTENDING, make  # noqa: E402

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CASES = [(backend, kernel) for backend in ATTENDING for kernel in kernel_names(backend)]
SQUARE, OTHER = (16, 16), (8, 16)


def _keep_budget(backend, kernel, dtype, device, q_size=SQUARE, kv_size=SQUARE, patch=None):
    options = {} if patch is None else {"patch_size": patch}

    def built(name, **changes):
        return make(name, **options, **changes)

    maps = draw(dtype, q_size, kv_size, channels=8, batch=2)
    try:
        verdict = compare(built, backend, kernel, maps, dtype, device)
    except RuntimeError as reason:
        if "cannot run here" not in str(reason):
            raise
        pytest.skip(str(reason))
    assert not verdict.over, verdict


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("backend", "kernel"), CASES)
def test_errors_on_cuda_keep_the_budget(backend, kernel, dtype):
    if dtype == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no bf16")
    _keep_budget(backend, kernel, DTYPES[dtype], "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ATTENDING)
def test_other_key_maps_and_patches_on_cuda(backend):
    _keep_budget(backend, "auto", torch.float32, "cuda", patch=3)
    if backend != "local":  # its window needs one grid
        _keep_budget(backend, "auto", torch.float32, "cuda", q_size=SQUARE, kv_size=OTHER)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("backend", ATTENDING)
def test_autocast_on_cuda_does_not_add_errors(backend, dtype):
    if dtype == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no bf16")
    maps = draw(torch.float32, SQUARE, SQUARE, channels=8, batch=2)
    plain = outcomes(make(backend), maps, torch.float32, "cuda")[0]
    with torch.autocast("cuda", dtype=DTYPES[dtype]), torch.no_grad():
        q, k, v = (x.to("cuda", torch.float32) for x in maps[:3])
        lowered = make(backend).to("cuda")(q, k, v).double().cpu()
    assert error(lowered, plain, CHOOSING.get(backend, 0.0)) <= 5e-5  # far below the lower dtype's rounding


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ATTENDING)
def test_cuda_and_cpu_give_the_same_numbers(backend):
    maps = draw(torch.float64, SQUARE, SQUARE, channels=8, batch=2)
    there, here = (outcomes(make(backend), maps, torch.float64, device) for device in ("cuda", "cpu"))
    for x, y in zip(there, here, strict=True):
        assert error(x, y, 0.0) < 1e-10


@pytest.mark.gpu
def test_the_benchmark_runs_on_cuda(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "bench_attention.py"), "--quick", "--device", "cuda"]
    done = subprocess.run(
        [
            *command,
            "--suites",
            "pixels",
            "--inputs",
            "photograph",
            "--modes",
            "forward+backward",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("attention-pixels_*_gpu_*.csv"))


@pytest.mark.parametrize("backend", ATTENDING)
def test_fast_kernels_keep_the_budget_on_the_cpu_too(backend):
    """The same comparison where there is no GPU: it keeps this file honest."""
    _keep_budget(backend, "auto", torch.float32, "cpu")


def test_a_wrong_kernel_does_not_keep_the_budget():
    class Off(torch.nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, q, k, v):
            return self.right(q, k, v) * 1.0001

    def built(name, kernel):
        return make(name) if kernel == "reference" else Off(make(name))

    verdict = compare(built, "full", "auto", draw(torch.float32, SQUARE, SQUARE, 8, 2), torch.float32, "cpu")
    assert set(verdict.over) == {"out", "dq", "dk", "dv"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_make_test_gpu_fails_where_there_is_no_gpu():
    makefile = (ROOT / "Makefile").read_text()
    line = makefile.split("test-gpu: setup", 1)[1].split("\n", 2)[1].strip()
    assert "SACCADE_DEMAND_GPU=1" in line
    arguments = line.split("-m pytest", 1)[1].split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"SACCADE_DEMAND_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, done.stdout
    assert "no CUDA device" in done.stdout + done.stderr
