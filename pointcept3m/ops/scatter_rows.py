"""The ops under `scatter`: rows [N, C] reduced into bins, and bins' rows handed back to rows.

`scatter_sum`, `scatter_mean` and `scatter_extreme` (max and min, with the row that won) go there, `gather_rows` and
`gather_won` come back; each one's gradient is another of them. `src` is contiguous, `index` int64 [N], contiguous.
float16 and bfloat16 are accumulated in float32. Twins serve any device and dtype.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library

NATIVE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def wide(value: Tensor) -> Tensor:
    """`value` in the type that it is accumulated in: float32 for sixteen bits, else its own."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def share(total: Tensor, count: Tensor) -> Tensor:
    """Rows divided by their counts [V], in the wide type; integers are rounded down; a count of 0 divides by 1."""
    mode = None if total.is_floating_point() else "floor"
    return wide(total).div(count.clamp(min=1)[:, None], rounding_mode=mode).to(total.dtype)


def count_rows(index: Tensor, dim_size: int) -> Tensor:
    """How many rows each bin has, int64 [dim_size]."""
    return index.new_zeros(dim_size).index_add_(0, index, torch.ones_like(index))


def sum_twin(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    rows = wide(src)
    return rows.new_zeros(dim_size, src.size(1)).index_add_(0, index, rows).to(src.dtype)


def mean_twin(src: Tensor, index: Tensor, dim_size: int) -> tuple[Tensor, Tensor]:
    count = count_rows(index, dim_size)
    return share(sum_twin(wide(src), index, dim_size), count).to(src.dtype), count


def extreme_twin(src: Tensor, index: Tensor, dim_size: int, largest: bool) -> tuple[Tensor, Tensor]:
    num_rows = src.size(0)
    spread = index[:, None].expand_as(src)
    out = src.new_zeros(dim_size, src.size(1))
    out = out.scatter_reduce(0, spread, src, "amax" if largest else "amin", include_self=False)
    won = out[index]
    hit = (src == won) | ((src != src) & (won != won))
    row = torch.arange(num_rows, device=src.device)[:, None]
    arg = index.new_full(out.shape, num_rows)
    return out, arg.scatter_reduce_(0, spread, torch.where(hit, row, num_rows), "amin").int()


def gather_twin(src: Tensor, index: Tensor) -> Tensor:
    return src.index_select(0, index)


def gather_won_twin(grad: Tensor, arg: Tensor, index: Tensor) -> Tensor:
    row = torch.arange(index.size(0), device=index.device)[:, None]
    return torch.where(arg.index_select(0, index) == row, grad.index_select(0, index), 0)


_library.define("scatter_sum(Tensor src, Tensor index, int dim_size) -> Tensor", sum_twin)
_library.define("scatter_mean(Tensor src, Tensor index, int dim_size) -> (Tensor, Tensor)", mean_twin)
_library.define(
    "scatter_extreme(Tensor src, Tensor index, int dim_size, bool largest) -> (Tensor, Tensor)", extreme_twin
)
_library.define("gather_rows(Tensor src, Tensor index) -> Tensor", gather_twin)
_library.define("gather_won(Tensor grad, Tensor arg, Tensor index) -> Tensor", gather_won_twin)


@torch.library.register_fake("pointcept3m::scatter_sum")
def _(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    return src.new_empty(dim_size, src.size(1))


@torch.library.register_fake("pointcept3m::scatter_mean")
def _(src: Tensor, index: Tensor, dim_size: int) -> tuple[Tensor, Tensor]:
    return src.new_empty(dim_size, src.size(1)), index.new_empty(dim_size)


@torch.library.register_fake("pointcept3m::scatter_extreme")
def _(src: Tensor, index: Tensor, dim_size: int, largest: bool) -> tuple[Tensor, Tensor]:
    return src.new_empty(dim_size, src.size(1)), src.new_empty(dim_size, src.size(1), dtype=torch.int32)


@torch.library.register_fake("pointcept3m::gather_rows")
def _(src: Tensor, index: Tensor) -> Tensor:
    return src.new_empty(index.size(0), src.size(1))


@torch.library.register_fake("pointcept3m::gather_won")
def _(grad: Tensor, arg: Tensor, index: Tensor) -> Tensor:
    return grad.new_empty(index.size(0), grad.size(1))


def _save_index(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _sum_backward(ctx, grad: Tensor) -> tuple:
    (index,) = ctx.saved_tensors
    return torch.ops.pointcept3m.gather_rows(grad.contiguous(), index), None, None


def _save_mean(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(inputs[1], output[1])
    ctx.mark_non_differentiable(output[1])


def _mean_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    index, count = ctx.saved_tensors
    return torch.ops.pointcept3m.gather_rows(share(grad, count).contiguous(), index), None, None


def _save_extreme(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[1], inputs[1])
    ctx.mark_non_differentiable(output[1])


def _extreme_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    arg, index = ctx.saved_tensors
    return torch.ops.pointcept3m.gather_won(grad.contiguous(), arg, index), None, None, None


def _save_gather(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.num_rows = inputs[0].size(0)


def _gather_backward(ctx, grad: Tensor) -> tuple:
    (index,) = ctx.saved_tensors
    return torch.ops.pointcept3m.scatter_sum(grad.contiguous(), index, ctx.num_rows), None


def _save_arg(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def take_won(value: Tensor, arg: Tensor) -> Tensor:
    """value[arg[v, c], c] for each bin v and channel c; 0 where `arg` is one past the last row, as in an empty bin."""
    padded = torch.cat([value, value.new_zeros(1, value.size(1))])
    return padded.gather(0, arg.long())


def _won_backward(ctx, grad: Tensor) -> tuple:
    return take_won(grad, ctx.saved_tensors[0]), None, None


_register = torch.library.register_autograd
_register("pointcept3m::scatter_sum", _sum_backward, setup_context=_save_index)
_register("pointcept3m::scatter_mean", _mean_backward, setup_context=_save_mean)
_register("pointcept3m::scatter_extreme", _extreme_backward, setup_context=_save_extreme)
_register("pointcept3m::gather_rows", _gather_backward, setup_context=_save_gather)
_register("pointcept3m::gather_won", _won_backward, setup_context=_save_arg)
