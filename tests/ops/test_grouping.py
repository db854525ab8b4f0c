"""grouping and interpolation against plain indexing, their twins, float64 gradients and cases worked out by hand."""

import math

import pytest
import torch

from pointcept3m.ops.grouping import (
    _interpolate_backward_twin,
    _interpolate_twin,
    ball_query_and_group,
    grouping,
    interpolation,
    interpolation2,
    knn_query_and_group,
)
from pointcept3m.ops.neighbours import ball_query, knn_query

torch_ops = torch.ops.pointcept3m


def example(dtype=torch.float32, channels=5):
    coord, feat = torch.randn(12, 3, dtype=dtype), torch.randn(12, channels, dtype=dtype)
    idx = torch.randint(0, 12, (7, 4), dtype=torch.int32)
    idx[2, 1:] = -1
    idx[5] = -1
    return coord, feat, idx, torch.randn(7, 3, dtype=dtype)


def test_grouping_by_hand():
    coord = torch.tensor([[0.0, 0, 0], [1, 2, 3]])
    feat = torch.tensor([[5.0], [7.0]])
    idx = torch.tensor([[1, 0, -1], [-1, -1, -1], [0, 0, 1]])
    assert grouping(idx, feat, coord).squeeze(2).tolist() == [[7, 5, 0], [0, 0, 0], [5, 5, 7]]
    query = torch.tensor([[1.0, 1, 1], [9, 9, 9], [0, 0, 1]])
    got = grouping(idx, feat, coord, query, with_coord=True)
    assert got[0].tolist() == [[0, 1, 2, 7], [-1, -1, -1, 5], [0, 0, 0, 0]]
    assert (got[1] == 0).all() and got[2].tolist() == [[0, 0, -1, 5], [0, 0, -1, 5], [1, 2, 2, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_grouping_is_indexing(dtype, index_dtype):
    coord, feat, idx, query = example()
    coord, feat, query = (value.to(dtype) for value in (coord, feat, query))
    absent = (idx < 0)[..., None]
    expected = feat[idx.clamp(min=0).long()].masked_fill(absent, 0)
    relative = (coord[idx.clamp(min=0).long()] - query[:, None]).masked_fill(absent, 0)
    assert torch.equal(grouping(idx.to(index_dtype), feat, coord, query), expected)
    assert torch.equal(grouping(idx.to(index_dtype), feat, coord, query, True), torch.cat([relative, expected], dim=2))


def test_absent_neighbours_do_not_see_nan():
    coord, feat, idx, query = example()
    feat[:], coord[:] = math.nan, math.nan
    assert (grouping(idx, feat, coord, query, True)[5] == 0).all()


def test_grouping_gradients():
    coord, feat, idx, query = example(torch.float64)
    inputs = [value.requires_grad_() for value in (feat, coord, query)]

    def run(feat, coord, query):
        return grouping(idx, feat, coord, query, with_coord=True)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_half_gradients_are_summed_in_float32():
    feat = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    idx = torch.zeros(1000, 4, dtype=torch.int32)
    grouping(idx, feat, torch.zeros(2, 3)).sum().backward()
    assert feat.grad.flatten().tolist() == [4000, 0]  # a bfloat16 sum of ones would stop at 256


def test_queries_and_groups():
    coord, feat, offset = torch.randn(30, 3), torch.randn(30, 4), torch.tensor([10, 30])
    query, ends = torch.randn(8, 3), torch.tensor([4, 8])
    grouped, idx = knn_query_and_group(feat, coord, offset, query, ends, nsample=12, with_coord=True)
    assert torch.equal(idx, knn_query(12, coord, offset, query, ends)[0]) and (idx[:4, 10:] == -1).all()
    assert torch.equal(grouped, grouping(idx, feat, coord, query, True))
    assert torch.equal(knn_query_and_group(feat, coord, idx=idx, new_coord=query)[0], grouping(idx, feat, coord))
    grouped, idx = ball_query_and_group(feat, coord, offset, max_radius=1.0, min_radius=0.2, nsample=5)
    assert torch.equal(idx, ball_query(5, 1.0, 0.2, coord, offset)[0])
    assert torch.equal(grouped, grouping(idx, feat, coord))
    with pytest.raises(ValueError, match="knn_query_and_group: give idx, or nsample and offset"):
        knn_query_and_group(feat, coord, offset)
    with pytest.raises(ValueError, match="ball_query_and_group: give idx, or nsample, max_radius and offset"):
        ball_query_and_group(feat, coord, offset, nsample=3)


def test_interpolation_by_hand():
    coord = torch.tensor([[0.0, 0, 0], [3, 0, 0], [100, 0, 0], [0, 0, 0]], dtype=torch.float64)
    feat = torch.tensor([[1.0], [4.0], [100.0], [7.0]], dtype=torch.float64)
    query = torch.tensor([[1.0, 0, 0], [3, 0, 0], [5, 5, 5]], dtype=torch.float64)
    got = interpolation(coord, query, feat, torch.tensor([3, 4]), torch.tensor([2, 3]), k=2)
    # 1 and 2 away: weights 2/3 and 1/3. On a point: that point. An item of one point: that point, not a third of it.
    torch.testing.assert_close(got, torch.tensor([[2.0], [4.0], [7.0]], dtype=torch.float64), rtol=0, atol=2e-8)
    assert interpolation2 is interpolation


@pytest.mark.parametrize("channels", [0, 1, 3, 16, 37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_match_twins(channels, dtype):
    feat, weight = torch.randn(50, channels, dtype=dtype), torch.rand(400, 3, dtype=dtype)
    idx = torch.randint(-1, 50, (400, 3), dtype=torch.int32)
    grad = torch.randn(400, channels, dtype=dtype)
    torch.testing.assert_close(torch_ops.interpolate_rows(feat, idx, weight), _interpolate_twin(feat, idx, weight))
    got = torch_ops.interpolate_rows_backward(grad, idx, weight, 50)
    torch.testing.assert_close(got, _interpolate_backward_twin(grad, idx, weight, 50))


def test_interpolation_gradients():
    feat = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    idx = torch.tensor([[0, 1], [5, -1], [2, 2], [-1, -1], [4, 0]], dtype=torch.int32)

    def run(feat, weight):
        return torch_ops.interpolate_rows(feat, idx, weight)

    assert torch.autograd.gradcheck(run, (feat, weight))
    assert torch.autograd.gradgradcheck(run, (feat, weight))
    coord, query = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    ends = [torch.tensor([2, 6]), torch.tensor([3, 5])]
    assert torch.autograd.gradcheck(lambda feat: interpolation(coord, query, feat, *ends), feat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_interpolation_of_halves(dtype):
    coord, query, ends = torch.randn(20, 3), torch.randn(9, 3), (torch.tensor([20]), torch.tensor([9]))
    feat = torch.randn(20, 4).to(dtype).requires_grad_()
    got = interpolation(coord, query, feat, *ends)
    assert got.dtype == dtype
    assert torch.equal(got, interpolation(coord, query, feat.float(), *ends).to(dtype))
    got.sum().backward()
    assert feat.grad.dtype == dtype


def test_a_query_that_is_not_finite_gets_nan():
    coord, query = torch.randn(5, 3), torch.tensor([[math.nan, 0, 0], [0, 0, 0]])
    got = interpolation(coord, query, torch.ones(5, 2), torch.tensor([5]), torch.tensor([2]))
    assert got[0].isnan().all()
    torch.testing.assert_close(got[1], torch.ones(2))


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    coord, query, weight = torch.rand(500, 3), torch.rand(3000, 3), torch.randn(3000, 9)
    ends = (torch.tensor([500]), torch.tensor([3000]))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            feat = torch.arange(4500.0).view(500, 9).requires_grad_()
            out = interpolation(coord, query, feat, *ends)
            results.append([out, *torch.autograd.grad((out * weight).sum(), feat)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_non_contiguous_and_empty():
    coord, feat, idx, query = example()
    wide = torch.stack([feat, feat], dim=2)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(grouping(idx.t().contiguous().t(), wide, coord, query, True), grouping(idx, feat, coord, query, True))
    ends = (torch.tensor([12]), torch.tensor([7]))
    assert torch.equal(interpolation(coord, query, wide, *ends), interpolation(coord, query, feat, *ends))
    assert grouping(idx[:0], feat, coord).shape == (0, 4, 5) and grouping(idx[:, :0], feat, coord).shape == (7, 0, 5)
    assert grouping(torch.full((2, 3), -1), feat[:0], coord[:0]).tolist() == [[[0.0] * 5] * 3] * 2
    none = torch.tensor([0])
    assert interpolation(coord, query[:0], feat, ends[0], none).shape == (0, 5)
    assert interpolation(coord[:0], query[:0], feat[:0], none, none).shape == (0, 5)


def test_bad_arguments_are_named():
    coord, feat, idx, query = example()
    with pytest.raises(TypeError, match="feat must be a tensor of floats, got torch.int64"):
        grouping(idx, feat.long(), coord)
    with pytest.raises(ValueError, match=r"feat must have two dimensions, got shape \(12,\)"):
        grouping(idx, feat[:, 0], coord)
    with pytest.raises(TypeError, match="idx must be an int64 or int32 tensor, got torch.float32"):
        grouping(idx.float(), feat, coord)
    with pytest.raises(ValueError, match=r"idx must have shape \[M, nsample\], got \(28,\)"):
        grouping(idx.flatten(), feat, coord)
    with pytest.raises(IndexError, match=r"idx must lie in \[-1, 12\), found 12"):
        grouping(torch.tensor([[12]]), feat, coord)
    with pytest.raises(IndexError, match="found -2"):
        grouping(torch.tensor([[-2]]), feat, coord)
    with pytest.raises(ValueError, match=r"coord must have shape \[12, 3\], one row for each of feat, got \(11, 3\)"):
        grouping(idx, feat, coord[1:], query, True)
    with pytest.raises(ValueError, match=r"new_coord must have shape \[7, 3\]"):
        grouping(idx, feat, coord, query[1:], True)
    with pytest.raises(ValueError, match="coord, as new_coord is absent, must have"):
        grouping(idx, feat, coord, with_coord=True)
    with pytest.raises(ValueError, match="grouping: with_coord needs coord, got None"):
        grouping(idx, feat, with_coord=True)
    for place, arguments in (("coord", (coord.to("meta"), query)), ("new_coord", (coord, query.to("meta")))):
        with pytest.raises(ValueError, match=f"grouping: {place} must be on cpu as feat is, got meta"):
            grouping(idx, feat, *arguments, with_coord=True)
    with pytest.raises(TypeError, match="grouping: new_coord must be a tensor of floats, got list"):
        grouping(idx, feat, coord, [0.0], with_coord=True)
    ends = (torch.tensor([12]), torch.tensor([7]))
    for wrong, error, got in ((0, ValueError, "at least 1, got 0"), (2.0, TypeError, "an int, got float")):
        with pytest.raises(error, match=f"^interpolation: k must be {got}"):
            interpolation(coord, query, feat, *ends, k=wrong)
    with pytest.raises(TypeError, match="^interpolation: coord must be a float32 or float64 tensor, got torch.float16"):
        interpolation(coord.half(), query.half(), feat, *ends)
    with pytest.raises(TypeError, match="^interpolation: offset must be an int64 or int32 tensor, got list"):
        interpolation(coord, query, feat, [12], ends[1])
    with pytest.raises(TypeError, match="^knn_query_and_group: coord must be"):
        knn_query_and_group(feat, None, ends[0], nsample=3)
    with pytest.raises(TypeError, match="^ball_query_and_group: max_radius must be a number, got str"):
        ball_query_and_group(feat, coord, ends[0], max_radius="1", nsample=3)
    with pytest.raises(ValueError, match="feat must have 12 rows on cpu as coord has, got 11"):
        interpolation(coord, query, feat[1:], *ends)
    with pytest.raises(ValueError, match="item 1 has new points, but no points to average"):
        interpolation(coord, query, feat, torch.tensor([12, 12]), torch.tensor([3, 7]))
    with pytest.raises(ValueError, match="new_coord and new_offset must be given"):
        interpolation(coord, None, feat, ends[0], None)
    with pytest.raises(TypeError, match="interpolation: feat must be a tensor of floats"):
        interpolation(coord, query, feat.int(), *ends)


def test_direct_calls_read_no_foreign_memory():
    feat, weight = torch.randn(5, 2), torch.rand(3, 2)
    for value in (-2, 5, 2**31 - 1):
        idx = torch.full((3, 2), value, dtype=torch.int32)
        with pytest.raises((RuntimeError, IndexError)):
            torch_ops.interpolate_rows(feat, idx, weight)
        with pytest.raises((RuntimeError, IndexError)):
            torch_ops.interpolate_rows_backward(feat[:3].clone(), idx, weight, 5)


def test_opcheck():
    feat = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    weight, idx = torch.rand(4, 2, dtype=torch.float64), torch.randint(-1, 6, (4, 2), dtype=torch.int32)
    torch.library.opcheck(torch_ops.interpolate_rows.default, (feat, idx, weight))
    grad = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch_ops.interpolate_rows_backward.default, (grad, idx, weight, 6))


def test_compiles_in_one_piece():
    coord, feat, idx, query = example()
    feat.requires_grad_()
    ends = (torch.tensor([12]), torch.tensor([7]))

    def run(feat):
        return grouping(idx, feat, coord, query, True).sum(dim=1)[:, 3:] + interpolation(coord, query, feat, *ends)

    expected = run(feat)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(feat)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), feat)[0] for y in (got, expected)))


def test_names_of_pointops():
    coord, feat, idx, query = example()
    offset, ends = torch.tensor([12]), torch.tensor([7])
    expected = grouping(idx, feat, coord, query, True)
    assert torch.equal(grouping(idx, feat, xyz=coord, new_xyz=query, with_xyz=True), expected)
    assert torch.equal(grouping(idx, feat), expected[..., 3:])
    theirs = dict(xyz=coord, offset=offset, new_xyz=query, new_offset=ends)
    assert torch.equal(interpolation(feat=feat, **theirs), interpolation(coord, query, feat, offset, ends))
    ours = (feat, coord, offset, query, ends)
    for function, more in ((knn_query_and_group, {}), (ball_query_and_group, dict(max_radius=2.0))):
        got = function(feat, **theirs, nsample=4, with_xyz=True, **more)
        for mine, other in zip(got, function(*ours, nsample=4, with_coord=True, **more), strict=True):
            assert torch.equal(mine, other)
    with pytest.raises(TypeError, match="^grouping: with_xyz is another name for with_coord; give one of them"):
        grouping(idx, feat, coord, with_coord=True, with_xyz=True)
