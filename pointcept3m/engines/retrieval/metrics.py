"""CrossOver's metrics (Sec. 4), pure functions of embeddings: how often the right object or scene is among the first k.

A score is a share from 0 to 1; beside each stands `chance_<score>`, what answers drawn at random would get, and the counts
`queries` and `left_out` (scenes, or pairs of scans, that lack a modality and are neither queries nor answers). Entries of equal
similarity count by chance: two identical chairs are half a hit each, whatever their order in memory.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.scene_embeddings import SceneEmbeddings

Scores = dict[str, float]
AVERAGES = ("macro", "micro")
GALLERIES = ("both", "target")
THRESHOLDS = (25, 50, 75)
TIE = 1e-9  # similarities nearer than this are equal


# one query


def hit_rate(similarity: NDArray, relevant: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Probability [Q] that one of the `relevant` [Q, G] is among the k first by similarity [Q, G] (-inf: no candidate).

    0 or 1 but for ties, whose order is taken as random: with m equal entries, r of them relevant, and s places left for them it
    is 1 - C(m - r, s) / C(m, s).
    """
    similarity = np.where(np.isnan(similarity), -np.inf, np.asarray(similarity, dtype=np.float64))
    best = np.where(relevant, similarity, -np.inf).max(axis=1, initial=-np.inf)
    rates = np.zeros(len(similarity))
    for row in np.flatnonzero(best > -np.inf):
        ahead = int((similarity[row] > best[row] + TIE).sum())
        tied = np.abs(similarity[row] - best[row]) <= TIE
        rates[row] = chance(int(tied.sum()), int((tied & relevant[row]).sum()), k - ahead)
    return rates


def chance(gallery: int, relevant: int, k: int) -> float:
    """Probability that k entries, drawn from a gallery without replacement, hold one of its relevant ones."""
    if k <= 0 or relevant <= 0:
        return 0.0
    k = min(k, gallery)
    every = comb(gallery, k)
    return (every - comb(gallery - relevant, k)) / every


def share_at_least(number: int, rate: float, percent: float) -> float:
    """Probability that at least `percent` of `number` queries, each right with probability `rate`, are right."""
    return float(sum(comb(number, hits) * rate**hits * (1 - rate) ** (number - hits) for hits in range(_least(number, percent), number + 1)))


def _least(number: int, percent: float) -> int:
    """The fewest hits among `number` that are `percent` of them."""
    return int(np.ceil(number * percent / 100 - 1e-9))


def _reaches(hits: float, number: int, percent: float) -> float:
    return float(hits >= number * percent / 100 - 1e-9)


def _similarity(queries: NDArray, gallery: NDArray) -> NDArray[np.float64]:
    return queries.astype(np.float64) @ gallery.astype(np.float64).T


# objects


def instance_matching(
    embeddings: SceneEmbeddings, query: str, target: str, ks: Sequence[int] = (1, 3), average: str = "macro"
) -> Scores:
    """Instance matching recall (Fig. 4, Table 4): an object's embedding in `query` against its own scene's in `target`.

    top<k>: the rate in each scene, averaged over scenes ("macro", as the paper's code does) or over all objects ("micro").
    R@25, R@50, R@75: share of scenes of whose objects so many percent are matched at once. same, diff: 1 less the share of objects
    that are taken for another of the same, or of another label; top1 = same + diff - 1. Queries and answers are the objects
    known in both; labels are looked up among these, so gaps in a mask do not shift them. `scenes`: those with such an object.
    """
    _check("average", average, AVERAGES)
    rows: list[Scores] = []
    labels = np.asarray(embeddings.labels, dtype=object)
    for scene in range(len(embeddings)):
        objects = _objects(embeddings, scene, query, target)
        count = len(objects)
        if not count:
            continue
        similarity = _similarity(embeddings.objects[query][objects], embeddings.objects[target][objects])
        own = np.eye(count, dtype=bool)
        row = {f"top{k}": float(hit_rate(similarity, own, k).mean()) for k in ks}
        row |= {f"chance_top{k}": chance(count, 1, k) for k in ks}
        first = float(hit_rate(similarity, own, 1).mean())
        row |= _thresholds(first * count, count, 1 / count) | _mistakes(similarity, labels[objects])
        rows.append({**row, "queries": count})
    weights = [row["queries"] if average == "micro" else 1.0 for row in rows]
    means = _weighted(rows, weights, skip=("queries", *_threshold_names()))
    means |= _weighted(rows, [1.0] * len(rows), only=_threshold_names())
    return {**means, "queries": sum(row["queries"] for row in rows), "scenes": len(rows), "left_out": len(embeddings) - len(rows)}


def temporal_instances(embeddings: SceneEmbeddings, query: str, target: str, labels: Sequence[str] | None = None) -> Scores:
    """Temporal instance matching (Table 1): objects of a reference scan in `query` against all of a rescan in `target`.

    Queries are those that the rescan still has. R@25, R@50, R@75: share of pairs of scans of which so many percent are found at
    rank 1; recall: share of all queries; each also as static_ and moved_ for objects that stand where they stood, or elsewhere
    (`moved` of the rescan). labels: only objects with one of these (the released code takes 22 kinds of furniture of 3RScan).
    """
    rows: dict[str, list[Scores]] = {"": [], "static_": [], "moved_": []}
    pairs, allowed = rescans(embeddings), None if labels is None else set(labels)
    for reference, rescan in pairs:
        asked, answers = (_objects(embeddings, scene, name) for scene, name in ((reference, query), (rescan, target)))
        if allowed is not None:
            asked, answers = (np.array([o for o in rows_ if embeddings.labels[o] in allowed], dtype=np.int64) for rows_ in (asked, answers))
        same = embeddings.object_id[asked][:, None] == embeddings.object_id[answers][None]
        found = same.any(axis=1)
        if not found.any():
            continue
        hits = hit_rate(_similarity(embeddings.objects[query][asked[found]], embeddings.objects[target][answers]), same[found], 1)
        moved = embeddings.moved[answers][same[found].argmax(axis=1)]
        for prefix, chosen in (("", np.ones_like(moved)), ("static_", ~moved), ("moved_", moved)):
            count = int(chosen.sum())
            if count:
                row = _thresholds(float(hits[chosen].sum()), count, 1 / len(answers))
                row |= {"recall": float(hits[chosen].mean()), "chance_recall": 1 / len(answers), "queries": count}
                rows[prefix].append(row)
    result: Scores = {}
    for prefix, each in rows.items():
        means = _weighted(each, [1.0] * len(each), only=_threshold_names())
        means |= _weighted(each, [row["queries"] for row in each], only=("recall", "chance_recall"))
        result |= {_prefixed(prefix, name): value for name, value in means.items()}
        result[f"{prefix}queries"] = sum(row["queries"] for row in each)
    return {**result, "pairs": len(rows[""]), "left_out": len(pairs) - len(rows[""])}


def rescans(embeddings: SceneEmbeddings) -> list[tuple[int, int]]:
    """(reference, rescan) of all scans whose reference is there too, and whose objects have its ids."""
    e = embeddings
    number = {key: row for row, key in enumerate(zip(e.datasets, e.splits, e.names, strict=True))}
    wanted = [(number.get((e.datasets[row], e.splits[row], name)), row) for row, name in enumerate(e.references) if name and e.same_ids[row]]
    return [(reference, row) for reference, row in wanted if reference is not None]


# scenes


def scene_matching(
    embeddings: SceneEmbeddings, query: str, target: str, ks: Sequence[int] = (1, 5, 10, 20), gallery: str = "both"
) -> Scores:
    """Scene matching recall (Fig. 6, Table 3): the very scan among the first k.

    gallery: the scenes known in both modalities, as in the paper's code, or all that are known in `target`, as in use.
    """
    asked, answers, similarity = _scenes(embeddings, query, target, gallery)
    return _retrieval(similarity, asked[:, None] == answers[None], ks, len(embeddings))


def category_recall(embeddings: SceneEmbeddings, query: str, target: str, ks: Sequence[int] = (1, 5, 10), gallery: str = "both") -> Scores:
    """Scene category recall (Table 2): a scene of the query's category among the first k, the query's own scan taken out.

    Scenes of unknown category are left out. Where the gallery has no other scene of a category, its query cannot be answered, and
    counts as a miss, as in the paper's code; the chance level has it too.
    """
    asked, answers, similarity = _scenes(embeddings, query, target, gallery, np.array([bool(name) for name in embeddings.categories], dtype=bool))
    category = np.asarray(embeddings.categories, dtype=object)
    own = asked[:, None] == answers[None]
    relevant = (category[asked][:, None] == category[answers][None]) & ~own
    return _retrieval(np.where(own, -np.inf, similarity), relevant, ks, len(embeddings))


def temporal_recall(
    embeddings: SceneEmbeddings, query: str, target: str, ks: Sequence[int] = (1, 5, 10), gallery: str = "both", queries: str = "reference"
) -> Scores:
    """Temporal recall (Table 2, 3): another scan of the query's place among the first k, the query's own scan taken out.

    queries: reference scans, as in the paper's code, or "all" scans. Queries whose place has no other scan in the gallery are
    left out. Candidates are looked at in the order of their rank: the released code lists those of the first 10 in the order
    of its data base, so its top-1 and top-5 are of chance wherever there are several.
    """
    _check("queries", queries, ("reference", "all"))
    asked, answers, similarity = _scenes(embeddings, query, target, gallery)
    # generated rooms number the places of each split anew, and no data set has scans of one place in two
    told = zip(embeddings.datasets, embeddings.splits, embeddings.places, strict=True)
    place = np.array(["\n".join(each) for each in told], dtype=object)
    own = asked[:, None] == answers[None]
    relevant = (place[asked][:, None] == place[answers][None]) & ~own
    takes = relevant.any(axis=1)
    if queries == "reference":
        takes &= np.array([embeddings.references[row] is None for row in asked], dtype=bool)
    return _retrieval(np.where(own, -np.inf, similarity)[takes], relevant[takes], ks, len(embeddings))


def intra_category_recall(embeddings: SceneEmbeddings, query: str, target: str, ks: Sequence[int] = (1, 3, 5), gallery: str = "both") -> Scores:
    """Intra-category recall (Table 2): the very scan among the first k of its category's scenes, averaged over categories.

    A category of one scene is always right, as in the paper's code: read it beside its chance level.
    """
    asked, answers, similarity = _scenes(embeddings, query, target, gallery, np.array([bool(name) for name in embeddings.categories], dtype=bool))
    category = np.asarray(embeddings.categories, dtype=object)
    rows = []
    for name in sorted(set(category[asked])):
        mine, theirs = category[asked] == name, category[answers] == name
        relevant = asked[mine][:, None] == answers[theirs][None]
        rows.append(_retrieval(similarity[np.ix_(mine, theirs)], relevant, ks, 0))
    means = _weighted(rows, [1.0] * len(rows), skip=("queries", "gallery", "left_out"))
    return {**means, "queries": len(asked), "categories": len(rows), "left_out": len(embeddings) - len(asked)}


def image_localisation(
    frames: NDArray[np.float32], frame_scene: NDArray[np.int64], embeddings: SceneEmbeddings, target: str,
    candidates: int = 50, ks: Sequence[int] = (1, 3, 5), seed: int = 0,
) -> Scores:  # fmt: skip
    """Coarse localisation of single images: each frame [V, D] of scene `frame_scene` [V] against its scene and 49 others, drawn.

    SceneGraphLoc's protocol, which CrossOver's supplementary compares in. With fewer scenes all are candidates.
    """
    known = np.flatnonzero(embeddings.scene_known[target])
    rows = np.flatnonzero(np.isin(frame_scene, known))
    size = min(candidates, len(known))
    hits = {k: np.zeros(len(rows)) for k in ks}
    for place, row in enumerate(rows):
        own = int(frame_scene[row])
        others = np.random.default_rng([seed, int(row)]).choice(known[known != own], size - 1, replace=False)
        similarity = _similarity(frames[row : row + 1], embeddings.scenes[target][[own, *others]])
        for k in ks:
            hits[k][place] = hit_rate(similarity, np.arange(size)[None] == 0, k)[0]
    scores = {f"top{k}": float(hits[k].mean()) if len(rows) else float("nan") for k in ks}
    chances = {f"chance_top{k}": chance(size, 1, k) for k in ks}
    return {**scores, **chances, "queries": len(rows), "gallery": size, "left_out": len(frames) - len(rows)}


# what they share


def _objects(embeddings: SceneEmbeddings, scene: int, *modalities: str) -> NDArray[np.int64]:
    """Rows of the objects of a scene that are known in all of `modalities`."""
    part = embeddings.rows_of(scene)
    known = np.logical_and.reduce([embeddings.object_known[name][part] for name in modalities])
    return part.start + np.flatnonzero(known)


def _scenes(
    embeddings: SceneEmbeddings, query: str, target: str, gallery: str, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows of the queries, rows of the gallery, similarity [Q, G]."""
    _check("gallery", gallery, GALLERIES)
    allowed = np.ones(len(embeddings), dtype=bool) if allowed is None else allowed
    both = embeddings.scene_known[query] & embeddings.scene_known[target] & allowed
    asked, answers = np.flatnonzero(both), np.flatnonzero(both if gallery == "both" else embeddings.scene_known[target] & allowed)
    return asked, answers, _similarity(embeddings.scenes[query][asked], embeddings.scenes[target][answers])


def _retrieval(similarity: NDArray, relevant: NDArray[np.bool_], ks: Sequence[int], scenes: int) -> Scores:
    """Rates over the rows of similarity [Q, G]; -inf is no candidate. scenes: of which the queries are a part."""
    number = len(similarity)
    sizes = (similarity > -np.inf).sum(axis=1)
    result: Scores = {f"top{k}": float(hit_rate(similarity, relevant, k).mean()) if number else float("nan") for k in ks}
    for k in ks:
        by_chance = [chance(int(size), int(right), k) for size, right in zip(sizes, relevant.sum(axis=1), strict=True)]
        result[f"chance_top{k}"] = float(np.mean(by_chance)) if number else float("nan")
    return {**result, "queries": number, "gallery": similarity.shape[1], "left_out": scenes - number}


def _thresholds(hits: float, number: int, rate: float) -> Scores:
    row = {f"R@{percent}": _reaches(hits, number, percent) for percent in THRESHOLDS}
    return row | {f"chance_R@{percent}": share_at_least(number, rate, percent) for percent in THRESHOLDS}


def _threshold_names() -> tuple[str, ...]:
    return tuple(f"{prefix}R@{percent}" for prefix in ("", "chance_") for percent in THRESHOLDS)


def _mistakes(similarity: NDArray, labels: NDArray) -> Scores:
    """same, diff and what chance makes of them."""
    best = similarity >= similarity.max(axis=1, keepdims=True) - TIE
    weight = best / best.sum(axis=1, keepdims=True)
    alike = labels[:, None] == labels[None]
    wrong, number = ~np.eye(len(labels), dtype=bool), len(labels)
    return {
        "same": 1 - float((weight * (wrong & alike)).sum()) / number, "chance_same": 1 - float((wrong & alike).sum()) / number**2,
        "diff": 1 - float((weight * (wrong & ~alike)).sum()) / number, "chance_diff": 1 - float((wrong & ~alike).sum()) / number**2,
    }  # fmt: skip


def _weighted(rows: Sequence[Scores], weights: Sequence[float], only: Sequence[str] | None = None, skip: Sequence[str] = ()) -> Scores:
    """Weighted means of the entries of rows; nothing of no rows."""
    names = [name for name in (rows[0] if rows else ()) if (only is None or name in only) and name not in skip]
    return {name: float(np.average([row[name] for row in rows], weights=weights)) for name in names}


def _prefixed(prefix: str, name: str) -> str:
    return f"chance_{prefix}{name.removeprefix('chance_')}" if name.startswith("chance_") else prefix + name


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}")


OBJECT_METRICS: dict[str, Callable[..., Scores]] = {"instance": instance_matching, "temporal_instance": temporal_instances}
SCENE_METRICS: dict[str, Callable[..., Scores]] = {
    "scene": scene_matching, "category": category_recall, "temporal": temporal_recall, "intra_category": intra_category_recall,
}  # fmt: skip
