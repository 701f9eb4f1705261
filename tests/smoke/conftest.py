"""Commands as a user types them, in fresh processes, on the smallest network and data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    changed = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "SACCADE_OFFLINE": "1", "SACCADE_CACHE": str(cache)}
    kept = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return {**kept, **changed, "COLUMNS": "200"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """What keeps a run inside the test's folder."""
    return ["budget=smoke", f"runtime.root={tmp_path / 'runs'}", f"runtime.data_dir={tmp_path / 'data'}"]


@pytest.fixture
def command(environment: dict[str, str]) -> Command:
    """Run a script of the project and return what it printed."""

    def run(script: str, *parts: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROJECT / script), *parts],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
