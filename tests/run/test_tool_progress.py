"""The tools' progress: every step once, on a bar or in lines."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from saccade.run.tool_progress import StepProgress, outermost


class Nested(nn.Module):
    """Its inner convolution must not be counted beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def network() -> nn.Sequential:
    shared = nn.Conv2d(1, 1, 1)
    return nn.Sequential(shared, nn.ReLU(), Nested(), nn.Sequential(shared, nn.Conv2d(1, 1, 1)))


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_modules_of_the_kinds_are_found_once_and_not_inside_each_other():
    net = network()
    assert outermost(net, (nn.Conv2d, Nested)) == [net[0], net[2], net[3][1]]


def test_every_call_is_a_step_and_nothing_is_left_on_the_network():
    net, to = network(), console()
    with StepProgress("painting", 4, "lines", every_seconds=0, console=to) as progress:
        with progress.following(net, (nn.Conv2d, Nested)):
            net(torch.zeros(1, 1, 2, 2))
        net(torch.zeros(1, 1, 2, 2))
    assert (progress.done, progress.total) == (4, 4)
    lines = to.file.getvalue().splitlines()
    assert [line.rpartition(",")[0] for line in lines] == [f"painting: {n} of 4 steps ({25 * n}%)" for n in range(1, 5)]
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_go_when_the_network_fails():
    net = network()

    def fail() -> None:
        with StepProgress("x", 4, "off") as progress, progress.following(net, (nn.Conv2d,)):
            net(torch.zeros(1, 5, 2, 2))

    with pytest.raises(RuntimeError):
        fail()
    assert not any(module._forward_hooks for module in net.modules())


def test_more_steps_than_announced_grow_the_total():
    with StepProgress("x", 2, "off", console=console()) as progress:
        progress.advance(5)
    assert (progress.done, progress.total) == (5, 5)
    assert progress.console.file.getvalue() == ""


def test_lines_are_rare_and_the_last_one_comes():
    to = console()
    with StepProgress("x", 50, "auto", every_seconds=1e9, console=to) as progress:
        for _ in range(50):
            progress.advance()
    assert len(to.file.getvalue().splitlines()) == 1
    assert "50 of 50" in to.file.getvalue()


def test_a_terminal_gets_a_bar():
    to = console(terminal=True)
    with StepProgress("painting", 3, console=to) as progress:
        assert progress.style == "bar"
        progress.advance(3)
    assert "painting" in to.file.getvalue()
    assert "3/3" in to.file.getvalue()


def test_unknown_styles_are_refused():
    with pytest.raises(ValueError, match="progress=fast is unknown; choose one of auto"):
        StepProgress("x", 1, "fast")  # type: ignore[arg-type]
