"""Voxels at random and the dense grids that sparse results are compared with."""

import torch

BATCH, SHAPE = 2, (9, 8, 7)


def random_coord(share=0.3, shape=SHAPE):
    """int32 [N, 4] of distinct voxels in random order."""
    coord = (torch.rand(BATCH, *shape) < share).nonzero().int()
    return coord[torch.randperm(len(coord))]


def dense_grid(features, coord, shape=SHAPE):
    """[B, C, X, Y, Z]; rows that share a voxel are summed."""
    grid = features.new_zeros(BATCH, *shape, features.size(1))
    grid = grid.index_put(tuple(coord.long().unbind(1)), features, accumulate=True)
    return grid.permute(0, 4, 1, 2, 3)


def at(grid, coord):
    batch, x, y, z = coord.long().unbind(1)
    return grid[batch, :, x, y, z]
