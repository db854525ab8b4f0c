"""How well queries find things in rooms: names of labels and free sentences, asked in three ways, and where to cut.

    python benchmarks/study_query.py --data-root data/rooms --source 2d --teacher sentence
    python benchmarks/study_query.py --data-root data/rooms --weight exp/cua_o3d/words

For each query and each scene that has at least 200 points of what it means: average precision of the similarity over all
points of the scene (those in no image come last); IoU of the points above a threshold; and of the top region at that threshold, how
often most of its points are what was asked for, and the IoU of its box with that of the object that fits it best. Means over all.
"""

import argparse
from pathlib import Path

import numpy as np

from pointcept3m.engines.open_vocabulary.query import SceneQuery
from pointcept3m.engines.open_vocabulary.regions import TOP, regions
from pointcept3m.engines.open_vocabulary.sources import open_sources
from pointcept3m.structures.class_names import ROOMS_NAMES
from pointcept3m.structures.scene import Scene

MEANS = {
    "somewhere to sit": ("chair", "sofa"), "a place to sleep": ("bed",), "something to read": ("bookshelf",), "where to wash hands": ("sink",),
    "a place to write": ("desk", "table"), "keeps food cold": ("refrigerator",), "lets daylight in": ("window",), "take a bath here": ("bathtub",),
}  # fmt: skip
LEAST = 200  # points
SHARES = (0.5, 0.6, 2 / 3, 0.75, 0.8, 0.85)  # of the way from the median to the top


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Of points ranked by `score` [N], NaN last."""
    order = np.argsort(-np.nan_to_num(score, nan=-2), kind="stable")
    hit = positive[order]
    return float((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].mean())


def iou(chosen: np.ndarray, positive: np.ndarray) -> float:
    return (chosen & positive).sum() / max(1, (chosen | positive).sum())


def box_iou(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Of boxes (low [3], high [3]); flat ones count as 2 cm thick."""
    volumes = [np.prod(np.maximum(high - low, 0.02)) for low, high in (one, other)]
    shared = np.prod(np.clip(np.minimum(one[1], other[1]) - np.maximum(one[0], other[0]), 0, None))
    return float(shared / (sum(volumes) - shared))


def objects(coord: np.ndarray, instance: np.ndarray, positive: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes of the objects that were asked for, of those with at least 100 points."""
    members = [positive & (instance == number) for number in np.unique(instance[positive]) if number >= 0]
    return [(coord[rows].min(axis=0), coord[rows].max(axis=0)) for rows in members if rows.sum() >= 100]


def cut(coord: np.ndarray, score: np.ndarray, positive: np.ndarray, boxes: list, share: float) -> tuple[float, float, float]:
    """(IoU of the points above the threshold, whether the top region is what was asked for, the IoU of its box)."""
    known = ~np.isnan(score)
    middle, top = np.quantile(score[known], [0.5, TOP])
    threshold = middle + share * (top - middle)
    found = regions(coord, score, threshold)
    of_points = iou(score[known] >= threshold, positive[known])
    if not found or not boxes:
        return of_points, np.nan if not boxes else 0.0, np.nan if not boxes else 0.0
    right = float(positive[found[0].points].mean() > 0.5)
    return of_points, right, max(box_iou((found[0].low, found[0].high), box) for box in boxes)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path("data/rooms"))
    parser.add_argument("--split", default="val")
    for name in ("weight", "source", "teacher", "feature-root"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    given = dict(weight=options.weight, source=options.source, teacher=options.teacher, feature_root=options.feature_root)
    groups = {"names of labels": {name: (name,) for name in ROOMS_NAMES if name != "otherfurniture"}, "free sentences": MEANS}
    ranked: dict[str, list] = {group: [] for group in groups}
    cuts: dict[str, list] = {group: [] for group in groups}
    best: dict[str, list] = {group: [] for group in groups}
    for folder in sorted((options.data_root / options.split).iterdir()):
        sources = open_sources(folder, say=lambda text: None, **given)
        query = SceneQuery(sources.embedding, sources.encoder, sources.prompt)
        segment, instance = (Scene(folder).load(name, count=len(sources.scene)) for name in ("segment", "instance"))
        for group, queries in groups.items():
            for text, classes in queries.items():
                positive = np.isin(segment, [ROOMS_NAMES.index(name) for name in classes])
                if positive.sum() < LEAST:
                    continue
                plain, told = query([text, sources.prompt.replace("{label}", text)])
                ranked[group].append([average_precision(score, positive) for score in (plain, told, query(text, relevancy=True))])
                coord = sources.scene.coord
                boxes = objects(coord, instance, positive)
                cuts[group].append([cut(coord, plain, positive, boxes, share) for share in SHARES])
                known = ~np.isnan(plain)
                best[group].append(max(iou(plain[known] >= at, positive[known]) for at in np.quantile(plain[known], np.linspace(0.3, 0.999, 50))))
    print("Average precision\n\n| query | as it is written | in the prompt | relevancy | queries in scenes |\n|---|---|---|---|---|")
    for group, rows in ranked.items():
        print(f"| {group} | " + " | ".join(f"{value:.3f}" for value in np.mean(rows, axis=0)) + f" | {len(rows)} |")
    shares = " | ".join(f"{share:.2f}" for share in SHARES)
    print(f"\nA threshold so far from the median to the {TOP:.1%} quantile\n\n| query | {shares} | best of each |\n|---" + "|---" * (len(SHARES) + 1) + "|")
    for group, rows in cuts.items():
        means = np.nanmean(np.array(rows), axis=0).T  # things without a number of their own (walls) have no region to be right
        for what, values, last in zip(("IoU of points", "top region right", "IoU of its box"), means, (f"{np.mean(best[group]):.3f}", "", ""), strict=True):
            print(f"| {group}: {what} | " + " | ".join(f"{value:.3f}" for value in values) + f" | {last} |")


if __name__ == "__main__":
    main()
