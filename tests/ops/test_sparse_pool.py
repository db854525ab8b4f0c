"""Sparse pooling against dense pooling over occupied sites, its twins and hand-computed cases."""

import pytest
import torch
import torch.nn.functional as F

from pointcept3m import ops
from pointcept3m.ops import _library
from pointcept3m.ops.sparse_pool import _max_backward_twin, _max_twin, _mean_twin, _sum_twin, sparse_pool
from tests.ops.sparse_cases import SHAPE, at, dense_grid, random_coord

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def occupied(coord, shape=SHAPE, dtype=torch.float64):
    """[B, 1, X, Y, Z]: how many rows stand at each site."""
    return dense_grid(torch.ones(len(coord), 1, dtype=dtype), coord, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_dense_pooling_over_occupied_sites(kernel, stride, dtype):
    coord, padding = random_coord(), kernel // 2
    rulebook = ops.strided_rulebook(coord, SHAPE, kernel, stride, padding)
    features = torch.randn(len(coord), 7, dtype=dtype, requires_grad=True)
    count = occupied(coord, dtype=dtype)
    grid = dense_grid(features, coord)
    window = torch.ones(7, 1, kernel, kernel, kernel, dtype=dtype)
    total = F.conv3d(grid, window, stride=stride, padding=padding, groups=7)
    number = F.conv3d(count, window[:1], stride=stride, padding=padding)
    dense = {
        "max": F.max_pool3d(grid.masked_fill(count == 0, -torch.inf), kernel, stride, padding),
        "sum": total,
        "mean": total / number,
    }
    for reduce, expected in dense.items():
        ours, expected = sparse_pool(features, rulebook, reduce), at(expected, rulebook.coord_out)
        tolerance = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours, expected, **tolerance)
        grad = torch.randn_like(ours)
        a = torch.autograd.grad(ours, features, grad)[0]
        b = torch.autograd.grad(expected, features, grad, retain_graph=True)[0]
        torch.testing.assert_close(a, b, **tolerance)


def test_small_case_by_hand():
    coord = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)
    features = torch.tensor([[-1.0, 4], [-3, 5], [-7, 8], [2, -9]], requires_grad=True)
    rulebook = ops.strided_rulebook(coord, (4, 4, 4), 2, 2)
    assert rulebook.coord_out.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    out = sparse_pool(features, rulebook)
    assert out.tolist() == [[-1, 5], [-7, 8], [2, -9]]  # negative values are not clipped at 0
    out.backward(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
    assert features.grad.tolist() == [[1, 0], [0, 2], [3, 4], [5, 6]]
    assert sparse_pool(features, rulebook, "mean").tolist() == [[-2, 4.5], [-7, 8], [2, -9]]
    assert sparse_pool(features, rulebook, "sum").tolist() == [[-4, 9], [-7, 8], [2, -9]]


def test_equal_values_nan_and_infinity():
    coord = torch.tensor([[0, 0, 0, i] for i in range(6)], dtype=torch.int32)
    nan, inf = float("nan"), float("inf")
    features = torch.tensor([[3.0], [3.0], [nan], [9.0], [-inf], [-inf]], requires_grad=True)
    out = sparse_pool(features, ops.strided_rulebook(coord, (1, 1, 6), (1, 1, 2), (1, 1, 2)))
    assert out[0] == 3 and out[1].isnan() and out[2] == -inf
    out.sum().backward()
    assert features.grad.flatten().tolist() == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["strided", "submanifold", "inverse"])
def test_kernels_match_their_twins(dtype, kind):
    coord = random_coord(0.5, (30, 20, 12))
    down = ops.strided_rulebook(coord, (30, 20, 12), 3, 2, 1)
    rulebook = {"strided": down, "inverse": down.inverse(coord)}.get(kind) or ops.submanifold_rulebook(coord, 3)
    book = (*rulebook.tensors, rulebook.reverse)
    torch_ops = torch.ops.pointcept3m
    for channels in (1, 19, 64):
        features = torch.randn(rulebook.num_in, channels).to(dtype)
        for op, twin in (("sum", _sum_twin), ("mean", _mean_twin), ("max", _max_twin)):
            ours, expected = getattr(torch_ops, f"sparse_pool_{op}")(features, *book), twin(features, *book)
            torch.testing.assert_close(ours, expected)
        out, arg = torch_ops.sparse_pool_max(features, *book)
        assert arg.dtype == torch.int32 and torch.equal(features.gather(0, arg.long()), out)
        grad = torch.randn(rulebook.num_out, channels).to(dtype)
        ours = torch_ops.sparse_pool_max_backward(grad, arg, *book)
        torch.testing.assert_close(ours, _max_backward_twin(grad, arg, *book))


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_every_row_of_a_shared_cell_takes_part(reduce):
    coord = random_coord()
    both = torch.cat([coord, coord[torch.randint(0, len(coord), (60,))]])
    features = torch.randn(len(both), 4, dtype=torch.float64)
    rulebook = ops.strided_rulebook(both, (10, 8, 8), 2, 2)
    ours = sparse_pool(features, rulebook, reduce)
    key = torch.cat([both[:, :1], both[:, 1:] // 2], 1)
    sites, site = torch.unique(key, dim=0, return_inverse=True)
    assert torch.equal(sites, rulebook.coord_out)
    torch.testing.assert_close(ours, ops.scatter(features, site, 0, dim_size=len(sites), reduce=reduce))


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
@pytest.mark.parametrize("duplicates", [0, 3])
def test_gradients(reduce, duplicates):
    coord = random_coord(0.1, (4, 4, 4))
    coord = torch.cat([coord, coord[:duplicates]])
    rulebook = ops.strided_rulebook(coord, (4, 4, 4), 3, 2, 1)
    features = torch.randn(len(coord), 2, dtype=torch.float64, requires_grad=True)

    def run(values):
        return sparse_pool(values, rulebook, reduce)

    assert torch.autograd.gradcheck(run, features)
    assert torch.autograd.gradgradcheck(run, features)


def test_opcheck_and_compilation():
    coord = random_coord(0.1)
    rulebook = ops.strided_rulebook(coord, SHAPE, 3, 2, 1)
    book = (*rulebook.tensors, False)
    features = torch.randn(len(coord), 3, requires_grad=True)
    torch_ops, check = torch.ops.pointcept3m, torch.library.opcheck
    for op in (torch_ops.sparse_pool_sum, torch_ops.sparse_pool_mean, torch_ops.sparse_pool_max):
        check(op.default, (features, *book))
    out, arg = torch_ops.sparse_pool_max(features, *book)
    check(torch_ops.sparse_pool_max_backward.default, (torch.randn_like(out, requires_grad=True), arg, *book))

    def run(values):
        return torch.cat([sparse_pool(values, rulebook, reduce) for reduce in ("max", "mean", "sum")], 1)

    expected, got = run(features), torch.compile(run, fullgraph=True, backend="aot_eager")(features)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(y.square().sum(), features)[0] for y in (got, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.not_emulated
@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_the_same_for_any_number_of_threads(reduce):
    coord = random_coord(0.5, (60, 50, 12))
    rulebook = ops.strided_rulebook(coord, (60, 50, 12), 3, 1, 1)
    features = torch.randn(len(coord), 8, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = sparse_pool(features, rulebook, reduce)
            results.append((out, torch.autograd.grad(out.square().sum(), features)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_empty_and_non_contiguous(reduce):
    none = torch.zeros(0, 4, dtype=torch.int32)
    features = torch.randn(0, 3, requires_grad=True)
    out = sparse_pool(features, ops.strided_rulebook(none, (4, 4, 4), 2, 2), reduce)
    out.sum().backward()
    assert out.shape == (0, 3) and features.grad.shape == (0, 3)
    coord = random_coord()
    rulebook = ops.strided_rulebook(coord, SHAPE, 2, 2)
    assert sparse_pool(torch.randn(len(coord), 0), rulebook, reduce).shape == (rulebook.num_out, 0)
    wide = torch.randn(6, 2 * len(coord))[:, ::2].t()
    assert torch.equal(sparse_pool(wide, rulebook, reduce), sparse_pool(wide.contiguous(), rulebook, reduce))


def test_outputs_without_rows_are_zero():
    """An inverse rulebook with stride 2 and a kernel of 1 leads to voxels that no pair reaches."""
    coord = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]], dtype=torch.int32)
    down = ops.strided_rulebook(coord, (3, 1, 1), 1, 2)
    features = torch.tensor([[-5.0], [-6.0]], requires_grad=True)
    for reduce in ("max", "mean", "sum"):
        out = sparse_pool(features, down.inverse(coord), reduce)
        assert out.flatten().tolist() == [-5, 0, -6]
        assert torch.autograd.grad(out.sum(), features)[0].flatten().tolist() == [1, 1]


def test_bad_arguments_are_named():
    coord = random_coord()
    rulebook = ops.strided_rulebook(coord, SHAPE, 2, 2)
    with pytest.raises(ValueError, match="sparse_pool: no reduction 'avg'"):
        sparse_pool(torch.randn(len(coord), 3), rulebook, "avg")
    with pytest.raises(TypeError, match="floating point tensor, got torch.int64"):
        sparse_pool(torch.ones(len(coord), 3, dtype=torch.int64), rulebook)
    with pytest.raises(ValueError, match=rf"features must be \[{len(coord)}, C\]"):
        sparse_pool(torch.randn(3, 3), rulebook)
    with pytest.raises(TypeError, match="^sparse_pool: features must be a floating point tensor, got NoneType"):
        sparse_pool(None, rulebook)
    with pytest.raises(TypeError, match="^sparse_pool: rulebook must be a Rulebook, got NoneType"):
        sparse_pool(torch.randn(3, 3), None)
    with pytest.raises(ValueError, match="^sparse_pool: features must be on cpu as rulebook is, got meta"):
        sparse_pool(torch.randn(len(coord), 3, device="meta"), rulebook)


@pytest.mark.parametrize("kind", ["strided", "submanifold", "inverse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
def test_shared_cells_in_half_precision_are_rounded_once(reduce, dtype, kind):
    """Many rows in a cell: its total is not rounded before it is added to that of other cells, nor are gradients."""
    coord = random_coord().repeat(37, 1)
    down = ops.strided_rulebook(coord, SHAPE, 3, 2, 1)
    rulebook = {"strided": down, "inverse": down.inverse(coord)}.get(kind) or ops.submanifold_rulebook(coord, 3)
    features = (1 + torch.rand(rulebook.num_in, 4)).to(dtype).requires_grad_()
    wide = features.detach().float().requires_grad_()
    out, expected = sparse_pool(features, rulebook, reduce), sparse_pool(wide, rulebook, reduce)
    assert torch.equal(out, expected.to(dtype))
    grad = torch.rand(out.shape).to(dtype)
    ours = torch.autograd.grad(out, features, grad)[0]
    assert torch.equal(ours, torch.autograd.grad(expected, wide, grad.float())[0].to(dtype))


@pytest.mark.not_emulated
@pytest.mark.skipif(not _library.native_loaded(), reason="about the compiled kernels alone")
def test_hostile_input_raises():
    coord = random_coord()
    book = ops.strided_rulebook(coord, SHAPE, 3, 2, 1).tensors
    features, torch_ops = torch.randn(len(coord), 5), torch.ops.pointcept3m
    out, arg = torch_ops.sparse_pool_max(features, *book, False)
    pairs, start, rank_in, rank_out = book
    far, early = pairs.clone(), start.clone()
    far[0, 5], early[3] = 1 << 30, 1 << 40
    wrong = [
        (far, start, rank_in, rank_out), (pairs - 1, start, rank_in, rank_out), (pairs, early, rank_in, rank_out),
        (pairs, start, rank_in[1:], rank_out[1:]), (pairs, start, -rank_in, -rank_out),
        (pairs, start[1:], rank_in, rank_out),
        (pairs.long(), start, rank_in, rank_out), (pairs, start.int(), rank_in, rank_out),
    ]  # fmt: skip
    for bad in wrong:
        for op in (torch_ops.sparse_pool_sum, torch_ops.sparse_pool_mean, torch_ops.sparse_pool_max):
            with pytest.raises(RuntimeError):
                op(features, *bad, False)
        with pytest.raises(RuntimeError):
            torch_ops.sparse_pool_max_backward(out, arg, *bad, False)
    for grad, won in ((out, arg[1:]), (out, arg.long()), (out[:, 1:].contiguous(), arg), (out[0], arg)):
        with pytest.raises(RuntimeError):
            torch_ops.sparse_pool_max_backward(grad, won, *book, False)
    for values in (features[:3], features[0], features.long()):
        with pytest.raises(RuntimeError):
            torch_ops.sparse_pool_sum(values, *book, False)
    lost = torch_ops.sparse_pool_max_backward(out, torch.full_like(arg, 1 << 30), *book, False)
    assert not lost.any()  # rows that no one won
