"""Object referrals: sentences that tell one object of a scene from all others, made from boxes and labels (CrossOver Sec. 3.1).

A sentence is written only where the boxes prove it, with a margin: what it says is true of its object and of no other of the
same label. Directions that depend on where one stands ("left of") are left out.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pointcept3m.structures.scene_objects import SceneObject

MARGIN = 1.25  # how much closer, larger or higher than the next best something must be
NEAR = 1.0  # metres between boxes of things that are near each other
TOUCH = 0.06  # metres between a thing and what it stands on
ANCHORS = ("door", "window", "bed", "couch", "table", "desk", "counter", "refrigerator", "bookshelf", "toilet", "bathtub", "tv stand")


def describe(objects: Sequence[SceneObject], rng: np.random.Generator, limit: int = 10) -> list[list[str]]:
    """For each object at most `limit` sentences, drawn among those that are true of it alone; none where there is none."""
    return [_drawn(_sentences(objects, k), rng, limit) for k in range(len(objects))]


def _drawn(sentences: list[str], rng: np.random.Generator, limit: int) -> list[str]:
    if len(sentences) > limit:
        sentences = [sentences[i] for i in np.sort(rng.choice(len(sentences), limit, replace=False))]
    return sentences


def _sentences(objects: Sequence[SceneObject], k: int) -> list[str]:
    thing = objects[k]
    same = [o for o in objects if o.label == thing.label and o.id != thing.id]
    name, found = thing.label, []
    if not same:
        found.append(f"the only {name} in the room")
    else:
        for words, measure in (("largest", _volume), ("tallest", lambda o: o.size[2]), ("widest", lambda o: max(o.size[:2]))):
            value = measure(thing)
            if value > MARGIN * max(measure(o) for o in same):
                found.append(f"the {words} {name}")
            if len(same) > 0 and value * MARGIN < min(measure(o) for o in same):
                found.append(f"the {dict(largest='smallest', tallest='lowest', widest='narrowest')[words]} {name}")
    for anchor in objects:
        if anchor.id == thing.id or anchor.label == name:
            continue
        unique = sum(o.label == anchor.label for o in objects) == 1
        found += _relations(thing, anchor, same, objects, unique)
    return list(dict.fromkeys(found))


def _relations(thing: SceneObject, anchor: SceneObject, same: list[SceneObject], objects: Sequence[SceneObject], unique: bool) -> list[str]:
    """Sentences that relate a thing to an anchor of another label."""
    name, other, found = thing.label, anchor.label, []
    anchors = [o for o in objects if o.label == other]

    def alone(relation: Callable[[SceneObject, SceneObject], bool]) -> bool:
        """True of the thing with this anchor, and of no other of its label with any anchor of that label."""
        return relation(thing, anchor) and not any(relation(o, a) for o in same for a in anchors)

    if alone(stands_on):
        found.append(f"the {name} on the {other}")
    if alone(hangs_over):
        found.append(f"the {name} above the {other}")
    if alone(near):
        found += [f"the {name} near the {other}", f"the {name} next to the {other}"]
    if unique and same and anchor.label in ANCHORS:
        distance = gap(thing, anchor)
        others = [gap(o, anchor) for o in same]
        if distance * MARGIN + 0.1 < min(others):
            found.append(f"the {name} closest to the {other}")
        if distance > MARGIN * max(others) + 0.1:
            found.append(f"the {name} farthest from the {other}")
    return found


def _volume(thing: SceneObject) -> float:
    return float(np.prod(thing.size))


def _bounds(thing: SceneObject) -> tuple[np.ndarray, np.ndarray]:
    box = thing.box.astype(np.float64)
    return box[:3] - box[3:] / 2, box[:3] + box[3:] / 2


def gap(a: SceneObject, b: SceneObject) -> float:
    """Metres between two boxes along the scene's axes, 0 where they meet."""
    (low_a, high_a), (low_b, high_b) = _bounds(a), _bounds(b)
    return float(np.linalg.norm(np.maximum(0, np.maximum(low_a - high_b, low_b - high_a))))


def near(a: SceneObject, b: SceneObject) -> bool:
    """Whether their boxes are at most a metre apart."""
    return gap(a, b) <= NEAR


def stands_on(a: SceneObject, b: SceneObject) -> bool:
    """Whether a's foot touches b's box from above or within its upper half, a's middle over b."""
    (low_a, _), (low_b, high_b) = _bounds(a), _bounds(b)
    center = np.asarray(a.center)
    over = bool((center[:2] > low_b[:2]).all() and (center[:2] < high_b[:2]).all())
    return over and (low_b[2] + high_b[2]) / 2 < low_a[2] <= high_b[2] + TOUCH and _volume(a) < _volume(b)


def hangs_over(a: SceneObject, b: SceneObject) -> bool:
    """Whether a's foot is clearly higher than b's top, a's middle over b's box grown by 30 cm."""
    (low_a, _), (low_b, high_b) = _bounds(a), _bounds(b)
    center = np.asarray(a.center)
    over = bool((center[:2] > low_b[:2] - 0.3).all() and (center[:2] < high_b[:2] + 0.3).all())
    return over and low_a[2] > high_b[2] + 2 * TOUCH
