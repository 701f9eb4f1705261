"""Lookahead against a plain loop."""

import copy

import pytest
import torch
from torch import nn

from saccade.inversion import Lookahead

TARGET = torch.linspace(-2, 2, 6, dtype=torch.float64)


def loss_of(z):
    return ((z - TARGET) ** 2 * (1 + TARGET.abs())).sum() + z.cos().sum()


def start(rows=1):
    return torch.linspace(1, -3, 6 * rows, dtype=torch.float64).view(rows, 6)


INNER = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
}


def plain_loop(inner, steps, k, alpha):
    """Algorithm 1 of the paper, with the fast weights' optimiser made by torch."""
    slow = start()
    fast = nn.Parameter(slow.clone())
    optimiser = INNER[inner]([fast])
    path = []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss_of(fast).backward()
        optimiser.step()
        if step % k == 0:
            slow = slow + alpha * (fast.detach() - slow)
            fast.data.copy_(slow)
        path.append(fast.detach().clone())
    return torch.stack(path)


def run(optimiser, parameters, steps, loss=loss_of):
    path = []
    for _ in range(steps):
        optimiser.zero_grad()
        sum(loss(parameter) for parameter in parameters).backward()
        optimiser.step()
        path.append(torch.cat([parameter.detach().clone() for parameter in parameters]))
    return torch.stack(path)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (1, 0.3), (4, 1.0), (7, 0.8)])
def test_it_walks_as_a_plain_loop_does(inner, k, alpha):
    z = nn.Parameter(start())
    found = run(Lookahead(INNER[inner]([z]), k=k, alpha=alpha), [z], 23)
    torch.testing.assert_close(found, plain_loop(inner, 23, k, alpha), rtol=0, atol=1e-13)


def test_the_first_synchronisation_is_after_k_steps_not_after_one_more():
    z, plain = nn.Parameter(start()), nn.Parameter(start())
    with_slow = run(Lookahead(INNER["adam"]([z]), k=5, alpha=0.5), [z], 5)
    without = run(INNER["adam"]([plain]), [plain], 5)
    torch.testing.assert_close(with_slow[:4], without[:4], rtol=0, atol=0)
    torch.testing.assert_close(with_slow[4], (start() + without[4]) / 2, rtol=0, atol=1e-14)


def test_each_row_walks_as_if_it_were_alone():
    together = [nn.Parameter(start(3))]
    path = run(Lookahead(INNER["adam"](together)), together, 17)
    for row in range(3):
        alone = [nn.Parameter(start(3)[row : row + 1])]
        torch.testing.assert_close(run(Lookahead(INNER["adam"](alone)), alone, 17)[:, 0], path[:, row])


def test_a_parameter_without_a_gradient_stays_where_it_is():
    moving, still = nn.Parameter(start()), nn.Parameter(start())
    optimiser = Lookahead(INNER["adam"]([moving, still]))
    run(optimiser, [moving], 12)
    assert torch.equal(still, start())
    assert not torch.equal(moving, start())


@pytest.mark.parametrize("before", [0, 3, 5, 13])
def test_a_saved_state_continues_bit_for_bit(before):
    z = nn.Parameter(start())
    optimiser = Lookahead(INNER["adam"]([z]))
    if before:
        run(optimiser, [z], before)
    kept, state = z.detach().clone(), copy.deepcopy(optimiser.state_dict())
    wanted = run(optimiser, [z], 11)
    other = nn.Parameter(kept)
    resumed = Lookahead(INNER["adam"]([other]))
    resumed.load_state_dict(state)
    assert torch.equal(run(resumed, [other], 11), wanted)


def test_a_schedule_reaches_the_inner_optimiser_also_after_loading():
    z = nn.Parameter(start())
    optimiser = Lookahead(torch.optim.SGD([z], lr=1.0))
    optimiser.load_state_dict(optimiser.state_dict())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1)
    run(optimiser, [z], 1)
    schedule.step()
    assert optimiser.inner.param_groups[0]["lr"] == pytest.approx(0.1)


def test_groups_can_be_added():
    first, second = nn.Parameter(start()), nn.Parameter(start())
    optimiser = Lookahead(INNER["adam"]([first]))
    optimiser.add_param_group({"params": [second], "lr": 0.5})
    path = run(optimiser, [first, second], 1)
    assert (path[0, 1] - start()).abs().max() > 9 * (path[0, 0] - start()).abs().max()


def test_wrong_options_and_states_are_refused():
    inner = INNER["adam"]([nn.Parameter(start())])
    for k in (0, 2.5, True):
        with pytest.raises(ValueError, match="k is a number of steps"):
            Lookahead(inner, k=k)
    for alpha in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="alpha is above 0"):
            Lookahead(inner, alpha=alpha)
    with pytest.raises(ValueError, match="inner, slow and count"):
        Lookahead(inner).load_state_dict(inner.state_dict())
