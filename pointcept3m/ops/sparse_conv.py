"""Sparse convolution: a rulebook says which rows meet under which kernel offset, `sparse_conv` multiplies.

Weights are KRSC, [Cout, kx, ky, kz, Cin], coordinates int32 [N, 4] as (batch, x, y, z); both are spconv's, and
so are the results wherever spconv defines them: a submanifold convolution equals a dense `conv3d` with padding
k // 2 read at the occupied sites; a strided one equals the strided `conv3d`.

Rows with equal coordinates (Mix3D makes them) are one cell. What a cell holds is the sum of its rows for a
strided convolution (every row contributes, as in spconv) and their mean for a submanifold one (where spconv
picks a row by chance; a sum would double the activations of a doubly occupied cell at every layer). Each row of
a cell receives the cell's result. Thus the result follows the rows when they are permuted.
"""

import itertools

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops.rulebook import Rulebook, check_operands
from pointcept3m.ops.scatter import scatter

HALF_DTYPES = (torch.float16, torch.bfloat16)


def sparse_conv(features: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None = None) -> Tensor:
    """Convolves the rows that `rulebook` brings together.

    Args:
        features: [rulebook.num_in, Cin] floats. Under autocast they and the weight are first rounded to its dtype, as
            torch's own convolutions do (float64 is left alone).
        weight: [Cout, kx, ky, kz, Cin].
        bias: [Cout].

    Returns: [rulebook.num_out, Cout] in the dtype of `features`, or autocast's. float16 and bfloat16 are summed in
        float32. Differentiable, twice, in all three tensors; gradients have the dtypes of what was given.
    Complexity: P Cin Cout for P pairs; no memory per pair.
    Raises: TypeError or ValueError where types, shapes, dtypes or devices do not fit.
    """
    _check_features(features, weight, rulebook, bias)
    kind = features.device.type
    if features.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
        features, weight = features.to(half), weight.to(half)
    dtype = features.dtype
    weight = weight.to(dtype).reshape(weight.size(0), -1, weight.size(4)).contiguous()
    if has_shared_cells(rulebook):  # what a cell holds is rounded only together with the result
        features, weight = widened(features), widened(weight)
    values = rows_to_cells(features, rulebook, rulebook.reduce)
    out = torch.ops.pointcept3m.sparse_conv(values, weight, *rulebook.tensors, rulebook.reverse, False)
    out = cells_to_rows(out, rulebook).to(dtype)
    return out if bias is None else out + bias.to(out.dtype)


def has_shared_cells(rulebook: Rulebook) -> bool:
    """Whether several rows of the input or of the output may be one cell."""
    return rulebook.cell_in is not None or rulebook.cell_out is not None


def rows_to_cells(values: Tensor, rulebook: Rulebook, reduce: str) -> Tensor:
    """What the cells that go into `rulebook` hold of their rows `values` [num_in, C]: contiguous [cells, C]."""
    cell = rulebook.cell_out if rulebook.reverse else rulebook.cell_in
    if cell is None:
        return values.contiguous()
    num_cells = (rulebook.rank_out if rulebook.reverse else rulebook.rank_in).size(0)
    return scatter(values, cell, 0, dim_size=num_cells, reduce=reduce).contiguous()


def cells_to_rows(values: Tensor, rulebook: Rulebook) -> Tensor:
    """The rows [num_out, C] that come out of `rulebook`, each with what its cell holds in `values` [cells, C]."""
    cell = rulebook.cell_in if rulebook.reverse else rulebook.cell_out
    return values if cell is None else torch.ops.pointcept3m.gather_rows(values, cell)


def _check_features(features: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None) -> None:
    given = {"features": features, "weight": weight}
    check_operands("sparse_conv", rulebook, given if bias is None else given | {"bias": bias})
    if weight.dim() != 5 or tuple(weight.shape[1:4]) != tuple(rulebook.kernel_size):
        raise ValueError(
            f"sparse_conv: weight must be [Cout, kx, ky, kz, Cin] with kernel {rulebook.kernel_size}, "
            f"got {tuple(weight.shape)}"
        )
    if features.dim() != 2 or features.size(0) != rulebook.num_in or features.size(1) != weight.size(4):
        raise ValueError(
            f"sparse_conv: features must be [{rulebook.num_in}, {weight.size(4)}] for this rulebook and weight, "
            f"got {tuple(features.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.size(0),):
        raise ValueError(f"sparse_conv: bias must be [{weight.size(0)}], got {tuple(bias.shape)}")


# The ops and their twins.


def each_offset(pairs: Tensor, start: Tensor, reverse: bool) -> list[tuple[int, Tensor, Tensor]]:
    """(offset, rows that are read, rows that are written) for each offset that has pairs."""
    edges = start.tolist()
    source, target = (pairs[1], pairs[0]) if reverse else (pairs[0], pairs[1])
    spans = [(k, slice(a, b)) for k, (a, b) in enumerate(itertools.pairwise(edges)) if b > a]
    return [(k, source[span], target[span]) for k, span in spans]


def widened(values: Tensor) -> Tensor:
    """In the dtype that is summed in: 27 sums in half precision would lose its last bits."""
    return values.float() if values.dtype in HALF_DTYPES else values


def _sparse_conv_twin(features: Tensor, weight: Tensor, *book: Tensor | bool) -> Tensor:
    pairs, start, rank_in, rank_out, reverse, transpose = book
    num_out = (rank_in if reverse else rank_out).size(0)
    values, kernel = widened(features), widened(weight)
    out = values.new_zeros(num_out, weight.size(2 if transpose else 0))
    with torch.autocast(features.device.type, enabled=False):  # the caller has chosen the dtype already
        for k, source, target in each_offset(pairs, start, reverse):
            matrix = kernel[:, k] if transpose else kernel[:, k].t()
            out.index_add_(0, target, values.index_select(0, source) @ matrix)
    return out.to(features.dtype)


def _grad_weight_twin(features: Tensor, grad: Tensor, *book: Tensor | bool) -> Tensor:
    pairs, start, _, _, reverse = book
    values, wide = widened(features), widened(grad)
    out = values.new_zeros(grad.size(1), start.size(0) - 1, features.size(1))
    with torch.autocast(features.device.type, enabled=False):
        for k, source, target in each_offset(pairs, start, reverse):
            out[:, k] = wide.index_select(0, target).t() @ values.index_select(0, source)
    return out.to(features.dtype)


# `book` below is what a rulebook says: `Rulebook.tensors`, whether inputs and outputs change places, and for the
# convolution whether the weight is read as [Cin, K, Cout].
_library.define(
    "sparse_conv(Tensor features, Tensor weight, Tensor pairs, Tensor start, Tensor rank_in, Tensor rank_out,"
    " bool reverse, bool transpose) -> Tensor",
    _sparse_conv_twin,
)
_library.define(
    "sparse_conv_grad_weight(Tensor features, Tensor grad, Tensor pairs, Tensor start, Tensor rank_in, Tensor rank_out,"
    " bool reverse) -> Tensor",
    _grad_weight_twin,
)


@torch.library.register_fake("pointcept3m::sparse_conv")
def _(features: Tensor, weight: Tensor, *book: Tensor | bool) -> Tensor:
    _, _, rank_in, rank_out, reverse, transpose = book
    return features.new_empty((rank_in if reverse else rank_out).size(0), weight.size(2 if transpose else 0))


@torch.library.register_fake("pointcept3m::sparse_conv_grad_weight")
def _(features: Tensor, grad: Tensor, *book: Tensor | bool) -> Tensor:
    return features.new_empty(grad.size(1), book[1].size(0) - 1, features.size(1))


def _save_conv(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.transpose = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx, grad: Tensor) -> tuple:
    """Towards the features the pairs the other way with the weight transposed; towards the weight outer products."""
    features, weight, *book = ctx.saved_tensors
    grad = grad.contiguous()
    ops = torch.ops.pointcept3m
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_features = ops.sparse_conv(grad, weight, *book, not ctx.reverse, not ctx.transpose)
    if ctx.needs_input_grad[1]:
        if ctx.transpose:
            grad_weight = ops.sparse_conv_grad_weight(grad, features, *book, not ctx.reverse)
        else:
            grad_weight = ops.sparse_conv_grad_weight(features, grad, *book, ctx.reverse)
    return grad_features, grad_weight, *(None,) * 6


def _save_grad_weight(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _grad_weight_backward(ctx, grad: Tensor) -> tuple:
    features, grad_out, *book = ctx.saved_tensors
    ops = torch.ops.pointcept3m
    grad = grad.contiguous()
    to_features = ops.sparse_conv(grad_out, grad, *book, not ctx.reverse, True)
    to_grad = ops.sparse_conv(features, grad, *book, ctx.reverse, False)
    return to_features, to_grad, *(None,) * 5


torch.library.register_autograd("pointcept3m::sparse_conv", _conv_backward, setup_context=_save_conv)
torch.library.register_autograd(
    "pointcept3m::sparse_conv_grad_weight", _grad_weight_backward, setup_context=_save_grad_weight
)
