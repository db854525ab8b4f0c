"""Pooling of sparse features over a rulebook: the maximum, mean or sum of the rows that a kernel brings together.

Sites without a voxel take no part: a maximum is over voxels only, a mean divides by their number. Both are spconv's
conventions, and equal `max_pool3d` on a grid that holds minus infinity where it has no voxel.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops.rulebook import Rulebook, check_operands
from pointcept3m.ops.sparse_conv import (
    HALF_DTYPES,
    cells_to_rows,
    each_offset,
    has_shared_cells,
    rows_to_cells,
    widened,
)
from pointcept3m.utils.registry import near_names

POOLS = ("max", "mean", "sum")


def sparse_pool(features: Tensor, rulebook: Rulebook, reduce: str = "max") -> Tensor:
    """Reduces the rows that `rulebook` brings together at each output.

    Args:
        features: [rulebook.num_in, C] floats.
        rulebook: of `strided_rulebook` or `submanifold_rulebook`, or the inverse of one. Every row of a cell that holds
            several takes part.
        reduce: "max" (the first of equals receives the gradient; NaN wins), "mean" or "sum".

    Returns: [rulebook.num_out, C] in the dtype of `features`; 0 where an output meets no row. float16 and bfloat16 are
        summed in float32. Differentiable, twice.
    Raises: TypeError or ValueError where an argument does not fit, in its device too.
    Complexity: P C for P pairs; "max" also keeps an int32 [num_out, C]. Meaning as in spconv's poolings.
    """
    if reduce not in POOLS:
        raise ValueError(f"sparse_pool: no reduction {reduce!r}; {near_names(reduce, POOLS)}")
    check_operands("sparse_pool", rulebook, {"features": features})
    if features.dim() != 2 or features.size(0) != rulebook.num_in:
        raise ValueError(
            f"sparse_pool: features must be [{rulebook.num_in}, C] for this rulebook, got {tuple(features.shape)}"
        )
    ops, book = torch.ops.pointcept3m, (*rulebook.tensors, rulebook.reverse)
    dtype = features.dtype
    if has_shared_cells(rulebook):  # what a cell holds is rounded only together with the result
        features = widened(features)
    values = rows_to_cells(features, rulebook, "max" if reduce == "max" else "sum")
    if reduce == "max":
        out = ops.sparse_pool_max(values, *book)[0]
    elif reduce == "sum":
        out = ops.sparse_pool_sum(values, *book)
    elif values.size(0) == features.size(0):
        out = ops.sparse_pool_mean(values, *book)[0]
    else:  # cells count as often as they have rows
        ones = rows_to_cells(features.new_ones(features.size(0), 1), rulebook, "sum")
        out = ops.sparse_pool_sum(values, *book) / ops.sparse_pool_sum(ones, *book).clamp(min=1)
    return cells_to_rows(out, rulebook).to(dtype)


# The ops and their twins. `book` is (pairs, start, rank_in, rank_out, reverse), as for the convolution.


def _wide(features: Tensor) -> torch.dtype:
    return torch.float32 if features.dtype in HALF_DTYPES else features.dtype


def _num_out(book: tuple) -> int:
    *_, rank_in, rank_out, reverse = book
    return (rank_in if reverse else rank_out).size(0)


def _sum_twin(features: Tensor, *book: Tensor | bool) -> Tensor:
    pairs, start, _, _, reverse = book
    out = features.new_zeros(_num_out(book), features.size(1), dtype=_wide(features))
    for _, source, target in each_offset(pairs, start, reverse):
        out.index_add_(0, target, features.index_select(0, source).to(out.dtype))
    return out.to(features.dtype)


def _mean_twin(features: Tensor, *book: Tensor | bool) -> tuple[Tensor, Tensor]:
    pairs, start, _, _, reverse = book
    count = pairs.new_zeros(_num_out(book))
    for _, _, target in each_offset(pairs, start, reverse):
        count.index_add_(0, target, torch.ones_like(target))
    total = _sum_twin(features.to(_wide(features)), *book)
    return (total / count.clamp(min=1)[:, None]).to(features.dtype), count


def _max_twin(features: Tensor, *book: Tensor | bool) -> tuple[Tensor, Tensor]:
    pairs, start, _, _, reverse = book
    shape, none = (_num_out(book), features.size(1)), features.size(0)
    out, arg = features.new_zeros(shape), pairs.new_full(shape, none)
    for _, source, target in each_offset(pairs, start, reverse):  # within an offset no output comes twice
        target = target.long()
        new, old, row = features.index_select(0, source), out[target], arg[target]
        take = (row == none) | (new > old) | (new.isnan() & ~old.isnan())
        out[target], arg[target] = torch.where(take, new, old), torch.where(take, source[:, None], row)
    return out, arg


def _max_backward_twin(grad: Tensor, arg: Tensor, *book: Tensor | bool) -> Tensor:
    pairs, start, rank_in, rank_out, reverse = book
    out = grad.new_zeros(_num_out((rank_in, rank_out, not reverse)), grad.size(1), dtype=_wide(grad))
    for _, source, target in each_offset(pairs, start, reverse):
        won = arg.index_select(0, target) == source[:, None]
        out.index_add_(0, source, grad.index_select(0, target).to(out.dtype) * won)
    return out.to(grad.dtype)


_BOOK = "Tensor pairs, Tensor start, Tensor rank_in, Tensor rank_out, bool reverse"
_library.define(f"sparse_pool_sum(Tensor features, {_BOOK}) -> Tensor", _sum_twin)
_library.define(f"sparse_pool_mean(Tensor features, {_BOOK}) -> (Tensor, Tensor)", _mean_twin)
_library.define(f"sparse_pool_max(Tensor features, {_BOOK}) -> (Tensor, Tensor)", _max_twin)
_library.define(f"sparse_pool_max_backward(Tensor grad, Tensor arg, {_BOOK}) -> Tensor", _max_backward_twin)


@torch.library.register_fake("pointcept3m::sparse_pool_sum")
def _(features: Tensor, *book: Tensor | bool) -> Tensor:
    return features.new_empty(_num_out(book), features.size(1))


@torch.library.register_fake("pointcept3m::sparse_pool_mean")
def _(features: Tensor, *book: Tensor | bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(_num_out(book), features.size(1)), book[0].new_empty(_num_out(book))


@torch.library.register_fake("pointcept3m::sparse_pool_max")
def _(features: Tensor, *book: Tensor | bool) -> tuple[Tensor, Tensor]:
    shape = _num_out(book), features.size(1)
    return features.new_empty(shape), book[0].new_empty(shape)


@torch.library.register_fake("pointcept3m::sparse_pool_max_backward")
def _(grad: Tensor, arg: Tensor, *book: Tensor | bool) -> Tensor:
    *_, rank_in, rank_out, reverse = book
    return grad.new_empty(_num_out((rank_in, rank_out, not reverse)), grad.size(1))


def _save_sum(ctx, inputs: tuple, output: Tensor) -> None:
    _, *book, ctx.reverse = inputs
    ctx.save_for_backward(*book)


def _sum_backward(ctx, grad: Tensor) -> tuple:
    return torch.ops.pointcept3m.sparse_pool_sum(grad.contiguous(), *ctx.saved_tensors, not ctx.reverse), *(None,) * 5


def _save_mean(ctx, inputs: tuple, output: tuple) -> None:
    _, *book, ctx.reverse = inputs
    ctx.save_for_backward(*book, output[1])
    ctx.mark_non_differentiable(output[1])


def _mean_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    *book, count = ctx.saved_tensors
    share = (grad / count.clamp(min=1).to(grad.dtype)[:, None]).contiguous()
    return torch.ops.pointcept3m.sparse_pool_sum(share, *book, not ctx.reverse), *(None,) * 5


def _save_max(ctx, inputs: tuple, output: tuple) -> None:
    _, *book, ctx.reverse = inputs
    ctx.save_for_backward(output[1], *book)
    ctx.mark_non_differentiable(output[1])


def _max_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    grad = torch.ops.pointcept3m.sparse_pool_max_backward(grad.contiguous(), *ctx.saved_tensors, ctx.reverse)
    return grad, *(None,) * 5


def _save_arg(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _max_backward_backward(ctx, grad: Tensor) -> tuple:
    (arg,) = ctx.saved_tensors
    padded = torch.cat([grad, grad.new_zeros(1, grad.size(1))])  # where nothing won, arg is one row past the end
    return padded.gather(0, arg.long()), *(None,) * 6


_register = torch.library.register_autograd
_register("pointcept3m::sparse_pool_sum", _sum_backward, setup_context=_save_sum)
_register("pointcept3m::sparse_pool_mean", _mean_backward, setup_context=_save_mean)
_register("pointcept3m::sparse_pool_max", _max_backward, setup_context=_save_max)
_register("pointcept3m::sparse_pool_max_backward", _max_backward_backward, setup_context=_save_arg)
