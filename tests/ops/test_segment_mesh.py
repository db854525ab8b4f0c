"""ops.segment_mesh against meshes whose segments are known, a plain loop over sets, and its twin."""

import numpy as np
import pytest
import torch

from pointcept3m.ops.segment_mesh import _segment_mesh_twin, _segment_point_twin, segment_mesh, segment_point


def grid_faces(rows, columns):
    """Two triangles for each square of a lattice whose vertices stand row by row."""
    at = torch.arange(rows * columns).view(rows, columns)
    a, b, c, d = at[:-1, :-1], at[:-1, 1:], at[1:, :-1], at[1:, 1:]
    return torch.cat([torch.stack([a, b, c], 2).view(-1, 3), torch.stack([b, d, c], 2).view(-1, 3)])


def height_field(height, step=0.1):
    """A mesh over a lattice with these heights; its faces look up."""
    rows, columns = height.shape
    x, y = torch.meshgrid(torch.arange(columns) * step, torch.arange(rows) * step, indexing="xy")
    return torch.stack([x.to(height), y.to(height), height], 2).view(-1, 3), grid_faces(rows, columns)


def box(n):
    """The surface of a cube of (n + 1)^3 lattice points, and the side that each vertex lies inside of, or -1."""
    axis = torch.arange(n + 1)
    points, faces, shift = [], [], 0
    for d in range(3):
        for end in (0, n):
            u, v = torch.meshgrid(axis, axis, indexing="ij")
            side = torch.stack([torch.full_like(u, end), u, v], 2).roll(d, 2).view(-1, 3)
            triangles = grid_faces(n + 1, n + 1) + shift
            points.append(side)
            faces.append(triangles.flip(1) if end == 0 else triangles)
            shift += len(side)
    vertices, inverse = torch.cat(points).unique(dim=0, return_inverse=True)
    on = (vertices == 0) | (vertices == n)
    inside = on.sum(1) == 1
    side = torch.where(inside, 2 * on.int().argmax(1) + (vertices == n).any(1), -1)
    return vertices.double(), inverse[torch.cat(faces)], side


def bumpy(rows=14, columns=17, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    height = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 0.03
    height[:, columns // 2 :] += torch.arange(columns - columns // 2) * 0.15
    vertices, faces = height_field(height)
    faces = faces[torch.randperm(len(faces), generator=generator)]
    return vertices.to(dtype), faces


def segments_by_sets(points, normals, edges, k, min_size):
    """Felzenszwalb and Huttenlocher as in their paper: explicit sets, in numpy scalars of the points' dtype."""
    dtype = points.numpy().dtype.type
    points, normals = points.numpy(), normals.numpy()

    def dot(a, b):
        return (a[0] * b[0] + a[1] * b[1]) + a[2] * b[2]

    weighted = []
    for a, b in edges.tolist():
        step = points[b] - points[a]
        length = np.sqrt(dot(step, step))
        weight = dtype(1) - dot(normals[a], normals[b])
        bulges = length > 0 and dot(normals[b], step / length) > 0
        weighted.append((weight * weight if bulges else weight, a, b))
    weighted.sort(key=lambda edge: edge[0])
    owner = {i: frozenset([i]) for i in range(len(points))}
    heaviest = {owner[i]: dtype(0) for i in owner}

    def join(a, b):
        union = owner[a] | owner[b]
        owner.update(dict.fromkeys(union, union))
        return union

    for weight, a, b in weighted:
        sets = owner[a], owner[b]
        if sets[0] is not sets[1] and all(weight <= heaviest[s] + dtype(k) / dtype(len(s)) for s in sets):
            heaviest[join(a, b)] = weight
    for _, a, b in weighted:
        if owner[a] is not owner[b] and min(len(owner[a]), len(owner[b])) < min_size:
            join(a, b)
    number = {}
    return [number.setdefault(owner[i], len(number)) for i in range(len(points))]


def normals_by_hand(vertices, faces):
    points = vertices.numpy()
    normals, count = np.zeros_like(points), np.zeros(len(points), int)
    for face in faces.tolist():
        n = np.cross(points[face[1]] - points[face[0]], points[face[2]] - points[face[0]])
        for corner in face:
            normals[corner] += n / np.linalg.norm(n)
            count[corner] += 1
    return torch.from_numpy(normals / count[:, None])


def test_a_roof_has_two_sides_where_it_is_steep():
    ramp = torch.cat([torch.arange(12.0), torch.arange(10.0, -1, -1)]) * 0.1
    for slope, sides in ((1.0, 2), (0.05, 1)):
        vertices, faces = height_field((ramp * slope).repeat(30, 1))
        index = segment_mesh(vertices, faces)
        assert index.dtype == torch.int64 and index.shape == (30 * 23,)
        on_left, on_right = index.view(30, 23)[:, :11], index.view(30, 23)[:, 12:]
        assert len(on_left.unique()) == len(on_right.unique()) == 1
        assert len(torch.cat([on_left, on_right], 1).unique()) == sides


def test_a_valley_splits_where_a_ridge_does_not():
    """The weight is squared where the surface is convex: the same angle divides a valley and not a ridge."""
    ramp = torch.cat([torch.arange(12.0), torch.arange(10.0, -1, -1)]) * 0.1
    parts = []
    for sign in (1, -1):
        vertices, faces = height_field((sign * 0.3 * ramp).repeat(30, 1).double())
        index = segment_mesh(vertices, faces, kThresh=3.0).view(30, 23)
        parts.append(len(torch.cat([index[:, :11], index[:, 12:]], 1).unique()))
    assert parts == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_has_six_sides(dtype):
    vertices, faces, side = box(9)
    index = segment_mesh(vertices.to(dtype) * 0.05 + 2, faces)
    pairs = torch.stack([side, index], 1)[side >= 0].unique(dim=0)
    assert len(pairs) == 6 and len(pairs[:, 1].unique()) == 6


def test_a_sphere_is_one_segment():
    theta, phi = torch.linspace(0.05, 3.09, 60), torch.arange(120) * (2 * torch.pi / 120)
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    sphere = torch.stack([t.sin() * p.cos(), t.sin() * p.sin(), t.cos()], 2).view(-1, 3)
    assert segment_mesh(sphere, grid_faces(60, 120), kThresh=1.0).unique().tolist() == [0]


def test_weights_and_limits_by_hand():
    """Points on a line with normals across it, so that no edge is convex and weighs 1 - cos of the angle between."""
    angle = torch.tensor([0.0, 0.0, 0.4, 1.2], dtype=torch.float64)
    points = torch.arange(4.0).double()[:, None] * torch.tensor([1.0, 0, 0]).double()
    normals = torch.stack([torch.zeros(4).double(), angle.cos(), angle.sin()], 1)
    edges = torch.tensor([[0, 1], [1, 2], [2, 3]])  # weigh 0, 0.079 and 0.303
    # Two joined points may be joined further by up to k / 2, three by 0.079 + k / 3, and one alone by k.
    for k, expected in (
        (0.05, [0, 0, 1, 2]),
        (0.15, [0, 0, 1, 2]),
        (0.16, [0, 0, 0, 1]),
        (0.66, [0, 0, 0, 1]),
        (0.68, [0, 0, 0, 0]),
    ):
        assert segment_point(points, normals, edges, k, 1).tolist() == expected
    assert segment_point(points, normals, edges, 0.05, 2).tolist() == [0, 0, 0, 0]  # 2 joins 1 first, then 3
    assert segment_point(points, normals, edges[[0, 2]], 0.05, 2).tolist() == [0, 0, 1, 1]
    assert segment_point(points, normals, edges[[0]], 0.05, 5).tolist() == [0, 0, 1, 2]  # nobody to join


@pytest.mark.parametrize("k, min_size", [(0.01, 20), (0.001, 3), (0.3, 1), (0.05, 7), (0, 1)])
def test_matches_a_loop_over_sets(k, min_size):
    vertices, faces = bumpy()
    normals = normals_by_hand(vertices, faces)
    edges = torch.cat([faces[:, [0, 1]], faces[:, [0, 2]], faces[:, [2, 1]]], 1).view(-1, 2)
    expected = segments_by_sets(vertices, normals, edges, k, min_size)
    assert segment_point(vertices, normals, edges, k, min_size).tolist() == expected
    assert segment_mesh(vertices, faces, k, min_size).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_match_twins(dtype):
    for k, min_size in ((0.01, 20), (0.002, 1), (0.1, 5)):
        vertices, faces = bumpy(20, 25, dtype)
        vertices = vertices * 1.7 + 0.3
        index = segment_mesh(vertices, faces, k, min_size)
        assert torch.equal(index, _segment_mesh_twin(vertices, faces, k, min_size))
        normals = torch.nn.functional.normalize(
            torch.randn(500, 3, dtype=dtype) * 0.1 + torch.tensor([0.0, 0, 1]).to(dtype)
        )
        edges = torch.randint(0, 500, (1800, 2))
        points = segment_point(vertices, normals, edges, k, min_size)
        assert torch.equal(points, _segment_point_twin(vertices, normals, edges, k, min_size))
        for ids in (index, points):  # numbered by their first vertices
            first = torch.stack([(ids == i).nonzero()[0, 0] for i in range(int(ids.max()) + 1)])
            assert torch.equal(first, first.sort().values)


def test_faces_without_area_change_nothing():
    vertices, faces = bumpy()
    index = segment_mesh(vertices, faces)
    flat = faces[:40, [0, 1, 1]]  # also edges of length 0
    assert torch.equal(segment_mesh(vertices, torch.cat([faces, flat])), index)
    assert segment_mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]])).tolist() == [0, 0, 0]
    huge = torch.tensor([[0.0, 0, 0], [1e30, 0, 0], [0, 1e30, 0]])  # the area overflows
    assert segment_mesh(huge, torch.tensor([[0, 1, 2]]), 0.01, 1).tolist() == [0, 1, 2]


def test_empty_unused_and_non_contiguous():
    none = torch.zeros(0, 3)
    assert segment_mesh(none, torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    assert segment_mesh(torch.rand(3, 3), torch.zeros(0, 3, dtype=torch.int32)).tolist() == [0, 1, 2]
    assert segment_point(none, none, torch.zeros(0, 2, dtype=torch.int64)).dtype == torch.int64
    vertices, faces = bumpy(dtype=torch.float32)
    index = segment_mesh(vertices, faces)
    more = torch.cat([vertices, torch.rand(2, 3)])
    assert segment_mesh(more, faces.int()).tolist() == [*index.tolist(), int(index.max()) + 1, int(index.max()) + 2]
    assert torch.equal(segment_mesh(vertices.T.contiguous().T, faces.T.contiguous().T), index)


def test_the_same_for_any_number_of_threads():
    vertices, faces = bumpy(60, 60)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(segment_mesh(vertices, faces, 0.02, 10))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_bad_arguments_are_named():
    vertices, faces = torch.rand(4, 3), torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(TypeError, match="segment_mesh: vertices must be a tensor, got ndarray"):
        segment_mesh(vertices.numpy(), faces)
    for dtype in (torch.int64, torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"segment_mesh: vertices must be a float32 or float64 tensor, got {dtype}"):
            segment_mesh(vertices.to(dtype), faces)
        with pytest.raises(TypeError, match=f"segment_point: vertices must be a float32 or float64 tensor, got {dtype}"):
            segment_point(vertices.to(dtype), vertices.to(dtype), faces[:, :2])
    with pytest.raises(ValueError, match=r"vertices must have shape \[V, 3\], got \(4, 2\)"):
        segment_mesh(vertices[:, :2], faces)
    with pytest.raises(ValueError, match="runs on the CPU only, and vertices is on meta"):
        segment_mesh(vertices.to("meta"), faces)
    with pytest.raises(ValueError, match="runs on the CPU only, and faces is on meta"):
        segment_mesh(vertices, faces.to("meta"))
    with pytest.raises(TypeError, match="faces must be an int64 or int32 tensor, got torch.float32"):
        segment_mesh(vertices, faces.float())
    with pytest.raises(ValueError, match=r"faces must have shape \[rows, 3\], got \(2, 2\)"):
        segment_mesh(vertices, faces[:, :2])
    with pytest.raises(IndexError, match=r"faces must lie in \[0, 4\), found 4"):
        segment_mesh(vertices, faces + 1)
    with pytest.raises(IndexError, match="found -1"):
        segment_mesh(vertices, faces - 1)
    bad = vertices.clone()
    bad[2, 1] = float("nan")
    with pytest.raises(ValueError, match="vertices must be finite, got .*nan.* in row 2"):
        segment_mesh(bad, faces)
    with pytest.raises(ValueError, match="kThresh must be finite and not negative, got -1"):
        segment_mesh(vertices, faces, -1)
    with pytest.raises(TypeError, match="kThresh must be a number, got str"):
        segment_mesh(vertices, faces, "0.01")
    with pytest.raises(TypeError, match="segMinVerts must be an int, got float"):
        segment_mesh(vertices, faces, 0.01, 20.0)
    with pytest.raises(ValueError, match=r"segment_point: normals must be torch.float32 \[4, 3\] as vertices are"):
        segment_point(vertices, vertices[:3], faces[:, :2])
    with pytest.raises(ValueError, match="normals must be finite"):
        segment_point(vertices, bad, faces[:, :2])
    with pytest.raises(TypeError, match="normals must be a tensor, got NoneType"):
        segment_point(vertices, None, faces[:, :2])
    with pytest.raises(ValueError, match=r"edges must have shape \[rows, 2\], got \(2, 3\)"):
        segment_point(vertices, vertices, faces)


def test_direct_calls_cannot_reach_foreign_memory():
    ops = torch.ops.pointcept3m
    vertices = torch.rand(4, 3)
    for wrong in (-1, 4, 2**62):
        with pytest.raises(RuntimeError, match="vertices outside"):
            ops.segment_mesh(vertices, torch.tensor([[0, 1, wrong]]), 0.01, 20)
        with pytest.raises(RuntimeError, match="vertices outside"):
            ops.segment_point(vertices, vertices, torch.tensor([[0, wrong]]), 0.01, 20)
    with pytest.raises(RuntimeError, match="must be finite"):
        ops.segment_mesh(vertices / 0, torch.tensor([[0, 1, 2]]), 0.01, 20)


def test_opcheck_and_compile():
    vertices, faces = bumpy(6, 7, torch.float32)
    ops = torch.ops.pointcept3m
    torch.library.opcheck(ops.segment_mesh.default, (vertices, faces, 0.01, 5))
    torch.library.opcheck(ops.segment_point.default, (vertices, vertices, faces[:, :2].contiguous(), 0.01, 5))

    def run(vertices, faces):
        return segment_mesh(vertices, faces, 0.01, 5) + segment_point(vertices, vertices, faces[:, :2], 0.01, 5)

    got = torch.compile(run, fullgraph=True, backend="aot_eager")(vertices, faces)
    assert torch.equal(got, run(vertices, faces))
