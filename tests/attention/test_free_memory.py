"""What the machine has left, from the files that tell it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.attention import free_memory
from saccade.attention.free_memory import free_bytes

CPU = torch.device("cpu")


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, meminfo: str | None, limit: str | None) -> int | None:
    files = {"meminfo": meminfo, "limit": limit}
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
    monkeypatch.setattr(free_memory, "_MEMINFO", folder / "meminfo")
    monkeypatch.setattr(free_memory, "_LIMITS", (folder / "limit", folder / "absent"))
    return free_bytes(CPU)


def test_the_smaller_of_machine_and_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = "MemTotal: 8000 kB\nMemAvailable:    5000 kB\n"
    assert told(monkeypatch, tmp_path, meminfo, "max\n") == 5000 * 1024
    assert told(monkeypatch, tmp_path, meminfo, "4096000\n") == 4096000
    assert told(monkeypatch, tmp_path, meminfo, "9999999999\n") == 5000 * 1024


def test_where_nothing_tells_the_machine_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    total = told(monkeypatch, tmp_path, None, None)
    assert total is None or total > 2**28


def test_other_devices_are_not_known() -> None:
    assert free_bytes(torch.device("meta")) is None
