"""The sparse ops where their CUDA kernels branch: tile widths, padding, sorted tiles, splits, groups of offsets, dtypes.

They run on a GPU where there is one, else on what serves the CPU: the CUDA kernels under the emulator, or the CPU's own.
"""

import math
import os

import pytest
import torch

from pointcept3m import ops
from pointcept3m.ops import _library
from pointcept3m.ops.rulebook import _bounds_twin, _strided_twin, _submanifold_twin
from pointcept3m.ops.sparse_conv import _grad_weight_twin, _sparse_conv_twin
from pointcept3m.ops.sparse_pool import _max_backward_twin, _max_twin, _mean_twin, _sum_twin

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Relative to the largest value of the result: rounding of the result itself, and of sums in float32.
ERROR = {torch.float32: 4e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}
launched = torch.ops.pointcept3m


def surface(size, holes=0.2):
    """int32 [about size^2, 4] in random order: a bent sheet of voxels, two scenes of it."""
    grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(size // 2), torch.arange(size), indexing="ij"), -1)
    batch, x, y = grid.reshape(-1, 3).unbind(1)
    z = (3 * torch.sin(x / 4.0) + 2 * torch.cos(y / 5.0 + batch)).long() - 2
    coord = torch.stack([batch, x - 3, y, z], 1).int()
    coord = coord[torch.rand(len(coord)) >= holes]
    return coord[torch.randperm(len(coord))].contiguous().to(DEVICE)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype)


def assert_near(got, exact, dtype, factor=1.0):
    assert got.dtype == dtype and got.shape == exact.shape and got.device.type == DEVICE
    error = (got.double() - exact).abs().max().item() / max(exact.abs().max().item(), 1e-30)
    assert error <= factor * ERROR[dtype], f"off by {error:.2e} of the largest value"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "size, kernel, cin, cout",
    [
        (20, 3, 6, 20),  # rows of no whole segments, a tile of 32 channels
        (20, 3, 64, 48),  # a tile of 64
        (12, 3, 33, 130),  # two tiles of 128, parts of a reduction
        (12, 7, 4, 5),  # more than 256 offsets
        (50, 1, 8, 8),  # one offset
    ],
)
def test_convolution_and_gradients(size, kernel, cin, cout, dtype):
    coord = surface(size)
    book = (*ops.submanifold_rulebook(coord, kernel).tensors, False)
    features, weight = random(len(coord), cin, dtype=dtype), random(cout, kernel**3, cin, dtype=dtype)
    grad = random(len(coord), cout, dtype=dtype)
    exact = features.double(), weight.double(), grad.double()
    assert_near(
        launched.sparse_conv(features, weight, *book, False), _sparse_conv_twin(*exact[:2], *book, False), dtype
    )
    back = (*book[:4], True)
    assert_near(
        launched.sparse_conv(grad, weight, *back, True), _sparse_conv_twin(exact[2], exact[1], *back, True), dtype
    )
    assert_near(
        launched.sparse_conv_grad_weight(features, grad, *book), _grad_weight_twin(exact[0], exact[2], *book), dtype
    )


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 5), (3, 3, 5)])
def test_rows_that_are_sorted(kernel):
    coord = surface(52)
    assert len(coord) > 2048
    book = (*ops.submanifold_rulebook(coord, kernel).tensors, False, False)
    features, weight = (
        random(len(coord), 32, dtype=torch.float16),
        random(64, math.prod(kernel), 32, dtype=torch.float16),
    )
    exact = _sparse_conv_twin(features.double(), weight.double(), *book)
    assert_near(launched.sparse_conv(features, weight, *book), exact, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_and_inverse(dtype):
    coord = surface(24)
    coord = torch.cat([coord, coord[:50]])  # cells of two rows
    shifted = coord + torch.tensor([0, 3, 0, 8], dtype=torch.int32, device=DEVICE)
    down = ops.strided_rulebook(shifted, (24, 24, 16), 2, 2)
    for book in (down, down.inverse(shifted)):
        features, weight = random(book.num_in, 24, dtype=dtype), random(40, 2, 2, 2, 24, dtype=dtype)
        exact = ops.sparse_conv(features.double(), weight.double(), book)
        assert_near(ops.sparse_conv(features, weight, book), exact, dtype, factor=2)


def test_float32_keeps_the_digits_of_float32():
    coord = surface(16)
    book = (*ops.submanifold_rulebook(coord, 3).tensors, False, False)
    features, weight = random(len(coord), 64), random(64, 27, 64)
    exact = _sparse_conv_twin(features.float().double(), weight.float().double(), *book)
    got = launched.sparse_conv(features.float(), weight.float(), *book)
    theirs = _sparse_conv_twin(features.float(), weight.float(), *book)
    assert (got.double() - exact).norm() <= 4 * (theirs.double() - exact).norm()  # one tf32 product: several hundred


def test_a_row_that_is_not_finite_reaches_its_neighbours_only():
    coord = surface(16)
    book = (*ops.submanifold_rulebook(coord, 3).tensors, False, False)
    features, weight = random(len(coord), 8, dtype=torch.bfloat16), random(8, 27, 8, dtype=torch.bfloat16)
    features[5] = float("nan")
    expected = _sparse_conv_twin(features, weight, *book).isnan()
    assert 0 < expected.sum() < expected.numel() / 4
    assert torch.equal(launched.sparse_conv(features, weight, *book).isnan(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 5])
def test_pools_match_their_twins(channels, dtype):
    coord = surface(24)
    down = ops.strided_rulebook(coord + coord.new_tensor([0, 3, 0, 8]), (24, 24, 16), 3, 2, 1)
    submanifold = ops.submanifold_rulebook(coord, 3)
    for book, reverse in ((down, False), (down, True), (submanifold, False)):
        args = (*book.tensors, reverse)
        num_in, num_out = (book.rank_out, book.rank_in) if reverse else (book.rank_in, book.rank_out)
        features = random(num_in.size(0), channels, dtype=dtype)
        features[3, 1], features[7, 2] = float("nan"), float("inf")
        for got, twin in (
            (launched.sparse_pool_max(features, *args), _max_twin(features, *args)),
            (launched.sparse_pool_mean(features, *args)[1:], _mean_twin(features, *args)[1:]),
        ):
            for a, b in zip(got, twin, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        features = features.nan_to_num(0, 1, -1)
        wide = features.double()
        assert_near(launched.sparse_pool_sum(features, *args), _sum_twin(wide, *args), dtype)
        assert_near(launched.sparse_pool_mean(features, *args)[0], _mean_twin(wide, *args)[0], dtype)
        arg, grad = launched.sparse_pool_max(features, *args)[1], random(num_out.size(0), channels, dtype=dtype)
        exact = _max_backward_twin(grad.double(), arg, *args)
        assert_near(launched.sparse_pool_max_backward(grad, arg, *args), exact, dtype)


def test_pools_without_channels_or_pairs():
    coord = surface(12)
    book = (*ops.submanifold_rulebook(coord, 3).tensors, False)
    nothing = torch.zeros(len(coord), 0, device=DEVICE)
    for name, twin in (("sum", _sum_twin), ("mean", _mean_twin), ("max", _max_twin)):
        got, expected = getattr(launched, f"sparse_pool_{name}")(nothing, *book), twin(nothing, *book)
        for a, b in zip(*((x,) if name == "sum" else x for x in (got, expected)), strict=True):
            assert torch.equal(a, b)
    alone = (torch.zeros(2, 0, dtype=torch.int32, device=DEVICE), torch.zeros(28, dtype=torch.int64), *book[2:])
    largest, arg = launched.sparse_pool_max(nothing.new_ones(len(coord), 3), *alone)
    assert not largest.any() and (arg == len(coord)).all()


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    "kernel, dilation", [([3, 3, 3], [1, 1, 1]), ([5, 1, 3], [2, 1, 3]), ([1, 1, 1], [1, 1, 1]), ([1, 7, 1], [1, 2, 1])]
)
def test_submanifold_pairs_are_the_twins(kernel, dilation, repeats):
    coord = surface(30).repeat(repeats, 1)
    coord = coord[torch.randperm(len(coord))]
    for a, b in zip(
        launched.submanifold_pairs(coord, kernel, dilation), _submanifold_twin(coord, kernel, dilation), strict=True
    ):
        assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        ([2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], [15, 15, 8]),
        ([3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1], [15, 15, 8]),
        ([3, 1, 2], [1, 3, 2], [0, 2, 1], [2, 1, 3], [9, 5, 3]),
        ([1, 1, 1], [1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1]),  # nearly nothing is reached
        ([1, 1, 1], [99, 99, 99], [9, 9, 9], [1, 1, 1], [1, 1, 1]),  # nothing is
    ],
)
def test_strided_pairs_are_the_twins(settings, repeats):
    coord = surface(30).repeat(repeats, 1)
    coord = coord[torch.randperm(len(coord))]
    for a, b in zip(launched.strided_pairs(coord, *settings), _strided_twin(coord, *settings), strict=True):
        assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def test_keys_of_more_than_32_bits():
    coord = surface(20)
    coord[::3, 1] += 2**26
    coord[1::3, 2] -= 2**22
    assert torch.equal(launched.coord_bounds(coord), _bounds_twin(coord))
    got, twin = launched.submanifold_pairs(coord, [3] * 3, [1] * 3), _submanifold_twin(coord, [3] * 3, [1] * 3)
    assert all(torch.equal(a, b) for a, b in zip(got, twin, strict=True))


def test_hostile_pairs_and_ranks_are_refused():
    if DEVICE == "cuda" and os.environ.get("CUDA_LAUNCH_BLOCKING") != "1":
        pytest.skip("on a GPU they are an exception with CUDA_LAUNCH_BLOCKING=1 only, else end the program")
    if DEVICE == "cpu" and not _library.native_loaded():
        pytest.skip("the twins refuse less")
    coord = surface(12)
    pairs, start, rank, _ = launched.submanifold_pairs(coord, [3] * 3, [1] * 3)
    features, weight = random(len(coord), 8, dtype=torch.float32), random(8, 27, 8, dtype=torch.float32)

    def refused(pairs, start, rank):
        book = (pairs, start, rank, rank, False)
        for dtype in (torch.float32, torch.float64):
            x, w = features.to(dtype), weight.to(dtype)
            for run in (
                lambda: launched.sparse_conv(x, w, *book, False),  # noqa: B023
                lambda: launched.sparse_conv_grad_weight(x, x, *book),  # noqa: B023
                lambda: launched.sparse_pool_sum(x, *book),  # noqa: B023
                lambda: launched.sparse_pool_max(x, *book),  # noqa: B023
            ):
                with pytest.raises((RuntimeError, IndexError)):
                    run()

    for place in ((0, 0), (1, 3), (0, -1), (1, -1)):
        for row in (len(coord), -1, 2**31 - 1, -(2**31)):
            wrong = pairs.clone()
            wrong[place] = row
            refused(wrong, start, rank)
    refused(pairs, start + 1, rank)
    refused(pairs, start.flip(0), rank)
    refused(pairs, start[:-1], rank)
    disorder = [] if DEVICE == "cpu" and not _library.emulated() else [rank.flip(0)]  # the CPU sees it between blocks
    for wrong in (rank.clamp(min=1), rank + 1, -rank, *disorder):
        with pytest.raises(RuntimeError, match="rank"):
            launched.sparse_conv(features, weight, pairs, start, wrong, wrong, False, False)


def test_the_same_bits_every_time():
    coord = surface(40)
    features, weight = random(len(coord), 16, dtype=torch.bfloat16), random(24, 27, 16, dtype=torch.bfloat16)
    grad = random(len(coord), 24, dtype=torch.bfloat16)

    def run():
        book = ops.submanifold_rulebook(coord, 3).tensors
        out = launched.sparse_conv(features, weight, *book, False, False)
        return *book, out, launched.sparse_conv_grad_weight(features, grad, *book, False)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cin, cout", [(6, 32), (32, 32), (64, 128), (256, 256)])
def test_a_sweep_of_a_lidar_on_a_gpu(dtype, cin, cout, real_data):
    import numpy as np

    points = torch.from_numpy(np.load(real_data("spconv_cloud") / "benchmark-pc.npz")["pc"][:, :3]).cuda()
    cells = torch.unique(((points - points.amin(0)) / 0.1).floor().int(), dim=0)
    coord = torch.nn.functional.pad(cells, (1, 0))[torch.randperm(len(cells), device="cuda")].contiguous()
    rulebook = ops.submanifold_rulebook(coord, 3)
    for a, b in zip(rulebook.tensors[:3], _submanifold_twin(coord, [3] * 3, [1] * 3)[:3], strict=True):
        assert torch.equal(a, b)
    features = random(len(coord), cin, dtype=dtype).requires_grad_()
    weight = random(cout, 3, 3, 3, cin, dtype=dtype).requires_grad_()
    out = ops.sparse_conv(features, weight, rulebook)
    grad = random(len(coord), cout, dtype=dtype)
    got = (out, *torch.autograd.grad(out, (features, weight), grad))
    args = (*rulebook.tensors, False)
    x, w, g = features.detach().double(), weight.detach().double().flatten(1, 3), grad.double()
    exact = (
        _sparse_conv_twin(x, w, *args, False),
        _sparse_conv_twin(g, w, *args[:4], True, True),
        _grad_weight_twin(x, g, *args).unflatten(1, (3, 3, 3)),
    )
    for a, b in zip(got, exact, strict=True):
        assert_near(a.detach(), b, dtype, factor=4)
