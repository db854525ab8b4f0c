"""Operations with kernels of our own; each also runs in plain torch where no kernel serves."""

from pointcept3m.ops.cluster import ballquery_batch_p, bfs_cluster, cluster_points
from pointcept3m.ops.rasterize import rasterization
from pointcept3m.ops.rulebook import Rulebook, strided_rulebook, strided_shape, submanifold_rulebook
from pointcept3m.ops.scatter import (
    scatter,
    scatter_add,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_mul,
    scatter_sum,
)
from pointcept3m.ops.segment_mesh import segment_mesh, segment_point
from pointcept3m.ops.sparse_conv import sparse_conv
from pointcept3m.ops.voxelize import Groups, Voxels, group_keys, voxelize
