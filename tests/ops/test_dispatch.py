import json

import pytest
import torch
from torch import Tensor

from saccade.geometry import AttentionShape, Size
from saccade.ops.dispatch import Kernel, Request, choose, double_backward, ledger, once_differentiable, reset_ledger

SHAPE = AttentionShape(batch=1, heads=1, qk_channels=4, v_channels=4, q_size=Size(2, 2), kv_size=Size(2, 2))
REQUEST = Request(torch.device("cpu"), torch.float32, SHAPE, "dot", masked=False, requires_grad=True)


def _run(*_: object) -> Tensor:
    return torch.zeros(())


def _kernel(name: str, *reasons: str, twice: bool = False) -> Kernel:
    return Kernel(name, _run, lambda request: list(reasons), double_backward=twice)


@pytest.fixture(autouse=True)
def _empty_ledger():
    reset_ledger()
    yield
    reset_ledger()


def test_auto_takes_the_first_that_can_run_and_records_why_not_the_others():
    kernels = [_kernel("fast", "no tensor cores", "map too small"), _kernel("plain"), _kernel("slow")]
    for _ in range(2):
        assert choose("op", kernels, REQUEST).name == "plain"
    assert ledger() == [
        {
            "op": "op",
            "asked": "auto",
            "kernel": "plain",
            "skipped": {"fast": ["no tensor cores", "map too small"]},
            "calls": 2,
        }
    ]
    assert json.loads(json.dumps(ledger())) == ledger()


def test_ledger_keeps_outcomes_apart_and_can_be_reset():
    kernels = [_kernel("a"), _kernel("b", twice=True)]
    choose("op", kernels, REQUEST)
    choose("op", kernels, REQUEST, "b")
    choose("other", kernels, REQUEST)
    assert [(entry["op"], entry["asked"], entry["kernel"]) for entry in ledger()] == [
        ("op", "auto", "a"),
        ("op", "b", "b"),
        ("other", "auto", "a"),
    ]
    reset_ledger()
    assert ledger() == []


def test_a_named_kernel_that_cannot_run_raises_with_its_reasons_and_the_ones_that_can():
    kernels = [_kernel("fast", "no tensor cores"), _kernel("plain")]
    with pytest.raises(RuntimeError, match=r"op: kernel='fast' cannot run here. fast: no tensor cores.*plain"):
        choose("op", kernels, REQUEST, "fast")
    assert ledger() == []


def test_an_unknown_kernel_lists_the_valid_names():
    with pytest.raises(ValueError, match=r"no kernel is called 'fats'. Valid here: auto, fast, plain"):
        choose("op", [_kernel("fast"), _kernel("plain")], REQUEST, "fats")


def test_auto_raises_when_nothing_can_run():
    with pytest.raises(RuntimeError, match=r"a: too small \| b: too large"):
        choose("op", [_kernel("a", "too small"), _kernel("b", "too large")], REQUEST)


def test_double_backward_leaves_only_kernels_that_declare_it_and_ends_with_its_block():
    kernels = [_kernel("fast"), _kernel("plain", twice=True)]
    with double_backward():
        assert choose("op", kernels, REQUEST).name == "plain"
        with double_backward(enabled=False):
            assert choose("op", kernels, REQUEST).name == "fast"
        with pytest.raises(RuntimeError, match=r"not twice differentiable.*Use kernel=\"auto\", or one of: plain"):
            choose("op", kernels, REQUEST, "fast")
    assert choose("op", kernels, REQUEST).name == "fast"
    assert ledger()[0]["skipped"] == {"fast": ["it is not twice differentiable, which double_backward() asks for"]}


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return once_differentiable("the double", [2 * grad.detach()], ctx.saved_tensors)[0]


def test_a_gradient_without_a_graph_says_so_when_it_is_differentiated():
    x = torch.ones(3, requires_grad=True)
    (plain,) = torch.autograd.grad(_Double.apply(x).sum(), x)
    assert torch.equal(plain, torch.full((3,), 2.0))
    (marked,) = torch.autograd.grad(_Double.apply(x).sum(), x, create_graph=True)
    assert torch.equal(marked, plain)
    with pytest.raises(RuntimeError, match=r"the double is not twice differentiable.*double_backward\(\)"):
        marked.square().sum().backward()
