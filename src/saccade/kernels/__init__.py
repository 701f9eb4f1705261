"""Kernels written outside PyTorch: C++ that is built when the package is installed, and Triton."""

from __future__ import annotations

from types import ModuleType


def load_patchmatch() -> ModuleType | str:
    """The compiled PatchMatch, or why it is not there."""
    try:
        from saccade.kernels import _patchmatch
    except ImportError as error:
        return (
            f"the C++ extension was not built: {error}. Install a C++17 compiler (GCC or Clang) and install saccade "
            "again to have it"
        )
    return _patchmatch
