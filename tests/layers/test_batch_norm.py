"""Batch norm against PyTorch's and closed forms; running estimates; two processes as one."""

import threading

import pytest
import torch
from torch.nn import functional as F

from saccade.layers import batch_norm
from saccade.layers.batch_norm import BatchNorm


def filled(norm):
    """The layer with random gains and offsets."""
    with torch.no_grad():
        norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
        norm.bias.normal_()
    return norm


def maps(batch=6, channels=5, size=(4, 3), dtype=torch.float64):
    return torch.randn(batch, channels, *size, dtype=dtype) * 3 + 2


def plainly(x, gain, offset, eps=1e-3):
    """The textbook form, by autograd."""
    mean = x.mean((0, 2, 3), keepdim=True)
    var = (x - mean).square().mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * gain[:, :, None, None] + offset[:, :, None, None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_classes_it_is_pytorchs(layout):
    ours, theirs = filled(BatchNorm(5).double()), torch.nn.BatchNorm2d(5, eps=1e-3).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = maps().contiguous(memory_format=layout)
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    cotangent = torch.randn_like(x)
    torch.testing.assert_close(ours(y), theirs(z))
    ours(y).backward(cotangent)
    theirs(z).backward(cotangent)
    torch.testing.assert_close(y.grad, z.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_classes_pick_their_gain_and_offset(layout):
    norm = filled(BatchNorm(5, classes=4).double())
    labels = torch.tensor([3, 0, 0, 2, 3, 0])
    x = maps().contiguous(memory_format=layout).requires_grad_()
    cotangent = torch.randn_like(x)
    inputs = (x, norm.weight, norm.bias)
    expected = plainly(x, F.embedding(labels, norm.weight), F.embedding(labels, norm.bias))
    torch.testing.assert_close(norm(x, labels), expected)
    found = torch.autograd.grad(norm(x, labels), inputs, cotangent)
    for gradient, wanted in zip(found, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        torch.testing.assert_close(gradient, wanted)
    assert not found[1][1].any()  # no sample of class 1


def test_gradient_numerically():
    norm = filled(BatchNorm(2, classes=3).double())
    labels = torch.tensor([1, 0, 1])
    x = maps(3, 2, (2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x, labels), (x, norm.weight, norm.bias))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(norm(x, labels).sum(), x, create_graph=True)


def test_running_estimates_take_the_biased_variance_at_the_momentum():
    norm = BatchNorm(5, momentum=0.25).double()
    x = maps(2)
    norm(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(norm.running_mean, 0.25 * mean)
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * var)
    assert BatchNorm(5).momentum == 1e-3
    norm.eval()
    before = norm.running_mean.clone()
    expected = (x - norm.running_mean[:, None, None]) / (norm.running_var + 1e-3).sqrt()[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm.running_mean, before)


def test_evaluation_is_differentiable_and_by_class():
    norm = filled(BatchNorm(2, classes=3).double()).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    labels = torch.tensor([2, 0, 2])
    x = maps(3, 2, (2, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: norm(x, labels), (x, norm.weight, norm.bias))


def test_large_means_do_not_cancel():
    norm = BatchNorm(3)
    x = torch.randn(8, 3, 6, 6) + 1000
    expected = plainly(x.double(), torch.ones(1, 3).double(), torch.zeros(1, 3).double())
    # PyTorch's own error in float32, doubled
    theirs = (F.batch_norm(x, None, None, training=True, eps=1e-3).double() - expected).abs().max()
    assert (norm(x).double() - expected).abs().max() < 2 * theirs + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_takes_moments_in_full(dtype):
    norm = BatchNorm(3)
    x = (torch.randn(8, 3, 16, 16) + 4).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = norm(x)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert x.grad.dtype == dtype
    torch.testing.assert_close(norm.running_mean, 1e-3 * x.detach().float().mean((0, 2, 3)), rtol=1e-5, atol=1e-7)
    exact = plainly(x.detach().float(), torch.ones(1, 3), torch.zeros(1, 3))
    torch.testing.assert_close(y.detach().float(), exact, rtol=1e-2, atol=2 * torch.finfo(dtype).eps)


class Collectives:
    """all_gather and all_reduce between two threads."""

    def __init__(self):
        self.barrier = threading.Barrier(2)
        self.parts = [None, None]
        self.rank = threading.local()

    def _exchange(self, tensor):
        self.parts[self.rank.number] = tensor.clone()
        self.barrier.wait(timeout=20)
        parts = [part.clone() for part in self.parts]
        self.barrier.wait(timeout=20)
        return parts

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return 2

    def all_gather(self, outputs, tensor):
        for output, part in zip(outputs, self._exchange(tensor), strict=True):
            output.copy_(part)

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._exchange(tensor)))


@pytest.mark.parametrize("split", [4, 1])
def test_two_processes_are_one(monkeypatch, split):
    x, labels = maps(8), torch.randint(3, (8,))
    x[split:] += 5  # moments of the halves differ
    cotangent = torch.randn_like(x)
    alone = filled(BatchNorm(5, classes=3).double())
    whole = x.clone().requires_grad_()
    expected = alone(whole, labels)
    expected.backward(cotangent)

    fake = Collectives()
    monkeypatch.setattr(batch_norm, "dist", fake)
    found = {}

    def process(rank, part):
        fake.rank.number = rank
        norm = BatchNorm(5, classes=3).double()
        with torch.no_grad():
            norm.weight.copy_(alone.weight)
            norm.bias.copy_(alone.bias)
        own = x[part].clone().requires_grad_()
        y = norm(own, labels[part])
        y.backward(cotangent[part])
        found[rank] = (y.detach(), own.grad, norm)

    threads = [
        threading.Thread(target=process, args=(rank, part)) for rank, part in enumerate((slice(split), slice(split, 8)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    torch.testing.assert_close(torch.cat((found[0][0], found[1][0])), expected.detach())
    torch.testing.assert_close(torch.cat((found[0][1], found[1][1])), whole.grad)
    torch.testing.assert_close(found[0][2].weight.grad + found[1][2].weight.grad, alone.weight.grad)
    torch.testing.assert_close(found[0][2].bias.grad + found[1][2].bias.grad, alone.bias.grad)
    for _, _, norm in found.values():
        torch.testing.assert_close(norm.running_mean, alone.running_mean)
        torch.testing.assert_close(norm.running_var, alone.running_var)


def test_sync_can_be_left_out(monkeypatch):
    monkeypatch.setattr(batch_norm, "_processes", lambda: 2)
    x = maps()
    torch.testing.assert_close(BatchNorm(5, sync=False).double()(x), BatchNorm(5, sync=False).double()(x))


@pytest.mark.parametrize(
    ("options", "x", "labels", "message"),
    [
        ({}, (2, 4, 3, 3), None, r"must be \(batch, 5, rows, cols\); got \(2, 4, 3, 3\)"),
        ({}, (2, 5, 3, 3), [0, 1], "takes no labels"),
        ({"classes": 3}, (2, 5, 3, 3), None, "needs labels of its 3 classes; got None"),
    ],
)
def test_wrong_input_is_named(options, x, labels, message):
    norm = BatchNorm(5, **options)
    with pytest.raises(ValueError, match=message):
        norm(torch.zeros(x), None if labels is None else torch.tensor(labels))
    with pytest.raises(ValueError, match="must be 1 or more; got 5 and 0"):
        BatchNorm(5, classes=0)


def test_an_overflow_does_not_stay_in_the_running_estimates() -> None:
    norm = BatchNorm(3, momentum=0.5)
    x = torch.randn(4, 3, 5, 5)
    x[0, 1, 0, 0] = torch.inf
    norm(x)
    assert torch.isfinite(norm.running_mean).all()
    assert torch.isfinite(norm.running_var).all()
    assert norm.running_mean[1] == 0
    assert norm.running_mean[0] != 0
