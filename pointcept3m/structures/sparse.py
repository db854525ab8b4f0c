"""Features on occupied voxels, with spconv's names."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pointcept3m.ops.rulebook import check_coord


class SparseConvTensor:
    """`features` [N, C] on the voxels `indices` int32 [N, 4] (batch, x, y, z) of a grid `spatial_shape` (X, Y, Z).

    Voxels may be in any order, and several rows may share one (see `ops.sparse_conv`). `indice_dict` holds the
    rulebooks that layers made, by `indice_key`; tensors made from one another share it.
    """

    def __init__(
        self,
        features: Tensor,
        indices: Tensor,
        spatial_shape: Sequence[int],
        batch_size: int,
        grid: Tensor | None = None,
        voxel_num: Tensor | None = None,
        indice_dict: dict[str, Any] | None = None,
    ):
        """`grid` and `voxel_num`, memory that spconv may be given, are taken and not needed.

        Raises: TypeError or ValueError where shapes and dtypes do not fit or voxels lie outside the grid.
        """
        self.spatial_shape = tuple(int(s) for s in spatial_shape)
        self.batch_size = int(batch_size)
        if len(self.spatial_shape) != 3 or min(self.spatial_shape) < 1 or self.batch_size < 1:
            raise ValueError(
                f"SparseConvTensor: wanted three positive sizes and a positive batch size, "
                f"got {spatial_shape}, {batch_size}"
            )
        check_coord(indices, self.spatial_shape, self.batch_size, name="SparseConvTensor: indices")
        self._set(features, indices, {} if indice_dict is None else indice_dict)

    def _set(self, features: Tensor, indices: Tensor, indice_dict: dict[str, Any]) -> None:
        if features.dim() != 2 or features.size(0) != indices.size(0):
            raise ValueError(f"SparseConvTensor: features must be [{indices.size(0)}, C], got {tuple(features.shape)}")
        if features.device != indices.device:
            raise ValueError(f"SparseConvTensor: features are on {features.device}, indices on {indices.device}")
        self.features, self.indices, self.indice_dict = features, indices, indice_dict

    def replace(self, features: Tensor, indices: Tensor, spatial_shape: Sequence[int]) -> "SparseConvTensor":
        """What a layer returns: other features on voxels that a rulebook made, so they are not checked again."""
        new = object.__new__(SparseConvTensor)
        new.spatial_shape, new.batch_size = tuple(spatial_shape), self.batch_size
        new._set(features, indices, self.indice_dict)
        return new

    def replace_feature(self, features: Tensor) -> "SparseConvTensor":
        """The same voxels with other features [N, C']."""
        return self.replace(features, self.indices, self.spatial_shape)

    def dense(self, channels_first: bool = True) -> Tensor:
        """[B, C, X, Y, Z], or [B, X, Y, Z, C]; empty voxels are 0, rows that share a voxel are summed."""
        x, y, z = self.spatial_shape
        batch, *place = self.indices.long().unbind(1)
        flat = ((batch * x + place[0]) * y + place[1]) * z + place[2]
        grid = self.features.new_zeros(self.batch_size * x * y * z, self.features.size(1))
        grid = grid.index_add(0, flat, self.features).reshape(self.batch_size, x, y, z, -1)
        return grid.permute(0, 4, 1, 2, 3).contiguous() if channels_first else grid

    @classmethod
    def from_dense(cls, grid: Tensor) -> "SparseConvTensor":
        """The voxels of `grid` [B, X, Y, Z, C] that hold anything but zeros."""
        occupied = (grid != 0).any(-1).nonzero()
        return cls(grid[tuple(occupied.unbind(1))], occupied.int(), grid.shape[1:4], grid.shape[0])

    @property
    def spatial_size(self) -> int:
        """Number of sites of one scene's grid."""
        return math.prod(self.spatial_shape)

    def find_indice_pair(self, key: str | None) -> Any:
        """What a layer left under the `indice_key`, or None."""
        return None if key is None else self.indice_dict.get(key)

    def shadow_copy(self) -> "SparseConvTensor":
        """Another tensor with the same features, voxels and rulebooks."""
        return self.replace_feature(self.features)

    def select_by_index(self, index: Tensor) -> "SparseConvTensor":
        """The rows that `index` (int64 rows, or bool [N]) selects, without rulebooks."""
        chosen = self.replace(self.features[index], self.indices[index].contiguous(), self.spatial_shape)
        chosen.indice_dict = {}
        return chosen

    def minus(self) -> "SparseConvTensor":
        """The same voxels with negated features."""
        return self.replace_feature(-self.features)

    def __add__(self, other: "SparseConvTensor | Tensor") -> "SparseConvTensor":
        """Features are added row by row. Raises ValueError where another tensor stands on other voxels."""
        if not isinstance(other, SparseConvTensor):
            return self.replace_feature(self.features + other)
        if other.indices is not self.indices and not torch.equal(other.indices, self.indices):
            raise ValueError("SparseConvTensor: only tensors on the same voxels, in the same order, can be added")
        return self.replace_feature(self.features + other.features)

    __radd__ = __add__

    def to(self, device: torch.device | str) -> "SparseConvTensor":
        """A copy on `device`, without rulebooks."""
        return SparseConvTensor(self.features.to(device), self.indices.to(device), self.spatial_shape, self.batch_size)

    def __repr__(self) -> str:
        shapes = f"features={list(self.features.shape)}, spatial_shape={list(self.spatial_shape)}"
        return f"SparseConvTensor({shapes}, batch_size={self.batch_size})"
