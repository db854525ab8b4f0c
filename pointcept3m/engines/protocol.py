"""How a score was measured, in words: a mIoU without its protocol cannot be compared with another."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from torch import Tensor

# Transforms after which a scene has fewer points than its files. (GridSample of mode "test" keeps them all.)
_DROPPING = ("GridSample", "SphereCrop", "RandomDropout", "RandomMask", "CropBoundary")


class Through(IntEnum):
    """How points that a grid dropped got a prediction."""

    NOTHING = 0  # they are not scored, or none was dropped
    VOXEL = 1  # that of the point which stands for their voxel
    NEAREST = 2  # that of the nearest point which was kept


def points_scored(section: Mapping[str, Any], number: int, through: Through, instances: bool = False) -> str:
    """What the `number` points of a data section are, e.g. "81,369 raw points".

    section: data.val or data.test. instances: they are all points, of which masks are made, not the labelled ones.
    """
    every, words = ("all ", " (those without a label too)") if instances else ("", "")
    if through:
        source = "its voxel" if through == Through.VOXEL else "the nearest point that the grid keeps"
        return f"{every}{number:,} raw points{words}, each with the prediction of {source}"
    dropping = [_word(step) for step in section.get("transform") or () if step.get("type") in _DROPPING]
    kind = f"points that {' and '.join(dropping)} keeps" if dropping else "raw points"
    return f"{every}{number:,} {kind}{words}"


def classes_counted(confusion: Tensor, absent: str) -> str:
    """How many classes the means are over, and what became of the others; see `metrics.segmentation_scores`.

    confusion [K, K]: rows the true class, columns the predicted one.
    """
    true, predicted = confusion.sum(1), confusion.sum(0)
    number, nowhere, untrue = len(confusion), int((true + predicted == 0).sum()), int((true == 0).sum())
    if not untrue:
        return f"all {number} classes counted"
    rule = "counted 0, as Pointcept does" if absent == "zero" else "left out"
    further = "" if untrue == nowhere else f", of mAcc {untrue}"
    return f"classes without a point {rule}: {nowhere} of {number}{further}"


def val_protocol(section: Mapping[str, Any], number: int, through: Through, instances: bool = False) -> str:
    """The protocol of a validation, or of a test of instances: every sample once, as its transforms make it."""
    return f"one forward a scene, no votes, scored on {points_scored(section, number, through, instances)}"


def vote_protocol(mode: str, augmentations: int, scenes: int, fragments: int, forwards: int, where: str, scored: str) -> str:
    """The protocol of a test that adds up softmax; fragments and forwards are those of all `scenes` together.

    augmentations: 0 where the data set does not tell. where: "at each point" or "in each voxel".
    """
    scenes = max(scenes, 1)
    if augmentations:
        words = "no augmentation" if mode == "fast" else _count(augmentations, "augmentation")
        cut = f"{words} x {_count(fragments / scenes / augmentations, 'fragment')}"
    else:
        cut = _count(fragments / scenes, "fragment")
    batched = "" if forwards == fragments else f" in {_count(forwards / scenes, 'forward')}"
    return f"{mode}: {cut} a scene{batched}, softmax added up {where}, scored on {scored}"


def words_counted(vocabulary: str, scored: str, absent: str, untrue: int, number: int) -> str:
    """Of a labelling by words: labels, prompt and encoder in words, on what it is scored, and what becomes of the `untrue` of
    `number` classes that have no labelled point."""
    words = f"{vocabulary}, scored on {scored}"
    if not untrue:
        return words
    return f"{words}, classes without a labelled point {'counted 0, as OpenScene does' if absent == 'zero' else 'left out'}: {untrue} of {number}"


def open_vocabulary_kind(kind: str, views: int, augmented: bool, unseen: str = "miss", missed: float = 0.0) -> str:
    """What one kind of open-vocabulary scores is of, and from how many views.

    kind: "3d", "2d", "2d3d_max" or "2d3d_mean". missed: the share of scored points without features, told for 2D alone.
    """
    if kind == "2d":
        rule = "errors" if unseen == "miss" else "left out of the IoU and errors of the accuracy"
        return f"2d: fused features of each point, the {missed:.1%} that no camera saw are {rule}"
    ways = {
        "3d": "the distilled features of each point's voxel",
        "2d3d_max": "whichever of 2D and 3D has the larger cosine to any label (OpenScene)",
        "2d3d_mean": "the mean of 2D and 3D features (CUA-O3D)",
    }
    turned = ", turned and scaled at random" if augmented else ""
    summed = f"cosines of {views} views added up" if views > 1 else "1 view"
    return f"{kind}: {ways[kind]}, {summed}{turned}"


def _count(number: float, name: str) -> str:
    return f"{number:.3g} {name}{'' if number == 1 else 's'}"


def _word(step: Mapping[str, Any]) -> str:
    name = step["type"]
    return f"{name} of {step['grid_size']} m" if "grid_size" in step else name
