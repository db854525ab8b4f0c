"""Training and testing. HOOKS, TRAINERS, TESTERS and DefaultTrainer are imported when first asked for.

Their modules import torch, and the command line, which lives here too, must answer before that.
"""

import importlib
from typing import Any

_HOMES = {"HOOKS": ".hooks", "TESTERS": ".testers", "TRAINERS": ".staged", "DefaultTrainer": ".trainer"}

__all__ = ["HOOKS", "TESTERS", "TRAINERS", "DefaultTrainer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
