"""The shape of every schedule, and which parameters get which settings."""

import math

import pytest
import torch
from torch import nn

from pointcept3m.utils.optimizer import build_optimizer
from pointcept3m.utils.scheduler import SCHEDULERS, CosineScheduler, build_scheduler


def rates(cfg: dict, total: int = 100, lr: float = 1.0) -> list[float]:
    """The learning rate of each update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = build_scheduler(cfg, optimizer, total)
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_multi_step():
    values = rates(dict(type="MultiStepLR", milestones=[0.5, 0.8], gamma=0.1))
    assert values[0] == values[49] == 1.0
    assert values[50] == pytest.approx(0.1) and values[79] == pytest.approx(0.1)
    assert values[80] == pytest.approx(0.01) == values[99]


def test_multi_step_with_warmup():
    values = rates(dict(type="MultiStepWithWarmupLR", milestones=[0.5], gamma=0.1, warmup_rate=0.1, warmup_scale=0.2))
    assert values[0] == pytest.approx(0.2) and values[5] == pytest.approx(0.6) and values[10] == pytest.approx(1.0)
    assert values[49] == pytest.approx(1.0) and values[50] == pytest.approx(0.1)


def test_poly():
    values = rates(dict(type="PolyLR", power=0.9))
    assert values[0] == 1.0 and values[50] == pytest.approx((1 - 50 / 101) ** 0.9) and values[99] == pytest.approx((2 / 101) ** 0.9)


def test_exponential():
    values = rates(dict(type="ExpLR", gamma=0.01))
    assert values[0] == 1.0 and values[50] == pytest.approx(0.1)


def test_cosine_annealing():
    values = rates(dict(type="CosineAnnealingLR", eta_min=0.2))
    assert values[0] == 1.0 and values[50] == pytest.approx(0.6) and values[25] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_one_cycle():
    values = rates(dict(type="OneCycleLR", max_lr=2.0, pct_start=0.25, div_factor=10, final_div_factor=100, anneal_strategy="cos"))
    assert values[0] == pytest.approx(0.2) and max(values) == pytest.approx(2.0) and values.index(max(values)) == 24
    assert values[-1] == pytest.approx(0.002)


def test_cosine_values():
    schedule = CosineScheduler(base_value=1.0, final_value=0.0, total_iters=12, start_value=0.5, warmup_iters=3, freeze_iters=1)
    values = [schedule.step() for _ in range(14)]
    assert values[:4] == [0.0, 0.5, 0.75, 1.0] and values[4] == 1.0 and values[8] == pytest.approx(0.5) and values[12:] == [0.0, 0.0]
    schedule.reset(2)
    assert schedule.step() == 0.75


def test_every_schedule_has_a_test_here():
    assert set(SCHEDULERS.classes) == {
        "MultiStepLR", "MultiStepWithWarmupLR", "PolyLR", "ExpLR", "CosineAnnealingLR", "OneCycleLR", "CosineScheduler"
    }  # fmt: skip


def test_unknown_schedule():
    with pytest.raises(KeyError, match="did you mean 'OneCycleLR'"):
        rates(dict(type="OneCycle"))


@pytest.fixture
def model():
    return nn.ModuleDict(dict(backbone=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), head=nn.Linear(2, 2)))


def test_param_dicts_make_groups(model):
    optimizer = build_optimizer(
        dict(type="AdamW", lr=0.1, weight_decay=0.05), model, [dict(keyword="backbone.1", lr=0.01), dict(keyword="bias", weight_decay=0.0)]
    )
    groups = optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [2, 2, 2]  # backbone.1.bias belongs to the first keyword
    assert [group["lr"] for group in groups] == [0.1, 0.01, 0.1] and [group["weight_decay"] for group in groups] == [0.05, 0.05, 0.0]
    assert groups[1]["params"][0] is model["backbone"][1].weight


def test_frozen_parameters_are_left_out(model):
    model["backbone"].requires_grad_(False)
    assert len(build_optimizer(dict(type="SGD", lr=0.1), model).param_groups[0]["params"]) == 2
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(dict(type="SGD", lr=0.1), model)


def test_param_dicts_errors(model):
    with pytest.raises(ValueError, match="keyword 'backbon2'; did you mean 'backbone'"):
        build_optimizer(dict(type="SGD", lr=0.1), model, [dict(keyword="backbon2", lr=0.1)])
    with pytest.raises(TypeError, match="takes no argument 'moment'; did you mean 'momentum'"):
        build_optimizer(dict(type="SGD", lr=0.1, moment=0.9), model)


def test_one_rate_per_group(model):
    optimizer = build_optimizer(dict(type="SGD", lr=0.1), model, [dict(keyword="head", lr=0.01)])
    build_scheduler(dict(type="OneCycleLR", max_lr=[0.1, 0.01]), optimizer, 10)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    with pytest.raises(ValueError, match="max_lr has 3 entries, the optimizer has 2 parameter groups"):
        build_scheduler(dict(type="OneCycleLR", max_lr=[1, 2, 3]), optimizer, 10)


def test_one_cycle_with_one_step_up():
    """torch alone divides by zero here."""
    values = rates(dict(type="OneCycleLR", max_lr=2.0, pct_start=0.1, div_factor=10), total=10)
    assert values[0] == pytest.approx(0.2) and values[1] == pytest.approx(2.0, rel=0.1) and values[-1] < 1e-3
