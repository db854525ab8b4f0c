"""ops.scatter against plain loops, torch_scatter's documented cases, and its own twin."""

import numpy as np
import pytest
import torch

from pointcept3m import ops
from pointcept3m.ops.scatter_rows import extreme_twin, gather_won_twin, mean_twin, sum_twin

REDUCTIONS = ["sum", "mean", "max", "min", "mul"]


def by_hand(src, index, dim, dim_size, reduce):
    """A loop over entries; `index` has src's shape."""
    src, index = src.movedim(dim, 0), index.movedim(dim, 0)
    out = src.new_zeros(dim_size, *src.shape[1:])
    arg = torch.full(out.shape, src.size(0))
    for place in torch.cartesian_prod(*(torch.arange(s) for s in src.shape[1:])) if src.dim() > 1 else [()]:
        at = tuple(torch.as_tensor(place).reshape(-1).tolist())
        for bin in range(dim_size):
            rows = (index[(slice(None), *at)] == bin).nonzero().flatten()
            values = src[(rows, *at)] if at else src[rows]
            if reduce == "mul":
                out[(bin, *at)] = values.prod()
            elif len(rows) == 0:
                continue
            elif reduce in ("max", "min"):
                best = getattr(values, "arg" + reduce)()
                out[(bin, *at)], arg[(bin, *at)] = values[best], rows[best]
            else:
                out[(bin, *at)] = getattr(values, reduce)()
    return out.movedim(0, dim), arg.movedim(0, dim)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("shape, dim", [((30,), 0), ((30, 5), 0), ((5, 30), -1), ((3, 20, 4), 1)])
@pytest.mark.parametrize("whole", [False, True])
def test_matches_a_loop(shape, dim, reduce, whole):
    src = torch.randn(shape, dtype=torch.float64)
    index = torch.randint(0, 8, shape if whole else (shape[dim],))
    wide = (
        index if whole else index.reshape([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)
    )
    expected, arg = by_hand(src, wide, dim, 10, reduce)
    got = ops.scatter(src, index, dim, dim_size=10, reduce=reduce)
    torch.testing.assert_close(got, expected)
    if reduce in ("max", "min"):
        extreme = ops.scatter_max if reduce == "max" else ops.scatter_min
        assert torch.equal(extreme(src, index, dim, dim_size=10)[1], arg)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("shape, of_index, dim", [
    ((4, 9, 5), (4, 9), 1), ((4, 9, 12), (1, 9), 1), ((4, 9, 12), (9,), 1), ((2, 3, 9), (3, 9), 2),
    ((4, 9, 5), (4, 9, 5), 1), ((4, 9, 5), (4, 1, 5), 1), ((2, 3, 9), (2, 1, 9), 2), ((4, 9, 5), (4, 9, 1), -2),
])  # fmt: skip
def test_an_index_is_broadcast(shape, of_index, dim, reduce):
    src = torch.randn(shape, dtype=torch.float64)
    index = torch.randint(0, 4, of_index)
    if len(of_index) == 1:
        wide = index.reshape([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
    elif shape[-len(of_index) :] == of_index and len(of_index) < len(shape):
        return pytest.skip("missing dimensions are added at the end")
    else:
        wide = index.reshape(of_index + (1,) * (len(shape) - len(of_index))).expand(shape)
    expected, arg = by_hand(src, wide, dim % len(shape), 6, reduce)
    torch.testing.assert_close(ops.scatter(src, index, dim, dim_size=6, reduce=reduce), expected)
    if reduce in ("max", "min"):
        extreme = ops.scatter_max if reduce == "max" else ops.scatter_min
        assert torch.equal(extreme(src, index, dim, dim_size=6)[1], arg)
    torch.testing.assert_close(
        ops.scatter(src, index, dim, out=torch.full_like(expected, 2.0), reduce="mean"),
        ops.scatter(src, wide, dim, out=torch.full_like(expected, 2.0), reduce="mean"),
    )


# torch_scatter's published cases: values, bins, dim, and what its reductions give.
PEER_CASES = [
    dict(src=[1, 3, 2, 4, 5, 6], index=[0, 1, 0, 1, 1, 3], dim=-1, sum=[3, 12, 0, 6], mul=[2, 60, 1, 6],
         mean=[1.5, 4, 0, 6], min=[1, 3, 0, 6], arg_min=[0, 1, 6, 5], max=[2, 5, 0, 6], arg_max=[2, 4, 6, 5]),
    dict(src=[[1, 2], [5, 6], [3, 4], [7, 8], [9, 10], [11, 12]], index=[0, 1, 0, 1, 1, 3], dim=0,
         sum=[[4, 6], [21, 24], [0, 0], [11, 12]], mul=[[3, 8], [315, 480], [1, 1], [11, 12]],
         mean=[[2, 3], [7, 8], [0, 0], [11, 12]], min=[[1, 2], [5, 6], [0, 0], [11, 12]],
         arg_min=[[0, 0], [1, 1], [6, 6], [5, 5]], max=[[3, 4], [9, 10], [0, 0], [11, 12]],
         arg_max=[[2, 2], [4, 4], [6, 6], [5, 5]]),
    dict(src=[[1, 5, 3, 7, 9, 11], [2, 4, 8, 10, 12, 14]], index=[[0, 1, 0, 1, 1, 3], [0, 0, 1, 0, 1, 2]], dim=1,
         sum=[[4, 21, 0, 11], [16, 20, 14, 0]], mul=[[3, 315, 1, 11], [80, 96, 14, 1]],
         mean=[[2, 7, 0, 11], [16 / 3, 10, 14, 0]], min=[[1, 5, 0, 11], [2, 8, 14, 0]],
         arg_min=[[0, 1, 6, 5], [0, 2, 5, 6]], max=[[3, 9, 0, 11], [10, 12, 14, 0]],
         arg_max=[[2, 4, 6, 5], [3, 4, 5, 6]]),
    dict(src=[[[1, 2], [5, 6], [3, 4]], [[10, 11], [7, 9], [12, 13]]], index=[[0, 1, 0], [2, 0, 2]], dim=1,
         sum=[[[4, 6], [5, 6], [0, 0]], [[7, 9], [0, 0], [22, 24]]],
         mul=[[[3, 8], [5, 6], [1, 1]], [[7, 9], [1, 1], [120, 143]]],
         mean=[[[2, 3], [5, 6], [0, 0]], [[7, 9], [0, 0], [11, 12]]],
         min=[[[1, 2], [5, 6], [0, 0]], [[7, 9], [0, 0], [10, 11]]],
         arg_min=[[[0, 0], [1, 1], [3, 3]], [[1, 1], [3, 3], [0, 0]]],
         max=[[[3, 4], [5, 6], [0, 0]], [[7, 9], [0, 0], [12, 13]]],
         arg_max=[[[2, 2], [1, 1], [3, 3]], [[1, 1], [3, 3], [2, 2]]]),
    dict(src=[[1, 3], [2, 4]], index=[[0, 0], [0, 0]], dim=1, sum=[[4], [6]], mul=[[3], [8]], mean=[[2], [3]],
         min=[[1], [2]], arg_min=[[0], [0]], max=[[3], [4]], arg_max=[[1], [1]]),
    dict(src=[[[1, 1], [3, 3]], [[2, 2], [4, 4]]], index=[[0, 0], [0, 0]], dim=1, sum=[[[4, 4]], [[6, 6]]],
         mul=[[[3, 3]], [[8, 8]]], mean=[[[2, 2]], [[3, 3]]], min=[[[1, 1]], [[2, 2]]], arg_min=[[[0, 0]], [[0, 0]]],
         max=[[[3, 3]], [[4, 4]]], arg_max=[[[1, 1]], [[1, 1]]]),
]  # fmt: skip
PEER_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64]


@pytest.mark.parametrize("case", PEER_CASES, ids=range(6))
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", PEER_DTYPES)
def test_published_cases_of_torch_scatter(case, reduce, dtype):
    src, index, expected = torch.tensor(case["src"], dtype=dtype), torch.tensor(case["index"]), torch.tensor(case[reduce], dtype=torch.float64)
    expected = expected.to(dtype)  # a mean of integers is rounded down, as they are positive here
    assert torch.equal(ops.scatter(src, index, case["dim"], reduce=reduce), expected)
    if reduce in ("max", "min"):
        extreme = ops.scatter_max if reduce == "max" else ops.scatter_min
        value, arg = extreme(src, index, case["dim"])
        assert torch.equal(value, expected) and arg.tolist() == case["arg_" + reduce]
    if reduce == "sum":
        assert torch.equal(ops.scatter(src, index, case["dim"], reduce="add"), expected)
        out = torch.full_like(expected, -2)
        assert torch.equal(ops.scatter(src, index, case["dim"], out=out), expected - 2)
    strided = src.transpose(0, -1).contiguous().transpose(0, -1)
    assert torch.equal(ops.scatter(strided, index, case["dim"], reduce=reduce), expected)


def test_small_case_by_hand():
    src = torch.tensor([[1.0, 2], [5, 6], [3, 4], [7, 8]])
    index = torch.tensor([0, 1, 0, 3])
    assert ops.scatter_sum(src, index, 0).tolist() == [[4, 6], [5, 6], [0, 0], [7, 8]]
    assert ops.scatter_mean(src, index, 0).tolist() == [[2, 3], [5, 6], [0, 0], [7, 8]]
    out, arg = ops.scatter_max(src, index, 0)
    assert out.tolist() == [[3, 4], [5, 6], [0, 0], [7, 8]]
    assert arg.tolist() == [[2, 2], [1, 1], [4, 4], [3, 3]]


@pytest.mark.parametrize("channels", [1, 3, 16, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_order", [False, True])
def test_kernels_match_twins(channels, dtype, in_order):
    src = torch.randn(3000, channels, dtype=dtype)
    index = torch.randint(0, 400, (3000,))
    index = index.sort().values if in_order else index
    torch_ops = torch.ops.pointcept3m
    torch.testing.assert_close(torch_ops.scatter_sum(src, index, 450), sum_twin(src, index, 450))
    for got, expected in zip(torch_ops.scatter_mean(src, index, 450), mean_twin(src, index, 450), strict=True):
        torch.testing.assert_close(got, expected)
    for largest in (True, False):
        for got, expected in zip(
            torch_ops.scatter_extreme(src, index, 450, largest), extreme_twin(src, index, 450, largest), strict=True
        ):
            assert torch.equal(got, expected)
    assert torch.equal(torch_ops.gather_rows(src, index), src[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 7, 9, 32])
def test_winners_get_the_gradient(channels, dtype):
    src, index = torch.randint(0, 5, (500, channels)).to(dtype), torch.randint(0, 90, (500,))
    grad = torch.randn(100, channels).to(dtype)
    arg = torch.ops.pointcept3m.scatter_extreme(src, index, 100, True)[1]
    assert torch.equal(torch.ops.pointcept3m.gather_won(grad, arg, index), gather_won_twin(grad, arg, index))


@pytest.mark.parametrize("channels", [1, 3, 8, 20])
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min"])
def test_a_very_long_bin_is_cut_and_put_together(channels, reduce):
    src = torch.randint(-50, 50, (40000, channels)).double()  # integers, so that no order of summing shows
    src[39999, 0] = src[17000, 0] = 100 if reduce == "max" else -100
    index = torch.full((40000,), 2)
    index[5::100] = 0
    expected, arg = by_columns(src, index, 4, reduce)
    torch.testing.assert_close(
        ops.scatter(src, index, 0, dim_size=4, reduce=reduce), expected, rtol=1e-14 if reduce == "mean" else 0, atol=0
    )
    if reduce in ("max", "min"):
        extreme = ops.scatter_max if reduce == "max" else ops.scatter_min
        assert torch.equal(extreme(src, index, 0, dim_size=4)[1], arg)
        src[30000, 0] = float("nan")
        value, arg = extreme(src, index, 0, dim_size=4)
        assert value[2, 0].isnan() and arg[2, 0] == 30000


def by_columns(src, index, dim_size, reduce):
    out, arg = src.new_zeros(dim_size, src.size(1)), torch.full((dim_size, src.size(1)), src.size(0))
    for bin in index.unique().tolist():
        rows = (index == bin).nonzero().flatten()
        if reduce in ("max", "min"):
            best = getattr(src[rows], "arg" + reduce)(0)  # of equal values torch's may be any: taken from the front here
            out[bin] = src[rows].gather(0, best[None])[0]
            arg[bin] = rows[(src[rows] == out[bin]).int().argmax(0)]
        else:
            out[bin] = getattr(src[rows], reduce)(0)
    return out, arg


def test_ties_and_nan():
    src = torch.tensor([[2.0], [2.0], [float("nan")], [5.0]])
    index = torch.tensor([0, 0, 1, 1])
    for run in (torch.ops.pointcept3m.scatter_extreme, extreme_twin):
        out, arg = run(src, index, 2, True)
        assert arg.flatten().tolist() == [0, 2] and out[1].isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_accumulates_in_float32(dtype):
    src = torch.ones(5000, 2, dtype=dtype)  # a bfloat16 sum of ones would stop at 256, a float16 one at 2048
    out = ops.scatter_sum(src, torch.zeros(5000, dtype=torch.int64), 0)
    assert out.dtype == dtype and out[0, 0] == torch.tensor(5000.0).to(dtype)
    leaf = src.clone().requires_grad_()
    ops.scatter_mean(leaf, torch.zeros(5000, dtype=torch.int64), 0).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(src, 1 / 5000))  # 5000 itself is no bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3, 5, 11, 64])
def test_half_rounds_once(dtype, channels):
    """Every half is read exactly, and results round to the nearest even one, subnormal and infinite ones too."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    src = every[torch.randint(0, 2**16, (4000, channels))]
    src[:2000] = (torch.randn(2000, channels) * 10 ** torch.empty(2000, 1).uniform_(-8, 5)).to(dtype)
    index = torch.randint(0, 1500, (4000,))
    torch_ops = torch.ops.pointcept3m
    for op, twin in ((torch_ops.scatter_sum, sum_twin), (torch_ops.scatter_mean, mean_twin)):
        got, expected = op(src, index, 1600), twin(src, index, 1600)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True) if op is torch_ops.scatter_sum else (
            torch.testing.assert_close(got[0], expected[0], equal_nan=True)
        )
    got, expected = torch_ops.scatter_extreme(src, index, 1600, True), extreme_twin(src, index, 1600, True)
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0, equal_nan=True)


def test_integers():
    src = torch.tensor([[3], [4], [5]])
    index = torch.tensor([1, 1, 0])
    assert ops.scatter_sum(src, index, 0).tolist() == [[5], [7]]
    assert ops.scatter_mean(src, index, 0).tolist() == [[5], [3]]
    assert ops.scatter_max(src, index, 0)[1].tolist() == [[2], [1]]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients(reduce):
    src = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (12,))

    def run(src):
        out = ops.scatter(src, index, 0, dim_size=6, reduce=reduce)
        return out[0] if isinstance(out, tuple) else out

    assert torch.autograd.gradcheck(run, src)
    assert torch.autograd.gradgradcheck(run, src)
    wide = torch.randint(0, 5, (12, 3))
    assert torch.autograd.gradcheck(lambda s: ops.scatter(s, wide, 0, dim_size=6, reduce="mean"), src)


def test_out_takes_part():
    src, index = torch.tensor([[1.0], [5.0], [2.0]]), torch.tensor([0, 0, 1])
    out = torch.tensor([[10.0], [10.0], [10.0]])
    assert ops.scatter_sum(src, index, 0, out=out) is out
    assert out.flatten().tolist() == [16, 12, 10]
    assert ops.scatter_mean(src, index, 0, out=torch.full((3, 1), 2.0)).flatten().tolist() == [4, 4, 2]
    value, arg = ops.scatter_max(src, index, 0, out=torch.full((3, 1), 4.0))
    assert value.flatten().tolist() == [5, 4, 4] and arg.flatten().tolist() == [1, 3, 3]


def test_non_contiguous_and_empty():
    src, index = torch.randn(8, 40)[:, ::2].t(), torch.randint(0, 4, (40,))[::2]
    assert not src.is_contiguous() and not index.is_contiguous()
    torch.testing.assert_close(ops.scatter_sum(src, index, 0, dim_size=4), sum_twin(src.contiguous(), index, 4))
    none = torch.zeros(0, dtype=torch.int64)
    assert ops.scatter_sum(torch.zeros(0, 3), none, 0).shape == (0, 3)
    assert ops.scatter_mean(torch.zeros(0, 3), none, 0, dim_size=2).tolist() == [[0, 0, 0]] * 2
    value, arg = ops.scatter_max(torch.zeros(0, 3), none, 0, dim_size=2)
    assert value.shape == (2, 3) and (arg == 0).all()
    assert ops.scatter_sum(torch.zeros(5, 0), torch.zeros(5, dtype=torch.int64), 0).shape == (1, 0)


def test_the_same_for_any_number_of_threads():
    src, index = torch.randn(20000, 7), torch.randint(0, 50, (20000,))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ops.scatter_sum(src, index, 0)
        torch.set_num_threads(3)
        assert torch.equal(ops.scatter_sum(src, index, 0), alone)
    finally:
        torch.set_num_threads(threads)


def test_bad_arguments_are_named():
    src, index = torch.randn(4, 2), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        ops.scatter(src, index, 0, reduce="mena")
    with pytest.raises(TypeError, match="int64 tensor, got torch.int32"):
        ops.scatter(src, index.int(), 0)
    with pytest.raises(IndexError, match=r"\[0, 3\), found 3"):
        ops.scatter(src, index, 0, dim_size=3)
    with pytest.raises(IndexError, match="found -1"):
        ops.scatter(src, index - 1, 0)
    with pytest.raises(ValueError, match=r"index of shape \(3,\)"):
        ops.scatter(src, index[:3], 0)
    with pytest.raises(IndexError, match="dim 2 does not exist"):
        ops.scatter(src, index, 2)
    with pytest.raises(ValueError, match="out must be"):
        ops.scatter(src, index, 0, out=torch.zeros(4, 3))
    with pytest.raises(TypeError, match="^scatter: out must be a tensor, got list"):
        ops.scatter(src, index, 0, out=[1])
    with pytest.raises(ValueError, match="^scatter: out must be"):
        ops.scatter(src, index, 0, out=torch.zeros(4))
    with pytest.raises(ValueError, match="^scatter: out must be on cpu as src is, got meta"):
        ops.scatter(src, index, 0, out=torch.zeros(4, 2, device="meta"))
    with pytest.raises(ValueError, match="^scatter: index must be on cpu as src is, got meta"):
        ops.scatter(src, index.to("meta"), 0)
    with pytest.raises(TypeError, match="^scatter: dim must be an int, got float"):
        ops.scatter(src, index, dim=0.5)
    for wrong, got in ((2.7, "float"), ("3", "str"), (True, "bool")):
        with pytest.raises(TypeError, match=f"^scatter: dim_size must be an int, got {got}"):
            ops.scatter(src, index, 0, dim_size=wrong)
    with pytest.raises(ValueError, match="^scatter: dim_size must be at least 0, got -1"):
        ops.scatter(src, index, 0, dim_size=-1)
    with pytest.raises(ValueError, match=r"\(index has 4 entries, as dim 0 has; pass dim=0\?\)$"):
        ops.scatter(src, index)
    with pytest.raises(ValueError, match=r"along dim 1$"):
        ops.scatter(src, index[:3])
    for function in (ops.scatter_sum, ops.scatter_mean, ops.scatter_mul, ops.scatter_max, ops.scatter_min):
        with pytest.raises(TypeError, match=f"^{function.__name__}: src must be a tensor, got list"):
            function([1.0], index)
    with pytest.raises(ValueError, match="backend must be"):
        ops.scatter(src, index, 0, backend="cuda")
    with pytest.raises((RuntimeError, IndexError)):  # a direct call cannot reach foreign memory either
        torch.ops.pointcept3m.scatter_sum(src, index, 3)


def test_opcheck():
    src = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (9,))
    torch_ops = torch.ops.pointcept3m
    torch.library.opcheck(torch_ops.scatter_sum.default, (src, index, 6))
    torch.library.opcheck(torch_ops.scatter_mean.default, (src, index, 6))
    torch.library.opcheck(torch_ops.scatter_extreme.default, (src, index, 6, True))
    torch.library.opcheck(torch_ops.gather_rows.default, (src, index))
    arg = torch_ops.scatter_extreme(src.detach(), index, 6, True)[1]
    torch.library.opcheck(torch_ops.gather_won.default, (torch.randn(6, 4, requires_grad=True), arg, index))


def test_compiles_in_one_piece():
    index = torch.randint(0, 5, (9,))
    src = torch.randn(9, 4, requires_grad=True)

    def run(src):
        return (
            ops.scatter(src, index, 0, dim_size=6, reduce="mean").square()
            + ops.scatter_max(src, index, 0, dim_size=6)[0]
        )

    expected = run(src)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(src)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), src)[0] for y in (got, expected)))


def test_a_direct_call_reads_no_foreign_memory():
    """What the public functions check, the kernels check again: hostile arguments are errors, never reads."""
    torch_ops, src, index = torch.ops.pointcept3m, torch.randn(4, 2), torch.tensor([0, 1, 2, 3])
    arg = torch.zeros(4, 2, dtype=torch.int32)
    for hostile in ([0, 1, 2, 4], [-1, 0, 1, 2], [3, 2, 1, 2**62], [-(2**63), 0, 0, 0], [0, 1, 2, 3, 0]):
        hostile = torch.tensor(hostile)
        with pytest.raises((RuntimeError, IndexError)):
            torch_ops.scatter_sum(src, hostile, 4)
        if len(hostile) == 4:
            for run in (torch_ops.gather_rows, lambda grad, index: torch_ops.gather_won(grad, arg, index)):
                with pytest.raises((RuntimeError, IndexError)):
                    run(src, hostile)
    with pytest.raises(RuntimeError):
        torch_ops.scatter_sum(src, index, -1)
    assert torch_ops.gather_won(src, arg.fill_(2**31 - 1), index).eq(0).all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_torch_scatter_agrees(reduce):
    pytest.importorskip("torch_scatter", reason="torch-scatter is not installed")
    src, index = torch.randn(50, 6), torch.randint(0, 9, (50,))
    for ours, theirs in zip(
        *([r] if isinstance(r, torch.Tensor) else r
          for r in (ops.scatter(src, index, 0, reduce=reduce, backend=b) for b in ("native", "torch_scatter"))),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


def test_absent_backend_says_so():
    try:
        import torch_scatter  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="needs the package torch-scatter"):
            ops.scatter(torch.randn(2, 2), torch.tensor([0, 1]), 0, backend="torch_scatter")
    else:
        pytest.skip("torch-scatter is installed")


@pytest.mark.parametrize("reduce", ["sum", "mean", "max"])
def test_a_gradient_in_another_memory_order_is_taken(reduce):
    """A result that is transposed afterwards, as a feature volume is, hands back a gradient that is not contiguous."""
    index, weight = torch.randint(0, 6, (20,)), torch.randn(5, 6)
    grads = []
    for transpose in (True, False):
        torch.manual_seed(1)
        src = torch.randn(20, 5, requires_grad=True)
        out = ops.scatter(src, index, dim=0, dim_size=6, reduce=reduce)
        ((out.T * weight) if transpose else (out * weight.T)).sum().backward()
        grads.append(src.grad)
    assert torch.equal(*grads)


def test_sizes_are_any_integer():
    src, index = torch.randn(4, 2), torch.tensor([0, 1, 2, 3])
    assert ops.scatter_sum(src, index, np.int64(0), dim_size=np.int64(5)).shape == (5, 2)

    def run(src, like):  # of a size that the compiler does not know
        return ops.scatter(src, index, 0, dim_size=like.size(0))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 9):
        assert torch.equal(compiled(src, torch.zeros(size)), run(src, torch.zeros(size)))


def test_an_index_of_every_shape_means_what_the_docstring_says():
    src = torch.arange(180.0).view(4, 9, 5)
    one = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1])
    wide = one[None, :, None].expand(4, 9, 5)
    expected = ops.scatter(src, wide, 1)
    assert expected[3, 2, 4] == src[3, 2, 4] + src[3, 5, 4]
    for index in (one, one.expand(4, 9), one.expand(4, 9)[..., None]):
        assert torch.equal(ops.scatter(src, index, 1), expected)
    lines = torch.arange(20).view(4, 1, 5) % 3
    got = ops.scatter(src, lines, 1)
    assert got[3, lines[3, 0, 4], 4] == src[3, :, 4].sum() and (got != 0).sum() <= 20


def test_products_compile_and_check():
    src = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (9,))

    def run(src):
        return ops.scatter_mul(src, index, 0, dim_size=6)

    got = torch.compile(run, fullgraph=True, backend="aot_eager")(src)
    torch.testing.assert_close(got, run(src))
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), src)[0] for y in (got, run(src))))
