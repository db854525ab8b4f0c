"""The objects of one scene found in another: matched in CrossOver's space, then laid over each other (Fig. 1).

Source of the alignment: none; "brute-force alignment" is all that the paper says. Here every pair of matched objects proposes a
turn about z and a shift, and the proposal that brings most matches together is refined on them.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.4  # metres at which two centres count as together
MAX_PAIRS = 4000  # proposals tried


@dataclass(frozen=True)
class Match:
    """Row of the query's objects, row of the target's, their cosine, and whether the alignment brings them together."""

    query: int
    target: int
    score: float
    inlier: bool


@dataclass(frozen=True)
class Localization:
    """matches, best first · motion [4, 4]: the query scene's axes to the target's, None where fewer than two objects agree."""

    matches: list[Match]
    motion: NDArray[np.float64] | None

    @property
    def inliers(self) -> int:
        return sum(match.inlier for match in self.matches)


def assign(similarity: NDArray[np.float32]) -> list[tuple[int, int]]:
    """One-to-one pairs (query row, target column) of a similarity [Q, T] that make its sum largest (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-similarity)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def localize(
    query: NDArray[np.float32],
    target: NDArray[np.float32],
    query_center: NDArray | None,
    target_center: NDArray,
    tolerance: float = TOLERANCE,
) -> Localization:
    """Matches unit rows query [Q, D] with target [T, D] one to one, and aligns their centres [Q, 3], [T, 3] (metres).

    query_center None: the query's objects have no common place (single CAD models): matches without a motion.
    Raises: ValueError where one side has no object.
    """
    if not len(query) or not len(target):
        raise ValueError(f"nothing to match: {len(query)} objects in the query, {len(target)} in the scene, in these modalities")
    similarity = query @ target.T
    pairs = assign(similarity)
    motion = None
    if query_center is not None and len(pairs) >= 2:
        a = np.asarray(query_center, dtype=np.float64)[[q for q, _ in pairs]]
        b = np.asarray(target_center, dtype=np.float64)[[t for _, t in pairs]]
        motion = align(a, b, similarity[tuple(zip(*pairs, strict=True))], tolerance)
    matches = []
    for q, t in pairs:
        near = False
        if motion is not None:
            moved = motion[:3, :3] @ query_center[q] + motion[:3, 3]
            near = bool(np.linalg.norm(moved - target_center[t]) <= tolerance)
        matches.append(Match(q, t, float(similarity[q, t]), near))
    return Localization(sorted(matches, key=lambda match: -match.score), motion)


def align(a: NDArray[np.float64], b: NDArray[np.float64], weight: NDArray, tolerance: float = TOLERANCE) -> NDArray[np.float64] | None:
    """The turn about z and shift [4, 4] that brings most of the points a [K, 3] within `tolerance` of b [K, 3], None below two.

    Every two pairs whose distances agree propose one; equal numbers of points are told apart by the sum of `weight` [K].
    """
    order = sorted(combinations(range(len(a)), 2), key=lambda pair: -(weight[pair[0]] + weight[pair[1]]))[:MAX_PAIRS]
    best_score, best_rows = (1, -np.inf), None
    for i, j in order:
        da, db = (a[j] - a[i])[:2], (b[j] - b[i])[:2]
        if np.hypot(*da) < 1e-6 or abs(np.hypot(*da) - np.hypot(*db)) > tolerance:
            continue
        motion = _fit(a[[i, j]], b[[i, j]])
        near = np.linalg.norm(a @ motion[:3, :3].T + motion[:3, 3] - b, axis=1) <= tolerance
        score = (int(near.sum()), float(weight[near].sum()))
        if score > best_score:
            best_score, best_rows = score, near
    if best_rows is None or best_rows.sum() < 2:
        return None
    for _ in range(3):
        motion = _fit(a[best_rows], b[best_rows])
        near = np.linalg.norm(a @ motion[:3, :3].T + motion[:3, 3] - b, axis=1) <= tolerance
        if near.sum() < best_rows.sum():
            break
        best_rows = near
    return _fit(a[best_rows], b[best_rows])


def _fit(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn about z and shift with the least squares from points a [K, 3] to b [K, 3]."""
    ca, cb = a.mean(axis=0), b.mean(axis=0)
    x, y = (a - ca)[:, :2], (b - cb)[:, :2]
    angle = np.arctan2((x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum(), (x * y).sum())
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = cb - motion[:3, :3] @ ca
    return motion
