"""Sparse convolution against dense conv3d, spconv where installed, its twins and hand-computed cases."""

import pytest
import torch
import torch.nn.functional as F

from pointcept3m import ops
from pointcept3m.ops import _library
from pointcept3m.ops.rulebook import _strided_twin, _submanifold_twin, triple
from pointcept3m.ops.sparse_conv import _grad_weight_twin, _sparse_conv_twin
from tests.ops.sparse_cases import BATCH, SHAPE, at, dense_grid, random_coord

native_only = pytest.mark.skipif(not _library.native_loaded(), reason="about the compiled kernels alone")
TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=5e-4), torch.float64: dict(rtol=1e-10, atol=1e-10)}


def assert_same_with_gradients(ours, dense, inputs, dtype):
    grad = torch.randn_like(ours)
    torch.testing.assert_close(ours, dense, **TOLERANCE[dtype])
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(dense, inputs, grad), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel, dilation", [(3, 1), (5, 1), (3, 2), ((3, 1, 5), 1)])
@pytest.mark.parametrize("cin, cout", [(6, 32), (33, 20), (48, 64)])
def test_submanifold_is_dense_conv(dtype, kernel, dilation, cin, cout):
    coord = random_coord()
    size = triple(kernel)
    features = torch.randn(len(coord), cin, dtype=dtype, requires_grad=True)
    weight = torch.randn(cout, *size, cin, dtype=dtype, requires_grad=True)
    bias = torch.randn(cout, dtype=dtype, requires_grad=True)
    ours = ops.sparse_conv(features, weight, ops.submanifold_rulebook(coord, kernel, dilation), bias)
    padding = [k // 2 * dilation for k in size]
    dense = F.conv3d(
        dense_grid(features, coord), weight.permute(0, 4, 1, 2, 3), bias, padding=padding, dilation=dilation
    )
    assert_same_with_gradients(ours, at(dense, coord), (features, weight, bias), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel, stride, padding, dilation", [(2, 2, 0, 1), (3, 2, 1, 1), (3, 1, 0, 1), (2, 3, 1, 2)])
def test_strided_is_dense_conv(dtype, kernel, stride, padding, dilation):
    coord = random_coord()
    features = torch.randn(len(coord), 20, dtype=dtype, requires_grad=True)
    weight = torch.randn(37, kernel, kernel, kernel, 20, dtype=dtype, requires_grad=True)
    rulebook = ops.strided_rulebook(coord, SHAPE, kernel, stride, padding, dilation)
    ours = ops.sparse_conv(features, weight, rulebook)
    settings = dict(stride=stride, padding=padding, dilation=dilation)
    dense = F.conv3d(dense_grid(features, coord), weight.permute(0, 4, 1, 2, 3), **settings)
    assert_same_with_gradients(ours, at(dense, rulebook.coord_out), (features, weight), dtype)
    reached = F.conv3d(
        dense_grid(torch.ones(len(coord), 1), coord), torch.ones(1, 1, kernel, kernel, kernel), **settings
    )
    assert torch.equal(rulebook.coord_out.long(), (reached[:, 0] > 0).nonzero())  # all sites, in cell order


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_published_comparison_with_dense_conv(kernel, stride):
    """What fVDB, torchsparse and Open3D publish: equality with `conv3d`, with fVDB's tolerances."""
    coord = random_coord()
    padding = kernel // 2
    rulebooks = [(ops.strided_rulebook(coord, SHAPE, kernel, stride, padding), stride)]
    if stride == 1 and kernel % 2:
        rulebooks.append((ops.submanifold_rulebook(coord, kernel), 1))
    for dtype, forward, gradient in (
        (torch.float64, dict(rtol=1e-10, atol=1e-12), dict(rtol=1e-10, atol=1e-12)),
        (torch.float32, dict(rtol=1e-5, atol=1e-5), dict(rtol=5e-4, atol=5e-4)),
    ):
        features = torch.randn(len(coord), 8, dtype=dtype, requires_grad=True)
        weight = torch.randn(16, kernel, kernel, kernel, 8, dtype=dtype).div(kernel**1.5).requires_grad_()
        grid = dense_grid(features, coord)
        for rulebook, step in rulebooks:
            ours = ops.sparse_conv(features, weight, rulebook)
            whole = F.conv3d(grid, weight.permute(0, 4, 1, 2, 3), stride=step, padding=padding)
            dense = at(whole, rulebook.coord_out)
            torch.testing.assert_close(ours, dense, **forward)
            grad = torch.randn_like(ours)
            expected = torch.autograd.grad(dense, (features, weight), grad, retain_graph=True)
            for a, b in zip(torch.autograd.grad(ours, (features, weight), grad), expected, strict=True):
                torch.testing.assert_close(a, b, **gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_is_the_transposed_conv_in_the_first_order(dtype):
    coord = random_coord(shape=(8, 8, 6))
    down = ops.strided_rulebook(coord, (8, 8, 6), 2, 2)
    back = down.inverse(coord)
    assert (back.num_in, back.num_out) == (down.num_out, len(coord))
    features = torch.randn(down.num_out, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(17, 2, 2, 2, 12, dtype=dtype, requires_grad=True)
    ours = ops.sparse_conv(features, weight, back)
    grid = dense_grid(features, down.coord_out, (4, 4, 3))
    dense = F.conv_transpose3d(grid, weight.permute(4, 0, 1, 2, 3), stride=2)
    assert_same_with_gradients(ours, at(dense, coord), (features, weight), dtype)


def test_small_case_by_hand():
    coord = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [1, 1, 1, 1]], dtype=torch.int32)
    weight = torch.arange(27.0).reshape(1, 3, 3, 3, 1)  # weight at offset (x, y, z) is 9 x + 3 y + z
    out = ops.sparse_conv(torch.tensor([[1.0], [10.0], [100.0]]), weight, ops.submanifold_rulebook(coord, 3))
    assert out.flatten().tolist() == [13 + 140, 130 + 12, 1300]
    down = ops.strided_rulebook(coord, (4, 4, 4), 2, 2)
    assert down.coord_out.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]


@pytest.mark.parametrize("repeats", [1, 3])
def test_rulebooks_match_their_twins(repeats):
    coord = random_coord().repeat(repeats, 1)
    coord = coord[torch.randperm(len(coord))]
    calls = [(_submanifold_twin, "submanifold_pairs", ([3, 5, 3], [2, 1, 3])),
             (_strided_twin, "strided_pairs", ([3, 2, 2], [2, 2, 1], [1, 0, 1], [1, 2, 1], [5, 3, 8]))]  # fmt: skip
    for twin, name, settings in calls:
        expected = twin(coord, *settings)
        for a, b in zip(getattr(torch.ops.pointcept3m, name)(coord, *settings), expected, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.not_emulated)])
def test_kernels_match_their_twins(many):
    """`many` makes several blocks, segments and units of work."""
    shape = (60, 50, 12) if many else SHAPE
    coord = random_coord(0.5, shape)
    rulebook = ops.submanifold_rulebook(coord, 3)
    assert not many or rulebook.num_out > 20000
    features, weight = torch.randn(len(coord), 10), torch.randn(18, 27, 10)
    args = rulebook.tensors
    torch_ops = torch.ops.pointcept3m
    for reverse in (False, True):
        for transpose, x in ((False, features), (True, torch.randn(len(coord), 18))):
            torch.testing.assert_close(
                torch_ops.sparse_conv(x, weight, *args, reverse, transpose),
                _sparse_conv_twin(x, weight, *args, reverse, transpose), rtol=1e-4, atol=1e-4,
            )  # fmt: skip
        grad = torch.randn(len(coord), 18)
        torch.testing.assert_close(
            torch_ops.sparse_conv_grad_weight(features, grad, *args, reverse),
            _grad_weight_twin(features, grad, *args, reverse), rtol=1e-3, atol=5e-3,
        )  # fmt: skip


def test_rows_that_share_a_cell():
    coord = random_coord()
    extra = coord[torch.randint(0, len(coord), (40,))]
    both = torch.cat([coord, extra])
    features = torch.randn(len(both), 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    count = at(dense_grid(torch.ones(len(both), 1, dtype=torch.float64), both), both)
    mean = dense_grid(features / count, both)
    dense = at(F.conv3d(mean, weight.permute(0, 4, 1, 2, 3), padding=1), both)
    ours = ops.sparse_conv(features, weight, ops.submanifold_rulebook(both, 3))
    assert_same_with_gradients(ours, dense, (features, weight), torch.float64)

    kernel = torch.randn(4, 2, 2, 2, 5, dtype=torch.float64, requires_grad=True)
    down = ops.strided_rulebook(both, (10, 8, 8), 2, 2)
    total = dense_grid(features, both, (10, 8, 8))
    dense = at(F.conv3d(total, kernel.permute(0, 4, 1, 2, 3), stride=2), down.coord_out)
    coarse = ops.sparse_conv(features, kernel, down)
    assert_same_with_gradients(coarse, dense, (features, kernel), torch.float64)

    up = ops.sparse_conv(coarse, torch.randn(3, 2, 2, 2, 4, dtype=torch.float64), down.inverse(both))
    first = {tuple(c): i for i, c in reversed(list(enumerate(both.tolist())))}
    assert all(torch.equal(up[i], up[first[tuple(c)]]) for i, c in enumerate(both.tolist()))


@pytest.mark.parametrize("duplicates", [0, 25])
def test_results_follow_permuted_rows(duplicates):
    coord = random_coord()
    coord = torch.cat([coord, coord[:duplicates]])
    order = torch.randperm(len(coord))
    features, weight = torch.randn(len(coord), 6, dtype=torch.float64), torch.randn(8, 3, 3, 3, 6, dtype=torch.float64)
    out = ops.sparse_conv(features, weight, ops.submanifold_rulebook(coord, 3))
    moved = ops.sparse_conv(features[order], weight, ops.submanifold_rulebook(coord[order], 3))
    torch.testing.assert_close(moved, out[order])


def test_scenes_do_not_meet():
    coord = random_coord()
    features, weight = torch.randn(len(coord), 6), torch.randn(8, 5, 5, 5, 6)
    out = ops.sparse_conv(features, weight, ops.submanifold_rulebook(coord, 5))
    for scene in range(BATCH):
        own = coord[:, 0] == scene
        alone = ops.sparse_conv(features[own], weight, ops.submanifold_rulebook(coord[own], 5))
        torch.testing.assert_close(alone, out[own])


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    coord = random_coord(0.5, (60, 50, 12))
    features = torch.randn(len(coord), 8, requires_grad=True)
    weight = torch.randn(8, 3, 3, 3, 8, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            out = ops.sparse_conv(features, weight, ops.submanifold_rulebook(coord, 3))
            results.append((out, *torch.autograd.grad(out.square().sum(), (features, weight))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse", "shared cells"])
def test_gradients(kind):
    coord = random_coord(0.1, (4, 4, 4))
    if kind == "shared cells":
        coord = torch.cat([coord, coord[:3]])
    size = 3 if kind in ("submanifold", "shared cells") else 2
    rulebook = ops.submanifold_rulebook(coord, 3) if size == 3 else ops.strided_rulebook(coord, (4, 4, 4), 2, 2)
    if kind == "inverse":
        rulebook = rulebook.inverse(coord)
    features = torch.randn(rulebook.num_in, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, size, size, size, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, w: ops.sparse_conv(f, w, rulebook), (features, weight))
    assert torch.autograd.gradgradcheck(lambda f, w: ops.sparse_conv(f, w, rulebook), (features, weight))


def test_opcheck():
    coord = random_coord(0.1)
    rulebook = ops.submanifold_rulebook(coord, 3)
    features = torch.randn(len(coord), 3, requires_grad=True)
    weight, grad = torch.randn(4, 27, 3, requires_grad=True), torch.randn(len(coord), 4, requires_grad=True)
    args = rulebook.tensors
    torch_ops, check = torch.ops.pointcept3m, torch.library.opcheck
    check(torch_ops.sparse_conv.default, (features, weight, *args, False, False))
    check(torch_ops.sparse_conv.default, (grad, weight, *args, True, True))
    check(torch_ops.sparse_conv_grad_weight.default, (features, grad, *args, False))
    check(torch_ops.coord_bounds.default, (coord,))
    check(torch_ops.submanifold_pairs.default, (coord, [3, 3, 3], [1, 1, 1]))
    check(torch_ops.strided_pairs.default, (coord, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], [5, 4, 4]))


def test_compiles_in_one_piece():
    coord = random_coord(0.1)
    rulebook = ops.submanifold_rulebook(coord, 3)
    features = torch.randn(len(coord), 3, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 3, requires_grad=True)

    def run(features, weight):
        return ops.sparse_conv(features, weight, rulebook).relu()

    expected, got = run(features, weight), torch.compile(run, fullgraph=True, backend="aot_eager")(features, weight)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), (features, weight)) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_empty_single_and_non_contiguous():
    none = torch.zeros(0, 4, dtype=torch.int32)
    features = torch.randn(0, 3, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 3, requires_grad=True)
    out = ops.sparse_conv(features, weight, ops.submanifold_rulebook(none, 3))
    out.sum().backward()
    assert out.shape == (0, 4) and not weight.grad.any()
    assert ops.strided_rulebook(none, (4, 4, 4), 2, 2).coord_out.shape == (0, 4)
    one = torch.tensor([[0, 3, 3, 3]], dtype=torch.int32)
    x = torch.randn(1, 3)
    torch.testing.assert_close(ops.sparse_conv(x, weight, ops.submanifold_rulebook(one, 3)), x @ weight[:, 1, 1, 1].t())

    coord = random_coord()
    wide = torch.randn(6, 2 * len(coord))[:, ::2].t()
    kernel = torch.randn(8, 6, 3, 3, 3).permute(0, 2, 3, 4, 1)
    crooked = torch.cat([coord, coord], 1)[:, 2:6].roll(2, 1)
    out = ops.sparse_conv(wide, kernel, ops.submanifold_rulebook(torch.stack(list(crooked.t())).t(), 3))
    torch.testing.assert_close(
        out, ops.sparse_conv(wide.contiguous(), kernel.contiguous(), ops.submanifold_rulebook(coord, 3))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    """The same sums as in float32, rounded at the end: in the convolution and in both gradients."""
    coord = random_coord()
    args = ops.submanifold_rulebook(coord, 3).tensors
    for cin, cout in ((32, 16), (7, 21)):
        features, weight = torch.randn(len(coord), cin).to(dtype), torch.randn(cout, 27, cin).to(dtype)
        grad = torch.randn(len(coord), cout).to(dtype)
        calls = [
            (torch.ops.pointcept3m.sparse_conv, (features, weight), (*args, False, False)),
            (torch.ops.pointcept3m.sparse_conv, (grad, weight), (*args, True, True)),
            (torch.ops.pointcept3m.sparse_conv_grad_weight, (features, grad), (*args, False)),
        ]
        for op, values, rest in calls:
            out = op(*values, *rest)
            assert out.dtype == dtype
            wide = op(*(v.float() for v in values), *rest)
            torch.testing.assert_close(out, wide.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("duplicates", [0, 9])
def test_weights_are_rounded_to_the_features_dtype(duplicates):
    coord = random_coord()
    coord = torch.cat([coord, coord[:duplicates]])
    rulebook = ops.submanifold_rulebook(coord, 3)
    features = torch.randn(len(coord), 8).bfloat16().requires_grad_()
    weight, bias = torch.randn(4, 3, 3, 3, 8, requires_grad=True), torch.randn(4, requires_grad=True)
    out = ops.sparse_conv(features, weight, rulebook, bias)
    grads = torch.autograd.grad(out.float().sum(), (features, weight, bias))
    assert out.dtype == torch.bfloat16
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32]
    rounded = ops.sparse_conv(features.float(), weight.bfloat16().float(), rulebook, bias)
    torch.testing.assert_close(out.float(), rounded, rtol=0.02, atol=0.1)


@native_only
@pytest.mark.not_emulated
def test_hostile_input_raises():
    """Straight to the ops, past the checks of the public functions: an error, and nothing read out of bounds."""
    coord = random_coord()
    book = dict(zip(("pairs", "start", "rank_in", "rank_out"), ops.submanifold_rulebook(coord, 3).tensors, strict=True))
    features, weight, grad = torch.randn(len(coord), 5), torch.randn(4, 27, 5), torch.randn(len(coord), 4)
    pairs, start, rank = book["pairs"], book["start"], book["rank_out"]
    many = 1 << 30

    def changed(values, at, to):
        values = values.clone()
        values[at] = to
        return values

    wrong = [
        dict(pairs=changed(pairs, (0, 3), len(coord))), dict(pairs=changed(pairs, (1, 3), -1)),
        dict(pairs=changed(pairs, (0, -1), many)), dict(pairs=pairs.long()), dict(pairs=pairs[:1]),
        dict(pairs=pairs[:, :-1]), dict(start=changed(start, 0, 1)), dict(start=changed(start, 5, many)),
        dict(start=changed(start, 5, -many)), dict(start=start + 1), dict(start=start.int()), dict(start=start[:0]),
        dict(rank_in=rank.long(), rank_out=rank.long()),
    ]  # fmt: skip
    for change in wrong:
        args = [(book | change)[name] for name in book]
        for call in (
            lambda args=args: torch.ops.pointcept3m.sparse_conv(features, weight, *args, False, False),
            lambda args=args: torch.ops.pointcept3m.sparse_conv(grad, weight, *args, True, True),
            lambda args=args: torch.ops.pointcept3m.sparse_conv_grad_weight(features, grad, *args, False),
        ):
            with pytest.raises((RuntimeError, IndexError, TypeError, ValueError)):
                call()
    conv, args = torch.ops.pointcept3m.sparse_conv, tuple(book.values())
    for values, kernel in (
        (features[:3], weight), (features, weight[:, :26]), (features, weight[:, :, :4]), (features.double(), weight),
        (features, weight.flatten(1)), (features[0], weight),
    ):  # fmt: skip
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            conv(values, kernel, *args, False, False)


@native_only
@pytest.mark.not_emulated
def test_hostile_order_raises():
    """Pairs must ascend along ranks, which must be a permutation; the twins need neither."""
    coord = random_coord()
    pairs, start, rank, _ = ops.submanifold_rulebook(coord, 3).tensors
    features, weight = torch.randn(len(coord), 5), torch.randn(4, 27, 5)
    repeated, far = rank.clone(), rank.clone()
    repeated[0], far[0] = rank[1], 1 << 30
    for bad_pairs, bad_rank in (
        (pairs.flip(1), rank),
        (pairs, repeated),
        (pairs, far),
        (pairs, -rank),
        (pairs, rank.flip(0)),
    ):
        with pytest.raises(RuntimeError, match="rank|ascend"):
            torch.ops.pointcept3m.sparse_conv(features, weight, bad_pairs, start, bad_rank, bad_rank, False, False)


@pytest.mark.not_emulated
def test_hostile_coordinates_raise():
    coord = random_coord()
    submanifold, strided = torch.ops.pointcept3m.submanifold_pairs, torch.ops.pointcept3m.strided_pairs
    good = [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], [5, 4, 4]
    assert submanifold(coord - 100, [3] * 3, [1] * 3)[0].equal(submanifold(coord, [3] * 3, [1] * 3)[0])
    assert (strided(coord - 2, *good)[4][:, 1:] >= 0).all()  # sites outside the grid are left out
    if not _library.native_loaded():
        return
    for call in (
        lambda: submanifold(coord.long(), [3] * 3, [1] * 3),
        lambda: submanifold(coord[:, :3].clone(), [3] * 3, [1] * 3),
        lambda: submanifold(coord.float(), [3] * 3, [1] * 3), lambda: submanifold(coord, [2] * 3, [1] * 3),
        lambda: submanifold(coord, [3, 3], [1] * 3), lambda: submanifold(coord, [3] * 3, [0, 1, 1]),
        lambda: submanifold(coord, [3] * 3, [1 << 40] * 3), lambda: submanifold(coord, [-3, 3, 3], [1] * 3),
        lambda: strided(coord.long(), *good), lambda: strided(coord, [0, 2, 2], *good[1:]),
        lambda: strided(coord, good[0], [0, 1, 1], *good[2:]), lambda: strided(coord, *good[:2], [-1, 0, 0], *good[3:]),
        lambda: strided(coord, *good[:4], [1 << 31] * 3), lambda: strided(coord, *good[:4], [5, 4]),
        lambda: torch.ops.pointcept3m.coord_bounds(coord.long()),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call()


@pytest.mark.parametrize("kind", ["submanifold", "strided", "inverse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shared_cells_in_half_precision_are_rounded_once(dtype, kind):
    """Many rows in a cell: what the cell holds is not rounded before it meets the weight, nor are gradients."""
    coord = random_coord().repeat(37, 1)
    down = ops.strided_rulebook(coord, SHAPE, 3, 2, 1)
    rulebook = {"strided": down, "inverse": down.inverse(coord)}.get(kind) or ops.submanifold_rulebook(coord, 3)
    features = (1 + torch.rand(rulebook.num_in, 4)).to(dtype).requires_grad_()
    weight = torch.rand(8, 3, 3, 3, 4).to(dtype).requires_grad_()
    grad = torch.rand(rulebook.num_out, 8).to(dtype)
    wide = [t.detach().float().requires_grad_() for t in (features, weight)]
    out, expected = ops.sparse_conv(features, weight, rulebook), ops.sparse_conv(*wide, rulebook)
    assert torch.equal(out, expected.to(dtype))
    grads = torch.autograd.grad(out, (features, weight), grad)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, wide, grad.float()), strict=True):
        assert torch.equal(ours, theirs.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_inputs_and_sums_in_float32(dtype):
    coord = random_coord()
    rulebook = ops.submanifold_rulebook(coord, 3)
    features = torch.randn(len(coord), 6, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, 6, requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = ops.sparse_conv(features, weight, rulebook)
        double = ops.sparse_conv(features.double(), weight.double(), rulebook)
    rounded = ops.sparse_conv(features.to(dtype).float(), weight.to(dtype).float(), rulebook)
    assert out.dtype == dtype and double.dtype == torch.float64
    torch.testing.assert_close(out, rounded.to(dtype), rtol=0, atol=0)
    grads = torch.autograd.grad(out.float().square().sum(), (features, weight))
    assert all(grad.dtype == torch.float32 and grad.abs().sum() > 0 for grad in grads)
    args = *rulebook.tensors, False
    flat = weight.detach().flatten(1, 3)
    with torch.autocast("cpu", dtype):
        twin = _sparse_conv_twin(features.detach(), flat, *args, False)
        assert _grad_weight_twin(features.detach(), twin, *args).dtype == twin.dtype == torch.float32
    short = _sparse_conv_twin(features.detach().to(dtype), flat.to(dtype), *args, False)
    assert short.dtype == dtype
    torch.testing.assert_close(short, out.detach(), rtol=0.03, atol=0.1)
