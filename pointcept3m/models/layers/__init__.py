"""Layers that several models share."""

from pointcept3m.models.layers.sparse import (
    SparseAvgPool3d,
    SparseConv3d,
    SparseGlobalAvgPool,
    SparseGlobalMaxPool,
    SparseInverseConv3d,
    SparseMaxPool3d,
    SparseModule,
    SparseSequential,
    SubMConv3d,
    ToDense,
)

__all__ = [
    "SparseAvgPool3d",
    "SparseConv3d",
    "SparseGlobalAvgPool",
    "SparseGlobalMaxPool",
    "SparseInverseConv3d",
    "SparseMaxPool3d",
    "SparseModule",
    "SparseSequential",
    "SubMConv3d",
    "ToDense",
]
