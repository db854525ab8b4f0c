"""Label sets: the classes of a benchmark, the words that a text encoder is told for each, and which of them a score is over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.class_names import (
    MATTERPORT21_NAMES,
    MATTERPORT160_NAMES,
    NUSCENES16_NAMES,
    NUSCENES16_WORDS,
    ROOMS_NAMES,
    SCANNET20_NAMES,
    SCANNET200_NAMES,
)
from pointcept3m.utils.registry import near_names

BACKGROUND = ("wall", "floor", "ceiling")
# What is said where a class is not called by a word. Only names are looked up here, never places: OpenScene puts "other"
# at the last but one place of any Matterport set, which with 40, 80 and 160 classes is "air vent", "headboard" and "person".
SAID = {"otherfurniture": "other", "refridgerator": "refrigerator", "excercise equipment": "exercise equipment"}


@dataclass(frozen=True)
class LabelSet:
    """K classes and how one asks for them.

    names: of the classes, as the benchmark calls them, in its order. prompts: the words that are said for each, one or
    several; several vote for their class, the best of them counts. novel_classes: by the name of a split, the classes that a
    base-annotated training had no labels of; `left_out`: those that such a split neither offers nor counts.
    Raises: ValueError for no class, an empty or repeated name, a class without words.
    """

    name: str
    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...] = ()
    novel_classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"label set {self.name!r}: no label; wanted at least one")
        if not self.prompts:
            object.__setattr__(self, "prompts", tuple((SAID.get(name, name),) for name in self.names))
        if len(self.prompts) != len(self.names):
            raise ValueError(f"label set {self.name!r}: {len(self.prompts)} entries of prompts for {len(self.names)} names")
        for name, words in zip(self.names, self.prompts, strict=True):
            if not name.strip() or not words or not all(word.strip() for word in words):
                raise ValueError(f"label set {self.name!r}: an empty label, or one without words: {name!r}: {words!r}")
        folded = [name.strip().lower() for name in self.names]
        if repeated := sorted({name for name in folded if folded.count(name) > 1}):
            raise ValueError(f"label set {self.name!r}: labels that are there twice: {', '.join(repeated)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mapping(self) -> NDArray[np.int64]:
        """int64 [T]: the class that each of the T words of `texts` votes for."""
        return np.repeat(np.arange(len(self.names)), [len(words) for words in self.prompts])

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """bool [K]: the classes of f-mIoU. Wall, floor, ceiling and what has "other" in its name are none (RegionPLC, Mosaic3D)."""
        return np.array([name not in BACKGROUND and not name.startswith("other") for name in self.names])

    @property
    def texts(self) -> tuple[str, ...]:
        """The T words of all classes, class by class."""
        return tuple(word for words in self.prompts for word in words)

    def base_novel(self, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Base and novel classes of a published split such as "B15/N4". Raises KeyError, with near names, where there is none."""
        if split not in self.novel_classes:
            have = near_names(split, self.novel_classes) if self.novel_classes else "it has none"
            raise KeyError(f"label set {self.name!r} has no base/novel split {split!r}; {have}")
        novel = np.array(self.novel_classes[split])
        return np.setdiff1d(np.arange(len(self)), [*novel, *self.left_out]), novel


# Base/novel splits: PLA (Ding et al. 2023) and RegionPLC (Yang et al. 2024), the configs that the model zoo of CVMI-Lab/PLA
# links: tools/cfgs/scannet_models/spconv_clip_base{15,12,10}_caption.yaml, scannet200_models/spconv_clip_base{170,150}_caption
# .yaml, nuscenes_models/sparseunet_clip_base{12,10}_caption.yaml.
_SCANNET20_NOVEL = {"B15/N4": (5, 9, 12, 16), "B12/N7": (3, 4, 6, 9, 10, 17, 18), "B10/N9": (9, 10, 11, 12, 14, 15, 16, 17, 18)}
_SCANNET200_NOVEL = {
    "B170/N30": (
        11, 22, 27, 30, 31, 39, 41, 43, 47, 56, 62, 64, 81, 87, 93, 95, 99, 102, 112, 114, 133, 134, 135, 144, 161, 170, 176,
        179, 192, 199,
    ),
    "B150/N50": (
        5, 14, 16, 21, 25, 27, 30, 37, 40, 41, 43, 51, 53, 56, 60, 64, 69, 73, 80, 81, 84, 86, 88, 89, 91, 100, 102, 104, 105,
        108, 115, 120, 123, 135, 139, 142, 148, 149, 151, 152, 154, 162, 165, 173, 177, 178, 180, 190, 195, 196,
    ),
}  # fmt: skip
_NUSCENES_NOVEL = {"B12/N3": (5, 6, 7), "B10/N5": (0, 5, 6, 7, 12)}

LABEL_SETS = {
    each.name: each
    for each in (
        LabelSet("scannet20", SCANNET20_NAMES, novel_classes=_SCANNET20_NOVEL, left_out=(19,)),
        LabelSet("scannet200", SCANNET200_NAMES, novel_classes=_SCANNET200_NOVEL),
        LabelSet("matterport21", MATTERPORT21_NAMES),
        LabelSet("matterport40", MATTERPORT160_NAMES[:40]),
        LabelSet("matterport80", MATTERPORT160_NAMES[:80]),
        LabelSet("matterport160", MATTERPORT160_NAMES),
        LabelSet("nuscenes16", NUSCENES16_NAMES, tuple(NUSCENES16_WORDS.values()), _NUSCENES_NOVEL, left_out=(11,)),
        LabelSet("rooms", ROOMS_NAMES),
    )
}


def label_set(name: str) -> LabelSet:
    """A benchmark's label set by its name. Raises KeyError, with near names, for one that is not known."""
    if name not in LABEL_SETS:
        raise KeyError(f"no label set {name!r}; {near_names(str(name), LABEL_SETS)}")
    return LABEL_SETS[name]


def free_labels(labels: str | Sequence[str], name: str = "labels") -> LabelSet:
    """A label set of one's own words: a sequence, or one text with commas between them.

    Raises: TypeError for anything but texts; ValueError for no label, an empty or a repeated one.
    """
    words = labels.split(",") if isinstance(labels, str) else list(labels)
    if not all(isinstance(word, str) for word in words):
        raise TypeError(f"labels must be texts, got {words!r}")
    if words == [""]:
        words = []
    return LabelSet(name, tuple(" ".join(word.split()) for word in words))


def named_or_free(labels: str | Sequence[str]) -> LabelSet:
    """What a user means by `labels`: the name of a label set, or labels with commas between them.

    Raises: as `free_labels`; ValueError for one label alone, since every point would be it.
    """
    if isinstance(labels, str) and labels in LABEL_SETS:
        return LABEL_SETS[labels]
    found = free_labels(labels)
    if len(found) == 1:
        raise ValueError(
            f"labels: {found.names[0]!r} alone leaves nothing to choose from; wanted several with commas between them "
            f"('chair,table,plant'), or a label set; {near_names(found.names[0], LABEL_SETS)}"
        )
    return found
