"""Layers that several models share."""

from pointcept3m.models.layers.sparse import (
    SparseConv3d,
    SparseInverseConv3d,
    SparseModule,
    SparseSequential,
    SubMConv3d,
)

__all__ = ["SparseConv3d", "SparseInverseConv3d", "SparseModule", "SparseSequential", "SubMConv3d"]
