"""Graph-based over-segmentation of meshes and points, as ScanNet's `.segs.json` are made; pointseg's functions.

Felzenszwalb and Huttenlocher (2004): neighbours are joined in the order of how much their normals differ, as long as
the difference is not large for the segments on both sides. The weights are those of ScanNet's Segmentator. It does
not say in which order edges of equal weight are taken; here it is the order in which they stand.
"""

import math

import torch
from torch import Tensor

from pointcept3m.ops import _library
from pointcept3m.ops._checks import INTS, check_int, check_number, check_points, check_range, check_shape, check_tensor


def segment_mesh(vertices: Tensor, faces: Tensor, kThresh: float = 0.01, segMinVerts: int = 20) -> Tensor:
    """Splits the vertices of a mesh into smooth segments. CPU only, as its steps depend on one another.

    Arguments and meaning are those of pointseg (Pointcept) and of ScanNet's Segmentator. A vertex' normal is the mean
    of the normals of its faces (a face without area has none), an edge weighs 1 - n1 . n2, squared where the surface
    is convex; two segments are joined by an edge that weighs at most kThresh / size more than the heaviest edge in
    either; at last segments of fewer than `segMinVerts` vertices are joined to a neighbour. O(F log F).

    Args:
        vertices: float32 or float64 [V, 3], finite, in any unit; half precision is refused.
        faces: int32 or int64 [F, 3], vertices of the triangles.
        kThresh: larger values give larger segments.
        segMinVerts: the fewest vertices of a segment, but for parts of the mesh that are smaller.

    Returns: int64 [V], the segment of each vertex, numbered in the order of their first vertices. A vertex of no face
    is a segment of its own.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    op = "segment_mesh"
    vertices = _check_vectors(op, "vertices", vertices)
    faces = _check_indices(op, "faces", faces, 3, vertices)
    _check_parameters(op, kThresh, segMinVerts)
    return torch.ops.pointcept3m.segment_mesh(vertices, faces, float(kThresh), int(segMinVerts))


def segment_point(
    vertices: Tensor, normals: Tensor, edges: Tensor, kThresh: float = 0.01, segMinVerts: int = 20
) -> Tensor:
    """`segment_mesh` of points with known normals and neighbours, as of a k-nearest-neighbour graph. CPU only.

    Args:
        vertices: float32 or float64 [V, 3], finite, in any unit; half precision is refused.
        normals: [V, 3], finite, of unit length, of the dtype of `vertices`.
        edges: int32 or int64 [E, 2], pairs of neighbours. The weight is squared where the second's normal leans away
            from the first, so that an edge and its reverse may weigh differently.
        kThresh: larger values give larger segments.
        segMinVerts: the fewest points of a segment, but for parts of the graph that are smaller.

    Returns: int64 [V], the segment of each point, numbered in the order of their first points.

    Raises: TypeError, ValueError or IndexError where an argument does not fit.
    """
    op = "segment_point"
    given = vertices
    vertices = _check_vectors(op, "vertices", vertices)
    if isinstance(normals, Tensor) and (normals.shape != given.shape or normals.dtype != given.dtype):
        raise ValueError(
            f"{op}: normals must be {given.dtype} {list(given.shape)} as vertices are, "
            f"got {normals.dtype} {list(normals.shape)}"
        )
    normals = _check_vectors(op, "normals", normals)
    edges = _check_indices(op, "edges", edges, 2, vertices)
    _check_parameters(op, kThresh, segMinVerts)
    return torch.ops.pointcept3m.segment_point(vertices, normals, edges, float(kThresh), int(segMinVerts))


def _check_on_cpu(op: str, name: str, value: object) -> None:
    check_tensor(op, name, value)
    if value.device.type != "cpu":
        raise ValueError(f"{op}: runs on the CPU only, and {name} is on {value.device}; hand over {name}.cpu()")


def _check_vectors(op: str, name: str, value: Tensor) -> Tensor:
    _check_on_cpu(op, name, value)
    value = check_points(op, name, value, "V")
    if not torch.compiler.is_compiling() and not bool(value.isfinite().all()):
        row = int((~value.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"{op}: {name} must be finite, got {value[row].tolist()} in row {row}")
    return value


def _check_indices(op: str, name: str, value: Tensor, columns: int, vertices: Tensor) -> Tensor:
    _check_on_cpu(op, name, value)
    check_tensor(op, name, value, INTS)
    check_shape(op, name, value, ("rows", columns))
    check_range(op, name, value, vertices.size(0))
    return value.long().contiguous()


def _check_parameters(op: str, threshold: object, min_vertices: object) -> None:
    check_number(op, "kThresh", threshold)
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"{op}: kThresh must be finite and not negative, got {threshold}")
    check_int(op, "segMinVerts", min_vertices)


# The ops: float32 or float64 [V, 3] and int64 indices, contiguous. The twins round as the kernels do.


def _check_values(indices: Tensor, num_vertices: int, *vectors: Tensor) -> None:
    if not all(bool(v.isfinite().all()) for v in vectors):
        raise RuntimeError("vertices and normals must be finite")
    if bool(((indices < 0) | (indices >= num_vertices)).any()):
        raise RuntimeError("faces or edges name vertices outside [0, V)")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]) + a[:, 2] * b[:, 2]


def _vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    (ux, uy, uz), (vx, vy, vz) = (b - a).unbind(1), (c - a).unbind(1)
    normal = torch.stack([uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx], 1)
    length = _dot(normal, normal).sqrt()
    has_area = (length > 0) & length.isfinite()
    normal = (normal[has_area] / length[has_area, None]).repeat_interleave(3, 0)
    corner, order = faces[has_area].flatten().sort(stable=True)
    count = corner.bincount(minlength=vertices.size(0))
    turn = torch.arange(corner.numel()) - (count.cumsum(0) - count)[corner]  # this face is its vertex' how manyth
    mean = torch.zeros_like(vertices)
    for i in range(int(count.max()) if corner.numel() else 0):  # every vertex takes its next face
        now = turn == i
        share = 1 / torch.tensor(i + 1, dtype=vertices.dtype)
        mean[corner[now]] = share * normal[order[now]] + (1 - share) * mean[corner[now]]
    return mean


def _edge_weights(vertices: Tensor, normals: Tensor, edges: Tensor) -> Tensor:
    start, end = edges.unbind(1)
    step = vertices[end] - vertices[start]
    direction = step / _dot(step, step).sqrt()[:, None]
    difference = 1 - _dot(normals[start], normals[end])
    return torch.where(_dot(normals[end], direction) > 0, difference * difference, difference)


def _segment(edges: Tensor, weight: Tensor, num_vertices: int, threshold: float, min_vertices: int) -> Tensor:
    weight, order = weight.sort(stable=True)
    pairs = edges[order].tolist()
    k = torch.tensor(threshold, dtype=weight.dtype)
    allowance = (k / torch.arange(num_vertices + 1).to(weight.dtype)).numpy()
    heaviest = weight.numpy()
    limit = k.repeat(num_vertices).numpy()
    parent, size = list(range(num_vertices)), [1] * num_vertices

    def find(member: int) -> int:
        while parent[member] != member:
            parent[member] = member = parent[parent[member]]
        return member

    def join(a: int, b: int) -> int:
        a, b = (a, b) if size[a] >= size[b] else (b, a)
        parent[b] = a
        size[a] += size[b]
        return a

    for w, (start, end) in zip(heaviest, pairs, strict=True):
        a, b = find(start), find(end)
        if a != b and w <= limit[a] and w <= limit[b]:
            root = join(a, b)
            limit[root] = w + allowance[size[root]]
    for start, end in pairs:
        a, b = find(start), find(end)
        if a != b and (size[a] < min_vertices or size[b] < min_vertices):
            join(a, b)
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(find(i), len(number)) for i in range(num_vertices)], dtype=torch.int64)


def _segment_mesh_twin(vertices: Tensor, faces: Tensor, threshold: float, min_vertices: int) -> Tensor:
    device, vertices, faces = vertices.device, vertices.cpu(), faces.cpu()
    _check_values(faces, vertices.size(0), vertices)
    edges = faces[:, [0, 1, 0, 2, 2, 1]].reshape(-1, 2)
    weight = _edge_weights(vertices, _vertex_normals(vertices, faces), edges)
    return _segment(edges, weight, vertices.size(0), threshold, min_vertices).to(device)


def _segment_point_twin(
    vertices: Tensor, normals: Tensor, edges: Tensor, threshold: float, min_vertices: int
) -> Tensor:
    device, vertices, normals, edges = vertices.device, vertices.cpu(), normals.cpu(), edges.cpu()
    _check_values(edges, vertices.size(0), vertices, normals)
    weight = _edge_weights(vertices, normals, edges)
    return _segment(edges, weight, vertices.size(0), threshold, min_vertices).to(device)


_library.define(
    "segment_mesh(Tensor vertices, Tensor faces, float threshold, int min_vertices) -> Tensor", _segment_mesh_twin
)
_library.define(
    "segment_point(Tensor vertices, Tensor normals, Tensor edges, float threshold, int min_vertices) -> Tensor",
    _segment_point_twin,
)


@torch.library.register_fake("pointcept3m::segment_mesh")
def _(vertices: Tensor, faces: Tensor, threshold: float, min_vertices: int) -> Tensor:
    return faces.new_empty(vertices.size(0))


@torch.library.register_fake("pointcept3m::segment_point")
def _(vertices: Tensor, normals: Tensor, edges: Tensor, threshold: float, min_vertices: int) -> Tensor:
    return edges.new_empty(vertices.size(0))
