"""What the doctor says of the machine: Python, torch, GPUs and what they can compute, processors, memory, disk."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from saccade.run.doctor_checks import Check

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 4)
# Default builds from torch 2.11 on are CUDA 13, which needs this driver; older ones lack sm_75 too.
NEW_DRIVER = 580
LEGACY = "make clean setup TORCH=legacy-gpu   (constraints/legacy-gpu.txt: the last default builds with sm_70)"
_GIB = 1024.0**3


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, compute capability, memory in MiB, and the driver's version."""

    name: str
    capability: tuple[int, int]
    memory_mib: int
    driver: str

    @property
    def sm(self) -> str:
        return f"sm_{self.capability[0]}{self.capability[1]}"


def version_of(text: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def python_check() -> Check:
    """The interpreter."""
    found = f"{sys.version.split()[0]} at {sys.prefix}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "BROKEN", found, "make setup PYTHON=<a Python of 3.10 or newer>")
    return Check("python", "OK", found)


def torch_check() -> Check:
    """torch's version and build."""
    version = str(torch.__version__)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if version_of(version)[:2] < OLDEST_TORCH:
        return Check("torch", "BROKEN", f"{version}, {build}", "2.4 or newer is needed: make clean setup")
    return Check("torch", "OK", f"{version}, {build}")


# ---------------------------------------------------------------------- GPUs


def find_gpus() -> list[Gpu]:
    """GPUs as nvidia-smi lists them, so also those that this torch cannot use; without nvidia-smi, as torch does."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    gpus = [gpu for line in listed.splitlines() if (gpu := parse_gpu(line)) is not None]
    if gpus or not torch.cuda.is_available():
        return gpus
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        found.append(Gpu(properties.name, capability, properties.total_memory // 2**20, ""))
    return found


def parse_gpu(line: str) -> Gpu | None:
    """One line of nvidia-smi's CSV; None where it holds no capability (an old driver, an error message)."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 4 or not re.fullmatch(r"\d+\.\d+", cells[1]):
        return None
    major, minor = cells[1].split(".")
    memory = int(cells[2]) if cells[2].isdigit() else 0
    return Gpu(cells[0], (int(major), int(minor)), memory, cells[3])


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a torch build has code for a GPU: of the same major and no newer minor version, or older PTX."""
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", architecture)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        same = match[1] == "sm" and built[0] == capability[0] and built <= capability
        if same or (match[1] == "compute" and built <= capability):
            return True
    return False


def suggested_set(gpus: Sequence[Gpu]) -> str:
    """The constraint set for these GPUs, as scripts/pick_torch.sh picks it."""
    if not gpus:
        return "cpu"
    drivers = [int(gpu.driver.split(".")[0]) for gpu in gpus if gpu.driver.split(".")[0].isdigit()]
    old = any(gpu.capability < (7, 5) for gpu in gpus) or any(driver < NEW_DRIVER for driver in drivers)
    return "legacy-gpu" if old else "cuda"


def gpu_checks(gpus: Sequence[Gpu], *, cuda: str | None, usable: bool, architectures: Sequence[str]) -> list[Check]:
    """What these GPUs can do under this torch.

    Args:
        cuda: CUDA version of the torch build; None for a CPU build.
        usable: torch.cuda.is_available().
        architectures: torch.cuda.get_arch_list().
    """
    if not gpus:
        text = "none: runs on the CPU, where budget=smoke and budget=demo are meant to; budget=paper would take months"
        return [Check("gpu", "MISSING", text)]
    checks = []
    for index, gpu in enumerate(gpus):
        found = f"{gpu.name}, {gpu.sm}, {gpu.memory_mib:,} MiB" + (f", driver {gpu.driver}" if gpu.driver else "")
        name = f"gpu {index}"
        again = f"make clean setup TORCH={suggested_set(gpus)}"
        if cuda is None:
            checks.append(Check(name, "WARN", f"{found}; this torch is a CPU build", again))
        elif not usable:
            why = f"{found}; torch (CUDA {cuda}) cannot use it: driver too old, or hidden by CUDA_VISIBLE_DEVICES"
            checks.append(Check(name, "WARN", why, again))
        elif not runs_on(gpu.capability, architectures):
            why = f"{found}; this torch has no code for {gpu.sm} (it has {' '.join(architectures) or 'none'})"
            mend = LEGACY if gpu.capability < (7, 5) else again
            checks.append(Check(name, "WARN", why, mend))
        else:
            checks.append(Check(name, "OK", found))
    return checks


def precision_check(gpus: Sequence[Gpu]) -> Check:
    """Which numerics= the weakest GPU computes natively."""
    if not gpus:
        return Check("precision", "OK", "CPU: numerics=fp32 (fp16 and bf16 are many times slower here)")
    oldest = min(gpu.capability for gpu in gpus)
    if oldest >= (8, 0):
        return Check("precision", "OK", "numerics=bf16 (native), or fp32")
    if oldest >= (7, 0):
        return Check("precision", "OK", "numerics=fp16, or fp32; no native bf16 before sm_80")
    return Check("precision", "OK", "numerics=fp32; no tensor cores before sm_70")


def triton_check(gpus: Sequence[Gpu], version: str | None) -> Check:
    """Whether device kernels in Triton can compile; every operator runs without it too."""
    if version is None:
        if not gpus:
            return Check("triton", "OK", "not installed, and not needed without a GPU")
        return Check("triton", "MISSING", "not installed; plain PyTorch runs instead", "pip install triton")
    number = version_of(version)[:2]
    if any(gpu.capability == (7, 0) for gpu in gpus):
        if (3, 2) <= number <= (3, 3):
            return Check("triton", "WARN", f"{version} does not compile fp16 for sm_70", LEGACY)
        if number >= (3, 4):
            return Check("triton", "OK", f"{version}; on sm_70 its matrix products do without tensor cores")
    return Check("triton", "OK", version)


def triton_version() -> str | None:
    """Triton's version without importing it; None if it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def sdpa_check(device: torch.device) -> Check:
    """Which of PyTorch's fused attention kernels answer on a device, by asking each."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {"flash": "FLASH_ATTENTION", "memory-efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
    names["cudnn"] = "CUDNN_ATTENTION"  # not in every torch that is supported
    kernels = {name: getattr(SDPBackend, member) for name, member in names.items() if hasattr(SDPBackend, member)}
    dtypes = (torch.float32, torch.float16) if device.type == "cuda" else (torch.float32,)
    answers = []
    for name, backend in kernels.items():
        for dtype in dtypes:
            query = torch.zeros(1, 1, 64, 64, device=device, dtype=dtype)
            try:
                with warnings.catch_warnings(), sdpa_kernel(backend):
                    warnings.simplefilter("ignore")
                    torch.nn.functional.scaled_dot_product_attention(query, query, query)
            except RuntimeError:
                continue
            answers.append(f"{name} {str(dtype).removeprefix('torch.')}")
    if not answers:
        return Check("sdpa", "BROKEN", f"no attention kernel of PyTorch runs on {device.type}", "make clean setup")
    return Check("sdpa", "OK", f"on {device.type}: {', '.join(answers)}")


# ---------------------------------------------------------------------- processors, memory, disk


def cpu_check() -> Check:
    """Processors that this process may use, and torch's threads."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{count} processors, torch uses {threads} threads"
    if threads < count:
        limit = os.environ.get("OMP_NUM_THREADS")
        why = f" (OMP_NUM_THREADS={limit})" if limit else ""
        return Check("processors", "WARN", found + why, f"runtime.threads={count}, or unset OMP_NUM_THREADS")
    if threads > count:
        return Check("processors", "WARN", found, f"more threads than processors are slow: runtime.threads={count}")
    return Check("processors", "OK", found)


def memory_bytes() -> int | None:
    """RAM that this process may use: the machine's, or its control group's limit; None where neither is told."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found) if found else None


def memory_check() -> Check:
    """RAM."""
    size = memory_bytes()
    if size is None:
        return Check("memory", "OK", "size unknown")
    found = f"{size / _GIB:.1f} GiB"
    if size < 4 * _GIB:
        return Check("memory", "WARN", found, "budget=smoke and budget=demo fit; larger ones may not")
    return Check("memory", "OK", found)


def disk_check(name: str, folder: Path, *, least_gib: float = 2.0) -> Check:
    """Room and permission where `folder` is or would be made."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    found = f"{folder}: {free:.1f} GiB free"
    if not os.access(place, os.W_OK):
        return Check(name, "WARN", f"{found}, not writable", f"choose another folder (runtime.*), or: chown {place}")
    if free < least_gib:
        return Check(name, "WARN", found, "make room, or choose another folder (runtime.*)")
    return Check(name, "OK", found)
