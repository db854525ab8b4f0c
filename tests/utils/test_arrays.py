"""Columns of [N, 3] arrays: the quick way gives what numpy's plain one gives."""

import numpy as np
import pytest

from pointcept3m.utils.arrays import bounds, by_column, normal_noise


@pytest.mark.parametrize("count", [1, 2, 63, 127, 128, 129, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_at_every_length(count, dtype):
    points = np.random.randn(count, 3).astype(dtype)
    points[count // 2] = [9, -9, 0]  # a limit in the middle, in the last block or in the rest
    for array in (points, points.repeat(2, axis=0)[::2], np.asfortranarray(points)):
        low, high = bounds(array)
        assert low.tolist() == points.min(axis=0).tolist() and high.tolist() == points.max(axis=0).tolist()
        for function in (np.add, np.subtract, np.multiply):
            result = by_column(function, array, [1.5, -2.0, 0.25])
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, function(points, np.array([1.5, -2.0, 0.25], dtype)))


def test_columns_of_pictures_and_of_what_is_not_finite():
    pictures = np.random.rand(2, 5, 7, 3).astype(np.float32)
    np.testing.assert_array_equal(by_column(np.add, pictures, [1, 2, 3]), pictures + np.float32([1, 2, 3]))
    points = np.zeros((500, 3), np.float32)
    points[499, 1], points[3, 2] = np.nan, np.inf
    low, high = bounds(points)
    assert np.isnan(low[1]) and np.isnan(high[1]) and high[2] == np.inf and low[0] == 0
    assert by_column(np.add, np.zeros((0, 3), np.float32), [1, 2, 3]).shape == (0, 3)


def test_noise_is_normal_and_follows_the_seed_of_numpy():
    np.random.seed(4)
    first, second = normal_noise((20000, 3)), normal_noise((20000, 3))
    np.random.seed(4)
    np.testing.assert_array_equal(normal_noise((20000, 3)), first)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.04
    assert abs(first.mean()) < 0.02 and abs(first.std() - 1) < 0.02 and first.dtype == np.float32
    # shares of a normal distribution within 1, 2 and 3 deviations
    shares = [(np.abs(first) < k).mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.6827, 0.9545, 0.9973], atol=0.006)
