"""How the features of a scene's visible points become few bytes, and features again: float16, int8, PCA with int8.

An encoding is a dict of numpy arrays, of which one has a row for each point and the others are small. Everything is a
function of the features alone: the same ones give the same bytes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.utils.registry import near_names

STORAGES = ("pca", "int8", "float16")
LARGEST_HALF = 65504.0
CHUNK = 8192  # rows worked on at once
FIT_ROWS = 20_000  # rows that the PCA is fitted to, evenly spaced over the points
MIN_COMPONENTS = 64
Encoding = dict[str, NDArray]


def default_components(dim: int) -> int:
    """3/16 of `dim`, at least 64 (or all): with the basis less than a tenth of float16's bytes for 512 channels and up."""
    return min(dim, max(MIN_COMPONENTS, -(-3 * dim // 16)))


def encode(features: torch.Tensor, storage: str, components: int | None = None) -> Encoding:
    """The arrays that hold `features` [M, C], float16 or float32 and finite; M at least 1.

    storage "float16": `values` [M, C] float16, and where they go beyond 65504 `scale` [1] float32, a power of two
        that they were divided by, so that no value is lost.
    storage "int8": `codes` [M, C] int8, `norm` [M] float32, `scale` [C] float32: value = code * norm * scale. A scale a
        channel of the unit vectors keeps small channels beside large ones and weak points beside strong ones.
    storage "pca": of the unit vectors, `mean` [C] and an orthonormal `basis` [K, C], both float16, `codes` [M, K] int8
        with `scale` [K] float32, `norm` [M] float32: value = norm * (mean + (codes * scale) @ basis). K is `components`
        (`default_components`), at most M and C.

    Unit vectors, since it is the cosine that is to be kept, of each point as well as of every other.
    Raises: ValueError where the storage is unknown or components do not fit it.
    """
    if storage not in STORAGES:
        raise ValueError(f"no storage {storage!r}; {near_names(storage, STORAGES)}")
    if components is not None and storage != "pca":
        raise ValueError(f"components={components} is for storage 'pca', not {storage!r}")
    if components is not None and not 1 <= components <= features.shape[1]:
        raise ValueError(f"components must be 1 to {features.shape[1]} (the channels), got {components}")
    if storage == "float16":
        return _encode_half(features)
    norm = torch.cat([part.float().norm(dim=1) for part in features.split(CHUNK)])
    if storage == "int8":
        return _encode_int8(features, norm)
    count = min(default_components(features.shape[1]) if components is None else components, len(features))
    return _encode_pca(features, norm, count)


def decode(encoding: Mapping[str, NDArray], rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
    """Features float32 [S, C] of `rows` of an encoding; touches those rows alone."""
    if "values" in encoding:
        values = np.asarray(encoding["values"][rows], dtype=np.float32)
        return values * encoding["scale"] if "scale" in encoding else values
    codes = torch.from_numpy(encoding["codes"][rows].astype(np.float32))
    codes *= torch.from_numpy(encoding["scale"])
    if "basis" in encoding:
        # the basis in float32: half precision products on a CPU are slow, and add up in half precision
        basis, mean = (torch.from_numpy(np.asarray(encoding[key], dtype=np.float32)) for key in ("basis", "mean"))
        codes = torch.addmm(mean, codes, basis)
    norm = torch.from_numpy(np.array(encoding["norm"][rows]))
    return codes.mul_(norm[:, None]).numpy()


def cosine_kept(features: torch.Tensor, encoding: Mapping[str, NDArray]) -> tuple[float, float]:
    """(mean, first percentile) of the cosine between features [M, C] and what decodes, over `spaced` rows.

    A row of zeros counts as kept where it decodes to zeros.
    """
    rows = spaced(len(features), FIT_ROWS)
    found = []
    for part in np.array_split(rows, -(-len(rows) // CHUNK)):
        wanted, got = features[torch.from_numpy(part)].double(), torch.from_numpy(decode(encoding, part)).double()
        product = wanted.norm(dim=1) * got.norm(dim=1)
        both_zero = (wanted.norm(dim=1) == 0) & (got.norm(dim=1) == 0)
        cosine = (wanted * got).sum(dim=1) / product.clamp_min(1e-300)
        found.append(torch.where(both_zero, 1.0, cosine).clamp(-1, 1))
    cosine = torch.cat(found)
    return float(cosine.mean()), float(torch.quantile(cosine, 0.01))


def spaced(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    if count <= most:
        return np.arange(count)
    return ((np.arange(most) + 0.5) * count / most).astype(np.int64)


def _encode_half(features: torch.Tensor) -> Encoding:
    largest = max(float(part.abs().max()) for part in features.split(CHUNK))
    if largest <= LARGEST_HALF:
        return {"values": features.half().numpy()}
    scale = 2.0 ** np.ceil(np.log2(largest / LARGEST_HALF))
    values = torch.cat([(part / scale).half() for part in features.split(CHUNK)])
    return {"values": values.numpy(), "scale": np.array([scale], dtype=np.float32)}


def _encode_int8(features: torch.Tensor, norm: torch.Tensor) -> Encoding:
    largest = torch.zeros(features.shape[1])
    for part in _unit_rows(features, norm):
        largest = torch.maximum(largest, part.abs().amax(dim=0))
    scale = _steps(largest)
    codes = torch.cat([_round(part, scale) for part in _unit_rows(features, norm)])
    return {"codes": codes.numpy(), "norm": norm.numpy(), "scale": scale.numpy()}


def _encode_pca(features: torch.Tensor, norm: torch.Tensor, count: int) -> Encoding:
    rows = torch.from_numpy(spaced(len(features), FIT_ROWS))
    fitted = list(_unit_rows(features[rows], norm[rows]))
    mean = (sum(part.sum(dim=0, dtype=torch.float64) for part in fitted) / len(rows)).half()
    basis = _directions([part - mean.float() for part in fitted])[:count]
    # LAPACK leaves the sign open
    peak = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    basis = (basis * torch.where(peak < 0, -1.0, 1.0)).half().contiguous()
    project = basis.float().T
    scores = torch.cat([(part - mean.float()) @ project for part in _unit_rows(features, norm)])
    scale = _steps(scores.abs().amax(dim=0))
    codes = torch.cat([_round(part, scale) for part in scores.split(CHUNK)])
    arrays = {"codes": codes, "norm": norm, "scale": scale, "mean": mean, "basis": basis}
    return {key: value.numpy() for key, value in arrays.items()}


def _directions(parts: list[torch.Tensor]) -> torch.Tensor:
    """The principal directions of centred rows, orthonormal [min(rows, C), C], strongest first."""
    rows, channels = sum(map(len, parts)), parts[0].shape[1]
    if rows < channels:
        return torch.linalg.svd(torch.cat(parts), full_matrices=False).Vh
    covariance = torch.zeros(channels, channels)
    for part in parts:
        covariance.addmm_(part.T, part)
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).T  # eigenvalues ascend


def _unit_rows(features: torch.Tensor, norm: torch.Tensor):
    """The rows as unit vectors, float32, a chunk at a time; rows of zeros stay."""
    for part, length in zip(features.split(CHUNK), norm.split(CHUNK), strict=True):
        yield part.float() / torch.where(length > 0, length, 1.0)[:, None]


def _steps(largest: torch.Tensor) -> torch.Tensor:
    """The size of one step of int8 in each column, whose values reach `largest`."""
    return torch.where(largest > 0, largest / 127, 1.0)


def _round(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (values / scale).round_().clamp_(-127, 127).to(torch.int8)
