"""`scripts/doctor.py`: what will and will not run on this machine, and how to mend it."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import saccade
from saccade.run import doctor_machine as machine
from saccade.run.doctor_checks import Check, State

_COLOURS: dict[State, str] = {"OK": "green", "WARN": "yellow", "MISSING": "cyan", "BROKEN": "bold red"}
# What an import of a broken binary package raises, besides ImportError.
_IMPORT_ERRORS = (ImportError, OSError, RuntimeError, AttributeError)


def package_checks() -> list[Check]:
    """Required packages against the bounds in pyproject.toml, without importing them."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Check("packages", "BROKEN", "the package `packaging` is missing", "make clean setup")]
    try:
        lines = importlib.metadata.requires("saccade") or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "BROKEN", "saccade itself is not installed", "make setup (pip install -e .)")]
    missing, outside = [], []
    wanted = [requirement for line in lines if (requirement := Requirement(line)).marker is None]
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            outside.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
    if missing:
        return [Check("packages", "BROKEN", f"not installed: {', '.join(missing)}", "make clean setup")]
    if outside:
        return [Check("packages", "WARN", f"outside the tested range: {', '.join(outside)}", "make clean setup")]
    return [Check("packages", "OK", f"{len(wanted)} required packages, all in the tested range")]


def opencv_check() -> Check:
    """One OpenCV: two builds in one environment overwrite each other."""
    builds = []
    for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python"):
        try:
            builds.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(builds) > 1:
        mend = "pip uninstall -y opencv-python opencv-contrib-python opencv-python-headless; make clean setup"
        return Check("opencv", "WARN", f"more than one: {', '.join(builds)}", mend)
    return import_check("opencv", "cv2", builds[0] if builds else "")


def import_check(name: str, module: str, found: str = "") -> Check:
    """Whether a package imports, which its metadata cannot tell."""
    try:
        loaded = importlib.import_module(module)
    except _IMPORT_ERRORS as error:
        return Check(name, "BROKEN", f"import {module} fails: {str(error).strip().splitlines()[0]}", "make clean setup")
    return Check(name, "OK", found or str(getattr(loaded, "__version__", "imports")))


def torchvision_check() -> Check:
    """torchvision imports beside this torch, and is the release made for it."""
    try:
        from torchvision import __version__ as version
        from torchvision import extension
    except _IMPORT_ERRORS as error:
        found = f"does not import beside torch {torch.__version__}: {str(error).strip().splitlines()[0]}"
        return Check("torchvision", "BROKEN", found, "make clean setup (constraints/ pins a pair that fits)")
    needs = [line for line in importlib.metadata.requires("torchvision") or [] if line.startswith("torch=")]
    pinned = needs[0].partition("==")[2].split(";")[0].strip() if needs else ""
    if pinned and machine.version_of(pinned) != machine.version_of(str(torch.__version__)):
        found = f"{version} is made for torch {pinned}, this is torch {torch.__version__}"
        return Check("torchvision", "WARN", found, "make clean setup (constraints/ pins a pair that fits)")
    if not extension._has_ops():
        return Check("torchvision", "OK", f"{version}; its compiled operators do not load, and none is needed")
    return Check("torchvision", "OK", str(version))


def weight_checks(folder: str | None) -> list[Check]:
    """Pretrained weight files."""
    from saccade.weights import status

    checks = []
    for row in status(folder):
        name, what = f"weights {row['name']}", f"{row['what']} ({row['megabytes']} MB)"
        mend = f"python scripts/fetch_weights.py {row['name']}, or put {row['file']} into a folder: runtime.weights_dir"
        if row["state"] == "found":
            checks.append(Check(name, "OK", str(row["where"])))
        elif row["state"] == "damaged":
            checks.append(Check(name, "WARN", f"damaged: {row['where']}", mend))
        else:
            checks.append(Check(name, "MISSING", f"{what}; without it random features, flagged as such", mend))
    return checks


def data_check(root: Path) -> Check:
    """DeepFashion's files."""
    from saccade.data.layout import resolve_source

    try:
        source = resolve_source(root)
    except ValueError as error:
        return Check("data deepfashion", "WARN", str(error).splitlines()[0], "see data/README.md")
    if source == "files":
        return Check("data deepfashion", "OK", str(root))
    found = f"no files in {root}: stand-in people will be drawn, and said so"
    return Check("data deepfashion", "MISSING", found, "data/README.md; python scripts/prepare_data.py deepfashion")


def wandb_check() -> Check:
    """Where W&B would log to."""
    from saccade.run.loggers import wandb_key_exists, wandb_mode

    if os.environ.get("WANDB_MODE"):
        return Check("wandb", "OK", f"WANDB_MODE={os.environ['WANDB_MODE']}: {wandb_mode('auto')}")
    if wandb_key_exists():
        return Check("wandb", "OK", "a key is there: runs are logged online")
    found = "no key: runs are logged offline, CSV always"
    return Check("wandb", "MISSING", found, "wandb login; later: wandb sync <folder>; silence: runtime.wandb=off")


def conf_check() -> Check:
    """The configuration tree, which lies beside the package in a clone."""
    conf = Path(saccade.__file__).resolve().parents[2] / "conf"
    if (conf / "train.yaml").is_file():
        return Check("conf", "OK", str(conf))
    return Check("conf", "BROKEN", f"{conf} holds no train.yaml", "run from a clone: make setup (pip install -e .)")


def run_checks(*, data_dir: Path, runs: Path, cache: Path, weights_dir: str | None) -> list[Check]:
    """All checks, in the order they are shown."""
    gpus = machine.find_gpus()
    usable = torch.cuda.is_available()
    architectures = torch.cuda.get_arch_list()
    checks = [machine.python_check(), machine.torch_check(), torchvision_check(), *package_checks(), opencv_check()]
    checks += [import_check("lightning", "pytorch_lightning"), conf_check()]
    checks += machine.gpu_checks(gpus, cuda=torch.version.cuda, usable=usable, architectures=architectures)
    checks += [machine.precision_check(gpus), machine.triton_check(gpus, machine.triton_version())]
    checks.append(machine.sdpa_check(torch.device("cuda" if usable else "cpu")))
    checks += [machine.cpu_check(), machine.memory_check()]
    checks += [machine.disk_check("disk, runs", runs), machine.disk_check("disk, stand-ins and statistics", cache)]
    checks += weight_checks(weights_dir)
    checks.append(data_check(data_dir / "deepfashion"))
    if not any(check.name == "lightning" and check.state == "BROKEN" for check in checks):
        checks.append(wandb_check())
    return checks


def verdict(checks: Sequence[Check]) -> str:
    """The last line."""
    broken = [check.name for check in checks if check.state == "BROKEN"]
    if broken:
        return f"Broken: {', '.join(broken)}. Mend these first."
    warned = [check.name for check in checks if check.state == "WARN"]
    missing = sum(check.state == "MISSING" for check in checks)
    note = f" Look at: {', '.join(warned)}." if warned else ""
    return (
        f"Saccade runs here.{note} {missing} optional things are missing." if missing else f"Saccade runs here.{note}"
    )


def as_text(checks: Sequence[Check]) -> str:
    """Plain lines, for files, pipes and machines without rich."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8s}{check.name:{width}s}  {check.found}")
        if check.mend:
            lines.append(f"{'':8s}{'':{width}s}  -> {check.mend}")
    return "\n".join([*lines, "", verdict(checks)])


def show(checks: Sequence[Check]) -> None:
    """A table on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        print(as_text(checks))
        return
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        print(as_text(checks))
        return
    table = Table("", "what", "found", "how to mend it", title=f"Saccade {saccade.__version__}", title_justify="left")
    for check in checks:
        colour = _COLOURS[check.state]
        table.add_row(f"[{colour}]{check.state}[/]", escape(check.name), escape(check.found), escape(check.mend))
    console = Console()
    console.print(table)
    console.print(verdict(checks), highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of scripts/doctor.py.

    Returns:
        The exit code: 1 if the installation is broken, else 0.
    """
    parser = argparse.ArgumentParser(prog="doctor.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="runtime.data_dir [data]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="runtime.root [runs]")
    parser.add_argument("--weights-dir", default=None, help="runtime.weights_dir")
    options = parser.parse_args(arguments)
    cache = Path(os.environ.get("SACCADE_CACHE") or Path.home() / ".cache" / "saccade")
    checks = run_checks(data_dir=options.data_dir, runs=options.runs, cache=cache, weights_dir=options.weights_dir)
    broken = any(check.state == "BROKEN" for check in checks)
    if options.json:
        print(json.dumps({"ok": not broken, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
    return 1 if broken else 0
