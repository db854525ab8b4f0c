"""ops.segment_csr, gather_csr and the COO pair against plain loops, torch_scatter's published cases, and the twins."""

import pytest
import torch

from pointcept3m.ops import segment
from pointcept3m.ops.segment import (
    gather_coo,
    gather_csr,
    segment_coo,
    segment_csr,
    segment_max_csr,
    segment_mean_csr,
    segment_min_csr,
    segment_sum_csr,
)

REDUCTIONS = ["sum", "mean", "max", "min"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64]
TORCH_OPS = torch.ops.pointcept3m

# torch_scatter's published cases: values, pointers and the same as an index, and what its reductions give.
CASES = [
    dict(src=[1, 2, 3, 4, 5, 6], index=[0, 0, 1, 1, 1, 3], indptr=[0, 2, 5, 5, 6], sum=[3, 12, 0, 6],
         mean=[1.5, 4, 0, 6], min=[1, 3, 0, 6], arg_min=[0, 2, 6, 5], max=[2, 5, 0, 6], arg_max=[1, 4, 6, 5]),
    dict(src=[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]], index=[0, 0, 1, 1, 1, 3], indptr=[0, 2, 5, 5, 6],
         sum=[[4, 6], [21, 24], [0, 0], [11, 12]], mean=[[2, 3], [7, 8], [0, 0], [11, 12]],
         min=[[1, 2], [5, 6], [0, 0], [11, 12]], arg_min=[[0, 0], [2, 2], [6, 6], [5, 5]],
         max=[[3, 4], [9, 10], [0, 0], [11, 12]], arg_max=[[1, 1], [4, 4], [6, 6], [5, 5]]),
    dict(src=[[1, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]], index=[[0, 0, 1, 1, 1, 3], [0, 0, 0, 1, 1, 2]],
         indptr=[[0, 2, 5, 5, 6], [0, 3, 5, 6, 6]], sum=[[4, 21, 0, 11], [12, 18, 12, 0]],
         mean=[[2, 7, 0, 11], [4, 9, 12, 0]], min=[[1, 5, 0, 11], [2, 8, 12, 0]], arg_min=[[0, 2, 6, 5], [0, 3, 5, 6]],
         max=[[3, 9, 0, 11], [6, 10, 12, 0]], arg_max=[[1, 4, 6, 5], [2, 4, 5, 6]]),
    dict(src=[[[1, 2], [3, 4], [5, 6]], [[7, 9], [10, 11], [12, 13]]], index=[[0, 0, 1], [0, 2, 2]],
         indptr=[[0, 2, 3, 3], [0, 1, 1, 3]], sum=[[[4, 6], [5, 6], [0, 0]], [[7, 9], [0, 0], [22, 24]]],
         mean=[[[2, 3], [5, 6], [0, 0]], [[7, 9], [0, 0], [11, 12]]],
         min=[[[1, 2], [5, 6], [0, 0]], [[7, 9], [0, 0], [10, 11]]],
         arg_min=[[[0, 0], [2, 2], [3, 3]], [[0, 0], [3, 3], [1, 1]]],
         max=[[[3, 4], [5, 6], [0, 0]], [[7, 9], [0, 0], [12, 13]]],
         arg_max=[[[1, 1], [2, 2], [3, 3]], [[0, 0], [3, 3], [2, 2]]]),
    dict(src=[[1, 3], [2, 4]], index=[[0, 0], [0, 0]], indptr=[[0, 2], [0, 2]], sum=[[4], [6]], mean=[[2], [3]],
         min=[[1], [2]], arg_min=[[0], [0]], max=[[3], [4]], arg_max=[[1], [1]]),
    dict(src=[[[1, 1], [3, 3]], [[2, 2], [4, 4]]], index=[[0, 0], [0, 0]], indptr=[[0, 2], [0, 2]],
         sum=[[[4, 4]], [[6, 6]]], mean=[[[2, 2]], [[3, 3]]], min=[[[1, 1]], [[2, 2]]], arg_min=[[[0, 0]], [[0, 0]]],
         max=[[[3, 3]], [[4, 4]]], arg_max=[[[1, 1]], [[1, 1]]]),
]  # fmt: skip
GATHER_CASES = [
    dict(src=[1, 2, 3, 4], index=[0, 0, 1, 1, 1, 3], indptr=[0, 2, 5, 5, 6], expected=[1, 1, 2, 2, 2, 4]),
    dict(src=[[1, 2], [3, 4], [5, 6], [7, 8]], index=[0, 0, 1, 1, 1, 3], indptr=[0, 2, 5, 5, 6],
         expected=[[1, 2], [1, 2], [3, 4], [3, 4], [3, 4], [7, 8]]),
    dict(src=[[1, 3, 5, 7], [2, 4, 6, 8]], index=[[0, 0, 1, 1, 1, 3], [0, 0, 0, 1, 1, 2]],
         indptr=[[0, 2, 5, 5, 6], [0, 3, 5, 6, 6]], expected=[[1, 1, 3, 3, 3, 7], [2, 2, 2, 4, 4, 6]]),
    dict(src=[[[1, 2], [3, 4], [5, 6]], [[7, 9], [10, 11], [12, 13]]], index=[[0, 0, 1], [0, 2, 2]],
         indptr=[[0, 2, 3, 3], [0, 1, 1, 3]],
         expected=[[[1, 2], [1, 2], [3, 4]], [[7, 9], [12, 13], [12, 13]]]),
    dict(src=[[1], [2]], index=[[0, 0], [0, 0]], indptr=[[0, 2], [0, 2]], expected=[[1, 1], [2, 2]]),
    dict(src=[[[1, 1]], [[2, 2]]], index=[[0, 0], [0, 0]], indptr=[[0, 2], [0, 2]],
         expected=[[[1, 1], [1, 1]], [[2, 2], [2, 2]]]),
]  # fmt: skip


def strided(tensor):
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("case", CASES, ids=range(6))
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_cases_of_torch_scatter(case, reduce, dtype):
    src, index, indptr = torch.tensor(case["src"], dtype=dtype), torch.tensor(case["index"]), torch.tensor(case["indptr"])
    expected = torch.tensor(case[reduce], dtype=torch.float64).to(dtype)
    for values in (src, strided(src)):
        assert torch.equal(segment_csr(values, strided(indptr), reduce=reduce), expected)
        assert torch.equal(segment_coo(values, index, reduce=reduce), expected)
    if reduce in ("max", "min"):
        value, arg = (segment_max_csr if reduce == "max" else segment_min_csr)(src, indptr)
        assert torch.equal(value, expected) and arg.tolist() == case["arg_" + reduce] and arg.dtype == torch.int64
    out = torch.full_like(expected, -2)
    assert segment_csr(src, indptr, out, reduce) is out and torch.equal(out, expected)
    out = segment_coo(src, index, torch.full_like(expected, -2), reduce=reduce)
    if reduce == "sum":
        assert torch.equal(segment_csr(src, indptr, reduce="add"), expected)
        assert torch.equal(out, expected - 2)
    if reduce == "max":
        assert torch.equal(out, torch.where(expected == 0, -2, expected))
    if reduce == "min":
        assert (out == -2).all()


@pytest.mark.parametrize("case", GATHER_CASES, ids=range(6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_gather_cases_of_torch_scatter(case, dtype):
    src, index, indptr = torch.tensor(case["src"], dtype=dtype), torch.tensor(case["index"]), torch.tensor(case["indptr"])
    expected = torch.tensor(case["expected"], dtype=dtype)
    for values in (src, strided(src)):
        assert torch.equal(gather_csr(values, strided(indptr)), expected)
        assert torch.equal(gather_coo(values, strided(index)), expected)
    for gather, rows in ((gather_csr, indptr), (gather_coo, index)):
        out = torch.full_like(expected, -2)
        assert gather(src, rows, out) is out and torch.equal(out, expected)


def by_hand(src, indptr, reduce):
    """A loop over segments; src [B, N, C], indptr [B, V + 1]."""
    out = src.new_zeros(src.size(0), indptr.size(1) - 1, src.size(2))
    arg = torch.full(out.shape, src.size(1))
    for batch in range(src.size(0)):
        for v, (first, last) in enumerate(zip(indptr[batch, :-1].tolist(), indptr[batch, 1:].tolist(), strict=True)):
            rows = src[batch, first:last]
            if last > first and reduce in ("max", "min"):
                out[batch, v] = getattr(rows, "a" + reduce)(0)
                arg[batch, v] = first + (rows == out[batch, v]).int().argmax(0)
            elif last > first:
                out[batch, v] = getattr(rows, reduce)(0)
    return out, arg


def pointers(batches, segments, num_rows):
    """Ascending, with empty segments, and rows before the first and after the last that are in none."""
    return torch.randint(2, num_rows - 2, (batches, segments + 1)).sort().values


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("batches, channels", [(1, 1), (1, 33), (3, 4), (2, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_a_loop_and_the_twin(batches, channels, reduce, dtype):
    src, indptr = torch.randint(-9, 9, (batches, 60, channels)).to(dtype), pointers(batches, 25, 60)
    expected, arg = by_hand(src, indptr, reduce)
    if reduce in ("max", "min"):
        for run in (TORCH_OPS.segment_extreme, segment._extreme_twin):
            value, rows = run(src, indptr, reduce == "max")
            assert torch.equal(value, expected) and torch.equal(rows.long(), arg) and rows.dtype == torch.int32
        grad = torch.randn_like(expected)
        back = TORCH_OPS.segment_spread_won(grad, arg.int(), indptr, 60)
        assert torch.equal(back, segment._spread_won_twin(grad, arg.int(), indptr, 60))
        assert torch.equal(back, torch.zeros(batches, 61, channels, dtype=dtype).scatter_(1, arg, grad)[:, :60])
    else:
        for run in (TORCH_OPS.segment_sum, segment._sum_twin):
            torch.testing.assert_close(run(src, indptr, reduce == "mean"), expected)
    assert torch.equal(TORCH_OPS.segment_spread(expected, indptr, 60), segment._spread_twin(expected, indptr, 60))


def test_rows_in_no_segment():
    src, indptr = torch.arange(6.0), torch.tensor([1, 3, 3, 4])
    assert segment_csr(src, indptr).tolist() == [3, 0, 3]
    assert gather_csr(torch.tensor([5.0, 6, 7]), indptr).tolist() == [0, 5, 5, 7]
    assert gather_csr(torch.tensor([5.0, 6, 7]), indptr, out=torch.ones(6)).tolist() == [0, 5, 5, 7, 0, 0]
    leaf = src.clone().requires_grad_()
    segment_csr(leaf, indptr, reduce="mean").sum().backward()
    assert leaf.grad.tolist() == [0, 0.5, 0.5, 1, 0, 0]


def test_one_set_of_pointers_serves_every_batch():
    src, indptr = torch.randn(4, 10, 3), torch.tensor([[0, 4, 10]])
    assert torch.equal(segment_csr(src, indptr), torch.stack([segment_csr(x, indptr[0]) for x in src]))
    values = torch.randn(4, 2, 3)
    assert torch.equal(gather_csr(values, indptr), torch.stack([gather_csr(x, indptr[0]) for x in values]))
    index = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(segment_coo(src, index), segment_csr(src, indptr))
    assert torch.equal(gather_coo(values, index), gather_csr(values, indptr))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_accumulates_in_float32(dtype):
    src = torch.ones(5000, 3, dtype=dtype)
    assert torch.equal(segment_csr(src, torch.tensor([0, 5000])), torch.full((1, 3), 5000.0).to(dtype))
    leaf = src.clone().requires_grad_()
    segment_csr(leaf, torch.tensor([0, 5000]), reduce="mean").sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(src, 1 / 5000))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_gradients(reduce):
    src, indptr = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True), pointers(2, 5, 9)
    assert torch.autograd.gradcheck(lambda x: segment_csr(x, indptr, reduce=reduce), src)
    assert torch.autograd.gradgradcheck(lambda x: segment_csr(x, indptr, reduce=reduce), src)
    values = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather_csr(x, indptr), values)
    assert torch.autograd.gradgradcheck(lambda x: gather_csr(x, indptr), values)
    index = torch.randint(0, 5, (2, 9)).sort().values
    assert torch.autograd.gradcheck(lambda x: segment_coo(x, index, reduce=reduce, dim_size=6), src)
    assert torch.autograd.gradcheck(lambda x: gather_coo(x, index), values)


def test_nothing_there():
    nothing = torch.tensor([0])
    assert segment_csr(torch.randn(0, 3), nothing).shape == (0, 3)
    assert segment_csr(torch.randn(0, 3), torch.tensor([0, 0, 0]), reduce="mean").tolist() == [[0] * 3] * 2
    value, arg = segment_max_csr(torch.randn(0, 3), torch.tensor([0, 0]))
    assert value.tolist() == [[0] * 3] and arg.tolist() == [[0] * 3]
    assert segment_csr(torch.randn(4, 0), torch.tensor([0, 4])).shape == (1, 0)
    assert segment_csr(torch.randn(0, 5, 2), torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 3, 2)
    assert gather_csr(torch.randn(0, 3), nothing).shape == (0, 3)
    assert gather_csr(torch.randn(1, 0), torch.tensor([0, 4])).shape == (4, 0)
    assert gather_csr(torch.randn(0, 2, 2), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 0, 2)
    none = torch.zeros(0, dtype=torch.int64)
    assert segment_coo(torch.randn(0, 3), none, dim_size=2).tolist() == [[0] * 3] * 2
    assert gather_coo(torch.randn(5, 3), none).shape == (0, 3)


@pytest.mark.not_emulated
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_same_for_any_number_of_threads(reduce):
    src, indptr = torch.randn(2, 40000, 5, requires_grad=True), pointers(2, 300, 40000)
    indptr[1, 200:] = 39000  # the last before it is long enough to be cut
    indptr[1, 10:200] = 100
    indptr = indptr.sort().values
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            value = segment_csr(src, indptr, reduce=reduce)
            results.append((value, torch.autograd.grad(value.square().sum(), src)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_arguments_are_named():
    src, indptr = torch.randn(4, 2), torch.tensor([0, 2, 4])
    with pytest.raises(ValueError, match="segment_csr: no reduction 'mena'; did you mean 'mean'"):
        segment_csr(src, indptr, reduce="mena")
    with pytest.raises(ValueError, match="segment_coo: no reduction 'mul'"):
        segment_coo(src, indptr, reduce="mul")
    with pytest.raises(TypeError, match="segment_csr: indptr must be an int64 tensor, got torch.int32"):
        segment_csr(src, indptr.int())
    with pytest.raises(TypeError, match="gather_coo: index must be an int64 tensor, got list"):
        gather_coo(src, [0, 1])
    with pytest.raises(TypeError, match="segment_csr: src must be a tensor, got list"):
        segment_csr([1.0], indptr)
    with pytest.raises(ValueError, match="between 1 and src's 2 dimensions, got 3"):
        segment_csr(src, indptr[None, None])
    with pytest.raises(ValueError, match="at least one pointer"):
        segment_csr(src, indptr[:0])
    with pytest.raises(ValueError, match=r"indptr of shape \(3, 3\) cannot be broadcast to \(2, 3\)"):
        segment_csr(torch.randn(2, 4), indptr.expand(3, 3))
    for wrong in ([0, 3, 2], [-1, 2, 4], [0, 2, 5], [0, 2**62, 4]):
        with pytest.raises(IndexError, match=r"segment_csr: indptr must not descend and must lie in \[0, 4\]"):
            segment_csr(src, torch.tensor(wrong))
    elsewhere = torch.zeros(2, 2, device="meta")
    for out, error, got in (([1], TypeError, "a tensor, got list"), (elsewhere, ValueError, ".*on meta")):
        with pytest.raises(error, match=f"segment_csr: out must be {got}"):
            segment_csr(src, indptr, out=out)
        with pytest.raises(error, match="segment_coo: out must be"):
            segment_coo(src, torch.tensor([0, 0, 1, 1]), out=out)
        with pytest.raises(error, match="gather_csr: out must be"):
            gather_csr(src[:2], indptr, out=out)
        with pytest.raises(error, match="gather_coo: out must be"):
            gather_coo(src, torch.tensor([0, 3]), out=out)
    for function in (segment_sum_csr, segment_mean_csr, segment_max_csr, segment_min_csr):
        with pytest.raises(TypeError, match=f"^{function.__name__}: src must be a tensor, got list"):
            function([1.0], indptr)
    with pytest.raises(TypeError, match="^segment_coo: dim_size must be an int, got float"):
        segment_coo(src, torch.tensor([0, 0, 1, 1]), dim_size=2.0)
    with pytest.raises(ValueError, match=r"segment_csr: out must be torch.float32 of shape \(2, 2\)"):
        segment_csr(src, indptr, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"gather_csr: out must be torch.float32 of shape \(3, 2\)"):
        gather_csr(src[:2], indptr, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"gather_csr: out must be torch.float32 of shape \('any', 2\)"):
        gather_csr(src[:2], indptr, torch.zeros(3))
    with pytest.raises(ValueError, match="one row less along dim 0"):
        gather_csr(src, indptr)
    with pytest.raises(IndexError, match=r"gather_csr: .* \[0, 3\], found 0 first and 4 last"):
        gather_csr(src[:2], indptr, torch.zeros(3, 2))
    with pytest.raises(IndexError, match=r"gather_coo: index must lie in \[0, 4\), found 4"):
        gather_coo(src, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="segment_coo: index of shape"):
        segment_coo(src, indptr)


def test_a_direct_call_reads_no_foreign_memory():
    src = torch.randn(1, 4, 2)
    arg = torch.full((1, 2, 2), 2**31 - 1, dtype=torch.int32)
    for hostile in ([0, 3, 2], [-1, 2, 4], [0, 2, 5], [0, 2**62, 4], [-(2**63), 0, 2**63 - 1], [2**32, 2**32, 2**32]):
        indptr = torch.tensor([hostile])
        calls = (
            lambda p: TORCH_OPS.segment_sum(src, p, False),
            lambda p: TORCH_OPS.segment_extreme(src, p, True),
            lambda p: TORCH_OPS.segment_spread(src[:, :2].contiguous(), p, 4),
            lambda p: TORCH_OPS.segment_spread_won(src[:, :2].contiguous(), arg, p, 4),
        )
        for call in calls:
            with pytest.raises((RuntimeError, IndexError)):
                call(indptr)
    back = TORCH_OPS.segment_spread_won(src[:, :2].contiguous(), arg, torch.tensor([[0, 2, 4]]), 4)
    assert back.eq(0).all()


def test_opcheck():
    src, indptr = torch.randn(2, 9, 4, dtype=torch.float64, requires_grad=True), pointers(2, 5, 9)
    values = torch.randn(2, 5, 4, requires_grad=True)
    arg = TORCH_OPS.segment_extreme(src.detach(), indptr, True)[1]
    torch.library.opcheck(TORCH_OPS.segment_sum.default, (src, indptr, True))
    torch.library.opcheck(TORCH_OPS.segment_extreme.default, (src, indptr, True))
    torch.library.opcheck(TORCH_OPS.segment_spread.default, (values, indptr, 9))
    torch.library.opcheck(TORCH_OPS.segment_spread_won.default, (values, arg, indptr, 9))


def test_compiles_in_one_piece():
    src, indptr = torch.randn(9, 4, requires_grad=True), torch.tensor([0, 3, 3, 9])

    def run(src):
        mean = segment_csr(src, indptr, reduce="mean").square()
        return mean + segment_max_csr(src, indptr)[0]

    expected = run(src)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(src)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), src)[0] for y in (got, expected)))
