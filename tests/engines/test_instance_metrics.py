"""Average precision of instances, against the benchmark's definition written out point by point."""

import math

import numpy as np
import pytest
import torch

from pointcept3m.engines import instance_metrics
from pointcept3m.engines.instance_metrics import (
    average_precision,
    instance_scores,
    match_instances,
    predicted_instances,
    raw_scenes,
    to_raw_points,
)

THRESHOLDS = [0.5 + 0.05 * i for i in range(9)] + [0.25]


# ---- the definition, slowly: a scene is (ids, [(mask, class, score)]), ids = 1000 * class + 1, 2, ..., or 0 for void


def iou(a, b):
    return len(a & b) / len(a | b)


def as_sets(scene, wanted, valid, least):
    """The void points, the true instances of class `wanted`, its predictions with their scores."""
    ids, predictions = scene
    void = {p for p, i in enumerate(ids) if i // 1000 not in valid}
    true = [set(np.flatnonzero(ids == one)) for one in sorted(set(ids)) if one // 1000 == wanted]
    masks = [(set(np.flatnonzero(mask)), score) for mask, k, score in predictions if k == wanted]
    return void, true, [(mask, score) for mask, score in masks if len(mask) >= least]


def slow_ap(sets, threshold, least=100):
    """AP of one class, whose points, in each scene, `sets` holds."""
    points, total, predicted = [], 0, False  # points: (score, is it a hit)
    for void, true, masks in sets:
        predicted |= bool(masks)
        used = [False] * len(masks)
        for instance in true:
            if len(instance) < least:
                continue
            total += 1
            mine = []
            for number, (mask, score) in enumerate(masks):
                if not used[number] and iou(mask, instance) > threshold:
                    used[number] = used[number] or not mine
                    mine = sorted([*mine, score], reverse=True)
                    if len(mine) == 2:
                        points.append((mine.pop(), False))
            points += [(score, True) for score in mine]
        for mask, score in masks:
            if any(iou(mask, instance) > threshold for instance in true):
                continue
            ignored = len(mask & void) + sum(len(mask & instance) for instance in true if len(instance) < least)
            if ignored / len(mask) <= threshold:
                points.append((score, False))
    if not total:
        return math.nan
    if not predicted:
        return 0.0
    curve = []  # (precision, recall) where all predictions of at least a score count, from the lowest score up
    for level in sorted({score for score, _ in points}):
        above = [hit for score, hit in points if score >= level]
        curve.append((sum(above) / len(above), sum(above) / total))
    curve.append((1.0, 0.0))
    recalls = [curve[0][1], *(r for _, r in curve), 0.0]
    return sum(p * (recalls[i] - recalls[i + 2]) / 2 for i, (p, _) in enumerate(curve))


def slow_table(scenes, classes, least=100):
    sets = [[as_sets(scene, k, set(classes), least) for scene in scenes] for k in classes]
    return np.array([[slow_ap(of_class, t, least) for t in THRESHOLDS] for of_class in sets])


def fast_matches(scene, classes, least=100):
    ids, predictions = np.asarray(scene[0]), scene[1]
    masks = np.array([mask for mask, _, _ in predictions], dtype=bool).reshape(len(predictions), len(ids))
    output = dict(
        pred_masks=torch.from_numpy(masks).to_sparse() if len(predictions) % 2 else torch.from_numpy(masks),
        pred_classes=torch.tensor([k for _, k, _ in predictions], dtype=torch.int64),
        pred_scores=torch.tensor([s for _, _, s in predictions], dtype=torch.float64),
    )
    (instances,) = predicted_instances(output, torch.tensor([len(ids)]))
    segment, instance = np.where(ids == 0, -1, ids // 1000), np.where(ids == 0, -1, ids)
    return match_instances(instances, segment, instance, classes, min_region_size=least)


def both(scenes, classes, least=100):
    fast = average_precision([fast_matches(scene, classes, least) for scene in scenes], classes, min_region_size=least)
    return fast, slow_table(scenes, classes, least)


def random_scene(rng, num_points=600, classes=(2, 3, 4), num_true=9, num_pred=25):
    """Runs of points as instances, some of them void or small; predictions are shifted and overlapping runs."""
    cuts = np.sort(rng.choice(np.arange(1, num_points), num_true - 1, replace=False))
    ids, starts, ends = np.zeros(num_points, dtype=int), [0, *cuts], [*cuts, num_points]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        ids[start:end] = 0 if rng.random() < 0.2 else 1000 * rng.choice([*classes, 9]) + 1 + number
    predictions = []
    for _ in range(num_pred):
        run = rng.integers(num_true)
        start, end = starts[run] + rng.integers(-15, 16), ends[run] + rng.integers(-15, 16)
        place = np.arange(num_points)
        mask = (place >= start) & (place < end) & (rng.random(num_points) < rng.choice([1.0, 0.95, 0.7]))
        true = ids[(starts[run] + ends[run] - 1) // 2] // 1000
        kind = true if true in classes and rng.random() < 0.8 else rng.choice([*classes, 9])
        predictions.append((mask, int(kind), float(rng.choice([0.3, 0.5, 0.7, rng.random()]))))  # with ties
    return ids, predictions


def test_thresholds_are_the_benchmarks():
    assert np.allclose(instance_metrics.IOU_THRESHOLDS, THRESHOLDS) and len(instance_metrics.IOU_THRESHOLDS) == 10
    assert instance_metrics.MIN_REGION_SIZE == 100


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes(seed):
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(1 + seed % 3)]
    classes = [2, 3, 4, 5]  # 9 is no valid class, 5 is nowhere
    fast, slow = both(scenes, classes, least=30)
    assert np.isnan(fast[3]).all() and 0 < np.nanmean(fast) < 1
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-14)
    # The result does not depend on the order of scenes.
    again, _ = both(scenes[::-1], classes, least=30)
    np.testing.assert_array_equal(fast, again)


def runs(num_points, *parts):
    """An array of 0 with `value` in each (start, end, value)."""
    values = np.zeros(num_points, dtype=int)
    for start, end, value in parts:
        values[start:end] = value
    return values


def mask(num_points, start, end):
    return runs(num_points, (start, end, 1)).astype(bool)


def test_by_hand():
    """Two chairs (class 2); three predictions with scores 0.9 (hit), 0.8 (false) and 0.7 (hit)."""
    ids = runs(1000, (0, 200, 2001), (300, 500, 2002))
    wrong = mask(1000, 150, 350)  # IoU 1/7 with either; half of it is void, which 0.5 does not exceed
    scene = (ids, [(mask(1000, 0, 200), 2, 0.9), (wrong, 2, 0.8), (mask(1000, 300, 500), 2, 0.7)])
    fast, slow = both([scene], [2])
    # From the lowest score: precision 2/3, 1/2, 1, and the artificial 1; recall 1, 1/2, 1/2, 0.
    # Widths (1 - 1/2) / 2, (1 - 1/2) / 2, (1/2 - 0) / 2, (1/2 - 0) / 2.
    expected = (2 / 3) / 4 + (1 / 2) / 4 + 1 / 4 + 1 / 4
    assert fast[0, 0] == pytest.approx(expected, abs=1e-15)
    # At 0.25 half of it being void is more than the threshold: it is no false positive.
    assert fast[0, -1] == 1.0
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-15)


CASES = {
    "nothing predicted": ([(runs(400, (0, 200, 2001)), [])], 0.0),
    "no true instance": ([(runs(400), [(mask(400, 0, 200), 2, 0.5)])], math.nan),
    "only predicted": ([(runs(400, (0, 200, 3001)), [(mask(400, 0, 200), 2, 0.5)])], math.nan),
    "prediction too small": ([(runs(400, (0, 99, 2001), (100, 200, 2002)), [(mask(400, 100, 199), 2, 0.5)])], 0.0),
    "true instance too small": ([(runs(400, (0, 99, 2001)), [(mask(400, 0, 100), 2, 0.5)])], math.nan),
    "all predictions on void": ([(runs(400, (0, 150, 2001)), [(mask(400, 200, 400), 2, 0.5)])], 0.0),
    "the threshold itself is no hit": ([(runs(400, (0, 200, 2001)), [(mask(400, 0, 100), 2, 0.5)])], 0.0),
    # precision 1/2, 1, 1 over recall 1, 1, 0: the duplicate has the lower score, and costs nothing
    "a duplicate": ([(runs(400, (0, 200, 2001)), [(mask(400, 0, 200), 2, 0.5), (mask(400, 0, 190), 2, 0.6)])], 1.0),
    # precision 1/2, 1 over recall 1, 0: of two equal scores none comes first
    "a tie": ([(runs(400, (0, 200, 2001)), [(mask(400, 0, 200), 2, 0.5), (mask(400, 0, 190), 2, 0.5)])], 0.75),
    "two scenes": ([(runs(300, (0, 200, 2001)), [(mask(300, 0, 200), 2, 0.1)]), (runs(300, (0, 200, 2001)), [])], 0.5),
}


@pytest.mark.parametrize("name", CASES)
def test_special_cases(name):
    scenes, expected = CASES[name]
    fast, slow = both(scenes, [2, 3])
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-15)
    assert fast[0, 0] == pytest.approx(expected, nan_ok=True)


def test_small_instances_hide_predictions():
    """A prediction on small instances of its class is ignored like one on void; one of another class is not."""
    ids = runs(1000, (0, 200, 2001), (400, 460, 2002), (500, 560, 2003), (600, 800, 3001))
    on_small = (mask(1000, 400, 460) | mask(1000, 500, 560), 2, 0.9)
    fast, slow = both([(ids, [(mask(1000, 0, 200), 2, 0.5), on_small])], [2, 3])
    assert fast[0, 0] == 1.0
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-15)
    on_other = (mask(1000, 600, 700), 2, 0.9)
    fast, slow = both([(ids, [(mask(1000, 0, 200), 2, 0.5), on_other])], [2, 3])
    assert fast[0, 0] < 1.0
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-15)


def test_means_leave_out_classes_that_are_nowhere():
    ap = np.array([[1.0] * 10, [0.5] * 9 + [0.75], [math.nan] * 10])
    totals, per_class = instance_scores(ap, ["bed", "chair", "sink"])
    assert totals == dict(mAP=0.75, AP50=0.75, AP25=0.875)
    assert per_class["chair"] == dict(ap=0.5, ap50=0.5, ap25=0.75) and math.isnan(per_class["sink"]["ap"])
    totals, _ = instance_scores(ap[2:], ["sink"])
    assert all(math.isnan(value) for value in totals.values())


def test_points_without_an_instance_are_void():
    """A labelled region without an instance, the benchmark's id below 1000, neither counts nor hurts."""
    segment = runs(400, (0, 400, 2))
    instance = np.where(np.arange(400) < 200, 5, -1)
    output = dict(pred_masks=torch.zeros(2, 400), pred_classes=torch.tensor([2, 2]), pred_scores=torch.tensor([0.5, 0.9]))
    output["pred_masks"][0, :200] = output["pred_masks"][1, 200:] = 1
    (instances,) = predicted_instances(output, torch.tensor([400]))
    matches = match_instances(instances, segment, instance, [2])
    assert matches.true_size.tolist() == [200] and matches.pred_void.tolist() == [0, 200]
    assert (average_precision([matches], [2]) == 1.0).all()


def test_an_id_shared_by_two_classes_is_two_instances():
    segment, instance = runs(400, (0, 150, 2), (150, 400, 3)), np.zeros(400, dtype=int)
    empty = predicted_instances(
        dict(pred_masks=torch.zeros(0, 400), pred_classes=torch.zeros(0), pred_scores=torch.zeros(0)), torch.tensor([400])
    )[0]
    matches = match_instances(empty, segment, instance, [2, 3])
    assert matches.true_class.tolist() == [2, 3] and matches.true_size.tolist() == [150, 250]


# ---- from a model's output to the raw points


def batch_of_two():
    """Two scenes of 3 and 4 points at known places, and 5 and 6 raw points; masks overlap in a point."""
    coord = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    raw = torch.tensor([[0.1, 0, 0], [0.9, 0, 0], [1.1, 0, 0], [2.2, 0, 0], [1.8, 0, 0]])
    raw2 = torch.tensor([[2.9, 0, 0], [0.0, 0, 0], [0.2, 0, 0], [1.0, 0, 0], [2.1, 0, 0], [3.3, 0, 0]])
    masks = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1]], dtype=torch.bool)
    batch = dict(coord=coord, offset=torch.tensor([3, 7]), origin_coord=torch.cat([raw, raw2]))
    batch["origin_offset"] = torch.tensor([5, 11])
    batch["origin_segment"], batch["origin_instance"] = torch.arange(11), torch.arange(11) + 100
    output = dict(pred_masks=masks, pred_classes=torch.tensor([2, 3, 4]), pred_scores=torch.tensor([0.5, 0.6, 0.7]))
    return output, batch


def dense(instances):
    return np.array([instances.mask(p) for p in range(len(instances.classes))]).astype(int).tolist()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("by", ["nearest", "inverse"])
def test_raw_points_of_a_batch(sparse, by):
    output, batch = batch_of_two()
    if sparse:
        output["pred_masks"] = output["pred_masks"].to_sparse()
    if by == "inverse":
        del batch["origin_coord"], batch["origin_offset"]
        batch["inverse"] = torch.tensor([0, 1, 1, 2, 2, 6, 3, 3, 4, 5, 6])
    (first, segment, _), (second, segment2, instance2) = raw_scenes(output, batch)
    assert dense(first) == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]] and first.classes.tolist() == [2, 3]
    assert dense(second) == [[1, 1, 1, 0, 0, 1]] and second.scores.tolist() == pytest.approx([0.7])
    assert segment.tolist() == list(range(5)) and segment2.tolist() == list(range(5, 11)) and instance2[0] == 105


def test_without_raw_points_the_batch_itself_is_scored():
    output, batch = batch_of_two()
    batch = dict(offset=batch["offset"], segment=torch.arange(7), instance=torch.arange(7))
    (first, segment, _), (second, _, _) = raw_scenes(output, batch)
    assert dense(first) == [[1, 1, 0], [0, 1, 1]] and dense(second) == [[1, 0, 0, 1]] and segment.tolist() == [0, 1, 2]


def test_a_raw_point_that_is_near_nothing_is_in_no_mask():
    (instances, _) = predicted_instances(batch_of_two()[0], torch.tensor([3, 7]))
    assert dense(to_raw_points(instances, np.array([-1, 1, 0]))) == [[0, 1, 1], [0, 1, 0]]


def test_bad_predictions():
    output, batch = batch_of_two()
    with pytest.raises(KeyError, match="no 'pred_scores'"):
        predicted_instances({k: v for k, v in output.items() if k != "pred_scores"}, batch["offset"])
    with pytest.raises(ValueError, match=r"must be \[P, N\] = \[3, 6\]"):
        predicted_instances(output, torch.tensor([3, 6]))
    with pytest.raises(ValueError, match="1 pred_scores are not finite"):
        predicted_instances({**output, "pred_scores": torch.tensor([0.5, math.nan, 0.1])}, batch["offset"])
    del batch["origin_offset"]
    with pytest.raises(KeyError, match="origin_offset"):
        list(raw_scenes(output, batch))
    with pytest.raises(ValueError, match="segment has 2 rows for 3 points"):
        match_instances(predicted_instances(output, batch["offset"])[0], np.zeros(2), np.zeros(3), [0])


# ---- a real scan


NYU20 = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39)


@pytest.fixture
def scan(real_data):
    data = np.load(real_data("scannet_scene0000_00") / "scene0000_00.npz", allow_pickle=False)
    nyu, instance = data["semantic_nyu40"].astype(np.int64), data["instance"].astype(np.int64)
    segment = np.full(len(nyu), -1)
    for k, number in enumerate(NYU20):
        segment[nyu == number] = k
    return segment, np.where(instance == 0, -1, instance)


def test_truth_as_prediction_on_a_real_scan(scan):
    segment, instance = scan
    classes = list(range(2, 20))
    ids = [i for i in np.unique(instance[instance >= 0]) if segment[instance == i][0] >= 2]
    output = dict(
        pred_masks=torch.from_numpy(np.array([instance == i for i in ids])).to_sparse(),
        pred_classes=torch.tensor([int(segment[instance == i][0]) for i in ids]),
        pred_scores=torch.rand(len(ids)),
    )
    ((instances, _, _),) = raw_scenes(output, dict(offset=torch.tensor([len(segment)])))
    ap = average_precision([match_instances(instances, segment, instance, classes)], classes)
    present = np.isin(classes, [int(segment[instance == i][0]) for i in ids if (instance == i).sum() >= 100])
    np.testing.assert_allclose(ap[present], 1.0, rtol=0, atol=1e-15)  # sums of widths round, in the benchmark too
    assert np.isnan(ap[~present]).all() and present.sum() > 8
    totals, _ = instance_scores(ap, [str(k) for k in classes])
    assert totals == pytest.approx(dict(mAP=1.0, AP50=1.0, AP25=1.0), abs=1e-15)


def test_perturbed_masks_on_a_real_scan(scan):
    """Masks that lose points, gain others and get wrong classes: what the definition gives, on 81,369 points."""
    segment, instance = scan
    rng = np.random.default_rng(0)
    classes = [4, 6, 7, 15]
    ids = np.where((segment < 0) | (instance < 0), 0, segment * 1000 + instance + 1)
    predictions = []
    for i in np.unique(instance[instance >= 0]):
        true = instance == i
        for _ in range(2):
            chosen = (true & (rng.random(len(true)) < rng.choice([1.0, 0.8, 0.6]))) | (rng.random(len(true)) < 0.0005)
            kind = int(segment[true][0]) if rng.random() < 0.8 else 7
            predictions.append((chosen, kind, float(rng.choice([0.5, rng.random()]))))
    fast, slow = both([(ids, predictions)], classes)
    assert 0 < np.nanmean(fast) < 1
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-14)
