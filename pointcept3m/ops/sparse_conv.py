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
from pointcept3m.ops.rulebook import Rulebook
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
    Raises: TypeError or ValueError where shapes or dtypes do not fit.
    """
    _check_features(features, weight, rulebook, bias)
    kind = features.device.type
    if features.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        half = torch.get_autocast_dtype(kind)
        features, weight = features.to(half), weight.to(half)
    # The CPU's kernels know no half precision; elsewhere the twins sum halves in float32.
    dtype = torch.float32 if kind == "cpu" and features.dtype in HALF_DTYPES else features.dtype
    values, kernel = features.to(dtype), weight.to(dtype)
    cell_in, cell_out = rulebook.cell_in, rulebook.cell_out
    rank_in, rank_out = rulebook.rank_in, rulebook.rank_out
    if rulebook.reverse:
        cell_in, cell_out = cell_out, cell_in
    if cell_in is not None:
        num_cells = (rank_out if rulebook.reverse else rank_in).size(0)
        values = scatter(values, cell_in, 0, dim_size=num_cells, reduce=rulebook.reduce)
    flat = kernel.reshape(kernel.size(0), -1, kernel.size(4))
    out = torch.ops.pointcept3m.sparse_conv(
        values.contiguous(),
        flat.contiguous(),
        rulebook.pairs,
        rulebook.start,
        rank_in,
        rank_out,
        rulebook.reverse,
        False,
    )
    if cell_out is not None:
        out = torch.ops.pointcept3m.gather_rows(out, cell_out)
    if bias is not None:
        out = out + bias.to(dtype)
    return out.to(features.dtype)


def _check_features(features: Tensor, weight: Tensor, rulebook: Rulebook, bias: Tensor | None) -> None:
    if not features.is_floating_point() or not weight.is_floating_point():
        raise TypeError(
            f"sparse_conv: features and weight must be floating point, got {features.dtype} and {weight.dtype}"
        )
    if weight.dim() != 5 or tuple(weight.shape[1:4]) != tuple(rulebook.kernel_size):
        raise ValueError(
            f"sparse_conv: weight must be [Cout, kx, ky, kz, Cin] with kernel {rulebook.kernel_size}, got {tuple(weight.shape)}"
        )
    if features.dim() != 2 or features.size(0) != rulebook.num_in or features.size(1) != weight.size(4):
        raise ValueError(
            f"sparse_conv: features must be [{rulebook.num_in}, {weight.size(4)}] for this rulebook and weight, got {tuple(features.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (weight.size(0),):
        raise ValueError(f"sparse_conv: bias must be [{weight.size(0)}], got {tuple(bias.shape)}")


# The ops and their twins.


def _each_offset(pairs: Tensor, start: Tensor, reverse: bool) -> list[tuple[int, Tensor, Tensor]]:
    """(offset, rows that are read, rows that are written) for each offset that has pairs."""
    edges = start.tolist()
    source, target = (pairs[1], pairs[0]) if reverse else (pairs[0], pairs[1])
    spans = [(k, slice(a, b)) for k, (a, b) in enumerate(itertools.pairwise(edges)) if b > a]
    return [(k, source[span], target[span]) for k, span in spans]


def _sparse_conv_twin(
    features: Tensor,
    weight: Tensor,
    pairs: Tensor,
    start: Tensor,
    rank_in: Tensor,
    rank_out: Tensor,
    reverse: bool,
    transpose: bool,
) -> Tensor:
    num_out = (rank_in if reverse else rank_out).size(0)
    wide = torch.float32 if features.dtype in HALF_DTYPES else features.dtype  # 27 sums in half lose its last bits
    out = features.new_zeros(num_out, weight.size(2 if transpose else 0), dtype=wide)
    with torch.autocast(features.device.type, enabled=False):  # the caller has chosen the dtype already
        for k, source, target in _each_offset(pairs, start, reverse):
            matrix = weight[:, k] if transpose else weight[:, k].t()
            out.index_add_(0, target, (features.index_select(0, source) @ matrix).to(wide))
    return out.to(features.dtype)


def _grad_weight_twin(
    features: Tensor, grad: Tensor, pairs: Tensor, start: Tensor, rank_in: Tensor, rank_out: Tensor, reverse: bool
) -> Tensor:
    out = features.new_zeros(grad.size(1), start.size(0) - 1, features.size(1))
    with torch.autocast(features.device.type, enabled=False):
        for k, source, target in _each_offset(pairs, start, reverse):
            out[:, k] = grad.index_select(0, target).t() @ features.index_select(0, source)
    return out


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
def _(
    features: Tensor,
    weight: Tensor,
    pairs: Tensor,
    start: Tensor,
    rank_in: Tensor,
    rank_out: Tensor,
    reverse: bool,
    transpose: bool,
) -> Tensor:
    return features.new_empty((rank_in if reverse else rank_out).size(0), weight.size(2 if transpose else 0))


@torch.library.register_fake("pointcept3m::sparse_conv_grad_weight")
def _(
    features: Tensor, grad: Tensor, pairs: Tensor, start: Tensor, rank_in: Tensor, rank_out: Tensor, reverse: bool
) -> Tensor:
    return features.new_empty(grad.size(1), start.size(0) - 1, features.size(1))


def _save_conv(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.reverse, ctx.transpose = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx, grad: Tensor) -> tuple:
    """Towards the features the same pairs the other way with the weight transposed; towards the weight outer products."""
    features, weight, pairs, start, rank_in, rank_out = ctx.saved_tensors
    grad = grad.contiguous()
    ops = torch.ops.pointcept3m
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_features = ops.sparse_conv(
            grad, weight, pairs, start, rank_in, rank_out, not ctx.reverse, not ctx.transpose
        )
    if ctx.needs_input_grad[1]:
        if ctx.transpose:
            grad_weight = ops.sparse_conv_grad_weight(grad, features, pairs, start, rank_in, rank_out, not ctx.reverse)
        else:
            grad_weight = ops.sparse_conv_grad_weight(features, grad, pairs, start, rank_in, rank_out, ctx.reverse)
    return grad_features, grad_weight, *(None,) * 6


def _save_grad_weight(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _grad_weight_backward(ctx, grad: Tensor) -> tuple:
    features, grad_out, pairs, start, rank_in, rank_out = ctx.saved_tensors
    ops = torch.ops.pointcept3m
    grad = grad.contiguous()
    to_features = ops.sparse_conv(grad_out, grad, pairs, start, rank_in, rank_out, not ctx.reverse, True)
    to_grad = ops.sparse_conv(features, grad, pairs, start, rank_in, rank_out, ctx.reverse, False)
    return to_features, to_grad, *(None,) * 5


torch.library.register_autograd("pointcept3m::sparse_conv", _conv_backward, setup_context=_save_conv)
torch.library.register_autograd(
    "pointcept3m::sparse_conv_grad_weight", _grad_weight_backward, setup_context=_save_grad_weight
)
