"""Average precision of instance masks as ScanNet's benchmark defines it: pure functions, tensors in, numbers out.

The definition is that of BenchmarkScripts/3d_evaluation/evaluate_semantic_instance.py in ScanNet's repository, in three
steps here: `predicted_instances` and `to_raw_points` turn what a model returns into lists of points, `match_instances`
counts overlaps with the true instances of one scene, `average_precision` integrates over all scenes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointcept3m.engines.protocol import Through
from pointcept3m.ops.neighbours import knn_query

# The benchmark's own expression: nine thresholds from 0.5 to 0.9, over which mAP is the mean, and 0.25.
IOU_THRESHOLDS = np.append(np.arange(0.5, 0.95, 0.05), 0.25)
MIN_REGION_SIZE = 100


@dataclass(frozen=True)
class Instances:
    """P predicted instances of a scene of `num_points` points, in the order in which they were predicted.

    member, point [E] int64: point `point[e]` belongs to instance `member[e]`, each pair once; masks may overlap.
    classes [P] int64, scores [P] float64.
    """

    member: np.ndarray
    point: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    num_points: int

    def mask(self, number: int) -> np.ndarray:
        """[num_points] bool: the points of instance `number`."""
        mask = np.zeros(self.num_points, dtype=bool)
        mask[self.point[self.member == number]] = True
        return mask


@dataclass(frozen=True)
class SceneMatches:
    """All that AP needs of one scene; a few kilobytes, whatever the scene.

    true_class, true_size [G]: true instances, by class and then id. pred_class, pred_score, pred_size, pred_void [P]:
    predictions of at least the minimal size, and how many of their points are void. pair_true, pair_pred, pair_size [E]:
    how many points a true instance and a prediction of the same class share, where they do, by true instance and then
    prediction.
    """

    true_class: np.ndarray
    true_size: np.ndarray
    pred_class: np.ndarray
    pred_score: np.ndarray
    pred_size: np.ndarray
    pred_void: np.ndarray
    pair_true: np.ndarray
    pair_pred: np.ndarray
    pair_size: np.ndarray


def predicted_instances(output: Mapping[str, Any], offset: Tensor) -> list[Instances]:
    """The predictions in a model's output, scene by scene.

    output: `pred_masks` [P, N], dense (not 0 means inside) or sparse COO, `pred_classes` [P], `pred_scores` [P], as
    `PG-v1m1` returns them for the N points of a batch. offset [B]: where each scene ends.

    Raises: KeyError where one is missing; ValueError where sizes differ or a score is not finite.
    """
    missing = [key for key in ("pred_masks", "pred_classes", "pred_scores") if key not in output]
    if missing:
        raise KeyError(f"instance segmentation: the model's output has no {missing[0]!r}, got {sorted(output)}")
    classes = _numpy(output["pred_classes"]).astype(np.int64)
    scores = _numpy(output["pred_scores"]).astype(np.float64)
    ends = _numpy(offset).astype(np.int64)
    masks = output["pred_masks"]
    shape, wanted = tuple(masks.shape), (len(classes), int(ends[-1]))
    if len(classes) != len(scores) or shape != wanted:
        raise ValueError(
            f"instance segmentation: pred_masks must be [P, N] = {list(wanted)} with {len(classes)} pred_classes, got "
            f"{list(shape)} and {len(scores)} pred_scores"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"instance segmentation: {int((~np.isfinite(scores)).sum())} pred_scores are not finite")
    member, point = _entries(masks)
    scene = np.searchsorted(ends, point, side="right")
    result = []
    for b, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        inside = scene == b
        here, renumbered = np.unique(member[inside], return_inverse=True)
        result.append(Instances(renumbered, point[inside] - start, classes[here], scores[here], int(end - start)))
    return result


def to_raw_points(instances: Instances, nearest: np.ndarray) -> Instances:
    """The same instances on other points: raw point i is where point `nearest[i]` is, and nowhere where that is -1."""
    order = np.argsort(instances.point, kind="stable")
    count = np.bincount(instances.point, minlength=instances.num_points)
    begin = np.cumsum(count) - count
    raw = np.flatnonzero(nearest >= 0)
    times = count[nearest[raw]]
    place = np.arange(times.sum()) + np.repeat(begin[nearest[raw]] - (np.cumsum(times) - times), times)
    return replace(
        instances, member=instances.member[order][place], point=np.repeat(raw, times), num_points=len(nearest)
    )


def way_to_raw_points(batch: Mapping[str, Any]) -> Through:
    """How `raw_scenes` brings the predictions of `batch` to the points from before a grid dropped some, if it does."""
    return Through.NEAREST if "origin_coord" in batch else Through.VOXEL if _by_cell(batch) else Through.NOTHING


def raw_scenes(
    output: Mapping[str, Any], batch: Mapping[str, Any]
) -> Iterator[tuple[Instances, np.ndarray | None, np.ndarray | None]]:
    """Yields predictions, `segment` and `instance` for each scene of `batch`; labels are None where it has none.

    On the raw points where the batch carries them: each takes what its nearest point was given (`origin_coord`, with
    `origin_offset`; Pointcept's way), or the one that stands for its cell (`inverse`, where there is no origin_coord).
    Else on the points of the batch.

    Raises: as `predicted_instances`; KeyError where `origin_offset` is missing from a batch of several scenes.
    """
    offset = batch["offset"].long()
    scenes = predicted_instances(output, offset)
    prefix, nearest, ends = "", None, _numpy(offset)
    if "origin_coord" in batch:
        prefix, raw_offset = "origin_", _raw_offset(batch)
        coord, raw = batch["coord"].float(), batch["origin_coord"].float()
        nearest = _numpy(knn_query(1, coord, offset, raw, raw_offset)[0]).reshape(-1).astype(np.int64)
        ends = _numpy(raw_offset)
    elif _by_cell(batch):
        prefix, nearest = "origin_", _numpy(batch["inverse"]).astype(np.int64)
        # Raw points stand scene by scene, so their ends are where `inverse` passes from one scene to the next.
        ends = np.searchsorted(np.searchsorted(_numpy(offset), nearest, side="right"), np.arange(len(offset)), "right")
    labels = [_numpy(batch[key]).reshape(-1) if key in batch else None for key in (f"{prefix}segment", f"{prefix}instance")]
    starts = [0, *_numpy(offset)[:-1]]
    for instances, first, start, end in zip(scenes, starts, [0, *ends[:-1]], ends, strict=True):
        if nearest is not None:
            here = nearest[start:end]
            instances = to_raw_points(instances, np.where(here >= 0, here - first, -1))
        segment, instance = (None if values is None else values[start:end] for values in labels)
        yield instances, segment, instance


def match_instances(
    instances: Instances,
    segment: np.ndarray,
    instance: np.ndarray,
    valid_classes: Sequence[int],
    instance_ignore_index: int = -1,
    min_region_size: int = MIN_REGION_SIZE,
) -> SceneMatches:
    """Counts what predictions and true instances share. O(entries + predictions x true instances).

    segment, instance [N]: the true class and instance of each point. A true instance is what one id and one class have
    in common. Void are points of no valid class and points without an instance, which the benchmark's files give id 0:
    ScanNet's script takes `gt_ids // 1000` that is no valid class for void (an old version of it compared `gt_ids`
    itself and so ignored nothing). Pointcept, which matches otherwise as the benchmark does, calls void the former alone. Predictions of other classes,
    or of fewer than `min_region_size` points, are left out.

    Raises: ValueError where the labels are not as many as the points.
    """
    for name, values in (("segment", segment), ("instance", instance)):
        if len(values) != instances.num_points:
            raise ValueError(f"match_instances: {name} has {len(values)} rows for {instances.num_points} points")
    valid = np.asarray(sorted(valid_classes), dtype=np.int64)
    counted = np.isin(segment, valid) & (instance != instance_ignore_index)
    ids, number = np.unique(instance[counted], return_inverse=True)
    key, number, true_size = np.unique(
        segment[counted].astype(np.int64) * len(ids) + number, return_inverse=True, return_counts=True
    )
    true_class = key // max(len(ids), 1)
    owner = np.full(instances.num_points, len(key), dtype=np.int64)  # the last is void
    owner[counted] = number

    num_pred, columns = len(instances.classes), len(key) + 1
    shared = np.bincount(instances.member * columns + owner[instances.point], minlength=num_pred * columns)
    shared = shared.reshape(num_pred, columns)
    pred_size = shared.sum(1)
    kept = np.isin(instances.classes, valid) & (pred_size >= min_region_size)
    shared, pred_class = shared[kept], instances.classes[kept]
    same = pred_class[:, None] == true_class[None, :]
    pair_true, pair_pred = np.nonzero(((shared[:, :-1] > 0) & same).T)
    return SceneMatches(
        true_class=true_class,
        true_size=true_size,
        pred_class=pred_class,
        pred_score=instances.scores[kept],
        pred_size=pred_size[kept],
        pred_void=shared[:, -1],
        pair_true=pair_true,
        pair_pred=pair_pred,
        pair_size=shared[pair_pred, pair_true],
    )


def average_precision(
    scenes: Sequence[SceneMatches],
    classes: Sequence[int],
    thresholds: np.ndarray = IOU_THRESHOLDS,
    min_region_size: int = MIN_REGION_SIZE,
) -> np.ndarray:
    """AP [classes, thresholds] float64 over all scenes; NaN for a class without a true instance of the minimal size.

    For each threshold, in the order of predictions: a prediction whose IoU with a true instance of its class is above
    it is a hit, the first one to find that instance; a further one is a false positive, the less certain of the two.
    A prediction that overlaps no true instance that much is a false positive, unless the share of its points that are
    void or of true instances below the minimal size is above the threshold. AP is the area under precision over recall
    by the benchmark's rule: each distinct score is a point of the curve, a point's width is half the distance between
    its neighbours.
    """
    result = np.full((len(classes), len(thresholds)), np.nan)
    large = [scene.true_size >= min_region_size for scene in scenes]
    num_true = {k: sum(int((s.true_class[big] == k).sum()) for s, big in zip(scenes, large, strict=True)) for k in classes}
    has_pred = {k: any((s.pred_class == k).any() for s in scenes) for k in classes}
    for column, threshold in enumerate(thresholds):
        outcomes = [_outcomes(scene, big, threshold) for scene, big in zip(scenes, large, strict=True)]
        found = np.concatenate([rows for rows, _ in outcomes]) if outcomes else np.zeros((0, 3))
        missed = np.concatenate([classes_ for _, classes_ in outcomes]) if outcomes else np.zeros(0)
        for row, k in enumerate(classes):
            if num_true[k] and has_pred[k]:
                mine = found[found[:, 0] == k]
                result[row, column] = _area(mine[:, 1] > 0, mine[:, 2], int((missed == k).sum()))
            elif num_true[k]:
                result[row, column] = 0.0
    return result


def instance_scores(
    ap: np.ndarray, names: Sequence[str], thresholds: np.ndarray = IOU_THRESHOLDS
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Means over classes, `{mAP, AP50, AP25}`, and `{class: {ap, ap50, ap25}}`, of what `average_precision` returns.

    mAP and ap are means over all thresholds but 0.25. Classes that are NaN are left out of the means, which are NaN
    themselves where every class is.
    """
    columns = {
        "mAP": np.flatnonzero(~np.isclose(thresholds, 0.25)),
        "AP50": np.flatnonzero(np.isclose(thresholds, 0.5)),
        "AP25": np.flatnonzero(np.isclose(thresholds, 0.25)),
    }
    totals = {}
    for name, chosen in columns.items():
        values = ap[:, chosen]
        known = values[~np.isnan(values)]
        totals[name] = float(known.mean()) if len(known) else float("nan")
    keys = {"ap": "mAP", "ap50": "AP50", "ap25": "AP25"}
    per_class = {
        name: {key: float(ap[row, columns[column]].mean()) for key, column in keys.items()}
        for row, name in enumerate(names)
    }
    return totals, per_class


def scored_classes(names: Sequence[str], segment_ignore_index: Sequence[int]) -> dict[int, str]:
    """The classes that have instances, by number, with their names: all but the ignored ones."""
    return {k: name for k, name in enumerate(names) if k not in tuple(segment_ignore_index)}


def score_table(totals: Mapping[str, float], per_class: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of text: a class each with its ap, ap50 and ap25, "-" where it is NaN, and the means last."""
    width = max(len(name) for name in ("mean", *per_class))
    rows = [("", "AP", "AP50", "AP25")]
    rows += [(name, *(_text(row[key]) for key in ("ap", "ap50", "ap25"))) for name, row in per_class.items()]
    rows.append(("mean", *(_text(totals[key]) for key in ("mAP", "AP50", "AP25"))))
    return "\n".join(f"  {name:<{width}}" + "".join(f"{value:>8}" for value in values) for name, *values in rows)


def _text(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def _outcomes(scene: SceneMatches, large: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows of (class, 1 hit or 0 false positive, score), and the classes of true instances that nothing has found."""
    union = scene.true_size[scene.pair_true] + scene.pred_size[scene.pair_pred] - scene.pair_size
    above = scene.pair_size / union > threshold
    best: dict[int, float] = {}  # true instance -> the highest score among those that found it
    taken: set[int] = set()
    rows: list[tuple[int, int, float]] = []
    wanted = above & large[scene.pair_true]
    for true, pred in zip(scene.pair_true[wanted].tolist(), scene.pair_pred[wanted].tolist(), strict=True):
        score = scene.pred_score[pred]
        if pred in taken:
            continue
        if true in best:
            # The later one is not marked as taken: the benchmark lets it find another instance still.
            rows.append((scene.true_class[true], 0, min(best[true], score)))
            best[true] = max(best[true], score)
        else:
            best[true] = score
            taken.add(pred)
    rows += [(scene.true_class[true], 1, score) for true, score in best.items()]
    missed = [k for true, k in enumerate(scene.true_class.tolist()) if large[true] and true not in best]

    num_pred = len(scene.pred_size)
    found = np.bincount(scene.pair_pred[above], minlength=num_pred) > 0  # small instances count here
    small = ~large[scene.pair_true]
    ignored = scene.pred_void + np.bincount(scene.pair_pred[small], scene.pair_size[small], num_pred)
    false = np.flatnonzero(~found & (ignored / np.maximum(scene.pred_size, 1) <= threshold))
    rows += [(scene.pred_class[pred], 0, scene.pred_score[pred]) for pred in false.tolist()]
    return np.array(rows, dtype=np.float64).reshape(-1, 3), np.array(missed, dtype=np.int64)


def _area(hit: np.ndarray, score: np.ndarray, num_missed: int) -> float:
    """The area under precision over recall; `num_missed` true instances are in no row."""
    order = np.argsort(score, kind="stable")
    hit, score = hit[order], score[order]
    _, first = np.unique(score, return_index=True)
    below = np.concatenate([[0], np.cumsum(hit)])[first]  # hits with a lower score than this point of the curve
    num_hits = int(hit.sum())
    hits = num_hits - below
    precision = np.append(hits / (len(hit) - first), 1.0)
    recall = np.append(hits / (num_hits + num_missed), 0.0)
    widths = np.convolve(np.concatenate([recall[:1], recall, [0.0]]), [-0.5, 0, 0.5], "valid")
    return float(np.dot(precision, widths))


def _entries(masks: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns where `masks` [P, N] is not 0, each pair once, int64."""
    if isinstance(masks, Tensor) and masks.layout != torch.strided:
        masks = masks.to_sparse_coo()
        masks = masks if masks.is_coalesced() else masks.int().coalesce()
        inside = masks.values() != 0
        row, column = masks.indices()[:, inside]
        return _numpy(row), _numpy(column)
    row, column = np.nonzero(_numpy(masks))
    return row.astype(np.int64), column.astype(np.int64)


def _by_cell(batch: Mapping[str, Any]) -> bool:
    return "inverse" in batch and ("origin_instance" in batch or "instance" not in batch)


def _raw_offset(batch: Mapping[str, Any]) -> Tensor:
    if "origin_offset" in batch:
        return batch["origin_offset"].long()
    if len(batch["offset"]) > 1:
        raise KeyError(
            "batch: 'origin_offset' is missing, which says where each scene's raw points end; "
            "Collect(offset_keys_dict=dict(offset='coord', origin_offset='origin_coord')) makes it"
        )
    return torch.tensor([len(batch["origin_coord"])], device=batch["origin_coord"].device)


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
