"""ops.cluster against plain loops, pointgroup_ops' meaning by hand, each other, and their twins."""

import numpy as np
import pytest
import torch

from pointcept3m.ops import _library
from pointcept3m.ops.cluster import (
    _ball_query_twin,
    _bfs_twin,
    _cluster_points_twin,
    ballquery_batch_p,
    bfs_cluster,
    cluster_points,
)


def ball_query(coord, offset, radius):
    """ballquery_batch_p for cumulative ends."""
    batch = torch.arange(len(offset)).repeat_interleave(offset.diff(prepend=offset.new_zeros(1)))
    return ballquery_batch_p(coord, batch.int(), torch.cat([offset.new_zeros(1), offset]).int(), radius, 50)


def lists_of(idx, start_len):
    return [idx[start : start + length].tolist() for start, length in start_len.tolist()]


def lists_by_hand(coord, offset, radius):
    """numpy, a row at a time, each operation rounded in coord's dtype."""
    coord = coord.numpy()
    square = coord.dtype.type(radius) * coord.dtype.type(radius)
    lists, begin = [], 0
    for end in offset.tolist():
        for i in range(begin, end):
            with np.errstate(all="ignore"):
                d = coord[begin:end] - coord[i]
                near = (d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1]) + d[:, 2] * d[:, 2] < square
            lists.append((np.flatnonzero(near) + begin).tolist())
        begin = end
    return lists


def clusters_by_search(label, lists, threshold):
    """Breadth-first search as pointgroup_ops does it, with the points of a cluster in ascending order."""
    seen, clusters = set(), []
    for i in range(len(label)):
        if i in seen:
            continue
        members = [i]
        seen.add(i)
        for member in members:
            for other in lists[member]:
                if other not in seen and label[other] == label[member]:
                    seen.add(other)
                    members.append(other)
        if len(members) >= threshold:
            clusters.append(sorted(members))
    return clusters


def clusters_of(idxs, offsets):
    bounds = offsets.tolist()
    assert idxs[:, 0].tolist() == [c for c in range(len(bounds) - 1) for _ in range(bounds[c], bounds[c + 1])]
    return [idxs[a:b, 1].tolist() for a, b in zip(bounds, bounds[1:], strict=False)]


def cloud(num_points, num_items, dtype=torch.float32, spread=1.0):
    offset = torch.cat([torch.randint(0, num_points + 1, (num_items - 1,)).sort().values, torch.tensor([num_points])])
    coord = torch.rand(num_points, 3, dtype=dtype) * torch.tensor([1.0, 1.0, 0.1], dtype=dtype) * spread
    return coord, offset, torch.randint(-2, 3, (num_points,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_points, radius", [(300, 0.02), (300, 0.11), (700, 0.35), (250, 5.0)])
def test_ball_query_matches_a_loop(num_points, radius, dtype):
    coord, offset, label = cloud(num_points, 3, dtype)
    idx, start_len = ball_query(coord, offset, radius)
    expected = lists_by_hand(coord, offset, radius)
    assert idx.dtype == start_len.dtype == torch.int32 and start_len.shape == (num_points, 2)
    assert lists_of(idx, start_len) == expected
    assert start_len[:, 0].tolist() == (start_len[:, 1].cumsum(0) - start_len[:, 1]).tolist()
    for got, twin in zip((idx, start_len), _ball_query_twin(coord, offset, radius), strict=True):
        assert torch.equal(got, twin)
    for threshold in (1, 4):
        wanted = clusters_by_search(label.tolist(), expected, threshold)
        assert clusters_of(*bfs_cluster(label, idx, start_len, threshold)) == wanted
        assert clusters_of(*_bfs_twin(label, idx, start_len, threshold)) == wanted
        assert clusters_of(*cluster_points(coord, offset, label, radius, threshold)) == wanted
        assert clusters_of(*_cluster_points_twin(coord, offset, label, radius, threshold)) == wanted


def test_small_case_by_hand():
    coord = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0.5, 0], [1.9, 0, 0], [5, 5, 5], [0, 0, 0]])
    batch, ends = torch.tensor([0, 0, 0, 0, 0, 1]), torch.tensor([0, 5, 6])
    idx, start_len = ballquery_batch_p(coord, batch, ends, 1.0, 300)
    # 0 and 1 are exactly one apart, which is not nearer than the radius; 5 is of another item
    assert lists_of(idx, start_len) == [[0, 2], [1, 3], [0, 2], [1, 3], [4], [5]]
    label = torch.tensor([7, 7, 7, 7, 7, 7])
    assert clusters_of(*bfs_cluster(label, idx, start_len, 2)) == [[0, 2], [1, 3]]
    idxs, offsets = bfs_cluster(label.int(), idx, start_len, 1)
    assert idxs.tolist() == [[0, 0], [0, 2], [1, 1], [1, 3], [2, 4], [3, 5]] and offsets.tolist() == [0, 2, 4, 5, 6]
    assert idxs.dtype == offsets.dtype == torch.int32
    label[3] = 1
    assert clusters_of(*bfs_cluster(label, idx, start_len, 2)) == [[0, 2]]
    assert clusters_of(*cluster_points(coord, torch.tensor([5, 6]), label, 1.0, 2)) == [[0, 2]]
    assert bfs_cluster(label, idx, start_len, 3)[0].shape == (0, 2)
    assert bfs_cluster(label, idx, start_len, 3)[1].tolist() == [0]


def test_a_chain_is_one_cluster_whatever_the_order():
    """The longest path that joining can meet: neighbours only, in random order."""
    place = torch.randperm(3000)
    coord = torch.stack([place * 1.0, torch.zeros(3000), torch.zeros(3000)], 1)
    offset, label = torch.tensor([3000]), torch.zeros(3000, dtype=torch.int64)
    for idxs, offsets in (
        bfs_cluster(label, *ball_query(coord, offset, 1.5), 50),
        cluster_points(coord, offset, label, 1.5, 50),
    ):
        assert offsets.tolist() == [0, 3000] and torch.equal(idxs[:, 1], torch.arange(3000, dtype=torch.int32))
    label[place == 1500] = 1  # cuts it in two, and the short piece goes
    assert sorted(len(c) for c in clusters_of(*cluster_points(coord, offset, label, 1.5, 2))) == [1499, 1500]


def test_more_than_a_thousand_neighbours():
    coord = torch.rand(1500, 3) * 0.1
    idx, start_len = ball_query(coord, torch.tensor([1500]), 1.0)
    assert (start_len[:, 1] == 1500).all() and torch.equal(
        idx.view(1500, 1500)[7], torch.arange(1500, dtype=torch.int32)
    )


@pytest.mark.parametrize("radius", [0.1, 0.05, 0.25])
def test_distances_equal_to_the_radius_are_decided_alike(radius):
    """On a lattice many pairs are as far apart as the radius, but for rounding."""
    axis = torch.arange(9) * 0.05
    coord = torch.cartesian_prod(axis, axis, axis)[torch.randperm(729)] + 3.7
    offset, label = torch.tensor([729]), torch.randint(0, 3, (729,))
    idx, start_len = ball_query(coord, offset, radius)
    assert lists_of(idx, start_len) == lists_by_hand(coord, offset, radius)
    for got, expected in zip(
        cluster_points(coord, offset, label, radius), bfs_cluster(label, idx, start_len, 1), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e6, 1e12, 1e20, 1e37, 1e300])
def test_hostile_extents(far, dtype):
    """Pairs of near points, strewn over any extent: around the origin, far out, and at every scale between."""
    if far > torch.finfo(dtype).max:
        pytest.skip("beyond float32")
    scale = torch.logspace(-3, torch.tensor(far).double().log10().item(), 300, dtype=torch.float64)
    coord = (torch.randn(300, 3, dtype=torch.float64).clamp(-1, 1) * scale[:, None]).to(dtype)
    step = torch.tensor([0.03, -0.05, 0.04], dtype=dtype)
    coord = torch.cat([coord, coord + step, torch.rand(100, 3).to(dtype) * 0.2])
    offset, label = torch.tensor([400, 700]), torch.zeros(700, dtype=torch.int64)
    idx, start_len = ball_query(coord, offset, 0.08)
    assert lists_of(idx, start_len) == lists_by_hand(coord, offset, 0.08)
    assert clusters_of(*cluster_points(coord, offset, label, 0.08)) == clusters_of(
        *bfs_cluster(label, idx, start_len, 1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_clouds_anywhere(dtype):
    """So many points to a cell that cells are joined as a whole, near the origin and where cells are rounded."""
    centers = torch.tensor([0.0, 0.2, -3e3, 1e9, 1e13, -1e30], dtype=torch.float64)
    coord = (
        torch.rand(6, 120, 3, dtype=torch.float64) * 0.3
        + centers[:, None, None] * torch.tensor([1.0, -0.3, 0.1]).double()
    )
    coord, label = coord.view(-1, 3).to(dtype)[torch.randperm(720)], torch.randint(0, 2, (720,))
    offset = torch.tensor([100, 720])
    idx, start_len = ball_query(coord, offset, 0.15)
    assert lists_of(idx, start_len) == lists_by_hand(coord, offset, 0.15)
    for got, expected in zip(
        cluster_points(coord, offset, label, 0.15, 2), bfs_cluster(label, idx, start_len, 2), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("radius", [1e-15, 1e15, 1e-6])
def test_extreme_radii(radius):
    coord = torch.cat(
        [torch.rand(60, 3), torch.rand(60, 3) * 1e-6, torch.rand(60, 3) * 1e-15, torch.rand(60, 3) * 1e15]
    )
    coord[30] = coord[31]
    offset, label = torch.tensor([200, 240]), torch.randint(0, 2, (240,))
    idx, start_len = ball_query(coord, offset, radius)
    assert lists_of(idx, start_len) == lists_by_hand(coord, offset, radius)
    assert clusters_of(*cluster_points(coord, offset, label, radius)) == clusters_of(
        *bfs_cluster(label, idx, start_len, 1)
    )


@pytest.mark.not_emulated
def test_keys_of_more_than_64_bits():
    """600,000 points none of which shares a cell number with another on any axis, and a few pairs among them."""
    steps = torch.stack([torch.randperm(600_000) for _ in range(3)], 1).double() * 16
    coord = torch.cat([steps, steps[:50] + 0.3])
    offset, label = torch.tensor([600_050]), torch.zeros(600_050, dtype=torch.int64)
    if not _library.native_loaded():
        pytest.skip("all pairs of so many points are too many for the twin")
    idx, start_len = ball_query(coord, offset, 0.6)
    assert start_len[:, 1].tolist() == [2] * 50 + [1] * 599_950 + [2] * 50
    assert clusters_of(*cluster_points(coord, offset, label, 0.6, 2)) == [[i, 600_000 + i] for i in range(50)]


def test_points_that_are_not_finite_are_alone():
    coord = torch.rand(40, 3)
    coord[3, 0], coord[9, 1], coord[11, 2] = float("nan"), float("inf"), -float("inf")
    offset, label = torch.tensor([40]), torch.zeros(40, dtype=torch.int64)
    idx, start_len = ball_query(coord, offset, 3.0)
    assert [i for i, row in enumerate(lists_of(idx, start_len)) if not row] == [3, 9, 11]
    rest = [i for i in range(40) if i not in (3, 9, 11)]
    for clusters in (bfs_cluster(label, idx, start_len, 1), cluster_points(coord, offset, label, 3.0)):
        assert clusters_of(*clusters) == [rest, [3], [9], [11]]
    bad = torch.full((3, 3), float("nan"))
    assert ball_query(bad, torch.tensor([3]), 1.0)[0].numel() == 0
    assert cluster_points(bad, torch.tensor([3]), label[:3], 1.0)[1].tolist() == [0, 1, 2, 3]


def test_labels_of_any_value():
    coord, offset, label = cloud(400, 5)
    wide = torch.tensor([-(2**63), 2**63 - 1, 0, 5, -7])[label + 2]
    for got, expected in zip(
        cluster_points(coord, offset, wide, 0.1), cluster_points(coord, offset, label, 0.1), strict=True
    ):
        assert torch.equal(got, expected)
    each = torch.arange(400)  # all differ, and so do (item, label)
    assert cluster_points(coord, offset, each * 10_000_000, 1.0)[1].tolist() == list(range(401))


def test_offsets_of_32_bits():
    coord, offset, label = cloud(200, 3)
    for got, expected in zip(
        cluster_points(coord, offset.int(), label, 0.1), cluster_points(coord, offset, label, 0.1), strict=True
    ):
        assert torch.equal(got, expected)


def test_lists_in_any_place_and_one_sided():
    """pointgroup_ops' lists start in any order, and lists that others made may name a neighbour from one side only."""
    idx = torch.tensor([9, 4, 1, 0, 2, 2, 4], dtype=torch.int32)  # the first entry is of no list
    start_len = torch.tensor([[3, 1], [2, 1], [4, 2], [0, 0], [6, 1]], dtype=torch.int32)
    label = torch.zeros(5, dtype=torch.int64)
    assert clusters_of(*bfs_cluster(label, idx, start_len, 1)) == [[0], [1], [2], [3], [4]]
    start_len[3] = torch.tensor([1, 2])  # 3 names 4 and 1
    assert clusters_of(*bfs_cluster(label, idx, start_len, 1)) == [[0], [1, 3, 4], [2]]
    assert clusters_of(*_bfs_twin(label, idx, start_len, 1)) == [[0], [1, 3, 4], [2]]


def test_empty_and_non_contiguous():
    none, zero = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    for ends in ([0], [0, 0, 0]):
        idx, start_len = ballquery_batch_p(none, zero, torch.tensor(ends), 1.0)
        assert idx.shape == (0,) and start_len.shape == (0, 2)
    idxs, offsets = bfs_cluster(zero, idx, start_len, 1)
    assert idxs.shape == (0, 2) and offsets.tolist() == [0]
    for offset in (zero, torch.tensor([0, 0])):
        idxs, offsets = cluster_points(none, offset, zero, 1.0)
        assert idxs.shape == (0, 2) and offsets.tolist() == [0]
    coord, offset, label = cloud(100, 4)
    strided = torch.stack([coord, -coord], 2)[..., 0]
    assert not strided.is_contiguous()
    offset = torch.tensor([0, 60, 60, 100])  # items without points
    for got, expected in zip(ball_query(strided, offset, 0.2), ball_query(coord, offset, 0.2), strict=True):
        assert torch.equal(got, expected)
    twice = torch.stack([label, label], 1)[:, 0]
    for got, expected in zip(
        cluster_points(strided, offset, twice, 0.2), cluster_points(coord, offset, label, 0.2), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    coord, offset, label = cloud(4000, 2)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            idx, start_len = ball_query(coord, offset, 0.05)
            results.append(
                [idx, start_len, *bfs_cluster(label, idx, start_len, 2), *cluster_points(coord, offset, label, 0.05, 2)]
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.not_emulated
def test_too_many_neighbours_are_refused():
    if not _library.native_loaded():
        pytest.skip("counting so many pairs takes the twin too long")
    coord = torch.zeros(46_342, 3)  # its square is the first beyond int32
    with pytest.raises(RuntimeError, match="ballquery_batch_p: 2147580964 neighbours do not fit"):
        ball_query(coord, torch.tensor([46_342]), 1.0)
    idxs, offsets = cluster_points(coord, torch.tensor([46_342]), torch.zeros(46_342, dtype=torch.int64), 1.0)
    assert offsets.tolist() == [0, 46_342]


@pytest.mark.not_emulated
def test_a_real_scan(real_data):
    """ScanNet's scene0000_00: lists and fused clusters agree on all of it, the loop on a part."""
    if not _library.native_loaded():
        pytest.skip("a whole scan takes the twin too long")
    scan = np.load(real_data("scannet_scene0000_00") / "scene0000_00.npz")
    coord = torch.from_numpy(scan["coord"]).float()
    label = torch.from_numpy(scan["semantic_nyu40"].astype(np.int64))
    offset = torch.tensor([40_000, coord.size(0)])
    idx, start_len = ball_query(coord, offset, 0.05)
    for got, expected in zip(
        cluster_points(coord, offset, label, 0.05, 50), bfs_cluster(label, idx, start_len, 50), strict=True
    ):
        assert torch.equal(got, expected)
    part = torch.arange(0, coord.size(0), 40)
    lists = lists_of(*ball_query(coord[part], torch.tensor([len(part)]), 0.2))
    assert lists == lists_by_hand(coord[part], torch.tensor([len(part)]), 0.2)


def test_bad_arguments_are_named():
    coord, batch, ends = torch.rand(4, 3), torch.zeros(4, dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(TypeError, match="coords must be a float32 or float64 tensor, got list"):
        ballquery_batch_p([[0.0, 0, 0]], batch, ends, 1.0)
    for dtype in (torch.int64, torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"^ballquery_batch_p: coords must be a float32 or .*got {dtype}"):
            ballquery_batch_p(coord.to(dtype), batch, ends, 1.0)
        with pytest.raises(TypeError, match=f"cluster_points: coord must be a float32 or float64 tensor, got {dtype}"):
            cluster_points(coord.to(dtype), ends[1:], batch, 1.0)
    with pytest.raises(ValueError, match=r"coords must have shape \[N, 3\], got \(4, 2\)"):
        ballquery_batch_p(coord[:, :2], batch, ends, 1.0)
    with pytest.raises(TypeError, match="batch_idxs must be an int64 or int32 tensor, got torch.float32"):
        ballquery_batch_p(coord, batch.float(), ends, 1.0)
    with pytest.raises(ValueError, match=r"batch_idxs must have shape \[4\], got \(3,\)"):
        ballquery_batch_p(coord, batch[:3], ends, 1.0)
    with pytest.raises(ValueError, match="batch_idxs must be on cpu"):
        ballquery_batch_p(coord, batch.to("meta"), ends, 1.0)
    with pytest.raises(ValueError, match=r"batch_offsets must ascend to the number of points, 4, got \[3\]"):
        ballquery_batch_p(coord, batch, ends.clamp(max=3), 1.0)
    with pytest.raises(ValueError, match="batch_offsets must ascend"):
        ballquery_batch_p(coord, batch, torch.tensor([0, 5, 4]), 1.0)
    with pytest.raises(ValueError, match="batch_offsets must start with 0, got 1"):
        ballquery_batch_p(coord, batch, torch.tensor([1, 4]), 1.0)
    with pytest.raises(ValueError, match=r"batch_offsets must have shape \[B \+ 1\]"):
        ballquery_batch_p(coord, batch, ends[:0], 1.0)
    with pytest.raises(ValueError, match="disagree"):
        ballquery_batch_p(coord, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2, 4]), 1.0)
    with pytest.raises(TypeError, match="radius must be a number, got str"):
        ballquery_batch_p(coord, batch, ends, "1")
    for radius in (0, -1.0, float("nan"), float("inf"), 1e-16, 1e16):
        with pytest.raises(ValueError, match="radius must lie from 1e-15 to 1e\\+15, got"):
            ballquery_batch_p(coord, batch, ends, radius)

    idx, start_len = ballquery_batch_p(coord, batch, ends, 1.0)
    label = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match="semantic_label must be an int64 or int32 tensor, got torch.float32"):
        bfs_cluster(label.float(), idx, start_len, 1)
    with pytest.raises(TypeError, match="ball_query_idxs must be an int32 tensor, got torch.int64"):
        bfs_cluster(label, idx.long(), start_len, 1)
    with pytest.raises(ValueError, match=r"start_len must have shape \[4, 2\], got \(4,\)"):
        bfs_cluster(label, idx, start_len[:, 0], 1)
    with pytest.raises(TypeError, match="threshold must be an int, got float"):
        bfs_cluster(label, idx, start_len, 1.5)

    for wrong in (4, -1):
        with pytest.raises(IndexError, match=rf"^bfs_cluster: ball_query_idxs must lie in \[0, 4\), found {wrong}"):
            bfs_cluster(label, torch.where(torch.arange(16) == 6, wrong, idx).int(), start_len, 1)
    for row in ([13, 4], [-1, 2], [2, -1]):
        start_len[2] = torch.tensor(row)
        with pytest.raises(ValueError, match=r"^bfs_cluster: start_len must name .* has 16, got .* in row 2") as caught:
            bfs_cluster(label, idx, start_len, 1)
        assert str(row) in str(caught.value) and caught.value.__context__ is None
    with pytest.raises(TypeError, match="offset must be an int64 or int32 tensor, got torch.float32"):
        cluster_points(coord, ends[1:].float(), label, 1.0)
    with pytest.raises(ValueError, match=r"offset must ascend to the number of points, 4, got \[5\]"):
        cluster_points(coord, torch.tensor([5]), label, 1.0)
    with pytest.raises(ValueError, match=r"label must have shape \[4\], got \(5,\)"):
        cluster_points(coord, torch.tensor([4]), torch.zeros(5, dtype=torch.int64), 1.0)
    with pytest.raises(TypeError, match="min_points must be an int, got bool"):
        cluster_points(coord, torch.tensor([4]), label, 1.0, True)


def test_direct_calls_cannot_reach_foreign_memory():
    ops = torch.ops.pointcept3m
    coord, label = torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    for offset in ([5], [3], [5, 4], [-1, 4], []):
        with pytest.raises(RuntimeError, match="offset must ascend"):
            ops.ballquery_batch_p(coord, torch.tensor(offset, dtype=torch.int64), 1.0)
        with pytest.raises(RuntimeError, match="offset must ascend"):
            ops.cluster_points(coord, torch.tensor(offset, dtype=torch.int64), label, 1.0, 1)
    for idx, row in (
        ([4], [0, 1]),
        ([-1], [0, 1]),
        ([0], [0, 2]),
        ([0], [-1, 1]),
        ([0], [0, -1]),
        ([0], [2**31 - 1, 2**31 - 1]),
    ):
        start_len = torch.zeros(4, 2, dtype=torch.int32)
        start_len[2] = torch.tensor(row)
        with pytest.raises(RuntimeError, match="start_len names entries outside ball_query_idxs"):
            ops.bfs_cluster(label, torch.tensor(idx, dtype=torch.int32), start_len, 1)


def test_opcheck():
    coord, offset, label = cloud(30, 2)
    ops = torch.ops.pointcept3m
    torch.library.opcheck(ops.ballquery_batch_p.default, (coord, offset, 0.3))
    torch.library.opcheck(ops.bfs_cluster.default, (label, *ops.ballquery_batch_p(coord, offset, 0.3), 2))
    torch.library.opcheck(ops.cluster_points.default, (coord, offset, label, 0.3, 2))


def test_compiles_in_one_piece():
    coord, offset, label = cloud(50, 2)
    coord.requires_grad_()
    batch = torch.arange(2).repeat_interleave(offset.diff(prepend=offset.new_zeros(1)))
    ends = torch.cat([offset.new_zeros(1), offset])

    def run(coord, batch, ends, offset, label):
        idx, start_len = ballquery_batch_p(coord, batch, ends, 0.3)
        return idx * 2, *bfs_cluster(label, idx, start_len, 2), *cluster_points(coord, offset, label, 0.3, 2)

    arguments = coord, batch, ends, offset, label
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(got, run(*arguments), strict=True))
