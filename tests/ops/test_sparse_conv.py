"""Sparse convolution against dense conv3d, spconv where installed, its twins and hand-computed cases."""

import pytest
import torch
import torch.nn.functional as F

from pointcept3m import ops
from pointcept3m.models.layers.sparse import SparseConv3d, SparseInverseConv3d, SparseSequential, SubMConv3d
from pointcept3m.ops.rulebook import _strided_twin, _submanifold_twin, triple
from pointcept3m.ops.sparse_conv import _grad_weight_twin, _sparse_conv_twin
from pointcept3m.structures.sparse import SparseConvTensor

BATCH, SHAPE = 2, (9, 8, 7)
TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=5e-4), torch.float64: dict(rtol=1e-10, atol=1e-10)}


def random_coord(share=0.3, shape=SHAPE):
    """int32 [N, 4] of distinct voxels in random order."""
    coord = (torch.rand(BATCH, *shape) < share).nonzero().int()
    return coord[torch.randperm(len(coord))]


def dense_grid(features, coord, shape=SHAPE):
    """[B, C, X, Y, Z]; rows that share a voxel are summed."""
    grid = features.new_zeros(BATCH, *shape, features.size(1))
    grid = grid.index_put(tuple(coord.long().unbind(1)), features, accumulate=True)
    return grid.permute(0, 4, 1, 2, 3)


def at(grid, coord):
    batch, x, y, z = coord.long().unbind(1)
    return grid[batch, :, x, y, z]


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


@pytest.mark.parametrize("many", [False, True])
def test_kernels_match_their_twins(many):
    """`many` makes several blocks, segments and units of work."""
    shape = (60, 50, 12) if many else SHAPE
    coord = random_coord(0.5, shape)
    rulebook = ops.submanifold_rulebook(coord, 3)
    assert not many or rulebook.num_out > 20000
    features, weight = torch.randn(len(coord), 10), torch.randn(18, 27, 10)
    args = rulebook.pairs, rulebook.start, rulebook.rank_in, rulebook.rank_out
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
    args = rulebook.pairs, rulebook.start, rulebook.rank_in, rulebook.rank_out
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


def test_half_precision():
    coord = random_coord()
    features, weight = torch.randn(len(coord), 8), torch.randn(4, 3, 3, 3, 8)
    rulebook = ops.submanifold_rulebook(coord, 3)
    out = ops.sparse_conv(features.bfloat16(), weight, rulebook)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, ops.sparse_conv(features.bfloat16().float(), weight, rulebook).bfloat16())


def test_bad_arguments_are_named():
    coord = random_coord()
    rulebook = ops.submanifold_rulebook(coord, 3)
    weight = torch.randn(4, 3, 3, 3, 5)
    with pytest.raises(TypeError, match="int32 tensor, got torch.int64"):
        ops.submanifold_rulebook(coord.long(), 3)
    with pytest.raises(ValueError, match=r"\[N, 4\] as \(batch, x, y, z\), got \(\d+, 3\)"):
        ops.submanifold_rulebook(coord[:, 1:].contiguous(), 3)
    with pytest.raises(ValueError, match="odd kernel"):
        ops.submanifold_rulebook(coord, 2)
    with pytest.raises(ValueError, match=r"x must lie in \[0, 4\)"):
        ops.strided_rulebook(coord, (4, 8, 7), 2, 2)
    with pytest.raises(ValueError, match="too small for kernel"):
        ops.strided_rulebook(coord[:0], (1, 8, 7), 2, 2)
    far = torch.tensor([[0, 0, 0, 0], [9, 2**31 - 1, 2**31 - 1, 2**31 - 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="64-bit keys"):
        ops.submanifold_rulebook(far, 3)
    with pytest.raises(ValueError, match=r"features must be \[\d+, 5\]"):
        ops.sparse_conv(torch.randn(len(coord), 4), weight, rulebook)
    with pytest.raises(ValueError, match=r"with kernel \(3, 3, 3\)"):
        ops.sparse_conv(torch.randn(len(coord), 5), weight[:, :2], rulebook)
    with pytest.raises(ValueError, match=r"bias must be \[4\]"):
        ops.sparse_conv(torch.randn(len(coord), 5), weight, rulebook, torch.randn(3))
    with pytest.raises((RuntimeError, IndexError)):  # a direct call stays in its memory
        args = rulebook.pairs, rulebook.start, rulebook.rank_in, rulebook.rank_out
        torch.ops.pointcept3m.sparse_conv(torch.randn(3, 5), weight.flatten(1, 3), *args, False, False)


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
    args = rulebook.pairs, rulebook.start, rulebook.rank_in, rulebook.rank_out, False
    flat = weight.detach().flatten(1, 3)
    with torch.autocast("cpu", dtype):
        twin = _sparse_conv_twin(features.detach(), flat, *args, False)
        assert _grad_weight_twin(features.detach(), twin, *args).dtype == twin.dtype == torch.float32
    short = _sparse_conv_twin(features.detach().to(dtype), flat.to(dtype), *args, False)
    assert short.dtype == dtype
    torch.testing.assert_close(short, out.detach(), rtol=0.03, atol=0.1)


def make_net(backend, cin=6):
    return SparseSequential(
        SubMConv3d(cin, 16, 5, padding=1, bias=False, indice_key="stem", backend=backend),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        SubMConv3d(16, 16, 3, padding=1, bias=False, indice_key="subm", backend=backend),
        SparseConv3d(16, 24, 2, stride=2, bias=False, indice_key="down", backend=backend),
        SparseInverseConv3d(24, 8, 2, "down", bias=False, backend=backend),
        SubMConv3d(8, 4, 1, indice_key="last", backend=backend),
    )


def test_layers_share_rulebooks_and_keep_order():
    coord = random_coord(shape=(8, 8, 6))
    x = SparseConvTensor(torch.randn(len(coord), 6), coord, (8, 8, 6), BATCH)
    net = make_net("native")
    out = net(x)
    assert out.indices is coord and out.spatial_shape == (8, 8, 6) and out.features.shape == (len(coord), 4)
    assert set(out.indice_dict) == {"stem", "subm", "down"}
    book = out.indice_dict["subm"].rulebook
    net[3](net[:3](x))
    assert out.indice_dict["subm"].rulebook is book
    out.features.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_layers_start_as_torch_convolutions_do():
    ours, theirs = SubMConv3d(20, 30, 3), torch.nn.Conv3d(20, 30, 3)
    assert ours.weight.abs().max() <= theirs.weight.abs().max() * 1.01
    assert abs(ours.weight.std() / theirs.weight.std() - 1) < 0.05
    assert ours.weight.shape == (30, 3, 3, 3, 20) and ours.bias.abs().max() <= 1 / (20 * 27) ** 0.5


def test_a_kernel_of_one_reads_its_weight_as_spconv_does():
    coord = random_coord()
    x = SparseConvTensor(torch.randn(len(coord), 3), coord, SHAPE, BATCH)
    layer = SubMConv3d(3, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(2, 1, 1, 1, 3))
    matrix = torch.tensor([[0.0, 1], [2, 3], [4, 5]])
    torch.testing.assert_close(layer(x).features, x.features @ matrix + layer.bias)


def test_layer_errors():
    coord = random_coord()
    x = SparseConvTensor(torch.randn(len(coord), 6), coord, SHAPE, BATCH)
    SubMConv3d(6, 4, 3, indice_key="a")(x)
    with pytest.raises(ValueError, match="needs another key"):
        SubMConv3d(6, 4, 5, indice_key="a")(x)
    with pytest.raises(ValueError, match="did you mean 'a'|known: a"):
        SparseInverseConv3d(6, 4, 2, "b")(x)
    with pytest.raises(ValueError, match="wanted 5 input channels, got 6"):
        SubMConv3d(5, 4, 3)(x)
    with pytest.raises(TypeError, match="wanted a SparseConvTensor, got Tensor"):
        SubMConv3d(6, 4, 3)(x.features)
    with pytest.raises(ValueError, match="only groups=1"):
        SubMConv3d(6, 4, 3, groups=2)
    with pytest.raises(ValueError, match="odd"):
        SubMConv3d(6, 4, 2)
    with pytest.raises(ValueError, match="backend must be"):
        SubMConv3d(6, 4, 3, backend="minkowski")
    with pytest.raises(ValueError, match=r"z must lie in \[0, 2\)"):
        SparseConvTensor(x.features, coord, (9, 8, 2), BATCH)
    with pytest.raises(ValueError, match=r"batch must lie in \[0, 1\)"):
        SparseConvTensor(x.features, coord, SHAPE, 1)
    with pytest.raises(ValueError, match="features must be"):
        x.replace_feature(x.features[1:])


def test_dense_and_back():
    coord = random_coord()
    x = SparseConvTensor(torch.rand(len(coord), 3) + 0.1, coord, SHAPE, BATCH)
    assert torch.equal(x.dense(), dense_grid(x.features, coord))
    again = SparseConvTensor.from_dense(x.dense(channels_first=False))
    assert torch.equal(again.dense(), x.dense()) and again.spatial_shape == x.spatial_shape
    twice = SparseConvTensor(torch.ones(2, 1), coord[:1].repeat(2, 1), SHAPE, BATCH)
    assert twice.dense().sum() == twice.dense().max() == 2


def test_spconv_agrees():
    """With one thread: with two, spconv 2.3.8 on a CPU differs from dense conv3d in 3 % of runs."""
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compare_with_spconv()
    finally:
        torch.set_num_threads(threads)


def compare_with_spconv():
    coord = random_coord(shape=(8, 8, 6))
    features = torch.randn(len(coord), 6)
    ours, theirs = make_net("native").eval(), make_net("spconv").eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        a, b = (net(SparseConvTensor(features, coord, (8, 8, 6), BATCH)) for net in (ours, theirs))
    assert torch.equal(a.indices, b.indices)
    torch.testing.assert_close(a.features, b.features, rtol=1e-4, atol=1e-4)


def test_absent_spconv_says_so():
    try:
        import spconv  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="needs the package spconv"):
            SubMConv3d(3, 4, 3, backend="spconv")
    else:
        pytest.skip("spconv is installed")
