"""What serves each op: a compiled kernel or the plain-torch twin, and how long a small call of either takes."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from pointcept3m.ops import _library

PREFIX = f"{_library.NAMESPACE}::"


class Served(NamedTuple):
    """One op: its name without the namespace, and per device type "native" (a compiled kernel) or "torch" (the twin)."""

    name: str
    cpu: str
    cuda: str


def inventory() -> list[Served]:
    """Every op that is declared, in alphabetical order."""
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX))
    return [Served(name.removeprefix(PREFIX), _server(name, "CPU"), _server(name, "CUDA")) for name in names]


def _server(name: str, dispatch_key: str) -> str:
    return "native" if torch._C._dispatch_has_kernel_for_dispatch_key(name, dispatch_key) else "torch"


def scatter_speed(num_points: int = 200_000, channels: int = 32) -> dict[str, float]:
    """Milliseconds that adding `num_points` rows into 10,000 groups takes on the CPU: best of five calls.

    "native" stands in the result where the compiled library is loaded, "torch" (the twin) always.
    """
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(num_points, channels, generator=generator)
    index = torch.randint(10_000, (num_points,), generator=generator)
    op = torch.ops.pointcept3m.scatter_sum.default
    twin = _library.twin_of("scatter_sum")
    speeds = {"torch": _best_of(lambda: twin(source, index, 10_000))}
    if _server(PREFIX + "scatter_sum", "CPU") == "native":
        speeds["native"] = _best_of(lambda: op(source, index, 10_000))
    return speeds


def _best_of(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1000
