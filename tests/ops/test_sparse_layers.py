"""Layers on sparse tensors: spconv's names and behaviour, rulebooks by key, compilation, errors."""

import pytest
import torch

from pointcept3m.models.layers.sparse import (
    SparseAvgPool3d,
    SparseConv3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseSequential,
    SubMConv3d,
    ToDense,
)
from pointcept3m.structures.sparse import SparseConvTensor
from tests.ops.sparse_cases import BATCH, SHAPE, dense_grid, random_coord


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
    with pytest.raises(ValueError, match=r"^SparseConvTensor: indices: z must lie in \[0, 2\)"):
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


def test_poolings_take_spconvs_arguments_and_share_rulebooks():
    coord = random_coord(shape=(8, 8, 6))
    x = SparseConvTensor(torch.randn(len(coord), 6), coord, (8, 8, 6), BATCH)
    pool = SparseMaxPool3d(2, indice_key="down", algo=None, name="pool")
    assert pool.stride == (2, 2, 2) and SparseAvgPool3d(3, 2).stride == (2, 2, 2)
    down = pool(x)
    book = x.indice_dict["down"].rulebook
    assert down.spatial_shape == (4, 4, 3) and down.indices is book.coord_out
    coarse = SparseConv3d(6, 4, 2, 2, indice_key="down")(x)
    assert coarse.indices is down.indices and x.indice_dict["down"].rulebook is book
    up = SparseInverseConv3d(6, 3, 2, "down")(down)
    assert up.indices is coord and up.features.shape == (len(coord), 3)
    with pytest.raises(ValueError, match="needs another key"):
        SparseMaxPool3d(2, 1, indice_key="down")(x)
    with pytest.raises(TypeError, match="SparseAvgPool3d: wanted a SparseConvTensor"):
        SparseAvgPool3d(2)(x.features)
    with pytest.raises(TypeError, match="no argument 'strides'"):
        SparseMaxPool3d(2, strides=2)
    with pytest.raises(ValueError, match="record_voxel_count=True is not supported"):
        SubMConv3d(3, 4, 3, record_voxel_count=True)
    SubMConv3d(3, 4, 3, algo=None, fp32_accum=True, large_kernel_fast_algo=False, name="conv")


def test_global_poolings_give_one_row_per_scene():
    coord = random_coord()
    coord = coord[coord[:, 0] == 0]
    features = torch.randn(len(coord), 5) - 3
    x = SparseConvTensor(features, coord, SHAPE, BATCH)
    most, mean = SparseGlobalMaxPool()(x), SparseGlobalAvgPool()(x)
    torch.testing.assert_close(most, torch.stack([features.amax(0), torch.zeros(5)]))
    torch.testing.assert_close(mean, torch.stack([features.mean(0), torch.zeros(5)]))


def test_sparse_tensors_do_what_spconvs_do():
    coord = random_coord()
    x = SparseConvTensor(torch.randn(len(coord), 3), coord, list(SHAPE), BATCH, None, None, {"key": "found"})
    assert x.spatial_size == 9 * 8 * 7 and x.find_indice_pair("key") == "found"
    assert x.find_indice_pair("other") is None and x.find_indice_pair(None) is None
    copy = x.shadow_copy()
    assert copy is not x and copy.features is x.features and copy.indice_dict is x.indice_dict
    assert torch.equal((x + x.minus()).features, torch.zeros(len(coord), 3))
    assert torch.equal((1.0 + x).features, x.features + 1)
    keep = x.features[:, 0] > 0
    chosen = x.select_by_index(keep)
    assert torch.equal(chosen.indices, coord[keep]) and torch.equal(chosen.features, x.features[keep])
    assert chosen.indice_dict == {} and x.indice_dict
    assert torch.equal(ToDense()(x), x.dense())
    with pytest.raises(ValueError, match="same voxels"):
        x + SparseConvTensor(x.features, coord.flip(0), SHAPE, BATCH)


def test_compiles_where_rulebooks_are_known():
    """In one piece: rulebooks have sizes that depend on data, so they are made before, under their keys."""
    coord = random_coord(shape=(8, 8, 6))
    net = SparseSequential(
        SubMConv3d(6, 8, 3, indice_key="subm"),
        torch.nn.ReLU(),
        SparseConv3d(8, 12, 2, stride=2, indice_key="down"),
        SparseAvgPool3d(2, indice_key="pool"),
        SparseInverseConv3d(12, 6, 2, "pool"),
        SparseInverseConv3d(6, 4, 2, "down"),
    )
    x = SparseConvTensor(torch.randn(len(coord), 6), coord, (8, 8, 6), BATCH)
    features = x.features.clone().requires_grad_()

    def run(values):
        return net(x.replace_feature(values)).features

    expected = run(features)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(features)
    torch.testing.assert_close(got, expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), features) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_in_pieces_where_they_are_not():
    coord = random_coord(shape=(8, 8, 6))
    net = SparseSequential(SubMConv3d(6, 8, 3, indice_key="subm"), SparseMaxPool3d(2))

    def run(values, voxels):
        return net(SparseConvTensor(values, voxels, (8, 8, 6), BATCH)).features

    compiled = torch.compile(run, backend="aot_eager")
    for voxels in (coord, coord[:50]):
        values = torch.randn(len(voxels), 6)
        torch.testing.assert_close(compiled(values, voxels), run(values, voxels))


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
