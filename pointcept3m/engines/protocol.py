"""How a score was measured, in words: a mIoU without its protocol cannot be compared with another."""

from collections.abc import Mapping
from typing import Any

# Transforms after which a scene has fewer points than its files. (GridSample of mode "test" keeps them all.)
_DROPPING = ("GridSample", "SphereCrop", "RandomDropout", "RandomMask", "CropBoundary")


def points_scored(section: Mapping[str, Any], number: int, through_inverse: bool) -> str:
    """What the `number` labelled points of a data section are, e.g. "81,369 raw points".

    section: data.val or data.test. through_inverse: points that a grid dropped got the prediction of their voxel.
    """
    if through_inverse:
        return f"{number:,} raw points, each with the prediction of its voxel"
    dropping = [_word(step) for step in section.get("transform") or () if step.get("type") in _DROPPING]
    return f"{number:,} points that {' and '.join(dropping)} keeps" if dropping else f"{number:,} raw points"


def val_protocol(section: Mapping[str, Any], number: int, through_inverse: bool) -> str:
    """The protocol of a validation, or of a test of instances: every sample once, as its transforms make it."""
    return f"one forward a scene, no votes, scored on {points_scored(section, number, through_inverse)}"


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


def _count(number: float, name: str) -> str:
    return f"{number:.3g} {name}{'' if number == 1 else 's'}"


def _word(step: Mapping[str, Any]) -> str:
    name = step["type"]
    return f"{name} of {step['grid_size']} m" if "grid_size" in step else name
