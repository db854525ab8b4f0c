"""Reductions of rows that stand in order: `segment_csr`, `segment_coo`, their inverses, with torch_scatter's meaning.

Where the rows of a group follow one another, pointers to where each group begins (CSR) or a sorted index (COO) say all
that `scatter` has to find out by sorting. Deterministic, differentiable in `src`.

Underneath, `segment_sum` and `segment_extreme` reduce rows [B, N, C] by pointers [B, V + 1]; `segment_spread` and
`segment_spread_won` hand values back to rows. Twins serve any device and dtype.
"""

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import check_device, check_range, check_tensor
from pointcept3m.ops.scatter import reduce_by_index
from pointcept3m.ops.scatter_rows import NATIVE_DTYPES, extreme_twin, share, sum_twin
from pointcept3m.utils.registry import near_names

REDUCTIONS = ("sum", "add", "mean", "max", "min")


def segment_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> Tensor:
    """Reduces src[..., indptr[v]:indptr[v + 1], ...] for every segment v, along the last dimension of `indptr`.

    O(rows x channels); nothing is sorted. A segment without rows gives 0. The API is torch_scatter's.

    Args:
        src: values [*batch, N, *channels], where `indptr` has as many batch dimensions. float16 and bfloat16 are
            accumulated in float32; a mean of integers is rounded down.
        indptr: int64 pointers [*batch, V + 1] that do not descend, within 0..N; a batch dimension of 1 is broadcast.
            Rows before the first and after the last are in no segment.
        out: a tensor of the result's shape and dtype that is overwritten and returned.
        reduce: "sum" or "add", "mean", "max", "min". (`segment_max_csr` and `segment_min_csr` also give the winners.)

    Returns: [*batch, V, *channels].

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"segment_csr: no reduction {reduce!r}; {near_names(reduce, REDUCTIONS)}")
    return _segment("segment_csr", src, indptr, out, reduce, winners=False)[0]


def segment_sum_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """`segment_csr` with reduce="sum"."""
    return _segment("segment_sum_csr", src, indptr, out, "sum", winners=False)[0]


segment_add_csr = segment_sum_csr


def segment_mean_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """`segment_csr` with reduce="mean"."""
    return _segment("segment_mean_csr", src, indptr, out, "mean", winners=False)[0]


def segment_max_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`segment_csr` with reduce="max", and int64 `arg`: the row of the winner, the first among equals, N if none."""
    return _segment("segment_max_csr", src, indptr, out, "max", winners=True)


def segment_min_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`segment_csr` with reduce="min", and int64 `arg`: the row of the winner, the first among equals, N if none."""
    return _segment("segment_min_csr", src, indptr, out, "min", winners=True)


def gather_csr(src: Tensor, indptr: Tensor, out: Tensor | None = None) -> Tensor:
    """Copies src[..., v, ...] to rows indptr[v]..indptr[v + 1] - 1 for every segment v: the inverse of `segment_csr`.

    O(rows x channels). The API is torch_scatter's.

    Args:
        src: one value per segment [*batch, V, *channels], of any dtype.
        indptr: int64 pointers [*batch, V + 1], as in `segment_csr`.
        out: a tensor [*batch, N, *channels] that is overwritten and returned; it says N, which else is the largest
            pointer. Rows in no segment become 0.

    Returns: [*batch, N, *channels].

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    dim = _check_pointers("gather_csr", src, indptr)
    if src.size(dim) != indptr.size(-1) - 1:
        raise ValueError(
            f"gather_csr: src of shape {tuple(src.shape)} must have one row less along dim {dim} than indptr of shape "
            f"{tuple(indptr.shape)} has pointers"
        )
    if out is not None:
        num_rows = _check_out("gather_csr", out, src, dim, None)
    else:
        num_rows = int(indptr[..., -1].max()) if indptr.numel() else 0
    pointers = _pointer_rows("gather_csr", src, indptr, dim, num_rows)
    lines = src.reshape(pointers.size(0), src.size(dim), src.shape[dim + 1 :].numel()).contiguous()
    result = torch.ops.pointcept3m.segment_spread(lines, pointers, num_rows)
    result = result.reshape(*src.shape[:dim], num_rows, *src.shape[dim + 1 :])
    return result if out is None else out.copy_(result)


def segment_coo(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> Tensor:
    """`scatter` along the last dimension of `index`, which does not descend: then nothing has to be sorted.

    O(rows x channels + bins x channels). The API is torch_scatter's.

    Args:
        src: values [*batch, N, *channels].
        index: int64 bins [*batch, N]; a batch dimension of 1 is broadcast. One that descends is an error of the caller
            in torch_scatter; here it costs a sort and gives what `scatter` gives.
        out: a tensor that is reduced into, as in `scatter`.
        dim_size: number of bins; without it (and without `out`) the largest index plus one.
        reduce: "sum" or "add", "mean", "max", "min".

    Returns: [*batch, dim_size, *channels].

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"segment_coo: no reduction {reduce!r}; {near_names(reduce, REDUCTIONS)}")
    dim = _check_index("segment_coo", src, index)
    return reduce_by_index("segment_coo", src, index, dim, out, dim_size, reduce)[0]


def gather_coo(src: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Copies src[..., index[n], ...] to row n, along the last dimension of `index`: the inverse of `segment_coo`.

    O(rows x channels). The API is torch_scatter's.

    Args:
        src: values [*batch, V, *channels], of any dtype.
        index: int64 rows of `src` [*batch, N]; a batch dimension of 1 is broadcast. Any order is taken.
        out: a tensor [*batch, N, *channels] that is overwritten and returned.

    Returns: [*batch, N, *channels].

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    dim = _check_index("gather_coo", src, index)
    wanted = (*src.shape[:dim], index.size(-1))
    index = _expand("gather_coo", "index", index, wanted)
    size, batches = src.size(dim), src.shape[:dim].numel()
    check_range("gather_coo", "index", index, size)
    shift = torch.arange(batches, device=index.device)[:, None] * size
    rows = (index.reshape(batches, -1) + shift).reshape(-1)
    lines = src.reshape(batches * size, src.shape[dim + 1 :].numel()).contiguous()
    result = torch.ops.pointcept3m.gather_rows(lines, rows).reshape(*wanted, *src.shape[dim + 1 :])
    if out is None:
        return result
    _check_out("gather_coo", out, src, dim, index.size(-1))
    return out.copy_(result)


def _segment(
    op: str, src: Tensor, indptr: Tensor, out: Tensor | None, reduce: str, winners: bool
) -> tuple[Tensor, Tensor | None]:
    dim = _check_pointers(op, src, indptr)
    pointers = _pointer_rows(op, src, indptr, dim, src.size(dim))
    lines = src.reshape(pointers.size(0), src.size(dim), src.shape[dim + 1 :].numel()).contiguous()
    native = src.dtype in NATIVE_DTYPES
    ops, arg = torch.ops.pointcept3m, None
    if reduce in ("max", "min"):
        value, arg = (ops.segment_extreme if native else _extreme_twin)(lines, pointers, reduce == "max")
    else:
        value = (ops.segment_sum if native else _sum_twin)(lines, pointers, reduce == "mean")
    shape = (*src.shape[:dim], indptr.size(-1) - 1, *src.shape[dim + 1 :])
    value, arg = value.reshape(shape), arg.long().reshape(shape) if winners else None
    if out is None:
        return value, arg
    _check_out(op, out, src, dim, indptr.size(-1) - 1)
    return out.copy_(value), arg


def _check_pointers(name: str, src: Tensor, indptr: Tensor) -> int:
    """The dimension along which `indptr` points."""
    dim = _check_kinds(name, src, indptr, "indptr")
    if indptr.size(-1) == 0:
        raise ValueError(f"{name}: indptr must hold at least one pointer, got shape {tuple(indptr.shape)}")
    return dim


def _check_index(name: str, src: Tensor, index: Tensor) -> int:
    dim = _check_kinds(name, src, index, "index")
    if name == "segment_coo" and index.size(-1) != src.size(dim):
        raise ValueError(
            f"{name}: index of shape {tuple(index.shape)} does not fit src of shape {tuple(src.shape)} along dim {dim}"
        )
    return dim


def _check_kinds(name: str, src: Tensor, index: Tensor, argument: str) -> int:
    check_tensor(name, "src", src)
    check_tensor(name, argument, index, (torch.int64,))
    check_device(name, argument, index, "src", src)
    if not 1 <= index.dim() <= src.dim():
        raise ValueError(
            f"{name}: {argument} must have between 1 and src's {src.dim()} dimensions, got {index.dim()}"
        )
    return index.dim() - 1


def _expand(name: str, argument: str, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return index.expand(shape)
    except RuntimeError:
        raise ValueError(f"{name}: {argument} of shape {tuple(index.shape)} cannot be broadcast to {shape}") from None


def _pointer_rows(name: str, src: Tensor, indptr: Tensor, dim: int, num_rows: int) -> Tensor:
    """`indptr` as [B, V + 1], one row for each batch of `src`."""
    batches = src.shape[:dim].numel()
    rows = _expand(name, "indptr", indptr, (*src.shape[:dim], indptr.size(-1)))
    rows = rows.reshape(batches, indptr.size(-1)).contiguous()
    if torch.compiler.is_compiling() or rows.numel() == 0:
        return rows  # no value can be looked at here; the kernels refuse pointers that do not fit
    first, last = int(rows[:, 0].min()), int(rows[:, -1].max())
    if first < 0 or last > num_rows or (rows[:, 1:] < rows[:, :-1]).any():
        raise IndexError(
            f"{name}: indptr must not descend and must lie in [0, {num_rows}], found {first} first and {last} last"
        )
    return rows


def _check_out(name: str, out: Tensor, src: Tensor, dim: int, size: int | None) -> int:
    """The length of `out` along `dim`, which must be `size` where that is given."""
    check_tensor(name, "out", out)
    wanted = list(src.shape)
    wanted[dim] = out.size(dim) if size is None and out.dim() == src.dim() else size
    if list(out.shape) != wanted or out.dtype != src.dtype or out.device != src.device:
        shape = tuple("any" if length is None else length for length in wanted)
        raise ValueError(
            f"{name}: out must be {src.dtype} of shape {shape} on {src.device}, got {out.dtype} {tuple(out.shape)} on "
            f"{out.device}"
        )
    return wanted[dim]


# The ops: src [B, N, C] contiguous, indptr int64 [B, V + 1] contiguous, arg int32 [B, V, C] counted within a batch.


def _check_fit(indptr: Tensor, num_rows: int) -> None:
    """What the kernels check too: a twin would not notice a pointer that descends."""
    fits = (indptr[:, :1] >= 0).all() & (indptr[:, -1:] <= num_rows).all() & (indptr[:, 1:] >= indptr[:, :-1]).all()
    if not fits:
        raise IndexError("indptr must not descend and must stay within [0, rows]")


def _rows_by_segment(indptr: Tensor, num_rows: int) -> Tensor:
    """For each row of all batches its segment among all batches; B * V where it is in none: [B * N]."""
    _check_fit(indptr, num_rows)
    batches, segments = indptr.size(0), indptr.size(1) - 1
    row = torch.arange(num_rows, device=indptr.device).expand(batches, num_rows).contiguous()
    segment = torch.searchsorted(indptr, row, right=True) - 1
    covered = (segment >= 0) & (segment < segments)
    shift = torch.arange(batches, device=indptr.device)[:, None] * segments
    return torch.where(covered, segment + shift, batches * segments).reshape(-1)


def _sum_twin(src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
    (batches, num_rows, channels), segments = src.shape, indptr.size(1) - 1
    index = _rows_by_segment(indptr, num_rows)
    total = sum_twin(src.flatten(0, 1), index, batches * segments + 1)[:-1]
    total = share(total, indptr.diff().reshape(-1)) if mean else total
    return total.reshape(batches, segments, channels).clone()


def _extreme_twin(src: Tensor, indptr: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    (batches, num_rows, channels), segments = src.shape, indptr.size(1) - 1
    index = _rows_by_segment(indptr, num_rows)
    value, arg = extreme_twin(src.flatten(0, 1), index, batches * segments + 1, largest)
    shape = (batches, segments, channels)
    arg = arg[:-1].reshape(shape)
    before = torch.arange(batches, device=src.device, dtype=torch.int32)[:, None, None] * num_rows
    return value[:-1].reshape(shape).clone(), torch.where(arg == batches * num_rows, num_rows, arg - before)


def _spread_twin(src: Tensor, indptr: Tensor, num_rows: int) -> Tensor:
    batches, _, channels = src.shape
    padded = torch.cat([src.flatten(0, 1), src.new_zeros(1, channels)])
    return padded[_rows_by_segment(indptr, num_rows)].reshape(batches, num_rows, channels)


def _spread_won_twin(grad: Tensor, arg: Tensor, indptr: Tensor, num_rows: int) -> Tensor:
    row = torch.arange(num_rows, device=grad.device, dtype=torch.int32)[:, None]
    return torch.where(_spread_twin(arg, indptr, num_rows) == row, _spread_twin(grad, indptr, num_rows), 0)


_library.define("segment_sum(Tensor src, Tensor indptr, bool mean) -> Tensor", _sum_twin)
_library.define("segment_extreme(Tensor src, Tensor indptr, bool largest) -> (Tensor, Tensor)", _extreme_twin)
_library.define("segment_spread(Tensor src, Tensor indptr, int num_rows) -> Tensor", _spread_twin)
_library.define("segment_spread_won(Tensor grad, Tensor arg, Tensor indptr, int num_rows) -> Tensor", _spread_won_twin)


@torch.library.register_fake("pointcept3m::segment_sum")
def _(src: Tensor, indptr: Tensor, mean: bool) -> Tensor:
    return src.new_empty(src.size(0), indptr.size(1) - 1, src.size(2))


@torch.library.register_fake("pointcept3m::segment_extreme")
def _(src: Tensor, indptr: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    shape = (src.size(0), indptr.size(1) - 1, src.size(2))
    return src.new_empty(shape), src.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("pointcept3m::segment_spread")
def _(src: Tensor, indptr: Tensor, num_rows: int) -> Tensor:
    return src.new_empty(src.size(0), num_rows, src.size(2))


@torch.library.register_fake("pointcept3m::segment_spread_won")
def _(grad: Tensor, arg: Tensor, indptr: Tensor, num_rows: int) -> Tensor:
    return grad.new_empty(grad.size(0), num_rows, grad.size(2))


def _save_sum(ctx, inputs: tuple, output: Tensor) -> None:
    src, indptr, ctx.mean = inputs
    ctx.save_for_backward(indptr)
    ctx.num_rows = src.size(1)


def _sum_backward(ctx, grad: Tensor) -> tuple:
    (indptr,) = ctx.saved_tensors
    if ctx.mean:
        grad = share(grad.flatten(0, 1), indptr.diff().reshape(-1)).reshape(grad.shape)
    return torch.ops.pointcept3m.segment_spread(grad.contiguous(), indptr, ctx.num_rows), None, None


def _save_extreme(ctx, inputs: tuple, output: tuple) -> None:
    src, indptr, _ = inputs
    ctx.save_for_backward(output[1], indptr)
    ctx.mark_non_differentiable(output[1])
    ctx.num_rows = src.size(1)


def _extreme_backward(ctx, grad: Tensor, _: Tensor) -> tuple:
    arg, indptr = ctx.saved_tensors
    return torch.ops.pointcept3m.segment_spread_won(grad.contiguous(), arg, indptr, ctx.num_rows), None, None


def _save_pointers(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _spread_backward(ctx, grad: Tensor) -> tuple:
    return torch.ops.pointcept3m.segment_sum(grad.contiguous(), ctx.saved_tensors[0], False), None, None


def _save_arg(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _won_backward(ctx, grad: Tensor) -> tuple:
    (arg,) = ctx.saved_tensors
    padded = torch.cat([grad, grad.new_zeros(grad.size(0), 1, grad.size(2))], 1)
    return padded.gather(1, arg.long()), None, None, None


_register = torch.library.register_autograd
_register("pointcept3m::segment_sum", _sum_backward, setup_context=_save_sum)
_register("pointcept3m::segment_extreme", _extreme_backward, setup_context=_save_extreme)
_register("pointcept3m::segment_spread", _spread_backward, setup_context=_save_pointers)
_register("pointcept3m::segment_spread_won", _won_backward, setup_context=_save_arg)
