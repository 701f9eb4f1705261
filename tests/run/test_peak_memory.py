"""Peak memory of a call, on the device that this machine has."""

import pytest
import torch

from saccade.run import peak_memory


def test_peak_is_of_what_the_call_allocates_and_it_is_quiet(capfd):
    before = torch.zeros(1000)

    def call() -> torch.Tensor:
        first = before + torch.ones(2**18)[:1]
        return torch.ones(2**19).sum() + first.sum()

    peak, method = peak_memory.peak_bytes(call, "cpu")
    assert 2**21 <= peak < 1.05 * (2**21 + 4000)  # 2 MiB at the peak; the 1 MiB before it is freed by then
    assert method == peak_memory.PROFILED
    assert capfd.readouterr().err == ""


def test_an_error_passes_and_standard_error_comes_back(capfd):
    def call() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        peak_memory.cpu_peak_bytes(call)
    import os

    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
