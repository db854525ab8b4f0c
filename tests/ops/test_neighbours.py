"""knn_query, ball_query and random_ball_query against a loop over pairs, their twins, and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.neighbours import _ball_twin, _knn_twin, ball_query, knn_query, random_ball_query

INF = math.inf
SHAPES = ["random", "grid", "equal", "line", "far", "clusters"]
torch_ops = torch.ops.pointcept3m


def cloud(shape, count, dtype=torch.float32):
    """Clouds that trees and grids find hard: many ties, no extent, far outliers, clusters of very different size."""
    points = torch.randn(count, 3, dtype=dtype)
    if shape == "grid":
        return (2 * points).round()
    if shape == "equal":
        return points[:1].expand(count, 3).contiguous()
    if shape == "line":
        return points * torch.tensor([1, 0, 0], dtype=dtype)
    if shape == "far" and count > 3:
        points[:3] *= torch.tensor([[1e15], [1e19], [3e30]], dtype=dtype)  # squares of the last overflow float32
    if shape == "clusters":
        points[::2] *= 1e-5
        points[::3] += 1e4
    return points


def halves(count):
    return torch.tensor([count // 3, count // 3, count])  # the second item is empty


def same(got, expected):
    assert got[0].dtype == torch.int32 and torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=3e-7 if got[1].dtype == torch.float32 else 1e-15, atol=0)


def by_hand(coord, offset, queries, query_offset, choose):
    """What `choose(sorted list of (distance, row))` returns for each query."""
    results = []
    for q in range(len(queries)):
        item = int((query_offset <= q).sum())
        first, last = (int(offset[item - 1]) if item else 0), int(offset[item])
        pairs = sorted((math.dist(coord[i].tolist(), queries[q].tolist()), i) for i in range(first, last))
        results.append(choose(pairs))
    return results


def test_knn_is_what_a_loop_finds():
    coord, queries = torch.randn(70, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    offset, query_offset = torch.tensor([4, 70]), torch.tensor([9, 20])
    idx, dist = knn_query(6, coord, offset, queries, query_offset)
    expected = by_hand(coord, offset, queries, query_offset, lambda pairs: (pairs + [(INF, -1)] * 6)[:6])
    assert idx.tolist() == [[i for _, i in pairs] for pairs in expected]
    torch.testing.assert_close(dist, torch.tensor([[d for d, _ in pairs] for pairs in expected], dtype=torch.float64))


def test_ball_is_what_a_loop_finds():
    coord, queries = torch.randn(90, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    offset, query_offset = torch.tensor([40, 90]), torch.tensor([9, 20])

    def choose(pairs):
        inside = [(d, i) for d, i in pairs if d == 0 or 0.4 <= d < 1.5]
        if len(inside) > 5:
            inside = [inside[j * len(inside) // 5] for j in range(5)]
        return (inside + [(INF, -1)] * 5)[:5]

    expected = by_hand(coord, offset, queries, query_offset, choose)
    assert any(pairs[-1][1] == -1 for pairs in expected) and any(pairs[-1][1] != -1 for pairs in expected)
    idx, dist = ball_query(5, 1.5, 0.4, coord, offset, queries, query_offset)
    assert idx.tolist() == [[i for _, i in pairs] for pairs in expected]
    torch.testing.assert_close(dist, torch.tensor([[d for d, _ in pairs] for pairs in expected], dtype=torch.float64))


def test_small_cases_by_hand():
    coord = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [1, 0, 0], [0, 0, 0]])
    idx, dist = knn_query(3, coord, torch.tensor([3, 5]))
    assert idx.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 4, -1], [4, 3, -1]]
    assert dist.tolist() == [[0, 1, 3], [0, 1, 2], [0, 2, 3], [0, 1, INF], [0, 1, INF]]
    one = torch.tensor([5])
    assert knn_query(3, coord, one)[0][1].tolist() == [1, 3, 0]  # of equals, the lower index
    # The upper end is open, the lower closed, and the point itself always counts.
    assert ball_query(4, 3, 1, coord, one)[0].tolist()[0] == [0, 4, 1, 3]
    assert ball_query(4, 3.001, 1.001, coord, one)[0].tolist()[0] == [0, 4, 2, -1]
    # 5 in the ball, 3 wanted: ranks 0, 1 and 3.
    assert ball_query(3, 9, 0, coord, one)[0].tolist()[0] == [0, 4, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_match_twins(shape, dtype):
    count = 150 if _library.emulated() else 900
    coord, queries, offset = cloud(shape, count, dtype), cloud(shape, 40, dtype), halves(count)
    queries[5:15] = coord[-10:]
    for other in ((None, None), (queries, halves(40))):
        for nsample in (1, 16, 33, 129, 700):
            same(knn_query(nsample, coord, offset, *other), _knn_twin(nsample, coord, offset, *other))
        for nsample, high, low in ((1, 0.5, 0.0), (7, 1.0, 0.3), (300, 1e3, 0.0)):
            same(ball_query(nsample, high, low, coord, offset, *other), _ball_twin(nsample, high, low, coord, offset, *other, None))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33, 257])
def test_sizes_around_a_leaf(count):
    coord, queries, ends = torch.randn(count, 3), torch.randn(5, 3), torch.tensor([5])
    same(knn_query(4, coord, torch.tensor([count])), _knn_twin(4, coord, torch.tensor([count]), None, None))
    got = knn_query(20, coord, torch.tensor([count]), queries, ends)
    same(got, _knn_twin(20, coord, torch.tensor([count]), queries, ends))
    assert ((got[0] >= 0).sum(1) == min(count, 20)).all()


def test_a_cloud_of_many_levels():
    """Three levels of boxes on the CPU; two, the second item unaligned, in the smaller one that the emulator gets."""
    count = 2_800 if _library.emulated() else 20_000
    coord, queries = torch.rand(count, 3), torch.rand(20, 3)
    offset, ask = torch.tensor([count // 2 - 77, count]), torch.tensor([9, 20])
    same(knn_query(20, coord, offset, queries, ask), _knn_twin(20, coord, offset, queries, ask))
    same(ball_query(9, 0.1, 0.02, coord, offset, queries, ask), _ball_twin(9, 0.1, 0.02, coord, offset, queries, ask, None))


@pytest.mark.not_emulated
@pytest.mark.skipif(not _library.native_loaded(), reason="the twin does compare all pairs")
@pytest.mark.parametrize("shape", ["equal", "line", "far", "clusters"])
def test_hard_clouds_are_not_compared_pair_by_pair(shape):
    """60,000 points make 3.6e9 pairs, which would take longer than the whole suite."""
    coord, offset = cloud(shape, 60_000), torch.tensor([60_000])
    idx, dist = knn_query(8, coord, offset)
    rows = torch.cat([torch.arange(0, 60_000, 3001), torch.tensor([1, 2])])
    same((idx[rows], dist[rows]), _knn_twin(8, coord, offset, coord[rows], torch.tensor([len(rows)])))
    if shape == "equal":
        assert (idx == torch.arange(8)).all()


@pytest.mark.not_emulated
def test_real_scan(real_data):
    file = real_data("scannet_scene0000_00") / "scene0000_00.npz"
    coord = torch.from_numpy(np.load(file)["coord"]).float()[::20]
    offset = torch.tensor([len(coord)])
    same(knn_query(16, coord, offset), _knn_twin(16, coord, offset, None, None))
    same(ball_query(16, 0.25, 0.05, coord, offset), _ball_twin(16, 0.25, 0.05, coord, offset, None, None, None))


def test_points_that_are_not_finite_are_left_out():
    coord = torch.randn(40, 3)
    coord[3, 1], coord[17, 0], coord[38, 2] = math.nan, INF, -INF
    bad = ~coord.isfinite().all(dim=1)
    for idx, dist in (knn_query(40, coord, halves(40)), ball_query(40, 1e9, 0, coord, halves(40))):
        assert (idx[bad] == -1).all() and (dist[bad] == INF).all()
        assert not torch.isin(idx, bad.nonzero()).any()
        assert (idx[~bad].max(dim=1).values >= 0).all()
    same(knn_query(9, coord, halves(40)), _knn_twin(9, coord, halves(40), None, None))


def test_random_balls():
    coord, offset = torch.rand(120, 3), torch.tensor([40, 120])
    seeded = [random_ball_query(4, 0.6, 0.1, coord, offset, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(seeded[0][0], seeded[1][0]) and not torch.equal(seeded[0][0], seeded[2][0])
    whole = ball_query(120, 0.6, 0.1, coord, offset)[0]
    idx, dist = seeded[0]
    for row in range(120):
        inside = set(whole[row].tolist()) - {-1}
        taken = [i for i in idx[row].tolist() if i >= 0]
        assert len(taken) == len(set(taken)) == min(4, len(inside)) and inside.issuperset(taken)
    far = (coord[:, None] - coord[idx.clamp(min=0).long()]).norm(dim=2)
    torch.testing.assert_close(dist[idx >= 0], far[idx >= 0])
    rank = torch.randperm(120)
    got = torch_ops.ball_query(4, 0.4, 0.1, coord, offset, None, None, rank)
    same(got, _ball_twin(4, 0.4, 0.1, coord, offset, None, None, rank))
    # Every point of a ball is equally likely: 2 of 8, over 400 draws, is 100 on average, with a deviation below 9.
    circle = torch.zeros(8, 3)
    draws = torch.cat([random_ball_query(2, 1.0, 0.0, circle, torch.tensor([8]))[0][:1] for _ in range(400)])
    assert (torch.bincount(draws.flatten()) - 100).abs().max() < 45


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    coord = torch.rand(5000, 3)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append([*knn_query(5, coord, halves(5000)), *ball_query(5, 0.2, 0, coord, halves(5000))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_non_contiguous_and_int32():
    wide = torch.randn(3, 60)
    coord, offset = wide.t()[::2], torch.tensor([0, 7, 0, 30, 9])[1::2]
    assert not coord.is_contiguous() and not offset.is_contiguous()
    same(knn_query(3, coord, offset.int()), knn_query(3, coord.contiguous(), offset.contiguous()))
    assert not knn_query(3, coord.clone().requires_grad_(), offset)[1].requires_grad


def test_nothing():
    none = torch.zeros(0, dtype=torch.int64)
    for empty in (none, torch.tensor([0, 0])):
        assert knn_query(3, torch.zeros(0, 3), empty)[0].shape == (0, 3)
        assert ball_query(3, 1, 0, torch.zeros(0, 3), empty)[1].shape == (0, 3)


def test_bad_arguments_are_named():
    coord, offset = torch.randn(4, 3), torch.tensor([4])
    with pytest.raises(TypeError, match="knn_query: nsample must be an int, got float"):
        knn_query(2.0, coord, offset)
    with pytest.raises(ValueError, match="ball_query: nsample must be at least 1, got 0"):
        ball_query(0, 1, 0, coord, offset)
    with pytest.raises(TypeError, match="coord must be a float32 or float64 tensor, got torch.float16"):
        knn_query(2, coord.half(), offset)
    with pytest.raises(ValueError, match=r"coord must have shape \[N, 3\], got \(4, 2\)"):
        knn_query(2, coord[:, :2], offset)
    with pytest.raises(TypeError, match="offset must be an int64 or int32 tensor, got list"):
        knn_query(2, coord, [4])
    with pytest.raises(ValueError, match=r"offset must have shape \[B\], got \(1, 1\)"):
        knn_query(2, coord, offset[None])
    for wrong in ([3], [5], [4, 2, 4], [-1, 4], []):
        with pytest.raises(ValueError, match="offset must ascend to the number of points, 4, got"):
            knn_query(2, coord, torch.tensor(wrong, dtype=torch.int64))
    with pytest.raises(ValueError, match="new_coord was given without new_offset"):
        knn_query(2, coord, offset, coord)
    with pytest.raises(ValueError, match="new_offset was given without new_coord"):
        ball_query(2, 1, 0, coord, offset, None, offset)
    with pytest.raises(ValueError, match="new_coord must be torch.float32 as coord is, got torch.float64"):
        knn_query(2, coord, offset, coord.double(), offset)
    with pytest.raises(ValueError, match="offset tells of 1 items, new_offset of 2"):
        knn_query(2, coord, offset, coord, torch.tensor([1, 4]))
    with pytest.raises(ValueError, match="0 <= min_radius < max_radius, got 1 and 1"):
        ball_query(2, 1, 1, coord, offset)
    with pytest.raises(ValueError, match="got -1 and 1"):
        random_ball_query(2, 1, -1, coord, offset)
    with pytest.raises(ValueError, match="got 0 and nan"):
        ball_query(2, math.nan, 0, coord, offset)
    with pytest.raises(TypeError, match="^random_ball_query: coord must be a float32 or float64 tensor, got NoneType"):
        random_ball_query(2, 1, 0, None, offset)
    with pytest.raises(ValueError, match="^knn_query: new_coord must be on cpu as coord is, got meta"):
        knn_query(2, coord, offset, coord.to("meta"), offset.to("meta"))
    for function, arguments in ((knn_query, (2,)), (ball_query, (2, 1, 0)), (random_ball_query, (2, 1, 0))):
        for half in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match=f"^{function.__name__}: coord must be a float32 or .*got {half}"):
                function(*arguments, coord.to(half), offset)
    with pytest.raises(TypeError, match="max_radius must be a number, got str"):
        ball_query(2, "1", 0, coord, offset)


@pytest.mark.parametrize("offset", [[3], [5], [2**62, 4], [4, 2, 4], [-1, 4], []])
def test_direct_calls_read_no_foreign_memory(offset):
    coord, offset = torch.randn(4, 3), torch.tensor(offset, dtype=torch.int64)
    for call in (
        lambda: torch_ops.knn_query(2, coord, offset, None, None),
        lambda: torch_ops.knn_query(2, coord, torch.tensor([4]), coord, offset),
        lambda: torch_ops.ball_query(2, 1.0, 0.0, coord, offset, None, None, None),
    ):
        with pytest.raises((RuntimeError, ValueError)):
            call()


def test_direct_calls_with_bad_values():
    coord, offset = torch.randn(4, 3), torch.tensor([4])
    for rank in (torch.arange(3), torch.arange(4) + 1, torch.arange(4) - 1):
        with pytest.raises((RuntimeError, ValueError)):
            torch_ops.ball_query(2, 1.0, 0.0, coord, offset, None, None, rank)
    for nsample, high, low in ((0, 1.0, 0.0), (2, 1.0, 1.0), (2, math.nan, 0.0)):
        with pytest.raises((RuntimeError, ValueError)):
            torch_ops.ball_query(nsample, high, low, coord, offset, None, None, None)
    with pytest.raises((RuntimeError, ValueError)):
        torch_ops.knn_query(0, coord, offset, None, None)
    with pytest.raises((RuntimeError, ValueError)):
        torch_ops.knn_query(2, coord, offset, coord, None)


def test_opcheck():
    coord, offset = torch.randn(9, 3), torch.tensor([4, 9])
    torch.library.opcheck(torch_ops.knn_query.default, (3, coord, offset, None, None))
    torch.library.opcheck(torch_ops.knn_query.default, (3, coord, offset, coord[:5].clone(), torch.tensor([2, 5])))
    torch.library.opcheck(torch_ops.ball_query.default, (3, 1.0, 0.1, coord, offset, None, None, torch.arange(9)))


def test_compiles_in_one_piece():
    coord, offset = torch.randn(40, 3), torch.tensor([14, 40])

    def run(coord, offset):
        return [*knn_query(3, coord, offset), *ball_query(3, 1.0, 0.1, coord, offset, coord * 1, offset)]

    for got, expected in zip(torch.compile(run, fullgraph=True, backend="aot_eager")(coord, offset), run(coord, offset), strict=True):
        assert torch.equal(got, expected)


def test_names_of_pointops():
    coord, offset, query, ends = torch.randn(30, 3), torch.tensor([10, 30]), torch.randn(8, 3), torch.tensor([4, 8])
    theirs = dict(xyz=coord, offset=offset, new_xyz=query, new_offset=ends)
    same(knn_query(3, **theirs), knn_query(3, coord, offset, query, ends))
    same(ball_query(3, 1.0, 0.1, **theirs), ball_query(3, 1.0, 0.1, coord, offset, query, ends))
    same(random_ball_query(30, 9.0, 0.0, **theirs, generator=torch.Generator().manual_seed(1)),
         random_ball_query(30, 9.0, 0.0, coord, offset, query, ends, torch.Generator().manual_seed(1)))  # fmt: skip
    with pytest.raises(TypeError, match="^knn_query: xyz is another name for coord; give one of them"):
        knn_query(3, coord=coord, xyz=coord, offset=offset)
    with pytest.raises(TypeError, match="multiple values for argument 'coord'"):
        knn_query(3, coord, offset, xyz=coord)
    with pytest.raises(TypeError, match="with_xyz"):  # knn_query has no with_coord
        knn_query(3, coord, offset, with_xyz=True)
    run = torch.compile(lambda coord: knn_query(3, xyz=coord, offset=offset)[1], fullgraph=True, backend="aot_eager")
    assert torch.equal(run(coord), knn_query(3, coord, offset)[1])
