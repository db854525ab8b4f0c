"""From features to colours: principal components, UMAP, and cosine similarity to a chosen point.

All work on a list of scenes and give one colour scale to all of them, so that like features look alike across scenes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 65_536  # rows looked at in one piece: a bound on memory, not on the number of points
PERCENTILES = (0.01, 0.99)  # of a component: what lies outside has the colour of the end
NEIGHBOURS = 3  # fitted points whose place a point outside the UMAP fit takes the mean of


def principal_axes(features: Sequence[Tensor], number: int = 3) -> tuple[Tensor, Tensor]:
    """Mean [C] and the `number` orthonormal directions of largest variance [C, number] of all rows, float64.

    features: [N_i, C] each. By the eigenvectors of the covariance, which is summed piece by piece in float64 about the
    mean, so that memory does not grow with the points; the sign of a direction makes its largest entry positive.

    Raises: ValueError for no row, or fewer channels than directions.
    """
    count, width = sum(len(f) for f in features), features[0].shape[1]
    if count == 0:
        raise ValueError("principal components of no point")
    if width < number:
        raise ValueError(f"{number} principal components need as many channels, the features have {width}")
    mean = sum(piece.double().sum(0) for f in features for piece in f.split(ROWS)) / count
    covariance = torch.zeros(width, width, dtype=torch.float64)
    for feature in features:
        for piece in feature.split(ROWS):
            centred = piece.double() - mean
            covariance += centred.T @ centred
    axes = torch.linalg.eigh(covariance / count).eigenvectors[:, -number:].flip(1)
    sign = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return mean, axes * torch.where(sign == 0, 1.0, sign)


def component_values(feature: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """[N, K] float32: each row of `feature` [N, C] along the axes [C, K], from the mean [C]."""
    pieces = [((piece.double() - mean) @ axes).float() for piece in feature.split(ROWS)]
    return torch.cat(pieces) if pieces else torch.zeros(0, axes.shape[1])


def stretch(values: Sequence[Tensor]) -> list[np.ndarray]:
    """Each [N_i, 3] as colours uint8 [N_i, 3], one scale for all scenes.

    In every column the 1st percentile is 0, the median half, the 99th percentile full, and straight lines lie between:
    by the extremes one outlier would take the colour from everything else, without the median a skew would darken it.
    """
    joint = torch.cat(list(values)).double().numpy()
    low, middle, high = np.quantile(joint[:: max(1, len(joint) // 1_000_000)], (PERCENTILES[0], 0.5, PERCENTILES[1]), axis=0)
    below, above = (np.where(span > 0, span, 1.0) for span in (middle - low, high - middle))
    colors = []
    for value in values:
        offset = value.double().numpy() - middle
        scaled = 0.5 + 0.5 * np.where(offset < 0, offset / below, offset / above)
        colors.append(np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8))
    return colors


def pca_colors(features: Sequence[Tensor], joint: bool = True) -> list[np.ndarray]:
    """Colours uint8 [N_i, 3] by the three principal components of all scenes together, or of each by itself."""
    if not joint:
        return [pca_colors([feature])[0] for feature in features]
    mean, axes = principal_axes(features)
    return stretch([component_values(feature, mean, axes) for feature in features])


def explained_share(features: Sequence[Tensor], number: int = 3) -> float:
    """The share of the variance of all rows that their first `number` principal components hold; 1 where there is none."""
    mean, axes = principal_axes(features, number)
    total = sum(float((piece.double() - mean).square().sum()) for f in features for piece in f.split(ROWS))
    held = sum(float(((piece.double() - mean) @ axes).square().sum()) for f in features for piece in f.split(ROWS))
    return held / total if total > 0 else 1.0


def umap_colors(
    features: Sequence[Tensor], seed: int = 0, max_fit: int = 20_000, num_neighbors: int = 30, min_dist: float = 0.1
) -> tuple[list[np.ndarray], str]:
    """Colours uint8 [N_i, 3] by UMAP (McInnes et al. 2018) to three dimensions, cosine distance; and what was done, in words.

    At most `max_fit` rows, drawn by `seed`, are embedded; every other row takes the mean place of the embedded rows
    that are nearest to it in feature space. The same seed gives the same colours.

    Raises: ImportError where umap-learn is not installed; ValueError for fewer than 10 rows.
    """
    umap = import_umap()
    joint = F.normalize(torch.cat(list(features)).float(), dim=1)
    if len(joint) < 10:
        raise ValueError(f"UMAP needs at least 10 voxels, the scenes have {len(joint)}")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(joint), generator=generator)[:max_fit].sort().values
    fitted = joint[rows]
    model = umap.UMAP(
        n_components=3, n_neighbors=min(num_neighbors, len(rows) - 1), min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1
    )
    place = torch.from_numpy(np.asarray(model.fit_transform(fitted.numpy()), dtype=np.float32))
    said = f"UMAP of {len(rows):,} of {len(joint):,} voxels, seed {seed}"
    if len(rows) == len(joint):
        values = place
    else:
        said += f"; the others take the mean of their {NEIGHBOURS} nearest in feature space"
        values = torch.cat([place[(piece @ fitted.T).topk(NEIGHBOURS, dim=1).indices].mean(1) for piece in joint.split(2048)])
        values[rows] = place
    return stretch(values.split([len(f) for f in features])), said


def import_umap() -> object:
    """The package umap-learn. Raises ImportError that says how to get it."""
    try:
        import umap
    except ImportError as error:
        raise ImportError("--color umap needs the package umap-learn: 'pip install umap-learn'; --color pca needs nothing more") from error
    return umap


def cosine_similarity(feature: Tensor, query: Tensor) -> Tensor:
    """[N] float32 cosine of the angle between each row of `feature` [N, C] and `query` [C]; 0 for a row of zeros."""
    query = F.normalize(query.double(), dim=0)
    pieces = [(F.normalize(piece.double(), dim=1) @ query).float() for piece in feature.split(ROWS)]
    return torch.cat(pieces) if pieces else torch.zeros(0)


def similarity_range(scores: Sequence[Tensor]) -> tuple[float, float]:
    """(low, high) of the colour scale of all scenes: the 2nd percentile of the cosines, down to a twentieth, and 1."""
    joint = torch.cat(list(scores)).numpy()
    low = float(np.quantile(joint[:: max(1, len(joint) // 1_000_000)], 0.02))
    return min(np.floor(low * 20) / 20, 0.95), 1.0
