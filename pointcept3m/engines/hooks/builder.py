"""The hook registry, and the order hooks must stand in."""

from collections.abc import Mapping, Sequence
from typing import Any

from pointcept3m.utils.hook import HookBase
from pointcept3m.utils.registry import Registry

HOOKS = Registry("hooks")


def build_hooks(cfg: Sequence[Mapping[str, Any]]) -> list[HookBase]:
    """The hooks that `cfg` lists, in order.

    Raises: ValueError where an evaluator stands after the CheckpointSaver, which would then save the best model by
    a metric one epoch old.
    """
    hooks = [HOOKS.build(entry) for entry in cfg]
    names = [type(hook).__name__ for hook in hooks]
    saver = names.index("CheckpointSaver") if "CheckpointSaver" in names else len(names)
    late = [name for name, hook in list(zip(names, hooks, strict=True))[saver:] if hook.sets_metric]
    if late:
        raise ValueError(f"hooks: {late[0]} must stand before CheckpointSaver, which compares the metric that it sets; got the order {names}")
    return hooks
