"""Object referrals: sentences that tell one object of a scene from all others, made from boxes and labels (CrossOver Sec. 3.1).

A sentence is written only where the boxes prove it: what it says holds of its object by a margin, and of no other object of the
same label even where the boxes are somewhat off. Relations do not depend on where one stands; "left of" and "right of" come with
what one faces.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.scene_objects import SceneObject

MARGIN = 1.25  # how much closer, larger or higher than the next best something must be
NEXT, NEAR = (0.3, 0.45), (1.0, 1.25)  # metres between boxes: surely so up to the first, surely not from the second on
TOUCH = (0.06, 0.15)  # metres between a thing's foot and the top that it stands on, likewise
# Words for what a relation is between a thing and `{o}`, one of them drawn each time.
PHRASES: dict[str, tuple[str, ...]] = {
    "on": ("on {o}", "on top of {o}", "standing on {o}"),
    "in": ("on {o}", "lying on {o}"),
    "carries": ("with {o} on top", "carrying {o}"),
    "above": ("above {o}", "over {o}"),
    "below": ("below {o}", "under {o}"),
    "next": ("next to {o}", "beside {o}", "right by {o}"),
    "near": ("near {o}", "close to {o}", "not far from {o}"),
    "closest": ("closest to {o}", "nearest to {o}"),
    "farthest": ("farthest from {o}", "farthest away from {o}"),
    "left": ("left of {o}", "to the left of {o}"),
    "right": ("right of {o}", "to the right of {o}"),
}
SOFT = ("couch", "sofa", "armchair", "bed", "bookshelf", "shelf", "counter", "kitchen counter")  # things lie within their boxes
SUPERLATIVES = {"volume": ("largest", "smallest"), "height": ("tallest", "shortest"), "width": ("widest", "narrowest"), "level": ("highest", "lowest")}
COMPARATIVES = dict(largest="larger", smallest="smaller", tallest="taller", shortest="shorter", widest="wider", narrowest="narrower",
                    highest="higher", lowest="lower")  # fmt: skip
# What people name when they say where something is.
ANCHORS = frozenset((
    "door", "window", "bed", "couch", "sofa", "table", "dining table", "desk", "counter", "kitchen counter", "refrigerator", "stove",
    "bookshelf", "shelf", "wardrobe", "cabinet", "toilet", "bathtub", "shower", "tv", "tv stand", "fireplace", "whiteboard", "radiator",
))  # fmt: skip


def describe(objects: Sequence[SceneObject], rng: np.random.Generator, limit: int = 10) -> list[list[str]]:
    """For each object at most `limit` sentences, drawn among those that are true of it alone; none where there is none.

    The words vary with `rng`; the same objects and generator give the same sentences.
    """
    boxes = _Boxes(objects)
    return [_drawn(_sentences(boxes, k, rng), rng, limit) for k in range(len(objects))]


class _Boxes:
    """All pairs of a scene's oriented boxes: matrices [O, O], row thing, column what it is related to; (surely, possibly)."""

    def __init__(self, objects: Sequence[SceneObject]):
        self.labels = [thing.label for thing in objects]
        number = len(objects)
        self.center = np.array([thing.center for thing in objects], dtype=np.float64).reshape(number, 3)
        self.half = np.array([thing.size for thing in objects], dtype=np.float64).reshape(number, 3) / 2
        heading = np.array([thing.heading for thing in objects], dtype=np.float64)
        self.axes = np.stack([np.cos(heading), np.sin(heading), -np.sin(heading), np.cos(heading)], axis=1).reshape(number, 2, 2)
        self.foot, self.top = self.center[:, 2] - self.half[:, 2], self.center[:, 2] + self.half[:, 2]
        sides = 2 * self.half
        self.measures = {"volume": sides.prod(axis=1), "height": sides[:, 2], "width": sides[:, :2].max(axis=1), "level": self.foot}
        self.diagonal = np.linalg.norm(sides, axis=1)
        rise = np.maximum(0, np.maximum(self.foot[:, None] - self.top[None], self.foot[None] - self.top[:, None]))
        self.gap = np.hypot(self._gap_from_above(), rise)
        self.distance = np.linalg.norm(self.center[:, None] - self.center[None], axis=2)
        self.relations = self._relations()

    def same(self, k: int) -> list[int]:
        return [i for i, label in enumerate(self.labels) if label == self.labels[k] and i != k]

    def _gap_from_above(self) -> NDArray[np.float64]:
        """Metres between footprints, 0 where they meet: a corner of one is nearest to the other, unless an axis parts none."""
        signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1.0]])
        corners = self.center[:, None, :2] + np.einsum("ocd,ode->oce", signs * self.half[:, None, :2], self.axes)
        local = np.einsum("abcd,bed->abce", corners[:, None] - self.center[None, :, None, :2], self.axes)  # of a, in the axes of b
        beyond = np.maximum(0, np.abs(local) - self.half[None, :, None, :2])
        nearest = np.linalg.norm(beyond, axis=3).min(axis=2)
        parted = ((local.min(axis=2) > self.half[None, :, :2]) | (local.max(axis=2) < -self.half[None, :, :2])).any(axis=2)
        return np.where(parted | parted.T, np.minimum(nearest, nearest.T), 0.0)

    def _over(self, grown: float) -> NDArray[np.bool_]:
        """Whether a thing's middle is over the other's footprint, grown by some metres."""
        local = np.einsum("abd,bed->abe", self.center[:, None, :2] - self.center[None, :, :2], self.axes)
        return (np.abs(local) < self.half[None, :, :2] + grown).all(axis=2)

    def _relations(self) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        foot, top, low = self.foot[:, None], self.top[None], self.foot[None]
        smaller = self.measures["volume"][:, None] < self.measures["volume"][None]
        other = ~np.eye(len(self.labels), dtype=bool)
        soft = np.array([label in SOFT for label in self.labels], dtype=bool)[None]
        within = (foot > low + 0.3 * (top - low)) & (foot < top - TOUCH[0])
        perhaps_on = other & self._over(0.15) & (foot > low + 0.25 * (top - low)) & (foot < top + TOUCH[1])
        on = other & self._over(0.0) & smaller & (np.abs(foot - top) <= TOUCH[0])
        inside = other & self._over(-0.05) & smaller & soft & within
        # What may stand on two things surely stands on neither.
        single = ((on | inside).sum(axis=1) == 1)[:, None]
        above = other & self._over(0.1) & (foot > top + 2 * TOUCH[0])
        perhaps_above = other & self._over(0.4) & (foot > top - TOUCH[0])
        touching = perhaps_on | perhaps_on.T
        below_or_above = perhaps_above | perhaps_above.T
        return {
            "on": (on & single, perhaps_on),
            "in": (inside & single, perhaps_on),
            "carries": ((on & single).T, perhaps_on.T),
            "above": (above, perhaps_above),
            "below": (above.T, perhaps_above.T),
            "next": (other & (self.gap <= NEXT[0]) & ~touching & ~below_or_above, other & (self.gap < NEXT[1])),
            "near": (other & (self.gap > NEXT[0]) & (self.gap <= NEAR[0]) & ~touching & ~below_or_above, other & (self.gap < NEAR[1])),
        }


def _drawn(sentences: list[str], rng: np.random.Generator, limit: int) -> list[str]:
    sentences = list(dict.fromkeys(sentences))
    if len(sentences) > limit:
        sentences = [sentences[i] for i in np.sort(rng.choice(len(sentences), limit, replace=False))]
    return sentences


def _sentences(boxes: _Boxes, k: int, rng: np.random.Generator) -> list[str]:
    name, same = boxes.labels[k], boxes.same(k)
    found = _superlatives(boxes, k, same)
    facts = _facts(boxes, k, same)
    facts += _distances(boxes, k, same)
    proven = [(relation, other) for relation, other, holders in facts if not holders]
    found += [_sentence(name, [_phrase(boxes, relation, other, rng)], rng) for relation, other in proven]
    found += _between(boxes, k, same) + _facing(boxes, k, same, rng)
    if len(found) < 3:  # two that hold together of no other
        for i, (relation_a, a, holders_a) in enumerate(facts):
            for relation_b, b, holders_b in facts[i + 1 :]:
                if holders_a and holders_b and a != b and not holders_a & holders_b and len(found) < 6:
                    found.append(_sentence(name, [_phrase(boxes, relation_a, a, rng), _phrase(boxes, relation_b, b, rng)], rng))
    return found


def _superlatives(boxes: _Boxes, k: int, same: list[int]) -> list[str]:
    name, found = boxes.labels[k], []
    if not same:
        return [f"the only {name} in the room"]
    length = 2 * boxes.half.max(axis=1)
    for measure, (most, least) in SUPERLATIVES.items():
        value, others = boxes.measures[measure][k], boxes.measures[measure][same]
        if measure == "level":
            high, low = value >= others.max() + 0.3, value <= others.min() - 0.3
        else:
            high, low = value >= MARGIN * others.max(), value * MARGIN <= others.min()
        if measure == "volume":  # what is called the largest is the longest too, for it should look larger from every side
            high, low = high and length[k] > length[same].max(), low and length[k] < length[same].min()
        if high or low:
            word = most if high else least
            found.append(f"the {COMPARATIVES[word] if len(same) == 1 else word} {name}")
    return found


def _facts(boxes: _Boxes, k: int, same: list[int]) -> list[tuple[str, str, set[int]]]:
    """(relation, other label, which of `same` may hold it too) of all that a thing surely is to a thing of another label."""
    facts = []
    for relation, (surely, possibly) in boxes.relations.items():
        for other in dict.fromkeys(boxes.labels[j] for j in np.flatnonzero(surely[k])):
            if other == boxes.labels[k]:
                continue
            anchors = [j for j, label in enumerate(boxes.labels) if label == other]
            # One says where a thing is by things that are seen at least as well.
            large = other in ANCHORS or max(boxes.diagonal[j] for j in anchors if surely[k, j]) > 0.6 * boxes.diagonal[k]
            if relation in ("next", "near", "below") and not large:
                continue
            facts.append((relation, other, {i for i in same if possibly[i, anchors].any()}))
    return facts


def _distances(boxes: _Boxes, k: int, same: list[int]) -> list[tuple[str, str, set[int]]]:
    facts = []
    for j, other in enumerate(boxes.labels):
        if not same or other == boxes.labels[k] or other not in ANCHORS or boxes.same(j):
            continue
        # Between boxes and between middles: both must agree.
        gap, middle = boxes.gap[:, j], boxes.distance[:, j]
        if gap[same].min() >= 1.1 * gap[k] + 0.15 and middle[same].min() >= 1.1 * middle[k]:
            facts.append(("closest", other, set()))
        elif gap[k] >= 1.1 * gap[same].max() + 0.15 and middle[k] >= 1.1 * middle[same].max():
            facts.append(("farthest", other, set()))
    return facts


def _between(boxes: _Boxes, k: int, same: list[int]) -> list[str]:
    """Between two things that there is one of each, both near."""
    single = [j for j, label in enumerate(boxes.labels) if label in ANCHORS and label != boxes.labels[k] and not boxes.same(j)]
    found = []
    for a in single:
        for b in single:
            if a < b and max(boxes.gap[k, a], boxes.gap[k, b]) <= 1.5 and boxes.gap[a, b] > 0.3 and between(boxes.center, k, a, b, 0.25, 0.25):
                if not any(between(boxes.center, i, a, b, 0.05, 0.6) for i in same):
                    found.append(f"the {boxes.labels[k]} between the {boxes.labels[a]} and the {boxes.labels[b]}")
    return found


def between(center: NDArray, k: int, a: int, b: int, end: float, side: float) -> bool:
    """Whether k's middle is, from above, between those of a and b: at least the share `end` of their distance from both, and at
    most the share `side` off the line."""
    along = center[b, :2] - center[a, :2]
    length = max(float(np.hypot(*along)), 1e-9)
    step = (center[k, :2] - center[a, :2]) / length
    x, y = float(step @ along / length), float(step[0] * along[1] - step[1] * along[0]) / length
    return end <= x <= 1 - end and abs(y) <= side


def _facing(boxes: _Boxes, k: int, same: list[int], rng: np.random.Generator) -> list[str]:
    """Left and right of others of the label, or of another thing, for one who faces a third that there is one of."""
    if not same:
        return []
    single = [j for j, label in enumerate(boxes.labels) if label in ANCHORS and not boxes.same(j) and label != boxes.labels[k]]
    found = []
    for view in single:
        for word, sign in (("leftmost", 1), ("rightmost", -1)):
            if all((sign * aside(boxes.center, k, i, view)[:, 0] >= 0.4).all() for i in same):
                found.append(f"facing the {boxes.labels[view]}, the {word} {boxes.labels[k]}")
        for other in single:
            if view == other or boxes.gap[k, other] > 2.0:
                continue
            for relation, sign in (("left", 1), ("right", -1)):
                place = sign * aside(boxes.center, k, other, view)
                surely = (place[:, 0] >= np.maximum(0.4, np.abs(place[:, 1]))).all()
                if surely and not any((sign * aside(boxes.center, i, other, view)[:, 0] > 0).any() for i in same):
                    found.append(f"facing the {boxes.labels[view]}, the {boxes.labels[k]} {_phrase(boxes, relation, boxes.labels[other], rng)}")
    return found


def aside(center: NDArray, k: int, other: int, view: int) -> NDArray[np.float64]:
    """[3, 2] metres that k is left of `other` and beyond it, for who faces `view` from the scene's middle and from either of the
    two: what is so from all three is so wherever one stands between."""
    step, rows = center[k, :2] - center[other, :2], []
    for stand in (center[:, :2].mean(axis=0), center[k, :2], center[other, :2]):
        x, y = (center[view, :2] - stand) / max(float(np.hypot(*(center[view, :2] - stand))), 1e-9)
        rows.append((float(step @ (-y, x)), float(step @ (x, y))))
    return np.array(rows)


def _phrase(boxes: _Boxes, relation: str, other: str, rng: np.random.Generator) -> str:
    return str(rng.choice(PHRASES[relation])).format(o=named(other, boxes.labels.count(other)))


def named(label: str, number: int) -> str:
    """The one thing of a label, or one of several: "the desk", "a desk", "some books"."""
    if number == 1:
        return f"the {label}"
    if is_plural(label):
        return f"some {label}"
    return f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}"


def is_plural(label: str) -> bool:
    return label.endswith("s") and not label.endswith("ss")


def _sentence(name: str, phrases: list[str], rng: np.random.Generator) -> str:
    """One of two ways to say it: "the lamp near the bed", "this is the lamp near the bed"."""
    said = f"the {name} {' and '.join(phrases)}"
    return f"{'these are' if is_plural(name) else 'this is'} {said}" if rng.random() < 0.2 else said
