"""Operations with kernels of our own; each also runs in plain torch where no kernel serves."""

from pointcept3m.ops.cluster import ballquery_batch_p, bfs_cluster, cluster_points
from pointcept3m.ops.grouping import (
    ball_query_and_group,
    grouping,
    interpolation,
    interpolation2,
    knn_query_and_group,
)
from pointcept3m.ops.neighbours import ball_query, knn_query, random_ball_query
from pointcept3m.ops.rasterize import rasterization
from pointcept3m.ops.rulebook import Rulebook, strided_rulebook, strided_shape, submanifold_rulebook
from pointcept3m.ops.sampling import farthest_point_sampling
from pointcept3m.ops.scatter import (
    scatter,
    scatter_add,
    scatter_max,
    scatter_mean,
    scatter_min,
    scatter_mul,
    scatter_sum,
)
from pointcept3m.ops.segment import (
    gather_coo,
    gather_csr,
    segment_add_csr,
    segment_coo,
    segment_csr,
    segment_max_csr,
    segment_mean_csr,
    segment_min_csr,
    segment_sum_csr,
)
from pointcept3m.ops.segment_mesh import segment_mesh, segment_point
from pointcept3m.ops.softmax import scatter_log_softmax, scatter_logsumexp, scatter_softmax, scatter_std
from pointcept3m.ops.sparse_conv import sparse_conv
from pointcept3m.ops.sparse_pool import sparse_pool
from pointcept3m.ops.view_fusion import fuse_views, visible_points
from pointcept3m.ops.voxelize import Groups, Voxels, group_keys, voxelize
