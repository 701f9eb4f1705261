"""The torchvision guard: it prepares, imports nothing, and can be called again."""

import importlib.util
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from saccade import _torchvision


def _pretend_package(monkeypatch, folder):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    spec = None if folder is None else SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    defined = []
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    return defined


def test_saccade_does_not_import_torchvision_and_torchvision_imports_after_it():
    code = (
        "import sys, saccade; assert 'torchvision' not in sys.modules; "
        "from saccade._torchvision import prepare_torchvision; prepare_torchvision(); "
        "import torchvision.models; print(torchvision.models.vgg11(weights=None).features[0].out_channels)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "64"


def test_nothing_is_declared_without_torchvision(monkeypatch):
    defined = _pretend_package(monkeypatch, None)
    _torchvision.prepare_torchvision()
    assert defined == []


def test_nothing_is_declared_once_torchvision_is_imported(monkeypatch):
    defined = _pretend_package(monkeypatch, pathlib.Path("nowhere"))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    _torchvision.prepare_torchvision()
    assert defined == []


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_only_if_the_extension_does_not_load(monkeypatch, tmp_path, loads):
    defined = _pretend_package(monkeypatch, tmp_path)
    (tmp_path / "_C.so").write_bytes(b"not a library")
    monkeypatch.setattr(_torchvision, "_OPERATORS", ("absent_one", "absent_two"))
    if loads:
        monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    _torchvision.prepare_torchvision()
    assert defined == ([] if loads else ["torchvision::absent_one", "torchvision::absent_two"])
