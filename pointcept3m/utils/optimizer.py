"""Optimizers by name, and parameter groups chosen by words in parameter names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .registry import Registry, near_names

OPTIMIZERS = Registry("optimizers")
OPTIMIZERS.register_module("SGD", module=torch.optim.SGD)
OPTIMIZERS.register_module("Adam", module=torch.optim.Adam)
OPTIMIZERS.register_module("AdamW", module=torch.optim.AdamW)


def build_optimizer(
    cfg: Mapping[str, Any], model: nn.Module, param_dicts: Sequence[Mapping[str, Any]] | None = None
) -> torch.optim.Optimizer:
    """The optimizer `cfg` names over the trainable parameters of `model`.

    `param_dicts`: `[dict(keyword="block", lr=1e-4, weight_decay=0.0), ...]`; a parameter belongs to the first entry
    whose keyword is part of its name, else to group 0 with the optimizer's own settings. Group i + 1 is entry i,
    the order that a scheduler's list of `max_lr` refers to.

    Raises: ValueError where nothing is trainable or a keyword is in no parameter's name.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("optimizer: the model has no trainable parameter")
    if not param_dicts:
        return OPTIMIZERS.build(cfg, params=[parameter for _, parameter in named])
    groups: list[dict[str, Any]] = [dict(params=[], names=[], lr=cfg["lr"])]
    for entry in param_dicts:
        if "keyword" not in entry:
            raise ValueError(f"param_dicts: wanted a 'keyword' in {dict(entry)}")
        groups.append(dict(params=[], names=[], **{key: value for key, value in entry.items() if key != "keyword"}))
    for name, parameter in named:
        index = next((i + 1 for i, entry in enumerate(param_dicts) if entry["keyword"] in name), 0)
        groups[index]["params"].append(parameter)
        groups[index]["names"].append(name)
    parts = {part for name, _ in named for part in name.split(".")}
    for group, entry in zip(groups[1:], param_dicts, strict=True):
        if not group["params"]:
            raise ValueError(f"param_dicts: no trainable parameter for keyword {entry['keyword']!r}; {near_names(entry['keyword'], parts)}")
    logger = logging.getLogger("pointcept3m")
    for index, group in enumerate(groups):
        names = group.pop("names")
        settings = {key: value for key, value in group.items() if key != "params"}
        logger.info(f"parameter group {index}: {settings}, {len(names)} tensors ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    return OPTIMIZERS.build(cfg, params=groups)
