"""Softmax and its relatives over the entries that share an index: torch_scatter's composite functions and arguments.

One op each for the softmax, its gradient and logsumexp: the index is sorted once, and the rows of a bin are read again
while they are still in the caches. Deterministic. The largest entry of a bin is taken off before the exponential, so
that nothing overflows and no `eps` is needed.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import type_of
from pointcept3m.ops.scatter import lay_out, scatter_mean, scatter_sum
from pointcept3m.ops.scatter_rows import count_rows, extreme_twin, sum_twin, wide


def scatter_softmax(src: Tensor, index: Tensor, dim: int = -1, dim_size: int | None = None) -> Tensor:
    """exp(src) divided by its sum over the entries that share an `index` along `dim`.

    Args:
        src: floating-point scores of any shape. float16 and bfloat16 are computed in float32.
        index: int64 bin of each entry, of a shape that `scatter` takes.
        dim: the dimension along which entries share bins.
        dim_size: number of bins; without it the largest index plus one.

    Returns: `src`'s shape and dtype. Scores of -inf give 0; a bin of nothing else gives NaN, as torch.softmax does.

    O(N C) for N rows of C scores, and so is the gradient.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    return _normalize("scatter_softmax", src, index, dim, dim_size, log=False)


def scatter_log_softmax(
    src: Tensor, index: Tensor, dim: int = -1, eps: float = 1e-12, dim_size: int | None = None
) -> Tensor:
    """The logarithm of `scatter_softmax`, computed without going through it: exact where a softmax would be 0.

    Args, Returns, complexity and Raises are those of `scatter_softmax`, and:
        eps: not used. torch_scatter, whose argument it is, adds it to the sum so that no logarithm of 0 is taken; a
            bin's sum is at least 1 here, as its largest entry counts 1.
    """
    return _normalize("scatter_log_softmax", src, index, dim, dim_size, log=True)


def scatter_logsumexp(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """The logarithm of the sum of exp(src) over the entries that share an `index` along `dim`.

    O(N C + bins C) for N rows of C scores.

    Args: as for `scatter_softmax`, and
        out: a tensor of the result's shape and dtype that is overwritten and returned, but for bins without entries.
        eps: not used, as in `scatter_log_softmax`.

    Returns: `src`'s shape with `dim_size` along `dim`; 0 in a bin without entries.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    op = "scatter_logsumexp"
    _check_floating(op, src)
    lines = lay_out(op, src, index, dim, out, dim_size)
    rows, bins = wide(lines.rows).contiguous(), lines.bins.contiguous()
    # The gradient is exp(src - result): of sixteen bits, a result near 200 would put it off by a tenth.
    value = torch.ops.pointcept3m.scatter_logsumexp(rows, bins, lines.num_bins).to(src.dtype)
    if out is None:
        return lines.restore_bins(value)
    empty = (count_rows(bins, lines.num_bins) == 0)[:, None].expand_as(value)
    return out.copy_(torch.where(lines.restore_bins(empty), out, lines.restore_bins(value)))


def scatter_std(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    unbiased: bool = True,
) -> Tensor:
    """The standard deviation of the entries that share an `index` along `dim`: of their differences from the mean.

    O(N C + bins C) for N rows of C values: the mean first, then the squares.

    Args: as for `scatter_softmax`, and
        out: a tensor of the result's shape and dtype that is overwritten and returned.
        unbiased: divide by the count less one rather than by the count. One entry alone gives 0 either way.

    Returns: `src`'s shape with `dim_size` along `dim`; 0 in a bin without entries.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    _check_floating("scatter_std", src)
    lines = lay_out("scatter_std", src, index, dim, out, dim_size)
    rows, bins = wide(lines.rows), lines.bins
    mean = scatter_mean(rows, bins, 0, dim_size=lines.num_bins)
    from_mean = rows - torch.ops.pointcept3m.gather_rows(mean, bins.contiguous())
    count = count_rows(bins, lines.num_bins) - int(unbiased)
    variance = scatter_sum(from_mean.square(), bins, 0, dim_size=lines.num_bins) / count.clamp(min=1)[:, None]
    # The derivative of a root is infinite at 0, where the deviation of equal entries has none: it is taken as 0.
    positive = variance > 0
    value = torch.where(positive, variance, 1).sqrt() * positive
    value = lines.restore_bins(value.to(src.dtype))
    return value if out is None else out.copy_(value)


def _normalize(name: str, src: Tensor, index: Tensor, dim: int, dim_size: int | None, log: bool) -> Tensor:
    _check_floating(name, src)
    lines = lay_out(name, src, index, dim, None, dim_size)
    # The gradient of the logarithm takes exp(result), which amplifies the rounding of sixteen bits; a softmax does not.
    rows, bins = (wide(lines.rows) if log else lines.rows).contiguous(), lines.bins.contiguous()
    result = torch.ops.pointcept3m.scatter_softmax(rows, bins, lines.num_bins, log)
    return lines.restore_rows(result.to(src.dtype))


def _check_floating(name: str, src: Tensor) -> None:
    if not isinstance(src, Tensor) or not src.is_floating_point():
        raise TypeError(f"{name}: src must be a floating-point tensor, got {type_of(src)}")


# The ops: rows [N, C] contiguous, index int64 [N] contiguous. Twins serve any device.


def _logsumexp_twin(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    rows = wide(src)
    largest, _ = extreme_twin(rows, index, dim_size, True)
    total = sum_twin((rows - largest[index]).exp(), index, dim_size)
    value = torch.where(largest.isinf(), largest, total.log() + largest)
    return torch.where(count_rows(index, dim_size)[:, None] > 0, value, 0).to(src.dtype)


def _softmax_twin(src: Tensor, index: Tensor, dim_size: int, log: bool) -> Tensor:
    rows = wide(src)
    largest, _ = extreme_twin(rows, index, dim_size, True)
    centred = rows - largest[index]
    power = centred.exp()
    total = sum_twin(power, index, dim_size)[index]
    return (centred - total.log() if log else power / total).to(src.dtype)


def _softmax_backward_twin(grad: Tensor, out: Tensor, index: Tensor, dim_size: int, log: bool) -> Tensor:
    given, wide_grad = wide(out), wide(grad)
    if log:
        return (wide_grad - given.exp() * sum_twin(wide_grad, index, dim_size)[index]).to(grad.dtype)
    return (given * (wide_grad - sum_twin(wide_grad * given, index, dim_size)[index])).to(grad.dtype)


_library.define("scatter_softmax(Tensor src, Tensor index, int dim_size, bool log) -> Tensor", _softmax_twin)
_library.define(
    "scatter_softmax_backward(Tensor grad, Tensor out, Tensor index, int dim_size, bool log) -> Tensor",
    _softmax_backward_twin,
)
_library.define("scatter_logsumexp(Tensor src, Tensor index, int dim_size) -> Tensor", _logsumexp_twin)


@torch.library.register_fake("pointcept3m::scatter_softmax")
def _(src: Tensor, index: Tensor, dim_size: int, log: bool) -> Tensor:
    return torch.empty_like(src)


@torch.library.register_fake("pointcept3m::scatter_softmax_backward")
def _(grad: Tensor, out: Tensor, index: Tensor, dim_size: int, log: bool) -> Tensor:
    return torch.empty_like(grad)


@torch.library.register_fake("pointcept3m::scatter_logsumexp")
def _(src: Tensor, index: Tensor, dim_size: int) -> Tensor:
    return src.new_empty(dim_size, src.size(1))


def _save_softmax(ctx, inputs: tuple, output: Tensor) -> None:
    _, index, ctx.dim_size, ctx.log = inputs
    ctx.save_for_backward(output, index)


def _softmax_backward(ctx, grad: Tensor) -> tuple:
    out, index = ctx.saved_tensors
    back = torch.ops.pointcept3m.scatter_softmax_backward
    return back(grad.contiguous(), out, index, ctx.dim_size, ctx.log), None, None, None


def _save_backward(ctx, inputs: tuple, output: Tensor) -> None:
    grad, out, index, ctx.dim_size, ctx.log = inputs
    ctx.save_for_backward(grad, out, index)


def _softmax_backward_backward(ctx, up: Tensor) -> tuple:
    """With S the sum over a bin: softmax gives y (g - S(y g)), its logarithm g - exp(y) S(g); derived in g and y."""
    grad, out, index = ctx.saved_tensors
    ops = torch.ops.pointcept3m

    def total(value: Tensor) -> Tensor:
        return ops.gather_rows(ops.scatter_sum(value.contiguous(), index, ctx.dim_size), index)

    if ctx.log:
        weighed = up * out.exp()
        return up - total(weighed), -weighed * total(grad), None, None, None
    weighed = total(out * up)
    return out * (up - weighed), up * (grad - total(out * grad)) - grad * weighed, None, None, None


def _save_logsumexp(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output, inputs[1])


def _logsumexp_backward(ctx, grad: Tensor) -> tuple:
    src, out, index = ctx.saved_tensors
    gather = torch.ops.pointcept3m.gather_rows
    weight = torch.where(src == float("-inf"), 0, (src - gather(out, index)).exp())
    return gather(grad.contiguous(), index) * weight, None, None


_register = torch.library.register_autograd
_register("pointcept3m::scatter_softmax", _softmax_backward, setup_context=_save_softmax)
_register("pointcept3m::scatter_softmax_backward", _softmax_backward_backward, setup_context=_save_backward)
_register("pointcept3m::scatter_logsumexp", _logsumexp_backward, setup_context=_save_logsumexp)
