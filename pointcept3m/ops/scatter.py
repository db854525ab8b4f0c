"""Reductions of rows into bins: `scatter` with torch_scatter's arguments and meaning, deterministic.

Every layout is brought to one: rows [N, C] and one bin per row. There four ops do the work: `scatter_sum`,
`scatter_mean`, `scatter_extreme` (max and min, with the row that won) and, for backward, `gather_rows`.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.utils.registry import near_names

REDUCTIONS = ("sum", "add", "mean", "max", "min", "mul")
NATIVE_DTYPES = (torch.float32, torch.float64)


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
    backend: str | None = None,
) -> Tensor:
    """Reduces the entries of `src` that share an `index` along `dim`; bins that none reaches hold 0 (1 for "mul").

    Deterministic: entries are taken in their order, whatever the number of threads. Differentiable in `src`.

    Args:
        src: values of any shape. float16 and bfloat16 are accumulated in float32.
        index: int64 bin of each entry: `src`'s shape, or a shape that broadcasts to it, or one entry per
            position along `dim`.
        dim: the dimension that is reduced.
        out: a tensor that is reduced into, in place, and returned; its old values take part (for "mean" they
            are added before the division by the count, as in torch_scatter).
        dim_size: number of bins; without it (and without `out`) the largest index plus one.
        reduce: "sum" or "add", "mean", "max", "min", "mul".
        backend: "native" (ours, the default) or "torch_scatter", which must then be installed.

    Returns:
        `src`'s shape with `dim_size` along `dim`. (`scatter_max` and `scatter_min` also give the winners.)

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"scatter: no reduction {reduce!r}; {near_names(reduce, REDUCTIONS)}")
    result = _scatter(src, index, dim, out, dim_size, reduce, backend)
    return result[0] if isinstance(result, tuple) else result


def _scatter(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, reduce: str, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """What `scatter` computes, with the winners of an extreme."""
    if backend == "torch_scatter":
        return _torch_scatter(src, index, dim, out, dim_size, reduce)
    if backend not in (None, "native"):
        raise ValueError(f"scatter: backend must be 'native' or 'torch_scatter', got {backend!r}")
    dim = _check_dim(src, dim)
    index, per_row = _align_index(src, index, dim)
    dim_size = _check_size(src, index, dim, out, dim_size)

    rows, bins, width = _to_rows(src, index, dim, per_row)
    others = src.shape[:dim] + src.shape[dim + 1 :]

    def restore(value: Tensor) -> Tensor:
        return value.reshape(dim_size, *others).movedim(0, dim)

    value, extra = _reduce_rows(rows, bins, dim_size * width, reduce)
    value = restore(value.to(src.dtype))
    if reduce in ("max", "min"):
        arg = restore(extra.div(width, rounding_mode="floor") if width > 1 else extra)
        return _into_extreme(out, value, arg, src.size(dim), largest=reduce == "max")
    if out is None:
        return value
    count = restore(extra[:, None].expand(-1, rows.size(1))) if reduce == "mean" else None
    return _into(out, value, count, reduce)


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="sum"."""
    return scatter(src, index, dim, out, dim_size, "sum")


scatter_add = scatter_sum


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mean"."""
    return scatter(src, index, dim, out, dim_size, "mean")


def scatter_mul(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mul"."""
    return scatter(src, index, dim, out, dim_size, "mul")


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`scatter` with reduce="max", and int64 `arg`: the position along `dim` of the winner, the first among equals.

    `arg` has the result's shape, and is `src.size(dim)` where a bin is empty.
    """
    return _scatter(src, index, dim, out, dim_size, "max")


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`scatter` with reduce="min", and int64 `arg`: the position along `dim` of the winner, the first among equals.

    `arg` has the result's shape, and is `src.size(dim)` where a bin is empty.
    """
    return _scatter(src, index, dim, out, dim_size, "min")


def _check_dim(src: Tensor, dim: int) -> int:
    if not isinstance(src, Tensor):
        raise TypeError(f"scatter: src must be a tensor, got {type(src).__name__}")
    if src.dim() == 0 or not -src.dim() <= dim < src.dim():
        raise IndexError(f"scatter: dim {dim} does not exist in src of shape {tuple(src.shape)}")
    return dim % src.dim()


def _align_index(src: Tensor, index: Tensor, dim: int) -> tuple[Tensor, bool]:
    """The index as one bin per position along `dim`, and True; or spread to `src`'s shape, and False."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        got = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"scatter: index must be an int64 tensor, got {got}")
    if index.device != src.device:
        raise ValueError(f"scatter: src is on {src.device}, index on {index.device}")
    if index.dim() == 1 and index.size(0) == src.size(dim):
        return index, True
    shape = f"scatter: index of shape {tuple(index.shape)} does not fit src of shape {tuple(src.shape)} along dim {dim}"
    if index.dim() == 1:
        raise ValueError(shape)
    wide = index.reshape(index.shape + (1,) * (src.dim() - index.dim()))
    if wide.size(dim) == src.size(dim) == wide.numel():
        return wide.reshape(-1), True
    try:
        return wide.expand_as(src), False
    except RuntimeError:
        raise ValueError(shape) from None


def _check_size(src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if out is not None:
        wanted = src.shape[:dim] + src.shape[dim + 1 :]
        if out.shape[:dim] + out.shape[dim + 1 :] != wanted or out.dtype != src.dtype:
            raise ValueError(
                f"scatter: out must be {src.dtype} of src's shape {tuple(src.shape)} but for dim {dim}, got {out.dtype} {tuple(out.shape)}"
            )
        dim_size = out.size(dim)
    if torch.compiler.is_compiling() and dim_size is not None:
        return dim_size  # no value can be looked at here; the kernels refuse an index out of range
    low, high = (0, -1) if index.numel() == 0 else (int(x) for x in torch.aminmax(index))
    size = high + 1 if dim_size is None else int(dim_size)
    if low < 0 or high >= size:
        raise IndexError(f"scatter: index must lie in [0, {size}), found {low if low < 0 else high}")
    return size


def _to_rows(src: Tensor, index: Tensor, dim: int, per_row: bool) -> tuple[Tensor, Tensor, int]:
    """`src` as rows [N, C], the bin of each row, and how many bins stand for one position along `dim`."""
    moved = src.movedim(dim, 0)
    channels = moved.shape[1:].numel()
    if per_row:
        return moved.reshape(src.size(dim), channels), index, 1
    column = torch.arange(channels, device=src.device)
    bins = index.movedim(dim, 0).reshape(src.size(dim), channels) * channels + column
    return moved.reshape(-1, 1), bins.reshape(-1), channels


def _reduce_rows(rows: Tensor, bins: Tensor, num_bins: int, reduce: str) -> tuple[Tensor, Tensor | None]:
    """(value [num_bins, C], and the winning row [num_bins, C] for an extreme, the count [num_bins] for a mean)."""
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    wide, bins = wide.contiguous(), bins.contiguous()
    native = wide.dtype in NATIVE_DTYPES
    ops = torch.ops.pointcept3m
    if reduce in ("max", "min"):
        run = ops.scatter_extreme if native else _extreme_twin
        return run(wide, bins, num_bins, reduce == "max")
    if reduce == "mean":
        return (ops.scatter_mean if native else _mean_twin)(wide, bins, num_bins)
    if reduce == "mul":
        ones = wide.new_ones(num_bins, wide.size(1))
        return ones.scatter_reduce(0, bins[:, None].expand_as(wide), wide, "prod"), None
    return (ops.scatter_sum if native else _sum_twin)(wide, bins, num_bins), None


def _into(out: Tensor, value: Tensor, count: Tensor | None, reduce: str) -> Tensor:
    if reduce == "mul":
        return out.mul_(value)
    if count is None:
        return out.add_(value)
    count = count.clamp(min=1)
    mode = None if out.is_floating_point() else "floor"
    return out.add_(value * count).div_(count, rounding_mode=mode)


def _into_extreme(out: Tensor | None, value: Tensor, arg: Tensor, empty: int, largest: bool) -> tuple[Tensor, Tensor]:
    if out is None:
        return value, arg
    take = (value > out if largest else value < out) & (arg < empty)
    return out.copy_(torch.where(take, value, out)), torch.where(take, arg, empty)


def _torch_scatter(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, reduce: str
) -> Tensor | tuple[Tensor, Tensor]:
    try:
        import torch_scatter
    except ImportError:
        raise ImportError(
            "scatter: backend='torch_scatter' needs the package torch-scatter; backend='native' needs nothing"
        ) from None
    if reduce in ("max", "min"):
        return getattr(torch_scatter, f"scatter_{reduce}")(src, index, dim, out, dim_size)
    return torch_scatter.scatter(src, index, dim, out, dim_size, reduce)


# The ops: rows [N, C] contiguous, index int64 [N]. Twins serve any device and dtype.


def _count(index: Tensor, dim_size: int) -> Tensor:
    return index.new_zeros(dim_size).index_add_(0, index, torch.ones_like(index))


def _sum_twin(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    return src.new_zeros(dim_size, src.size(1)).index_add_(0, index, src)


def _mean_twin(src: Tensor, index: Tensor, dim_size: int) -> tuple[Tensor, Tensor]:
    count = _count(index, dim_size)
    mode = None if src.is_floating_point() else "floor"
    return _sum_twin(src, index, dim_size).div(count.clamp(min=1)[:, None], rounding_mode=mode), count


def _extreme_twin(src: Tensor, index: Tensor, dim_size: int, largest: bool) -> tuple[Tensor, Tensor]:
    num_rows = src.size(0)
    spread = index[:, None].expand_as(src)
    out = src.new_zeros(dim_size, src.size(1))
    out = out.scatter_reduce(0, spread, src, "amax" if largest else "amin", include_self=False)
    won = out[index]
    hit = (src == won) | ((src != src) & (won != won))
    row = torch.arange(num_rows, device=src.device)[:, None]
    arg = index.new_full(out.shape, num_rows)
    return out, arg.scatter_reduce_(0, spread, torch.where(hit, row, num_rows), "amin")


def _extreme_backward_twin(grad: Tensor, arg: Tensor, num_rows: int) -> Tensor:
    return grad.new_zeros(num_rows + 1, grad.size(1)).scatter_(0, arg, grad)[:num_rows].clone()


def _gather_twin(src: Tensor, index: Tensor) -> Tensor:
    return src.index_select(0, index)


_library.define("scatter_sum(Tensor src, Tensor index, int dim_size) -> Tensor", _sum_twin)
_library.define("scatter_mean(Tensor src, Tensor index, int dim_size) -> (Tensor, Tensor)", _mean_twin)
_library.define(
    "scatter_extreme(Tensor src, Tensor index, int dim_size, bool largest) -> (Tensor, Tensor)", _extreme_twin
)
_library.define("scatter_extreme_backward(Tensor grad, Tensor arg, int num_rows) -> Tensor", _extreme_backward_twin)
_library.define("gather_rows(Tensor src, Tensor index) -> Tensor", _gather_twin)


@torch.library.register_fake("pointcept3m::scatter_sum")
def _(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    return src.new_empty(dim_size, src.size(1))


@torch.library.register_fake("pointcept3m::scatter_mean")
def _(src: Tensor, index: Tensor, dim_size: int) -> tuple[Tensor, Tensor]:
    return src.new_empty(dim_size, src.size(1)), index.new_empty(dim_size)


@torch.library.register_fake("pointcept3m::scatter_extreme")
def _(src: Tensor, index: Tensor, dim_size: int, largest: bool) -> tuple[Tensor, Tensor]:
    return src.new_empty(dim_size, src.size(1)), index.new_empty(dim_size, src.size(1))


@torch.library.register_fake("pointcept3m::scatter_extreme_backward")
def _(grad: Tensor, arg: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(num_rows, grad.size(1))


@torch.library.register_fake("pointcept3m::gather_rows")
def _(src: Tensor, index: Tensor) -> Tensor:
    return src.new_empty(index.size(0), src.size(1))


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
    share = grad / count.clamp(min=1).to(grad.dtype)[:, None]
    return torch.ops.pointcept3m.gather_rows(share.contiguous(), index), None, None


def _save_extreme(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.num_rows = inputs[0].size(0)


def _extreme_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    (arg,) = ctx.saved_tensors
    return torch.ops.pointcept3m.scatter_extreme_backward(grad.contiguous(), arg, ctx.num_rows), None, None, None


def _save_arg(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _extreme_backward_backward(ctx, grad: Tensor) -> tuple:
    (arg,) = ctx.saved_tensors
    padded = torch.cat([grad, grad.new_zeros(1, grad.size(1))])  # an empty bin's winner is one row past the end
    return padded.gather(0, arg), None, None


def _save_gather(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.num_rows = inputs[0].size(0)


def _gather_backward(ctx, grad: Tensor) -> tuple:
    (index,) = ctx.saved_tensors
    return torch.ops.pointcept3m.scatter_sum(grad.contiguous(), index, ctx.num_rows), None


_register = torch.library.register_autograd
_register("pointcept3m::scatter_sum", _sum_backward, setup_context=_save_index)
_register("pointcept3m::scatter_mean", _mean_backward, setup_context=_save_mean)
_register("pointcept3m::scatter_extreme", _extreme_backward, setup_context=_save_extreme)
_register("pointcept3m::scatter_extreme_backward", _extreme_backward_backward, setup_context=_save_arg)
_register("pointcept3m::gather_rows", _gather_backward, setup_context=_save_gather)
