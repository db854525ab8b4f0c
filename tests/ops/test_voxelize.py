"""ops.voxelize against numpy's lexicographic sort, hand-computed cases, its twin, and what breaks other voxelizers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pointcept3m.ops import _library
from pointcept3m.ops.voxelize import Voxels, _group_twin, _voxelize_twin, group_keys, voxelize

SIZES = [0, 1, 7, 8, 9, 333, 5000]
op = torch.ops.pointcept3m.voxelize


def by_hand(coord, size, batch=None, origin=None):
    """(grid_coord, lowest of each cloud, voxel -> its rows in ascending order) by a loop over points."""
    batch = np.zeros(len(coord), int) if batch is None else batch
    cells = np.floor((coord.astype(np.float64) - (0 if origin is None else np.array(origin))) / np.array(size)).astype(
        np.int64
    )
    lowest = np.zeros((batch.max() + 1, 3), np.int64)
    if origin is None:
        for b in np.unique(batch):
            lowest[b] = cells[batch == b].min(axis=0)
        cells -= lowest[batch]
    rows = {}
    for row, key in enumerate(zip(batch.tolist(), *cells.T.tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    return cells, lowest, [rows[key] for key in sorted(rows)]


def check(voxels: Voxels, cells, lowest, rows):
    assert voxels.grid_coord.tolist() == cells.tolist()
    assert voxels.lowest.tolist() == lowest.tolist()
    assert [r.tolist() for r in voxels.order.tensor_split(voxels.start[1:-1])] == rows
    assert voxels.counts.tolist() == [len(r) for r in rows]
    assert voxels.start.tolist() == [0, *np.cumsum([len(r) for r in rows])]
    assert all(voxels.inverse[r].tolist() == [v] * len(r) for v, r in enumerate(rows))
    assert {t.dtype for t in voxels} == {torch.int64}


def surface(count, seed=0):
    """Points on a wavy sheet of 3 m, as a scan has them."""
    random = np.random.default_rng(seed)
    xy = random.uniform(-1.5, 1.5, (count, 2))
    return np.column_stack([xy, np.sin(3 * xy[:, 0]) * np.cos(2 * xy[:, 1])])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0.05, (0.2, 0.03, 1.0)])
def test_matches_a_loop(dtype, size):
    coord = surface(2000).astype(dtype)
    cells, lowest, rows = by_hand(coord, size)
    check(voxelize(torch.from_numpy(coord), size), cells, lowest[0], rows)


@pytest.mark.parametrize("origin", [None, (0.1, -0.2, 5.0)])
def test_clouds_share_no_voxel(origin):
    coord, batch = surface(1500), np.random.default_rng(1).integers(0, 4, 1500)
    batch[batch == 2] = 3  # cloud 2 is empty
    voxels = voxelize(torch.from_numpy(coord), 0.1, batch=torch.from_numpy(batch), origin=origin)
    check(voxels, *by_hand(coord, 0.1, batch, origin))
    in_order = np.argsort(batch, kind="stable")
    ends = torch.from_numpy(np.bincount(batch, minlength=6).cumsum())  # two empty clouds at the end
    voxels = voxelize(torch.from_numpy(coord[in_order]), 0.1, offset=ends, origin=origin)
    cells, lowest, rows = by_hand(coord[in_order], 0.1, batch[in_order], origin)
    check(voxels, cells, np.concatenate([lowest, np.zeros((2, 3), int)]), rows)


def test_small_case_by_hand():
    coord = torch.tensor([[0.0, 0, 0], [-0.5, 0.9, 2.5], [0.9, 0.1, 0.2], [-0.1, 0.5, 2.0], [0.5, 0.5, 0.5]])
    voxels = voxelize(coord, 1.0)
    assert voxels.grid_coord.tolist() == [[1, 0, 0], [0, 0, 2], [1, 0, 0], [0, 0, 2], [1, 0, 0]]
    assert voxels.lowest.tolist() == [-1, 0, 0]
    assert voxels.inverse.tolist() == [1, 0, 1, 0, 1]
    assert voxels.counts.tolist() == [2, 3]
    assert voxels.order.tolist() == [1, 3, 0, 2, 4]
    assert voxels.start.tolist() == [0, 2, 5]
    assert voxels.sample(torch.tensor([0.49, 0.99])).tolist() == [1, 4]
    assert voxels.sample(torch.tensor([0.5, 0.0], dtype=torch.float64)).tolist() == [3, 0]
    assert [f.tolist() for f in voxels.fragments()] == [[1, 0], [3, 2], [1, 4]]
    assert torch.equal(voxelize(coord, 1.0, origin=(0.0, 0.0, 0.0)).grid_coord[1], torch.tensor([-1, 0, 2]))


def test_order_is_x_then_y_then_z():
    cells = torch.cartesian_prod(*(torch.arange(k) for k in (3, 5, 7)))
    shuffled = cells[torch.randperm(105)]
    voxels = voxelize(shuffled.float() + 0.5, 1.0)
    assert torch.equal(shuffled[voxels.order], cells)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_are_those_of_float64_division(dtype):
    """Coordinates on the faces of cells, where x * (1 / size) or float32 arithmetic would round to another cell."""
    steps = torch.arange(-3000, 3000, dtype=torch.float64)
    others = 0
    for size in (0.01, 0.02, 0.05, 0.07, 0.1, 0.3):
        coord = (steps * size).to(dtype)[:, None].expand(-1, 3)
        expected = np.floor(coord[:, 0].double().numpy() / np.float64(size)).astype(np.int64)
        voxels = voxelize(coord, size)
        assert np.array_equal((voxels.grid_coord + voxels.lowest)[:, 0].numpy(), expected)
        others += (np.floor(coord[:, 0].double().numpy() * (1 / np.float64(size))) != expected).sum()
    assert others > 0 or dtype == torch.float32  # the faces are where it matters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("origin", [[], [0.1, -3.0, 0.0]])
def test_kernel_matches_twin(dtype, count, batched, origin):
    coord = torch.randn(count, 3, dtype=dtype)
    batch = torch.randint(0, 5, (count,)) if batched else None
    arguments = (coord, [0.1, 0.2, 0.05], batch, -1 if batched else 1, origin)
    for got, expected in zip(op(*arguments), _voxelize_twin(*arguments), strict=True):
        assert got.shape == expected.shape and torch.equal(got, expected)


@pytest.mark.parametrize("width", [1, 1e3, 1e5, 3e5])
def test_keys_of_all_widths(width):
    """From keys of a few bits to some of 55, which share no word with their row."""
    coord = torch.rand(2000, 3, dtype=torch.float64) * width
    coord = torch.cat([coord, coord[::3], coord[:5]])
    for got, expected in zip(
        op(coord, [1.0] * 3, None, 1, []), _voxelize_twin(coord, [1.0] * 3, None, 1, []), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.not_emulated
def test_many_points_and_threads_give_the_same_bits():
    coord = torch.from_numpy(surface(150_000)).float()
    far = torch.cat([coord, coord + 25_000])  # wide keys
    same = torch.zeros(100_000, 3)  # one voxel for all parts that threads share
    batch = torch.randint(0, 3, (150_000,))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(
                [*voxelize(coord, 0.02), *voxelize(far, 0.02), *voxelize(same, 1), *voxelize(coord, 0.1, batch=batch)]
            )
            results[-1] += group_keys(coord[:, 0].mul(100).long())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    for got, expected in zip(results[0][:6], _voxelize_twin(coord, [0.02] * 3, None, 1, []), strict=True):
        assert torch.equal(got if got.shape == expected.shape else got[None], expected)


def test_points_in_order_of_voxels_stay():
    coord = torch.from_numpy(surface(3000))
    ordered = coord[voxelize(coord, 0.1).order]
    voxels = voxelize(ordered, 0.1)
    assert torch.equal(voxels.order, torch.arange(3000)) and (voxels.inverse.diff() >= 0).all()


def test_sample_is_uniform_in_each_voxel():
    coord = torch.cat([torch.zeros(3, 3), torch.ones(100, 3)])
    voxels = voxelize(coord, 0.5)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([voxels.sample(torch.rand(2, generator=generator)) for _ in range(6000)])
    assert (draws[:, 0].bincount(minlength=3) - 2000).abs().max() < 5 * (6000 * 2 / 9) ** 0.5
    assert len(draws[:, 1].unique()) == 100
    assert torch.corrcoef(draws.T.double())[0, 1].abs() < 0.07  # one draw for both would tie them
    largest = voxels.sample(torch.full((2,), 1 - 2**-53, dtype=torch.float64))
    assert largest.tolist() == [2, 102]


def test_fragments_hold_every_point():
    voxels = voxelize(torch.from_numpy(surface(3000)), 0.3)
    parts = voxels.fragments()
    most = int(voxels.counts.argmax())
    assert len(parts) == voxels.counts.max()
    assert torch.cat(parts).unique().tolist() == list(range(3000))
    assert torch.equal(torch.stack([p[most] for p in parts]), voxels.order[voxels.start[most] : voxels.start[most + 1]])
    for part in parts:
        assert torch.equal(voxels.inverse[part], torch.arange(len(voxels.counts)))
    assert all(torch.equal(parts[i], parts[0]) for i in range(1, len(parts)) if (i % voxels.counts == 0).all())


def test_empty():
    for arguments in (
        dict(),
        dict(batch=torch.zeros(0, dtype=torch.int64)),
        dict(offset=torch.zeros(0, dtype=torch.int64)),
    ):
        voxels = voxelize(torch.zeros(0, 3), 0.1, **arguments)
        assert voxels.grid_coord.shape == (0, 3) and voxels.start.tolist() == [0] and len(voxels.counts) == 0
        assert voxels.lowest.shape == ((0, 3) if arguments else (3,))
        assert voxels.fragments() == [] and voxels.sample(torch.zeros(0)).shape == (0,)
    assert voxelize(torch.zeros(0, 3), 0.1, offset=torch.zeros(3, dtype=torch.int64)).lowest.tolist() == [[0, 0, 0]] * 3


def test_non_contiguous_and_needing_grad():
    coord = torch.randn(6, 400).t()[:, ::2]
    assert not coord.is_contiguous()
    batch = torch.randint(0, 3, (800,))[::2]
    got = voxelize(coord.clone().requires_grad_()[:, :3], 0.5, batch=batch)
    expected = voxelize(coord.contiguous(), 0.5, batch=batch.contiguous())
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "keys", [[], [5], [3, -1, 3, 2, -1], [2**63 - 1, -(2**63), 0, 2**63 - 1], [2**63 - 1] * 3, [-(2**63)] * 2]
)
def test_group_keys_takes_any_int64(keys):
    groups = group_keys(torch.tensor(keys, dtype=torch.int64))
    values, inverse, counts = np.unique(np.array(keys, np.int64), return_inverse=True, return_counts=True)
    assert groups.inverse.tolist() == inverse.tolist()
    assert groups.start.tolist() == [0, *counts.cumsum()]
    assert groups.order.tolist() == np.argsort(np.array(keys, np.int64), kind="stable").tolist()
    assert torch.tensor(keys, dtype=torch.int64)[groups.order[groups.start[:-1]]].tolist() == values.tolist()


@pytest.mark.parametrize("spread", [3, 1000, 2**40, 2**62])
def test_group_keys_matches_twin(spread):
    keys = torch.randint(-spread, spread, (4000,))
    keys = torch.cat([keys, keys[::2]])
    for got, expected in zip(group_keys(keys), _group_twin(keys), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "coord, message",
    [
        (
            [[0, 0, 0], [0, float("nan"), 0], [0, 0, float("inf")]],
            r"2 points are not finite, the first is row 1: \[0.0, nan, 0.0\]",
        ),
        ([[-float("inf"), 0, 0]], r"1 points are not finite, the first is row 0: \[-inf"),
        ([[0, 0, 0], [1e30, 0, 0]], r"a grid of \[0.01, 0.01, 0.01\] m over .* has 1e\+32 cells, more than 2\^62"),
        ([[1e30, 1e30, 1e30]], r"more than 2\^62"),
        ([[0, 0, 0], [1e6, 1e6, 1e6]], r"has 1e\+24 cells, more than 2\^62; is the cloud in metres"),
    ],
)
@pytest.mark.parametrize("padding", [0, 40])
def test_what_would_break_silently_is_refused(coord, message, padding):
    coord = torch.tensor(coord + [[0.0, 0, 0]] * padding)
    with pytest.raises(ValueError, match=message):
        voxelize(coord, 0.01)
    with pytest.raises((RuntimeError, ValueError)):
        op(coord, [0.01] * 3, None, 1, [])


def test_far_from_zero_is_fine():
    coord = torch.tensor([[1e15, -1e15, 0.0], [1e15 + 4, -1e15, 1.0]], dtype=torch.float64)
    assert voxelize(coord, 0.5).grid_coord.tolist() == [[0, 0, 0], [8, 0, 2]]
    # an extent that float64 does not hold: the last cell of a cloud must not fall on the first of the next one
    ends = torch.zeros(4, 3, dtype=torch.float64)
    ends[:, 0] = torch.tensor([-1e16, 1e16, -1e16, 1e16])
    assert voxelize(ends, 0.5, batch=torch.tensor([0, 0, 1, 1])).inverse.tolist() == [0, 1, 2, 3]


def test_bad_arguments_are_named():
    coord, batch = torch.rand(4, 3), torch.tensor([0, 0, 1, 1])
    for arguments, error, message in [
        ((coord.half(), 1.0), TypeError, "coord must be a float32 or float64 tensor, got torch.float16"),
        ((coord.long(), 1.0), TypeError, "got torch.int64"),
        ((coord.numpy(), 1.0), TypeError, "got ndarray"),
        ((coord[:, :2], 1.0), ValueError, r"shape \[N, 3\], got \(4, 2\)"),
        ((coord, 0.0), ValueError, "grid_size must be positive, got 0.0"),
        ((coord, (1, -1, 1)), ValueError, r"grid_size must be positive, got \(1, -1, 1\)"),
        ((coord, float("nan")), ValueError, "one finite number or three, got nan"),
        ((coord, (1, 2)), ValueError, r"one finite number or three, got \(1, 2\)"),
        ((coord, "small"), TypeError, "grid_size must be numbers, got 'small'"),
        ((coord, 1, None, None, 0.0), TypeError, "origin must be numbers, got 0.0"),
        ((coord, 1, None, None, (0, 0, float("inf"))), ValueError, "origin must be three finite numbers"),
        ((coord, 1, batch.int()), TypeError, "batch must be an int64 tensor, got torch.int32"),
        ((coord, 1, batch[:3]), ValueError, r"batch must have shape \[4\], one number for each point, got \(3,\)"),
        ((coord, 1, batch - 1), ValueError, r"batch must lie in \[0, 16777216\), found -1"),
        ((coord, 1, batch * 2**40), ValueError, r"found 1099511627776"),
        ((coord, 1, batch, batch), ValueError, "batch or offset, not both"),
        ((coord, 1, None, torch.tensor([2, 3])), ValueError, r"offset must ascend to the number of points, 4, got \[2, 3\]"),
        ((coord.half(), 1), TypeError, "voxelize: coord must be a float32 or float64 tensor, got torch.float16"),
        ((coord, 1, None, torch.tensor([4.0])), TypeError, "offset must be an int64 or int32 tensor, got torch.float32"),
        ((coord, 1, None, torch.tensor([5, 3, 4])), ValueError, r"got \[5, 3, 4\]"),
        ((coord, 1, None, torch.zeros(0, dtype=torch.int64)), ValueError, r"4, got \[\]"),
        ((coord, 1, None, torch.tensor([[4]])), ValueError, r"offset must have shape \[B\], got \(1, 1\)"),
        (
            (coord, 1, None, torch.ones(1, dtype=torch.int64).expand(2**24 + 1)),
            ValueError,
            "at most 16777216 clouds .* has 16777217",
        ),
        ((coord, 1, batch.to("meta")), ValueError, "batch must be on cpu as coord is, got meta"),
    ]:
        with pytest.raises(error, match=message):
            voxelize(*arguments)
    voxels = voxelize(coord, 0.01)
    for random, error, message in [
        (torch.zeros(3), ValueError, r"one number for each of 4 voxels, got shape \(3,\)"),
        (torch.ones(4), ValueError, r"must lie in \[0, 1\)"),
        (torch.full((4,), -0.1), ValueError, r"must lie in \[0, 1\)"),
        (torch.full((4,), float("nan")), ValueError, r"must lie in \[0, 1\)"),
        (torch.zeros(4, dtype=torch.int64), TypeError, "float32 or float64 tensor, got torch.int64"),
    ]:
        with pytest.raises(error, match=message):
            voxels.sample(random)
    with pytest.raises(TypeError, match="keys must be an int64 tensor, got torch.float32"):
        group_keys(coord[:, 0])
    with pytest.raises(ValueError, match=r"shape \[N\], got \(2, 2\)"):
        group_keys(batch.reshape(2, 2))


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.rand(4, 3), [1.0, 1.0, -1.0], None, 1, []),
        (torch.rand(4, 3), [1.0], None, 1, []),
        (torch.rand(4, 3), [1.0] * 3, torch.tensor([0, 1, 2, 3]), 3, []),
        (torch.rand(4, 3), [1.0] * 3, torch.tensor([0, 1, -2, 3]), 4, []),
        (torch.rand(4, 3), [1.0] * 3, torch.tensor([0, 1, 0, 1]), 2**45, []),
        (torch.rand(4, 3), [1.0] * 3, torch.tensor([0, 1]), 2, []),
        (torch.rand(4, 3), [1.0] * 3, None, 1, [0.0]),
        (torch.rand(4, 2), [1.0] * 3, None, 1, []),
    ],
)
def test_direct_calls_reach_no_foreign_memory(arguments):
    if not _library.native_loaded():
        pytest.skip("the twin has no memory of its own to leave")
    with pytest.raises((RuntimeError, ValueError)):
        op(*arguments)


def test_opcheck():
    coord, batch = torch.rand(30, 3, dtype=torch.float64), torch.randint(0, 3, (30,))
    torch.library.opcheck(op.default, (coord, [0.3] * 3, None, 1, []))
    torch.library.opcheck(op.default, (coord.float(), [0.3] * 3, batch, -1, [0.0] * 3))
    torch.library.opcheck(torch.ops.pointcept3m.group_keys.default, (batch,))


def test_compiles_in_one_piece():
    coord = torch.rand(50, 3)

    def run(coord, offset):
        voxels = voxelize(coord, 0.3, offset=offset)
        mean = torch.zeros(len(voxels.counts), 3).index_add(0, voxels.inverse, coord) / voxels.counts[:, None]
        return mean, voxels.sample((voxels.counts * 17 % 10) / 10), group_keys(voxels.inverse).start

    offset = torch.tensor([20, 20, 50])
    for got, expected in zip(
        torch.compile(run, fullgraph=True, backend="aot_eager")(coord, offset), run(coord, offset), strict=True
    ):
        torch.testing.assert_close(got, expected)


class Clouds(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        voxels = voxelize(torch.from_numpy(surface(40_000, index)), 0.05)
        return voxels.sample(torch.rand(len(voxels.counts), generator=torch.Generator().manual_seed(index)))


@pytest.mark.not_emulated
def test_forked_workers_do_not_hang():
    """Workers are forked after torch has started threads, whose pool does not survive the fork."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        expected = [Clouds()[i] for i in range(6)]
        loader = DataLoader(Clouds(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_real_sweep(real_data):
    coord = np.load(real_data("spconv_cloud") / "benchmark-pc.npz")
    coord = torch.from_numpy(coord[coord.files[0]][:, :3].copy())
    voxels = voxelize(coord, 0.1)
    cells = np.floor(coord.double().numpy() / 0.1).astype(np.int64)
    unique, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    assert np.array_equal(voxels.inverse.numpy(), inverse.reshape(-1)) and np.array_equal(voxels.counts.numpy(), counts)
    first = voxels.order[voxels.start[:-1]]
    assert np.array_equal((voxels.grid_coord + voxels.lowest)[first].numpy(), unique)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    coord = torch.from_numpy(surface(100_000))
    batch = torch.randint(0, 3, (100_000,))
    for dtype in (torch.float32, torch.float64):
        for arguments in (dict(), dict(batch=batch), dict(origin=(0.1, 0.2, 0.3))):
            there = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
            got, expected = (
                voxelize(coord.to(dtype).cuda(), 0.02, **there),
                voxelize(coord.to(dtype), 0.02, **arguments),
            )
            assert all(torch.equal(a.cpu(), b) for a, b in zip(got, expected, strict=True))


def test_offsets_of_32_bits():
    coord, offset = torch.rand(60, 3), torch.tensor([20, 20, 60])
    for got, expected in zip(voxelize(coord, 0.1, offset=offset.int()), voxelize(coord, 0.1, offset=offset), strict=True):
        assert torch.equal(got, expected)
