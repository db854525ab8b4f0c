"""What transforms compute, digit by digit: against scipy, against float64, and that their input stays as it was."""

import copy
import random

import numpy as np
import pytest
from scipy import interpolate, ndimage

from pointcept3m.datasets.builder import TRANSFORMS
from pointcept3m.datasets.transforms import Compose
from pointcept3m.datasets.transforms.geometry import elastic_distortion
from pointcept3m.utils.arrays import normal_noise
from tests.datasets.synthetic import cloud
from tests.datasets.test_transforms import AFFINE, PHOTOMETRIC


@pytest.fixture
def sample():
    return {k: v.astype(np.float32) if v.ndim == 2 else v.astype(np.int64) for k, v in cloud().items()}


def test_elastic_distortion_by_the_book(sample):
    """The field of one seed, by scipy: noise convolved with three boxes twice, then interpolated between the nodes."""
    coord = sample["coord"][:500] * 1.7 + [100, -50, 3]
    np.random.seed(7)
    moved = elastic_distortion(coord.astype(np.float32), 0.31, 0.9) - coord
    low = coord.min(axis=0)
    nodes = np.floor((coord.max(axis=0) - low) / 0.31).astype(int) + 3
    np.random.seed(7)
    noise = normal_noise((*nodes, 3))
    for _ in range(2):
        for axis in range(3):
            noise = ndimage.convolve1d(noise, [1 / 3] * 3, axis=axis, mode="constant")
    axes = [low[a] + 0.31 * np.arange(-1, nodes[a] - 1) for a in range(3)]
    field = interpolate.RegularGridInterpolator(axes, noise)(coord)
    np.testing.assert_allclose(moved, 0.9 * field, atol=3e-5)
    assert np.abs(field).max() > 0.1


def test_elastic_distortion_refuses_a_cloud_with_a_far_outlier(sample):
    sample["coord"][7] = 9000
    with pytest.raises(ValueError, match=r"ElasticDistortion: noise every 0.2 m .* nodes.*outliers"):
        TRANSFORMS.build(dict(type="ElasticDistortion", p=1))(sample)


@pytest.mark.parametrize("seed", range(3))
def test_affine_transforms_equal_float64_arithmetic(sample, seed):
    """Points and normals in float32 against the product of the matrices in float64."""
    matrices = []

    def note(transform):
        original = transform.matrix
        transform.matrix = lambda data: matrices.append(original(data)) or matrices[-1]
        return transform

    before = copy.deepcopy(sample)
    random.seed(seed)
    np.random.seed(seed)
    after = Compose([note(TRANSFORMS.build(cfg)) for cfg in AFFINE])(sample)
    total = np.eye(4)
    for matrix in matrices:
        total = total if matrix is None else matrix @ total
    coord = before["coord"].astype(np.float64) @ total[:3, :3].T + total[:3, 3]
    normal = before["normal"].astype(np.float64) @ np.linalg.inv(total[:3, :3])
    np.testing.assert_allclose(after["coord"], coord, atol=2e-6)
    np.testing.assert_allclose(after["normal"], normal / np.linalg.norm(normal, axis=1, keepdims=True), atol=2e-6)
    assert after["coord"].dtype == after["normal"].dtype == np.float32


def test_far_coordinates_in_float64_keep_their_digits():
    """A cloud in a country's grid: in float32 its points are half a metre apart at best."""
    coord = np.random.rand(200, 3) * 4 + [4.5e6, 5.6e6, 100]
    moved = TRANSFORMS.build(dict(type="CenterShift"))({"coord": coord.copy()})["coord"]
    np.testing.assert_allclose(moved - moved[0], coord - coord[0], atol=1e-6)


def test_transforms_leave_what_they_were_given(sample):
    """A cached or memory-mapped scene must not change under its samples."""
    arrays = {key: value for key, value in sample.items() if isinstance(value, np.ndarray)}
    kept = copy.deepcopy(arrays)
    for value in arrays.values():
        value.flags.writeable = False
    chain = [*AFFINE, dict(type="RandomJitter"), dict(type="ElasticDistortion", p=1), *PHOTOMETRIC[:2],
             dict(type="ChromaticJitter", p=1), dict(type="GridSample", grid_size=0.1)]  # fmt: skip
    Compose(chain)(dict(sample))
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, kept[key])
