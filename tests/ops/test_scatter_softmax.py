"""The softmax family over shared indices, against torch's own functions on each group and against the twins."""

import shutil

import pytest
import torch

from pointcept3m.ops import scatter_sum, softmax
from pointcept3m.ops.softmax import scatter_log_softmax, scatter_logsumexp, scatter_softmax, scatter_std

TORCH_OPS = torch.ops.pointcept3m


def by_group(src, index, function):
    """function(rows of one bin) for each bin, put back at the rows; src [N, C]."""
    out = torch.empty_like(src)
    for bin in index.unique():
        out[index == bin] = function(src[index == bin])
    return out


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 9, 40])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_matches_torch_on_each_group(channels, dtype, tolerance):
    src, index = torch.randn(300, channels, dtype=dtype) * 8, torch.randint(0, 40, (300,))
    close = dict(rtol=tolerance, atol=tolerance * 10)
    torch.testing.assert_close(scatter_softmax(src, index, 0), by_group(src, index, lambda x: x.softmax(0)), **close)
    torch.testing.assert_close(scatter_log_softmax(src, index, 0), by_group(src, index, lambda x: x.log_softmax(0)), **close)
    expected = torch.stack([src[index == v].logsumexp(0) for v in range(40)] + [torch.zeros(channels, dtype=dtype)])
    torch.testing.assert_close(scatter_logsumexp(src, index, 0, dim_size=41), expected, **close)
    several = index[:, None] * 0 + torch.arange(300)[:, None] % 7  # at least two in each
    for unbiased in (True, False):
        expected = torch.stack([src[several[:, 0] == v].std(0, unbiased=unbiased) for v in range(7)])
        torch.testing.assert_close(scatter_std(src, several, 0, unbiased=unbiased), expected, **close)


def test_published_case_of_torch_scatter():
    src = torch.tensor([0.2, 0, 0.2, -2.1, 3.2, 7, -1, float("-inf")])
    index = torch.tensor([0, 1, 0, 1, 1, 2, 4, 4])
    expected = torch.cat([torch.full((8,), 0.5), torch.zeros(0)])
    expected[[1, 3, 4]] = torch.tensor([0.0, -2.1, 3.2]).softmax(0)
    expected[5], expected[6], expected[7] = 1, 1, 0
    torch.testing.assert_close(scatter_softmax(src, index), expected)
    torch.testing.assert_close(scatter_log_softmax(src, index), expected.log())
    sums = scatter_logsumexp(src, index)
    groups = [[0.2, 0.2], [0, -2.1, 3.2], [7], None, [-1]]
    torch.testing.assert_close(sums, torch.tensor([0.0 if g is None else torch.tensor(g).logsumexp(0) for g in groups]))
    out = torch.full((5,), 9.0)
    assert scatter_logsumexp(src, index, out=out) is out
    torch.testing.assert_close(out, torch.where(torch.arange(5) == 3, 9.0, sums))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("in_order", [False, True])
def test_kernels_match_twins(dtype, log, in_order):
    src, index = (torch.randn(2000, 11) * 5).to(dtype), torch.randint(0, 300, (2000,))
    index = index.sort().values if in_order else index
    close = dict(rtol=1e-5, atol=1e-5) if dtype in (torch.float32, torch.float64) else {}
    out = TORCH_OPS.scatter_softmax(src, index, 320, log)
    torch.testing.assert_close(out, softmax._softmax_twin(src, index, 320, log), **close)
    grad = torch.randn_like(src)
    back = TORCH_OPS.scatter_softmax_backward(grad, out, index, 320, log)
    torch.testing.assert_close(back, softmax._softmax_backward_twin(grad, out, index, 320, log), **close)
    torch.testing.assert_close(TORCH_OPS.scatter_logsumexp(src, index, 320), softmax._logsumexp_twin(src, index, 320), **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_and_infinite_scores(dtype):
    infinity = float("inf")
    src = torch.tensor([3e4, 3e4, -3e4, 3e4, -infinity, -infinity, 5, infinity], dtype=dtype)
    index = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    result = scatter_softmax(src, index)
    assert result[:4].tolist() == [0.5, 0.5, 0, 1] and result[4:6].isnan().all()
    assert scatter_log_softmax(src, index)[2:4].tolist() == [float(src[2] - src[3]), 0]
    sums = scatter_logsumexp(src, index)
    assert sums[2:].tolist() == [-infinity, infinity] and torch.isclose(sums[1], src[3])
    assert scatter_softmax(torch.tensor([1.0, float("nan")], dtype=dtype), torch.tensor([0, 0])).isnan().all()


@pytest.mark.parametrize("function", [scatter_softmax, scatter_log_softmax, scatter_logsumexp, scatter_std])
def test_gradients(function):
    src = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (12,))
    assert torch.autograd.gradcheck(lambda x: function(x, index, 0), src)
    assert torch.autograd.gradgradcheck(lambda x: function(x, index, 0), src)


def test_a_masked_score_gets_no_gradient():
    src = torch.tensor([1.0, float("-inf"), 2.0], requires_grad=True)
    index = torch.tensor([0, 0, 0])
    for function in (scatter_softmax, scatter_logsumexp):
        (grad,) = torch.autograd.grad(function(src, index)[0], src)
        assert grad.isfinite().all() and grad[1] == 0


def test_equal_entries_deviate_by_nothing():
    src = torch.ones(4, 2, requires_grad=True)
    deviation = scatter_std(src, torch.tensor([0, 0, 0, 2]), 0)
    assert deviation.tolist() == [[0, 0]] * 3
    deviation.sum().backward()
    assert src.grad.eq(0).all()


@pytest.mark.parametrize("shape, of_index, dim", [((3, 10, 4), (10,), 1), ((3, 10, 4), (3, 10), 1), ((3, 10), (3, 10), 1), ((3, 10, 4), (3, 10, 4), 1)])
def test_layouts(shape, of_index, dim):
    src, index = torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, of_index)
    wide = index.reshape([1] * (dim if len(of_index) == 1 else 0) + list(of_index))
    wide = wide.reshape(wide.shape + (1,) * (len(shape) - wide.dim())).expand(shape).movedim(dim, 0).reshape(10, -1)
    columns = src.movedim(dim, 0).reshape(10, -1)
    rows = torch.stack([scatter_softmax(columns[:, c], wide[:, c]) for c in range(columns.size(1))], 1)
    expected = rows.reshape(src.movedim(dim, 0).shape).movedim(0, dim)
    torch.testing.assert_close(scatter_softmax(src, index, dim), expected)
    sums = torch.stack([scatter_logsumexp(columns[:, c], wide[:, c], dim_size=3) for c in range(columns.size(1))], 1)
    got = scatter_logsumexp(src, index, dim, dim_size=3)
    torch.testing.assert_close(got.movedim(dim, 0).reshape(3, -1), sums)


def test_nothing_there():
    none = torch.zeros(0, dtype=torch.int64)
    assert scatter_softmax(torch.zeros(0, 3), none, 0).shape == (0, 3)
    assert scatter_logsumexp(torch.zeros(0, 3), none, 0, dim_size=2).tolist() == [[0] * 3] * 2
    assert scatter_std(torch.zeros(0, 3), none, 0, dim_size=2).tolist() == [[0] * 3] * 2
    assert scatter_log_softmax(torch.zeros(3, 0), torch.tensor([0, 1, 1]), 0).shape == (3, 0)


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    src, index = torch.randn(20000, 5), torch.randint(0, 50, (20000,))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append((scatter_softmax(src, index, 0), scatter_logsumexp(src, index, 0)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bad_arguments_are_named():
    src, index = torch.randn(4), torch.tensor([0, 1, 1, 0])
    for function in (scatter_softmax, scatter_log_softmax, scatter_logsumexp, scatter_std):
        with pytest.raises(TypeError, match=f"{function.__name__}: src must be a floating-point tensor, got torch.int64"):
            function(index, index)
        with pytest.raises(TypeError, match=f"^{function.__name__}: index must be an int64 tensor, got torch.int32"):
            function(src, index.int())
        with pytest.raises(IndexError, match=f"^{function.__name__}: dim 3 does not exist"):
            function(src, index, 3)
        with pytest.raises(TypeError, match=f"^{function.__name__}: dim_size must be an int, got str"):
            function(src, index, dim_size="3")
    for function in (scatter_logsumexp, scatter_std):
        with pytest.raises(TypeError, match=f"^{function.__name__}: out must be a tensor, got list"):
            function(src, index, out=[1])
    with pytest.raises(IndexError, match=r"\[0, 1\), found 1"):
        scatter_softmax(src, index, dim_size=1)
    rows = src[:, None]
    for hostile in (torch.tensor([0, 1, 2, 4]), torch.tensor([-1, 0, 0, 0]), index[:3]):
        with pytest.raises((RuntimeError, IndexError)):
            TORCH_OPS.scatter_softmax(rows, hostile, 4, False)
        with pytest.raises((RuntimeError, IndexError)):
            TORCH_OPS.scatter_softmax_backward(rows, rows, hostile, 4, True)
        with pytest.raises((RuntimeError, IndexError)):
            TORCH_OPS.scatter_logsumexp(rows, hostile, 4)


def test_opcheck():
    src = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (9,))
    torch.library.opcheck(TORCH_OPS.scatter_softmax.default, (src, index, 6, False))
    torch.library.opcheck(TORCH_OPS.scatter_softmax.default, (src, index, 6, True))
    grad = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(TORCH_OPS.scatter_softmax_backward.default, (grad, src, index, 6, False))
    torch.library.opcheck(TORCH_OPS.scatter_logsumexp.default, (src, index, 6))


def test_compiles_in_one_piece():
    index = torch.randint(0, 5, (9,))
    src = torch.randn(9, 4, requires_grad=True)

    def run(src):
        total = scatter_softmax(src, index, 0, 6).square() + scatter_log_softmax(src, index, 0, dim_size=6)
        return total.sum() + scatter_logsumexp(src, index, 0, dim_size=6).sum() + scatter_std(src, index, 0, dim_size=6).sum()

    expected = run(src)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(src)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y, src)[0] for y in (got, expected)))


def test_arguments_are_those_of_torch_scatter():
    src, index, out = torch.randn(6), torch.tensor([0, 1, 1, 0, 2, 2]), torch.zeros(4)
    assert torch.equal(scatter_log_softmax(src, index, -1, 1e-6, 4), scatter_log_softmax(src, index, dim_size=4))
    expected = scatter_logsumexp(src, index, dim_size=4)
    assert torch.equal(scatter_logsumexp(src, index, -1, None, 4, 1e-6), expected)
    assert scatter_logsumexp(src, index, -1, out, 4, eps=1e-6) is out and torch.equal(out, expected)
    assert torch.equal(scatter_std(src, index, -1, None, 4, False), scatter_std(src, index, unbiased=False, dim_size=4))
    assert torch.equal(scatter_softmax(src, index, -1, 4), scatter_softmax(src, index))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_large_half_scores(dtype):
    """Near 200 neighbouring bfloat16 are 1 apart: weights taken from a rounded result would sum to 0.6 or 1.6."""
    src = (torch.randn(3000, 2) * 3 + 200).to(dtype).requires_grad_()
    index = torch.randint(0, 40, (3000,))
    exact = src.detach().double().requires_grad_()
    (weight,) = torch.autograd.grad(scatter_logsumexp(src, index, 0).sum(), src)
    assert weight.dtype == dtype
    total = torch.zeros(40, 2).index_add_(0, index, weight.float())
    torch.testing.assert_close(total, torch.ones(40, 2), rtol=0, atol=8e-3)
    up = torch.randn(3000, 2).to(dtype)
    for function in (scatter_softmax, scatter_log_softmax):
        (got,) = torch.autograd.grad((function(src, index, 0) * up).sum(), src)
        (expected,) = torch.autograd.grad((function(exact, index, 0) * up.double()).sum(), exact)
        slack = 3 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=slack)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_softmax_weights_of_halves_sum_to_one(dtype):
    """With `up` one at a single row, the gradient elsewhere is minus the weights: 110 equal ones. (log 110 is no half.)"""
    src = torch.zeros(110, dtype=dtype, requires_grad=True)
    result = scatter_log_softmax(src, torch.zeros(110, dtype=torch.int64))
    assert result.dtype == dtype
    (grad,) = torch.autograd.grad(result[0], src)
    assert torch.equal(grad[1:], torch.full((109,), -1 / 110).to(dtype))


@pytest.mark.long
def test_compiles_with_inductor():
    if shutil.which("g++") is None:
        pytest.skip("inductor needs g++")
    index = torch.randint(0, 5, (50,))
    src = torch.randn(50, 4, requires_grad=True)

    def run(src):
        weight = scatter_softmax(src * 2, index, 0, 6)
        return scatter_sum(weight * src, index, 0, dim_size=6).square()

    expected = run(src)
    got = torch.compile(run, fullgraph=True, backend="inductor")(src)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), src)[0] for y in (got, expected)))
