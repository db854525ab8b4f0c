"""The only file that knows the compiled library: loads it, declares schemas, says what serves an op.

An op is declared by `define(schema, twin)`. The twin, plain torch, serves every device that has no kernel of
its own, and is the truth in tests. C++ kernels in csrc/ register themselves for the CPU when the library loads.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

NAMESPACE = "pointcept3m"
logger = logging.getLogger("pointcept3m")
_definitions = torch.library.Library(NAMESPACE, "DEF")
_twins_in_use: set[tuple[str, str]] = set()


def _load() -> tuple[bool, str]:
    if os.environ.get("POINTCEPT3M_NATIVE", "1") == "0":
        return False, "not loaded, as POINTCEPT3M_NATIVE=0 asks"
    path = Path(os.environ.get("POINTCEPT3M_OPS") or Path(__file__).parents[1] / "_ops.so")
    if not path.is_file():
        return False, f"not built ({path} is absent); 'pip install -e .' with a C++ compiler builds it"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return False, f"could not be loaded: {error}"
    return True, f"loaded from {path}"


def define(schema: str, twin: Callable) -> None:
    """Declares the op `pointcept3m::<schema>`; `twin` computes it wherever no kernel is registered."""
    name = schema.split("(")[0]

    def serve(*args, **kwargs):
        device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
        if (name, device) not in _twins_in_use:
            _twins_in_use.add((name, device))
            why = _status if device == "cpu" else f"no {device} kernel yet"
            logger.info("ops.%s runs in plain torch on %s: compiled library %s", name, device, why)
        return twin(*args, **kwargs)

    _definitions.define(schema)
    _definitions.impl(name, serve, "CompositeExplicitAutograd")


def native_loaded() -> bool:
    """Whether the compiled CPU library serves the ops in this process."""
    return _native


def status() -> str:
    """One sentence: whether the compiled library is in use, and if not, why and what to do."""
    return f"compiled CPU library {_status}"


_native, _status = _load()
