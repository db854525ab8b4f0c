"""Metrics of retrieval: cases by hand, loops that read like the paper, and what the released code gets wrong."""

from itertools import permutations

import numpy as np
import pytest

from pointcept3m.engines.retrieval import metrics
from pointcept3m.engines.retrieval.evaluation import evaluate, flatten, pairs_of
from tests.engines.embeddings import embeddings, random_embeddings

X, Y, Z = np.eye(3)


# by hand


def objects(*rows):
    """One scene of objects (label, image, point), ids 10, 20, ..."""
    made = []
    for number, (label, image, point) in enumerate(rows, 1):
        vectors = {"image": image, "point": point}
        made.append((10 * number, label, {name: v for name, v in vectors.items() if v is not None}))
    return made


def test_mistakes_within_and_across_labels_where_a_mask_has_gaps():
    """Five objects, the second has no image: queries are 1, 3, 4, 5. Object 3 is taken for 1 (both chairs), 5 for 4 (lamp, table).

    The released helper looks labels up in the unmasked list, where prediction 3 of four is another object.
    """
    scene = objects(
        ("chair", X, X),
        ("sofa", None, [1, 1, 1]),
        ("chair", [0.9, 0.1, 0], [0, 0.7, -0.7]),
        ("lamp", Z, Z),
        ("table", [0, 0.1, 0.9], [0.5, 0.5, -0.5]),
    )
    scores = metrics.instance_matching(embeddings({"image": [X]}, [scene]), "image", "point")
    assert scores["queries"] == 4 and scores["scenes"] == 1 and scores["left_out"] == 0
    assert (scores["top1"], scores["same"], scores["diff"]) == (0.5, 0.75, 0.75)
    assert scores["top1"] == pytest.approx(scores["same"] + scores["diff"] - 1)
    assert (scores["R@25"], scores["R@50"], scores["R@75"]) == (1, 1, 0)
    assert scores["chance_top1"] == 1 / 4 and scores["chance_top3"] == 3 / 4
    # among four objects, of which two are chairs: 2 of 16 answers at random are the other chair
    assert scores["chance_same"] == 1 - 2 / 16 and scores["chance_diff"] == 1 - 10 / 16


def test_macro_and_micro_means_of_scenes():
    right = objects(("a", X, X), ("b", Y, Y), ("c", Z, Z))
    wrong = objects(("a", X, Y), ("b", Y, X))
    made = embeddings({"image": [X, Y, Z]}, [right, wrong, objects(("a", X, None))])
    macro, micro = (metrics.instance_matching(made, "image", "point", average=name) for name in ("macro", "micro"))
    assert macro["top1"] == 0.5 and micro["top1"] == pytest.approx(3 / 5)
    assert macro["queries"] == 5 and macro["scenes"] == 2 and macro["left_out"] == 1
    assert macro["R@50"] == micro["R@50"] == 0.5
    with pytest.raises(ValueError, match="macro, micro"):
        metrics.instance_matching(made, "image", "point", average="mean")


def test_equal_answers_are_a_matter_of_chance():
    """Two identical chairs: the released argsort gives one of them always and the other never; a collapsed model is at chance."""
    twins = embeddings({"image": [X]}, [objects(("chair", X, X), ("chair", X, X), ("lamp", Z, Z))])
    scores = metrics.instance_matching(twins, "image", "point")
    assert scores["top1"] == pytest.approx(2 / 3) and scores["same"] == pytest.approx(2 / 3) and scores["diff"] == 1
    flat = embeddings({"image": [X]}, [objects(*[("chair", X, X)] * 5)])
    scores = metrics.instance_matching(flat, "image", "point")
    assert scores["top1"] == pytest.approx(scores["chance_top1"]) and scores["top3"] == pytest.approx(3 / 5)
    collapsed = embeddings({"image": [X] * 9, "point": [X] * 9}, places=list("aabbccdde"), categories=list("xxxyyyzzz"))
    for function in (metrics.scene_matching, metrics.category_recall, metrics.temporal_recall, metrics.intra_category_recall):
        scores = function(collapsed, "image", "point")
        names = [name for name in scores if name.startswith("top")]
        assert names and all(scores[name] == pytest.approx(scores[f"chance_{name}"]) for name in names)


def test_temporal_recall_is_of_the_rank_and_not_of_the_order_in_the_data_base():
    """The query's own scan is first and another room second; the rescan, third, stands before that room in the data base.

    The released code lists the rescans among the first ten in the order of the data base, and calls this a top-1 success.
    """
    image = [X, [1, 0.5, 0], [0, 1, 0.2], [-1, 0, 1]]
    point = [[1, 0.05, 0], [1, 0.9, 0], [1, 0.3, 0], [0, 0, 1]]
    made = embeddings({"image": image, "point": point}, places=["a", "a", "b", "c"], references=[None, "s0", None, None])
    scores = metrics.temporal_recall(made, "image", "point", ks=(1, 2))
    assert (scores["queries"], scores["top1"], scores["top2"]) == (1, 0, 1)
    assert scores["gallery"] == 4 and scores["chance_top1"] == pytest.approx(1 / 3)
    # another scan of an unrelated place is none: a scene without rescans asks nothing
    every = metrics.temporal_recall(made, "image", "point", ks=(1, 2), queries="all")
    assert every["queries"] == 2


def test_rooms_of_two_splits_are_other_places_whatever_their_names():
    made = embeddings({"image": [X, X, [0, 1, 0], [0, 1, 0]], "point": [X, X, [0, 1, 0], [0, 1, 0]]}, names=["r", "r_1", "r", "r_1"], places=["r"] * 4,
                      references=[None, "r", None, "r"])  # fmt: skip
    made.splits, made.same_ids = ["train", "train", "val", "val"], [True] * 4
    assert metrics.rescans(made) == [(0, 1), (2, 3)]
    scores = metrics.temporal_recall(made, "image", "point", ks=(1,))
    assert scores["queries"] == 2 and scores["top1"] == 1 and scores["chance_top1"] == pytest.approx(1 / 3)


def test_category_and_intra_category_by_hand():
    image = [X, Y, [1, 0.1, 0], Z]
    made = embeddings({"image": image, "floorplan": image}, categories=["kitchen", "hall", "hall", ""])
    scores = metrics.category_recall(made, "image", "floorplan", ks=(1, 2))
    # the kitchen is alone; hall 1 is next to hall 2 and kitchen; hall 2 is nearest to the kitchen
    assert scores["queries"] == 3 and scores["left_out"] == 1
    assert scores["top1"] == pytest.approx(1 / 3) and scores["top2"] == pytest.approx(2 / 3)
    assert scores["chance_top1"] == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    within = metrics.intra_category_recall(made, "image", "floorplan", ks=(1,))
    assert within["top1"] == 1 and within["categories"] == 2 and within["chance_top1"] == pytest.approx((1 + 1 / 2) / 2)


def test_what_lacks_a_modality_is_neither_query_nor_answer():
    made = embeddings({"image": [X, Y, None, Z], "point": [Y, None, Y, Z]})
    scores = metrics.scene_matching(made, "image", "point", ks=(1,))
    assert (scores["queries"], scores["gallery"], scores["left_out"], scores["top1"]) == (2, 2, 2, 0.5 + 0.5 * 0.5)
    wide = metrics.scene_matching(made, "image", "point", ks=(1,), gallery="target")
    assert (wide["queries"], wide["gallery"], wide["chance_top1"]) == (2, 3, pytest.approx(1 / 3))


def test_temporal_instances_by_hand():
    before = [(1, "chair", {"point": X}), (2, "table", {"point": Y}), (3, "bed", {"point": Z}), (7, "lamp", {"point": [1, 1, 1]})]
    after = [(1, "chair", {"point": X}), (2, "table", {"point": [0, 1, 1]}), (3, "bed", {"point": [0, 1, 0]}), (9, "sofa", {"point": [1, -1, 0]})]
    made = embeddings({"point": [X, Y, Z]}, [before, after, []], references=[None, "s0", "s0"], moved=[(1, 2), (1, 3)])
    scores = metrics.temporal_instances(made, "point", "point")
    # the lamp is gone and asks nothing; the chair is found, table and bed are mixed up
    assert scores["queries"] == 3 and scores["pairs"] == 1 and scores["left_out"] == 1
    assert scores["recall"] == pytest.approx((1 + 0 + 0) / 3) and scores["chance_recall"] == pytest.approx(1 / 4)
    assert (scores["R@25"], scores["R@50"]) == (1, 0)
    assert (scores["static_recall"], scores["static_queries"], scores["static_R@75"]) == (1, 1, 1)
    assert (scores["moved_recall"], scores["moved_queries"], scores["moved_R@25"]) == (0, 2, 0)
    chairs = metrics.temporal_instances(made, "point", "point", labels=["chair"])
    assert chairs["queries"] == 1 and chairs["recall"] == 1


def test_localisation_of_single_images():
    made = embeddings({"point": [X, Y, Z, None]})
    frames = np.float32([X, [0, 0.8, 0.6], [0, 0.8, 0.6], X])
    scores = metrics.image_localisation(frames, np.array([0, 1, 2, 3]), made, "point", ks=(1, 2))
    assert (scores["queries"], scores["left_out"], scores["gallery"]) == (3, 1, 3)
    assert scores["top1"] == pytest.approx(2 / 3) and scores["top2"] == 1 and scores["chance_top2"] == pytest.approx(2 / 3)
    few = metrics.image_localisation(frames, np.array([0, 1, 2, 3]), made, "point", candidates=2, ks=(1,), seed=1)
    assert few["gallery"] == 2 and few == metrics.image_localisation(frames, np.array([0, 1, 2, 3]), made, "point", candidates=2, ks=(1,), seed=1)


# against loops


def rank_of(query, gallery, own):
    """Place of entry `own` from 1 on, where no two are equal."""
    order = sorted(range(len(gallery)), key=lambda i: -float(np.dot(np.float64(query), np.float64(gallery[i]))))
    return order.index(own) + 1, order


def loop_instances(made, query, target, ks):
    rates, reached = [], {25: [], 50: [], 75: []}
    for scene in range(len(made)):
        rows = [r for r in range(made.rows_of(scene).start, made.rows_of(scene).stop) if made.object_known[query][r] and made.object_known[target][r]]
        if not rows:
            continue
        ranks = [rank_of(made.objects[query][r], [made.objects[target][o] for o in rows], i)[0] for i, r in enumerate(rows)]
        rates.append([sum(rank <= k for rank in ranks) / len(rows) for k in ks])
        for percent, each in reached.items():
            each.append(sum(rank == 1 for rank in ranks) * 100 >= percent * len(rows))
    return {**{f"top{k}": np.mean([rate[i] for rate in rates]) for i, k in enumerate(ks)}, **{f"R@{p}": np.mean(each) for p, each in reached.items()}}


def loop_scenes(made, query, target, kind, ks):
    both = [i for i in range(len(made)) if made.scene_known[query][i] and made.scene_known[target][i]]
    if kind in ("category", "intra_category"):
        both = [i for i in both if made.categories[i]]
    hits = {k: {} for k in ks}
    for i in both:
        others = [j for j in both if kind != "intra_category" or made.categories[j] == made.categories[i]]
        order = [others[o] for o in rank_of(made.scenes[query][i], [made.scenes[target][j] for j in others], 0)[1]]
        if kind in ("category", "temporal"):
            order.remove(i)
        if kind == "temporal":
            if made.references[i] is not None or not any(made.places[j] == made.places[i] for j in order):
                continue
            right = [made.places[j] == made.places[i] for j in order]
        elif kind == "category":
            right = [made.categories[j] == made.categories[i] for j in order]
        else:
            right = [j == i for j in order]
        for k in ks:
            hits[k].setdefault(made.categories[i] if kind == "intra_category" else "", []).append(any(right[:k]))
    return {f"top{k}": np.mean([np.mean(each) for each in hits[k].values()]) for k in ks}


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_loops(seed):
    made = random_embeddings(seed)
    for query, target in permutations(("image", "point", "cad", "text"), 2):
        scores = metrics.instance_matching(made, query, target)
        for name, value in loop_instances(made, query, target, (1, 3)).items():
            assert scores[name] == pytest.approx(value, abs=1e-12), (query, target, name)
    kinds = {"scene": metrics.scene_matching, "category": metrics.category_recall, "temporal": metrics.temporal_recall, "intra_category": metrics.intra_category_recall}
    for query, target in permutations(("image", "point", "floorplan", "text"), 2):
        for kind, function in kinds.items():
            scores = function(made, query, target, ks=(1, 2, 5))
            for name, value in loop_scenes(made, query, target, kind, (1, 2, 5)).items():
                assert scores[name] == pytest.approx(value, abs=1e-12), (query, target, kind, name)


@pytest.mark.parametrize("seed", range(3))
def test_temporal_instances_the_same_as_loops(seed):
    made = random_embeddings(seed)
    number = {name: i for i, name in enumerate(made.names)}
    hits, reached, static = [], [], []
    for rescan, reference in enumerate(made.references):
        if reference is None:
            continue
        answers = [r for r in range(made.rows_of(rescan).start, made.rows_of(rescan).stop) if made.object_known["text"][r]]
        here = []
        for row in range(made.rows_of(number[reference]).start, made.rows_of(number[reference]).stop):
            own = [i for i, r in enumerate(answers) if made.object_id[r] == made.object_id[row]]
            if made.object_known["image"][row] and own:
                here.append(rank_of(made.objects["image"][row], [made.objects["text"][r] for r in answers], own[0])[0] == 1)
                if not made.moved[answers[own[0]]]:
                    static.append(here[-1])
        hits += here
        reached += [sum(here) * 2 >= len(here)] if here else []
    scores = metrics.temporal_instances(made, "image", "text")
    assert scores["recall"] == pytest.approx(np.mean(hits)) and scores["R@50"] == pytest.approx(np.mean(reached))
    assert scores["static_recall"] == pytest.approx(np.mean(static)) and scores["pairs"] == len(reached)


def test_chance_levels_are_what_random_vectors_get():
    got, told = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        made = random_embeddings(1)
        for rows in (*made.scenes.values(), *made.objects.values()):
            known = np.abs(rows).sum(1) > 0
            rows[known] = (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(rng.normal(size=rows[known].shape))
        results = evaluate(made)
        row = [(results[m]["image->point"][s], results[m]["image->point"][f"chance_{s}"]) for m, s in (
            ("instance", "top1"), ("instance", "R@25"), ("instance", "same"), ("scene", "top5"), ("category", "top1"), ("temporal", "top5"),
            ("intra_category", "top1"), ("temporal_instance", "recall"))]  # fmt: skip
        got.append([value for value, _ in row])
        told.append([value for _, value in row])
    assert np.allclose(np.mean(got, axis=0), np.mean(told, axis=0), atol=0.06)


# all of them


def test_every_ordered_pair_of_modalities():
    made = random_embeddings(0)
    results = evaluate(made)
    assert set(results) == {"instance", "temporal_instance", "scene", "category", "temporal", "intra_category"}
    assert len(results["instance"]) == 12 and len(results["temporal_instance"]) == 16 and len(results["scene"]) == 12 and len(results["category"]) == 16
    assert all(f"chance_{name}" in scores for pairs in results.values() for scores in pairs.values() for name in scores if name.startswith(("top", "R@")))
    flat = flatten(results)
    assert flat["scene_image_point_top1"] == results["scene"]["image->point"]["top1"]
    assert flat["temporal_instance_point_point_recall"] == results["temporal_instance"]["point->point"]["recall"]
    assert flat["scene_chance_top1"] == pytest.approx(np.mean([scores["chance_top1"] for scores in results["scene"].values()]))
    assert flat["instance_top1"] == pytest.approx(np.mean([scores["top1"] for scores in results["instance"].values()]))
    across = [scores["top1"] for pair, scores in results["category"].items() if len(set(pair.split("->"))) == 2]
    assert flat["category_top1"] == pytest.approx(np.mean(across))
    assert ("scene", "image") not in pairs_of("scene", made) and evaluate(made, ("instance",), instance=dict(ks=(2,)))["instance"]["image->cad"]["top2"]
    with pytest.raises(KeyError, match="did you mean 'temporal'"):
        evaluate(made, ("temporary",))


def test_objects_are_matched_between_scans_only_where_their_ids_last():
    made = random_embeddings(0)
    assert metrics.rescans(made)
    made.same_ids = [False] * len(made)
    assert not metrics.rescans(made)
