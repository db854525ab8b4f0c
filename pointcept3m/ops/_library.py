"""The only file that knows the compiled libraries: loads them, declares schemas, says what serves an op.

An op is declared by `define(schema, twin)`. The twin, plain torch, serves every device that has no kernel of
its own, and is the truth in tests. Kernels in csrc/ register themselves when their library loads: those for the CPU
in `_ops.so`, those for CUDA in `_ops_cuda.so`.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path

import torch

NAMESPACE = "pointcept3m"
FOLDER = Path(__file__).parents[1]
logger = logging.getLogger("pointcept3m")
_definitions = torch.library.Library(NAMESPACE, "DEF")
_twins: dict[str, Callable] = {}
_twins_in_use: set[tuple[str, str]] = set()
_warned: set[str] = set()


def _path() -> Path:
    return Path(os.environ.get("POINTCEPT3M_OPS") or FOLDER / "_ops.so")


def _load() -> tuple[bool, str]:
    """Whether the CPU library serves, and why or why not."""
    if os.environ.get("POINTCEPT3M_NATIVE", "1") == "0":
        return False, "not loaded, as POINTCEPT3M_NATIVE=0 asks"
    path = _path()
    if not path.is_file() and "POINTCEPT3M_OPS" in os.environ:
        raise FileNotFoundError(f"POINTCEPT3M_OPS names {path}, and there is no such file")
    if not path.is_file():
        return False, f"not built ({path} is absent); 'pip install -e .' with a C++ compiler builds it"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return False, f"could not be loaded: {error}"
    return True, f"loaded from {path}"


def _load_cuda() -> tuple[bool, str]:
    """The same for the CUDA library."""
    if os.environ.get("POINTCEPT3M_NATIVE", "1") == "0":
        return False, "not loaded, as POINTCEPT3M_NATIVE=0 asks"
    path = Path(os.environ.get("POINTCEPT3M_OPS_CUDA") or FOLDER / "_ops_cuda.so")
    if not path.is_file() and "POINTCEPT3M_OPS_CUDA" in os.environ:
        raise FileNotFoundError(f"POINTCEPT3M_OPS_CUDA names {path}, and there is no such file")
    if not path.is_file():
        note = path.with_suffix(".txt")
        reason = note.read_text().strip() if note.is_file() else f"{path} is absent"
        return False, f"not built ({reason}); 'pip install -e .' with nvcc and a CUDA build of torch builds it"
    if torch.version.cuda is None:
        return False, f"not loaded, as torch {torch.__version__} has no CUDA"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return False, f"could not be loaded: {error}"
    architectures = ctypes.CDLL(str(path)).pointcept3m_cuda_architectures
    architectures.restype = ctypes.c_char_p
    return True, f"loaded from {path} (for {', '.join('sm_' + a.replace('.', '') for a in architectures().decode().split())})"


def define(schema: str, twin: Callable) -> None:
    """Declares the op `pointcept3m::<schema>`; `twin` computes it wherever no kernel is registered."""
    name = schema.split("(")[0]

    def serve(*args, **kwargs):
        device = next((a.device.type for a in args if isinstance(a, torch.Tensor)), "cpu")
        if (name, device) not in _twins_in_use:
            _twins_in_use.add((name, device))
            _say_twin_serves(name, device)
        return twin(*args, **kwargs)

    _twins[name] = twin
    _definitions.define(schema)
    _definitions.impl(name, serve, "CompositeExplicitAutograd")


def _say_twin_serves(name: str, device: str) -> None:
    """A warning where a compiled library is missing, once for each device; for every single op only the log's detail."""
    loaded, status = {"cpu": (_native, _status), "cuda": (_native_cuda, _status_cuda)}.get(device, (True, ""))
    asked = os.environ.get("POINTCEPT3M_NATIVE") == "0"
    if not loaded and not asked and device not in _warned:
        _warned.add(device)
        logger.warning("ops run in plain torch on %s, slower: compiled %s library %s", device, device.upper(), status)
    why = f"there is no {device} kernel" if loaded else "the library is not in use"
    logger.info("ops.%s runs in plain torch on %s: %s", name, device, why)


def twin_of(name: str) -> Callable:
    """The plain-torch function behind op `name`, for comparisons; it serves nobody, so no log line says that it does."""
    return _twins[name]


def native_loaded() -> bool:
    """Whether the compiled CPU library serves the ops in this process."""
    return _native


def emulated() -> bool:
    """Whether what serves the CPU are the CUDA kernels under the emulator of tests/cuda_emulator."""
    return _native and hasattr(ctypes.CDLL(_path()), "pointcept3m_cuda_architectures")


def status() -> str:
    """One sentence: whether the compiled libraries are in use, and if not, why and what to do."""
    return f"compiled CPU library {_status}; compiled CUDA library {_status_cuda}"


_native, _status = _load()
_native_cuda, _status_cuda = _load_cuda()
