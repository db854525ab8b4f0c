"""Checks of arguments that several ops share: each error names the op, the argument, what was wanted and what came.

Values of tensors are looked at only outside torch.compile, where there are none; the kernels refuse what is left.
"""

import functools
import inspect
from collections.abc import Callable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
INTS = (torch.int64, torch.int32)
POINTOPS_NAMES = {"xyz": "coord", "new_xyz": "new_coord", "with_xyz": "with_coord"}

Function = TypeVar("Function", bound=Callable)


def type_of(value: object) -> str:
    """The dtype of a tensor, the type of anything else."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def check_tensor(op: str, name: str, value: object, dtypes: tuple[torch.dtype, ...] | None = None) -> None:
    """`value` is a tensor, of one of the dtypes where these are given."""
    if isinstance(value, Tensor) and (dtypes is None or value.dtype in dtypes):
        return
    kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes or ())
    wanted = f"{'an' if kinds.startswith('int') else 'a'} {kinds} tensor" if kinds else "a tensor"
    raise TypeError(f"{op}: {name} must be {wanted}, got {type_of(value)}")


def check_device(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{op}: {name} must be on {like.device} as {like_name} is, got {value.device}")


def check_shape(op: str, name: str, value: Tensor, shape: tuple[int | str, ...]) -> None:
    """`value` has this shape; a word in place of a number stands for any length."""
    if value.dim() != len(shape) or any(
        wanted != got for wanted, got in zip(shape, value.shape, strict=True) if not isinstance(wanted, str)
    ):
        raise ValueError(f"{op}: {name} must have shape [{', '.join(map(str, shape))}], got {tuple(value.shape)}")


def check_int(op: str, name: str, value: object, least: int | None = None) -> None:
    """`value` is an int, which a compiler may not know yet (`torch.SymInt`), and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int, got {type_of(value)}")
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")


def check_number(op: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{op}: {name} must be a number, got {type_of(value)}")


def check_points(op: str, name: str, coord: Tensor, letter: str = "N") -> Tensor:
    """`coord` [N, 3], float32 or float64, detached and contiguous.

    Half precision is refused: it tells apart some 2,000 places along an axis, a millimetre only up to two metres.
    """
    check_tensor(op, name, coord, FLOATS)
    check_shape(op, name, coord, (letter, 3))
    return coord.detach().contiguous()


def check_offset(op: str, name: str, offset: Tensor, coord_name: str, coord: Tensor, ascends: bool = True) -> Tensor:
    """`offset` [B] as int64, on the device of `coord`, and, if it `ascends`, from 0 or more to its number of points."""
    check_tensor(op, name, offset, INTS)
    check_shape(op, name, offset, ("B",))
    check_device(op, name, offset, coord_name, coord)
    if ascends and not torch.compiler.is_compiling():
        ends = offset.tolist()
        if (ends[-1] if ends else 0) != len(coord) or sorted([0, *ends]) != [0, *ends]:
            shown = str(ends) if len(ends) <= 8 else f"[{', '.join(map(str, ends[:3]))}, ..., {ends[-1]}]"
            raise ValueError(f"{op}: {name} must ascend to the number of points, {len(coord)}, got {shown}")
    return offset.long().contiguous()


def check_range(op: str, name: str, index: Tensor, size: int, least: int = 0) -> int | None:
    """Every entry lies in [least, size). Gives the lowest; None where there is none, or no value can be looked at."""
    if torch.compiler.is_compiling() or index.numel() == 0:
        return None
    low, high = (int(value) for value in torch.aminmax(index))
    if low < least or high >= size:
        raise IndexError(f"{op}: {name} must lie in [{least}, {size}), found {low if low < least else high}")
    return low


def pointops_names(function: Function) -> Function:
    """Lets `function` also take its coord, new_coord and with_coord as pointops' `xyz`, `new_xyz` and `with_xyz`."""
    ours = inspect.signature(function).parameters
    names = {old: new for old, new in POINTOPS_NAMES.items() if new in ours}

    @functools.wraps(function)
    def call(*args, **kwargs):
        for old, new in names.items():
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__}: {old} is another name for {new}; give one of them")
                kwargs[new] = kwargs.pop(old)
        return function(*args, **kwargs)

    return call
