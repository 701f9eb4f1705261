"""The benchmark of inpainting large pictures."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from saccade.attention import contextual

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_inpainting.py"


@pytest.fixture(scope="module")
def bench() -> dict[str, object]:
    return runpy.run_path(str(SCRIPT))


def test_holes_are_filled(bench: dict[str, object]) -> None:
    row = bench["work"]("psal", 264, 270, 1)  # type: ignore[operator]
    assert row["status"] == "done"
    assert row["cpu_s"] > 0


def test_what_does_not_fit_is_a_row_with_its_message(bench: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contextual, "free_bytes", lambda *_: 24 * 2**20)  # enough for 256x256
    row = bench["work"]("full", 400, 400, 1)  # type: ignore[operator]
    assert row["status"] == "refused"
    assert "attention=psal" in str(row["told"])
