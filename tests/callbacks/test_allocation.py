import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from saccade.callbacks.allocation import count_allocations

N = 4096
BYTES = 4 * N


def test_what_is_made_counts_and_what_dies_is_taken_off():
    source = torch.ones(N)
    with count_allocations() as counted:
        first = source + 1
        second = first * 2
        assert (counted.live, counted.peak) == (2 * BYTES, 2 * BYTES)
        del first
        assert (counted.live, counted.peak) == (BYTES, 2 * BYTES)
        third = second + 1
        assert (counted.live, counted.peak) == (2 * BYTES, 2 * BYTES)
    del second, third
    assert (counted.live, counted.peak) == (0, 2 * BYTES)


def test_views_and_changes_in_place_are_not_new_memory():
    source = torch.ones(N)
    with count_allocations() as counted:
        source.view(64, 64).t().add_(1)
        source[: N // 2].mul_(2)
        torch.add(source, 1, out=source)
    assert (counted.live, counted.peak) == (0, 0)


def test_memory_from_before_is_not_taken_off_when_it_dies_inside():
    with count_allocations() as counted:
        source = torch.ones(N)
    old = torch.ones(N)
    with count_allocations() as inner:
        old.add_(1)
        del old
        assert inner.live == 0
    assert counted.live == BYTES
    del source


def test_a_tensor_that_grows_counts_with_its_new_size():
    with count_allocations() as counted:
        grows = torch.ones(N)
        grows.resize_(3 * N)
        assert counted.live == 3 * BYTES
    assert grows.numel() == 3 * N


def test_the_backward_pass_is_seen():
    weight = torch.ones(N, requires_grad=True)
    with count_allocations() as counted:
        # kept for backward: exp's result, which is also sin's input; sin's own result is needed by nothing
        loss = weight.exp().sin().sum()
        assert counted.live == BYTES + 4
        loss.backward()
    assert weight.grad is not None
    del loss
    assert counted.live == BYTES
    assert counted.peak >= 3 * BYTES


def test_recomputation_holds_less():
    weight = torch.ones(N, requires_grad=True)

    def chain(x):
        for _ in range(6):
            x = x.sin().exp()
        return x

    with count_allocations() as plain:
        y = weight
        for _ in range(4):
            y = chain(y)
        assert plain.live == 24 * BYTES  # the result of every exp
        y.sum().backward()
    with count_allocations() as recomputed:
        y = weight
        for _ in range(4):
            y = checkpoint(chain, y, use_reentrant=False)
        assert recomputed.live == 4 * BYTES  # the ends of the chains
        y.sum().backward()
    assert 9 * BYTES < recomputed.peak < 0.5 * plain.peak  # one chain at a time, made again during backward


def test_a_training_step_of_a_network_adds_up():
    network = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    batch = torch.ones(32, 8)
    with count_allocations() as counted:
        network(batch).sum().backward()
        optimiser.step()
    assert counted.live == parameters  # the gradients
    hidden = 32 * 16 * 4
    assert parameters + hidden < counted.peak < parameters + 5 * hidden
    optimiser.zero_grad(set_to_none=True)
    assert counted.live == 0


def test_lists_of_results_and_other_devices():
    with count_allocations() as counted:
        parts = torch._foreach_add([torch.zeros(N), torch.zeros(N)], 1.0)
        torch.zeros(N, device="meta") + 1
    assert counted.live == 2 * BYTES
    del parts


def test_peak_can_start_again_and_an_error_ends_counting():
    with count_allocations() as counted:
        keep = torch.ones(N)
        torch.ones(4 * N)
        assert counted.peak == 5 * BYTES
        counted.reset_peak()
        assert counted.peak == BYTES
    with pytest.raises(RuntimeError), count_allocations() as failed:
        torch.ones(3) @ torch.ones(4)
    before = failed.live
    keep = keep + 1
    assert failed.live == before
