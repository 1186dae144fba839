"""Moving-average targets and BYOL's loss: by hand, their schedules, finite differences."""

import pytest
import torch
from torch import nn

from pyjepa.objectives.ema import EMATarget, byol, momentum_at


def test_the_target_follows_by_hand():
    online = nn.Linear(1, 1)
    with torch.no_grad():
        online.weight.fill_(1.0)
        online.bias.fill_(0.0)
    target = EMATarget(online)
    with torch.no_grad():
        online.weight.fill_(3.0)
        online.bias.fill_(-1.0)
    assert target(torch.ones(1, 1)).item() == 1.0
    target.update(online, 0.75)
    assert target.module.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert target.module.bias.item() == pytest.approx(-0.25)
    target.update(online, 0.0)
    assert torch.equal(target.module.weight, online.weight)
    before = target.module.weight.clone()
    with torch.no_grad():
        online.weight.fill_(9.0)
    target.update(online, 1.0)
    assert torch.equal(target.module.weight, before)


def test_buffers_are_copied_and_no_gradient_flows():
    online = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    target = EMATarget(online)
    x = torch.randn(8, 3, requires_grad=True)
    online(x)
    target.update(online, 0.9)
    assert torch.equal(target.module[1].running_mean, online[1].running_mean)
    assert target.module[1].num_batches_tracked == 1
    assert not target(x).requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())


def test_the_momentum_schedules():
    assert [momentum_at(k, 4, base=0.5, schedule="linear") for k in range(5)] == [0.5, 0.625, 0.75, 0.875, 1.0]
    # BYOL: 1 - (1 - base) (cos(pi k / K) + 1) / 2
    assert momentum_at(0, 10) == pytest.approx(0.996)
    assert momentum_at(5, 10) == pytest.approx(0.998)
    assert momentum_at(10, 10) == 1.0
    assert momentum_at(1, 3, base=0.6, final=0.9) == pytest.approx(0.9 - 0.3 * 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: momentum_at(5, 4), "0 <= step <= steps"),
        (lambda: momentum_at(0, 0), "steps >= 1"),
        (lambda: momentum_at(0, 4, base=0.9, final=0.8), "0 <= base <= final <= 1"),
        (lambda: momentum_at(0, 4, schedule="step"), "schedule must be"),
        (lambda: EMATarget(nn.Linear(1, 1)).update(nn.Linear(1, 1), 1.5), r"momentum must be in \[0, 1\]"),
        (lambda: byol(torch.zeros(2, 3), torch.zeros(3, 2)), r"two \(N, D\)"),
    ],
)
def test_wrong_values_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_byol_by_hand_and_by_finite_differences():
    p = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    t = torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    assert byol(p, t).item() == pytest.approx((0 + 4 + 2 - 2**0.5) / 3)
    torch.manual_seed(0)
    p = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    t = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: byol(p, t), (p,))
    byol(p, t).backward()
    assert t.grad is None
