"""Reductions of rows into bins: `scatter` with torch_scatter's arguments and meaning, deterministic.

Every layout is brought to one: rows [N, C] and one bin per row. There the ops of `scatter_rows` do the work.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pointcept3m.ops._checks import check_device, check_int, check_tensor
from pointcept3m.ops.scatter_rows import NATIVE_DTYPES, extreme_twin, mean_twin, sum_twin, wide
from pointcept3m.utils.registry import near_names

REDUCTIONS = ("sum", "add", "mean", "max", "min", "mul")


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
    O(N C + bins C) for N rows of C values: the index is sorted by counting, and each row is read once.

    Args:
        src: values of any shape. float16 and bfloat16 are accumulated in float32.
        index: int64 bin of each entry: `src`'s shape, or a shape that broadcasts to it, or one entry per
            position along `dim`. Dimensions that `index` lacks are added at its end: for `src` [4, 9, 5] and dim=1,
            [9] serves every row and column alike, [4, 9] and [4, 9, 1] have bins for each row, [4, 1, 5] puts all 9
            entries of a row and column into one bin, and [4, 9, 5] says each entry's bin.
        dim: the dimension that is reduced.
        out: a tensor that is reduced into, in place, and returned; its old values take part (for "mean" they
            are added before the division by the count, as in torch_scatter).
        dim_size: number of bins, an int; without it (and without `out`) the largest index plus one.
        reduce: "sum" or "add", "mean", "max", "min", "mul".
        backend: "native" (ours, the default) or "torch_scatter", which must then be installed.

    Returns:
        `src`'s shape with `dim_size` along `dim`. (`scatter_max` and `scatter_min` also give the winners.)

    Raises: TypeError, ValueError or IndexError where an argument does not fit.

    Source: `scatter` of torch_scatter (Fey, pytorch_scatter), its arguments and their meaning.
    """
    if reduce not in REDUCTIONS:
        raise ValueError(f"scatter: no reduction {reduce!r}; {near_names(reduce, REDUCTIONS)}")
    if backend == "torch_scatter":
        result = _by_torch_scatter(src, index, dim, out, dim_size, reduce)
    elif backend in (None, "native"):
        result = reduce_by_index("scatter", src, index, dim, out, dim_size, reduce)[0]
    else:
        raise ValueError(f"scatter: backend must be 'native' or 'torch_scatter', got {backend!r}")
    return result


def reduce_by_index(
    op: str,
    src: Tensor,
    index: Tensor,
    dim: int,
    out: Tensor | None,
    dim_size: int | None,
    reduce: str,
    winners: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `scatter` computes; and, if `winners` are asked for, where along `dim` the extremes stand, int64.

    `op` is the function that errors name.
    """
    lines = lay_out(op, src, index, dim, out, dim_size)
    value, extra = _reduce_rows(lines.rows, lines.bins, lines.num_bins, reduce)
    value = lines.restore_bins(value)
    if reduce in ("max", "min"):
        taken = None
        if out is not None:
            found = lines.restore_bins(extra < lines.rows.size(0))
            taken = (value > out if reduce == "max" else value < out) & found
            value = out.copy_(torch.where(taken, value, out))
        if not winners:
            return value, None
        arg = lines.restore_bins(lines.position(extra))
        return value, arg if taken is None else torch.where(taken, arg, lines.length)
    if out is None:
        return value, None
    count = lines.restore_bins(extra[:, None].expand(-1, lines.rows.size(1))) if reduce == "mean" else None
    return _into(out, value, count, reduce), None


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="sum"."""
    return reduce_by_index("scatter_sum", src, index, dim, out, dim_size, "sum")[0]


scatter_add = scatter_sum


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mean"."""
    return reduce_by_index("scatter_mean", src, index, dim, out, dim_size, "mean")[0]


def scatter_mul(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """`scatter` with reduce="mul"."""
    return reduce_by_index("scatter_mul", src, index, dim, out, dim_size, "mul")[0]


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`scatter` with reduce="max", and int64 `arg`: the position along `dim` of the winner, the first among equals.

    `arg` has the result's shape, and is `src.size(dim)` where a bin is empty.
    """
    return reduce_by_index("scatter_max", src, index, dim, out, dim_size, "max", winners=True)


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """`scatter` with reduce="min", and int64 `arg`: the position along `dim` of the winner, the first among equals.

    `arg` has the result's shape, and is `src.size(dim)` where a bin is empty.
    """
    return reduce_by_index("scatter_min", src, index, dim, out, dim_size, "min", winners=True)


def _check_dim(op: str, src: Tensor, dim: int) -> int:
    check_tensor(op, "src", src)
    check_int(op, "dim", dim)
    if src.dim() == 0 or not -src.dim() <= dim < src.dim():
        raise IndexError(f"{op}: dim {dim} does not exist in src of shape {tuple(src.shape)}")
    return dim % src.dim()


def _align_index(op: str, src: Tensor, index: Tensor, dim: int) -> Tensor:
    """The index with a size of 1 wherever it does not vary, but for `dim` and, unless all are 1, those before it."""
    check_tensor(op, "index", index, (torch.int64,))
    check_device(op, "index", index, "src", src)
    before, after = src.shape[:dim], (1,) * (src.dim() - dim - 1)
    if index.dim() == 1 and index.size(0) == src.size(dim):
        return index.reshape((1,) * dim + (-1,) + after)
    if index.dim() == 1 or index.dim() > src.dim():
        raise _misfit(op, src, index, dim)
    wide = index.reshape(index.shape + (1,) * (src.dim() - index.dim()))
    try:
        spread = wide.expand_as(src)
    except RuntimeError:
        raise _misfit(op, src, index, dim) from None
    if wide.size(dim) == src.size(dim) == wide.numel():
        return wide
    return wide.expand(before + (src.size(dim),) + after) if wide.shape[dim + 1 :].numel() == 1 else spread


def _misfit(op: str, src: Tensor, index: Tensor, dim: int) -> ValueError:
    """What is wrong, and which other dim an index of one dimension would fit: dim is -1 unless it is given."""
    text = f"{op}: index of shape {tuple(index.shape)} does not fit src of shape {tuple(src.shape)} along dim {dim}"
    if index.dim() == 1 and index.size(0) in src.shape:
        other = src.shape.index(index.size(0))
        text += f" (index has {index.size(0)} entries, as dim {other} has; pass dim={other}?)"
    return ValueError(text)


def _check_size(op: str, src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> int:
    if dim_size is not None:
        check_int(op, "dim_size", dim_size, least=0)
    if out is not None:
        check_tensor(op, "out", out)
        wanted = src.shape[:dim] + src.shape[dim + 1 :]
        if out.dim() != src.dim() or out.shape[:dim] + out.shape[dim + 1 :] != wanted or out.dtype != src.dtype:
            raise ValueError(
                f"{op}: out must be {src.dtype} of src's shape {tuple(src.shape)} but for dim {dim}, got "
                f"{out.dtype} {tuple(out.shape)}"
            )
        check_device(op, "out", out, "src", src)
        dim_size = out.size(dim)
    if torch.compiler.is_compiling() and dim_size is not None:
        return dim_size  # no value can be looked at here; the kernels refuse an index out of range
    low, high = (0, -1) if index.numel() == 0 else (int(x) for x in torch.aminmax(index))
    size = high + 1 if dim_size is None else int(dim_size)
    if low < 0 or high >= size:
        raise IndexError(f"{op}: index must lie in [0, {size}), found {low if low < 0 else high}")
    return size


class Lines(NamedTuple):
    """`src` as rows [R, C], each with a bin, and the way back."""

    rows: Tensor
    bins: Tensor
    num_bins: int
    length: int  # of src along dim
    step: int  # rows that stand for one position along dim
    bins_shape: tuple[int, ...]  # of the result, before `dim` returns to its place
    rows_shape: tuple[int, ...]  # of src, likewise
    dim: int  # where the first dimension of these belongs; 0: it is there already

    def restore_bins(self, value: Tensor) -> Tensor:
        """Bins' values [num_bins, C] in the result's shape."""
        return value.reshape(self.bins_shape).movedim(0, self.dim)

    def restore_rows(self, value: Tensor) -> Tensor:
        """Rows' values [R, C] in src's shape."""
        return value.reshape(self.rows_shape).movedim(0, self.dim)

    def position(self, row: Tensor) -> Tensor:
        """Where rows [num_bins, C] stand along `dim`, int64; one past the last row becomes `length`."""
        row = row.long()
        if self.rows.size(0) == self.length:
            return row
        position = row.div(self.step, rounding_mode="floor") % max(self.length, 1)
        return torch.where(row == self.rows.size(0), self.length, position)


def lay_out(op: str, src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None) -> Lines:
    """Checks the arguments of `scatter`, for the function `op` that was called, and brings any layout to rows and bins.

    One bin per position along `dim` makes rows of everything else. Where the index varies in the dimensions before
    `dim`, each of their entries gets bins of its own; where it varies in those after, every value is a row.
    """
    dim = _check_dim(op, src, dim)
    index = _align_index(op, src, index, dim)
    size = _check_size(op, src, index, dim, out, dim_size)
    before, length, after = src.shape[:dim], src.size(dim), src.shape[dim + 1 :]
    batches, channels = before.numel(), after.numel()
    if index.numel() == length and (batches == 1 or channels < 8):
        rows, others = src.movedim(dim, 0), before + after
        rows = rows.reshape(length, others.numel())
        return Lines(rows, index.reshape(-1), size, length, 1, (size, *others), (length, *others), dim)
    index = index.expand(before + index.shape[dim:])
    bins = index.reshape(batches, length, -1) + size * torch.arange(batches, device=index.device)[:, None, None]
    step = bins.size(2)
    if step > 1 or channels == 0:
        bins = bins * channels + torch.arange(channels, device=index.device)
        step, channels = channels, 1
    rows = src.reshape(batches * length * step, channels)
    shape = (*before, size, *after)
    return Lines(rows, bins.reshape(-1), batches * size * step, length, step, shape, tuple(src.shape), 0)


def _reduce_rows(rows: Tensor, bins: Tensor, num_bins: int, reduce: str) -> tuple[Tensor, Tensor | None]:
    """(value [num_bins, C], and the winning row [num_bins, C] for an extreme, the count [num_bins] for a mean)."""
    rows, bins = rows.contiguous(), bins.contiguous()
    native = rows.dtype in NATIVE_DTYPES
    ops = torch.ops.pointcept3m
    if reduce in ("max", "min"):
        return (ops.scatter_extreme if native else extreme_twin)(rows, bins, num_bins, reduce == "max")
    if reduce == "mean":
        return (ops.scatter_mean if native else mean_twin)(rows, bins, num_bins)
    if reduce == "mul":
        values = wide(rows)
        ones = values.new_ones(num_bins, values.size(1))
        return ones.scatter_reduce(0, bins[:, None].expand_as(values), values, "prod").to(rows.dtype), None
    return (ops.scatter_sum if native else sum_twin)(rows, bins, num_bins), None


def _into(out: Tensor, value: Tensor, count: Tensor | None, reduce: str) -> Tensor:
    if reduce == "mul":
        return out.mul_(value)
    if count is None:
        return out.add_(value)
    count = count.clamp(min=1)
    mode = None if out.is_floating_point() else "floor"
    return out.add_(value * count).div_(count, rounding_mode=mode)


def _by_torch_scatter(
    src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None, reduce: str
) -> Tensor:
    try:
        import torch_scatter
    except ImportError:
        raise ImportError(
            "scatter: backend='torch_scatter' needs the package torch-scatter; backend='native' needs nothing"
        ) from None
    return torch_scatter.scatter(src, index, dim, out, dim_size, reduce)
