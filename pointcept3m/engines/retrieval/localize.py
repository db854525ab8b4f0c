"""The objects of one scene found in another: matched in CrossOver's space, then laid over each other (Fig. 1).

Source of the alignment: none; "brute-force alignment" is all that the paper says. Here every two objects with every two that they may
be propose a turn about z and a shift, and the proposal that brings most of them together decides between things that look the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.6  # metres at which two centres count as together
MAX_PROPOSALS = 6000
MAX_WORK = 20_000_000  # distances between objects over all proposals; scenes of hundreds of objects try fewer
MAX_PAIRS = 1500  # of an object and what it may be, the most similar ones, that proposals are made of
LEAST = 3  # objects that must agree on a motion, where there are so many
MARGIN = 0.1  # cosine below an object's best match down to which it may be another
MAX_CANDIDATES = 4  # of an object
PULL = 0.3  # what lying together is worth, as a cosine


@dataclass(frozen=True)
class Match:
    """Row of the query's objects, row of the target's, their cosine, and whether the alignment brings them together."""

    query: int
    target: int
    score: float
    inlier: bool


@dataclass(frozen=True)
class Localization:
    """matches, best first · motion [4, 4]: the query scene's axes to the target's, None where too few objects agree on one."""

    matches: list[Match]
    motion: NDArray[np.float64] | None

    @property
    def inliers(self) -> int:
        """How many matches the motion brings together."""
        return sum(match.inlier for match in self.matches)


def assign(similarity: NDArray) -> list[tuple[int, int]]:
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

    Where a motion is found, things that it brings together count as more alike by `PULL`: of several that look the same, each
    object takes the one at its place. query_center None: the query's objects have no common place (single CAD models): matches without a motion.
    Raises: ValueError where one side has no object, or the tolerance is no distance.
    """
    if not len(query) or not len(target):
        raise ValueError(f"nothing to match: {len(query)} objects in the query, {len(target)} in the scene, in these modalities")
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"--tolerance must be metres above 0, got {tolerance}")
    similarity = np.asarray(query, dtype=np.float64) @ np.asarray(target, dtype=np.float64).T
    pairs, motion = assign(similarity), None
    near = np.zeros(similarity.shape, dtype=bool)
    if query_center is not None:
        a, b = np.asarray(query_center, dtype=np.float64), np.asarray(target_center, dtype=np.float64)
        motion = align(a, b, similarity, tolerance)
        if motion is not None:
            near = _near(motion, a, b, tolerance)
            pairs = assign(similarity + PULL * near)
    matches = [Match(q, t, float(similarity[q, t]), bool(near[q, t])) for q, t in pairs]
    return Localization(sorted(matches, key=lambda match: (-match.inlier, -match.score)), motion)


def align(a: NDArray[np.float64], b: NDArray[np.float64], similarity: NDArray, tolerance: float = TOLERANCE) -> NDArray[np.float64] | None:
    """The turn about z and shift [4, 4] that brings most of the points a [Q, 3] within `tolerance` of a likely one of b [T, 3].

    Likely is what `similarity` [Q, T] says: up to `MAX_CANDIDATES` of each row, at most `MARGIN` below its best. None where fewer
    than three agree, for any two do by chance (two, where there are no more).
    """
    likely = candidates(similarity)
    pairs = np.argwhere(likely)
    cosine = similarity[likely]
    if len(pairs) > MAX_PAIRS:
        kept = np.sort(np.argsort(-cosine, kind="stable")[:MAX_PAIRS])
        pairs, cosine = pairs[kept], cosine[kept]
    first, second = np.triu_indices(len(pairs), 1)
    order = np.argsort(-(cosine[first] + cosine[second]), kind="stable")
    best_score, best_motion, tried = (0, -np.inf), None, 0
    most = min(MAX_PROPOSALS, max(300, MAX_WORK // similarity.size))
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        (q, t), (r, u) = pairs[i], pairs[j]
        if q == r or t == u:
            continue
        there, here = np.hypot(*(b[u] - b[t])[:2]), np.hypot(*(a[r] - a[q])[:2])
        if here < 0.2 or abs(there - here) > tolerance:
            continue
        motion = _fit(a[[q, r]], b[[t, u]])
        score = _score(motion, a, b, likely, similarity, tolerance)
        if score > best_score:
            best_score, best_motion = score, motion
        tried += 1
        if tried == most:
            break
    if best_motion is None:
        return None
    for _ in range(3):
        rows = _together(best_motion, a, b, likely, similarity, tolerance)
        if len(rows) < 2:
            break
        motion = _fit(a[[q for q, _ in rows]], b[[t for _, t in rows]])
        score = _score(motion, a, b, likely, similarity, tolerance)
        if score < best_score:
            break
        best_score, best_motion = score, motion
    agree = len(_together(best_motion, a, b, likely, similarity, tolerance))
    return best_motion if agree >= max(2, min(LEAST, *similarity.shape)) else None


def candidates(similarity: NDArray) -> NDArray[np.bool_]:
    """[Q, T] what each object may be: up to `MAX_CANDIDATES` of the most similar, at most `MARGIN` below the best."""
    near = similarity >= similarity.max(axis=1, keepdims=True) - MARGIN
    rank = np.argsort(np.argsort(-similarity, axis=1, kind="stable"), axis=1)
    return near & (rank < MAX_CANDIDATES)


def _near(motion: NDArray, a: NDArray, b: NDArray, tolerance: float) -> NDArray[np.bool_]:
    moved = a @ motion[:3, :3].T + motion[:3, 3]
    return np.linalg.norm(moved[:, None] - b[None], axis=2) <= tolerance


def _score(motion: NDArray, a: NDArray, b: NDArray, likely: NDArray, similarity: NDArray, tolerance: float) -> tuple[int, float]:
    """(objects brought near a likely one, counted once on both sides; the sum of their cosines)."""
    both = _near(motion, a, b, tolerance) & likely
    count = min(int(both.any(axis=1).sum()), int(both.any(axis=0).sum()))
    return count, float(np.where(both, similarity, -np.inf).max(axis=1)[both.any(axis=1)].sum())


def _together(motion: NDArray, a: NDArray, b: NDArray, likely: NDArray, similarity: NDArray, tolerance: float) -> list[tuple[int, int]]:
    """One-to-one pairs that are likely and that the motion brings together."""
    both = _near(motion, a, b, tolerance) & likely
    return [(q, t) for q, t in assign(np.where(both, 2 + similarity, 0.0)) if both[q, t]]


def _fit(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The turn about z and shift with the least squares from points a [K, 3] to b [K, 3]."""
    ca, cb = a.mean(axis=0), b.mean(axis=0)
    x, y = (a - ca)[:, :2], (b - cb)[:, :2]
    angle = np.arctan2((x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]).sum(), (x * y).sum())
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    motion[:3, 3] = cb - motion[:3, :3] @ ca
    return motion
