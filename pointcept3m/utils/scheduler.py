"""Learning rate schedules by name. All are stepped once per optimizer update and span `total_steps` of them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler

from .registry import Registry, ShowsArguments

SCHEDULERS = Registry("schedulers")
Optimizer = torch.optim.Optimizer


@SCHEDULERS.register_module()
class MultiStepLR(lr_scheduler.MultiStepLR):
    """Times `gamma` at each of `milestones`, given as shares of `total_steps`."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[float], total_steps: int, gamma: float = 0.1, last_epoch: int = -1):
        super().__init__(optimizer, [int(share * total_steps) for share in milestones], gamma, last_epoch)


@SCHEDULERS.register_module()
class MultiStepWithWarmupLR(lr_scheduler.LambdaLR):
    """MultiStepLR after a linear rise from `warmup_scale` to 1 over the share `warmup_rate` of `total_steps`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[float],
        total_steps: int,
        gamma: float = 0.1,
        warmup_rate: float = 0.05,
        warmup_scale: float = 1e-6,
        last_epoch: int = -1,
    ):
        steps = [share * total_steps for share in milestones]
        warmup = warmup_rate * total_steps

        def factor(step: int) -> float:
            rise = 1.0 if step > warmup or warmup == 0 else 1 - (1 - step / warmup) * (1 - warmup_scale)
            return rise * gamma ** sum(step >= milestone for milestone in steps)

        super().__init__(optimizer, factor, last_epoch)


@SCHEDULERS.register_module()
class PolyLR(lr_scheduler.LambdaLR):
    """(1 - step / (total_steps + 1)) to the `power`."""

    def __init__(self, optimizer: Optimizer, total_steps: int, power: float = 0.9, last_epoch: int = -1):
        super().__init__(optimizer, lambda step: (1 - step / (total_steps + 1)) ** power, last_epoch)


@SCHEDULERS.register_module()
class ExpLR(lr_scheduler.LambdaLR):
    """`gamma` to the share of `total_steps` that is over."""

    def __init__(self, optimizer: Optimizer, total_steps: int, gamma: float = 0.9, last_epoch: int = -1):
        super().__init__(optimizer, lambda step: gamma ** (step / total_steps), last_epoch)


@SCHEDULERS.register_module()
class CosineAnnealingLR(lr_scheduler.CosineAnnealingLR):
    """Half a cosine from the base rate to `eta_min`."""

    def __init__(self, optimizer: Optimizer, total_steps: int, eta_min: float = 0.0, last_epoch: int = -1):
        super().__init__(optimizer, total_steps, eta_min, last_epoch)


@SCHEDULERS.register_module()
class OneCycleLR(ShowsArguments, lr_scheduler.OneCycleLR):
    """torch's, which divides by zero where the way up takes exactly one step (0.01 of 100 steps, say); here it does not."""

    def __init__(self, optimizer: Optimizer, max_lr: float | list[float], total_steps: int | None = None, pct_start: float = 0.3, **kwargs: Any):
        if total_steps is not None and pct_start * total_steps == 1:
            pct_start *= 1 + 1e-9
        super().__init__(optimizer, max_lr, total_steps, pct_start=pct_start, **kwargs)


@SCHEDULERS.register_module()
class CosineScheduler:
    """Values, not learning rates (a weight decay, a momentum): `step()` returns the next one.

    `freeze_iters` zeros, a line from `start_value` to `base_value` over `warmup_iters`, then half a cosine down to
    `final_value` at `total_iters`, and `final_value` from there on.
    """

    def __init__(
        self,
        base_value: float,
        final_value: float,
        total_iters: int,
        start_value: float = 0.0,
        warmup_iters: int = 0,
        freeze_iters: int = 0,
    ):
        rest = total_iters - warmup_iters - freeze_iters
        if rest < 0:
            raise ValueError(f"CosineScheduler: warmup_iters + freeze_iters = {warmup_iters + freeze_iters} exceed total_iters = {total_iters}")
        cosine = final_value + 0.5 * (base_value - final_value) * (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1)))
        self.values = np.concatenate([np.zeros(freeze_iters), np.linspace(start_value, base_value, warmup_iters), cosine])
        self.final_value, self.total_iters, self.iter = final_value, total_iters, 0

    def __getitem__(self, index: int) -> float:
        return float(self.values[index]) if index < self.total_iters else self.final_value

    def step(self) -> float:
        value = self[self.iter]
        self.iter += 1
        return value

    def reset(self, iter: int = 0) -> None:
        self.iter = iter

    def state_dict(self) -> dict[str, int]:
        return {"iter": self.iter}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.iter = state["iter"]


def build_scheduler(cfg: Mapping[str, Any], optimizer: Optimizer, total_steps: int | None = None) -> Any:
    """The schedule `cfg` names for `optimizer`, spanning `total_steps` updates (or what `cfg` says).

    Raises: ValueError where a list in `cfg` (`max_lr`) does not have one entry per parameter group.
    """
    arguments = dict(cfg)
    cls = SCHEDULERS.get(arguments["type"]) if isinstance(arguments.get("type"), str) else None
    if total_steps is not None and (cls is None or "total_steps" in inspect.signature(cls).parameters):
        arguments["total_steps"] = total_steps
    groups = len(optimizer.param_groups)
    if isinstance(arguments.get("max_lr"), (list, tuple)) and len(arguments["max_lr"]) != groups:
        raise ValueError(f"scheduler: max_lr has {len(arguments['max_lr'])} entries, the optimizer has {groups} parameter groups (param_dicts + 1)")
    return SCHEDULERS.build(arguments, optimizer=optimizer)
