"""farthest_point_sampling against a loop, its twin, and cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from pointcept3m.ops.sampling import _sampling_twin, farthest_point_sampling
from tests.ops.test_neighbours import SHAPES, cloud, halves

torch_ops = torch.ops.pointcept3m


def matches_twin(coord, offset, new_offset):
    got = farthest_point_sampling(coord, offset, new_offset)
    assert got.dtype == torch.int32
    assert torch.equal(got, _sampling_twin(coord, offset, new_offset, int(new_offset[-1])))
    return got


def test_small_cases_by_hand():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [10, 0, 0], [7, 0, 0], [4, 0, 0]])
    assert farthest_point_sampling(line, torch.tensor([6]), torch.tensor([6])).tolist() == [0, 3, 5, 4, 2, 1]
    # Two items: each starts with its first point and knows nothing of the other.
    assert farthest_point_sampling(line, torch.tensor([3, 6]), torch.tensor([2, 4])).tolist() == [0, 2, 3, 5]
    # A square: of equally far corners the first; then the other one.
    square = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]])
    assert farthest_point_sampling(square, torch.tensor([4]), torch.tensor([4])).tolist() == [0, 3, 1, 2]


def test_no_row_is_taken_twice():
    coord = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert farthest_point_sampling(coord, torch.tensor([5]), torch.tensor([5])).tolist() == [0, 1, 2, 3, 4]


def test_samples_are_the_farthest():
    coord = torch.randn(60, 3, dtype=torch.float64)
    idx = farthest_point_sampling(coord, torch.tensor([60]), torch.tensor([20])).tolist()
    for i in range(1, 20):
        to_samples = torch.cdist(coord, coord[idx[:i]]).min(dim=1).values
        assert idx[i] == int(to_samples.argmax())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_matches_twin(shape, dtype):
    coord = cloud(shape, 300, dtype)
    for share in (1, 5):
        matches_twin(coord, halves(300), torch.tensor([100 // share, 100 // share, 100 // share + 200 // share]))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 257])
def test_sizes_around_a_leaf(count):
    got = matches_twin(torch.randn(count, 3), torch.tensor([count]), torch.tensor([count]))
    assert got.sort().values.tolist() == list(range(count))


@pytest.mark.not_emulated
def test_real_scan(real_data):
    file = real_data("scannet_scene0000_00") / "scene0000_00.npz"
    coord = torch.from_numpy(np.load(file)["coord"]).float()[::10]
    matches_twin(coord, torch.tensor([len(coord)]), torch.tensor([300]))


def test_items_without_samples_or_points():
    coord = torch.randn(6, 3)
    assert farthest_point_sampling(coord, torch.tensor([2, 2, 6]), torch.tensor([0, 0, 2])).tolist()[0] == 2
    none = torch.zeros(0, dtype=torch.int64)
    assert farthest_point_sampling(coord[:0], none, none).shape == (0,)
    assert farthest_point_sampling(coord, torch.tensor([6]), torch.tensor([0])).shape == (0,)


@pytest.mark.not_emulated
def test_the_same_for_any_number_of_threads():
    coord = torch.rand(4000, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = farthest_point_sampling(coord, halves(4000), torch.tensor([60, 60, 200]))
        torch.set_num_threads(3)
        assert torch.equal(farthest_point_sampling(coord, halves(4000), torch.tensor([60, 60, 200])), alone)
    finally:
        torch.set_num_threads(threads)


def test_bad_arguments_are_named():
    coord, offset = torch.randn(5, 3), torch.tensor([2, 5])
    with pytest.raises(ValueError, match="0 to 2 samples of item 0, which has that many points, got 3"):
        farthest_point_sampling(coord, offset, torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="samples of item 1, .* got -1"):
        farthest_point_sampling(coord, offset, torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="offset tells of 2 items, new_offset of 1"):
        farthest_point_sampling(coord, offset, torch.tensor([4]))
    with pytest.raises(TypeError, match="new_offset must be an int64 or int32 tensor, got torch.float32"):
        farthest_point_sampling(coord, offset, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="offset must ascend to the number of points, 5"):
        farthest_point_sampling(coord, torch.tensor([2, 4]), offset)
    with pytest.raises(TypeError, match="got torch.int64"):
        farthest_point_sampling(coord.long(), offset, offset)
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"coord must be a float32 or float64 tensor, got {half}"):
            farthest_point_sampling(coord.to(half), offset, offset)
    coord[3, 1] = math.nan
    with pytest.raises(ValueError, match="1 points are not finite, the first is row 3"):
        farthest_point_sampling(coord, offset, offset)


def test_direct_calls_read_no_foreign_memory():
    coord, offset = torch.randn(5, 3), torch.tensor([2, 5])
    sample = torch_ops.farthest_point_sampling
    for ends, num_samples in (([3, 4], 4), ([2, 6], 6), ([2, 4], 5), ([-1, 4], 4), ([4, 2], 2), ([4], 4)):
        with pytest.raises((RuntimeError, ValueError)):
            sample(coord, offset, torch.tensor(ends), num_samples)
    for ends in ([2, 6], [3, 2, 5], [2, 4]):
        with pytest.raises((RuntimeError, ValueError)):
            sample(coord, torch.tensor(ends), torch.ones(len(ends), dtype=torch.int64).cumsum(0), len(ends))
    coord[0] = math.nan  # one finite point is left, two are wanted
    assert sample(coord, offset, torch.tensor([1, 2]), 2).tolist() == [1, 2]
    with pytest.raises((RuntimeError, ValueError)):
        sample(coord, offset, offset, 5)


def test_opcheck_and_compile():
    coord, offset, ends = torch.randn(9, 3), torch.tensor([4, 9]), torch.tensor([2, 5])
    torch.library.opcheck(torch_ops.farthest_point_sampling.default, (coord, offset, ends, 5))
    run = torch.compile(lambda *a: farthest_point_sampling(*a) * 2, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        assert torch.equal(run(coord, offset, ends), farthest_point_sampling(coord, offset, ends) * 2)


def test_offsets_of_32_bits_and_the_name_of_pointops():
    coord, offset, ends = torch.randn(9, 3), torch.tensor([4, 9]), torch.tensor([2, 5])
    expected = farthest_point_sampling(coord, offset, ends)
    assert torch.equal(farthest_point_sampling(xyz=coord, offset=offset.int(), new_offset=ends.int()), expected)
