"""Label sets: names against the data sets' own tables, what is said for each class, published splits, bad input."""

import csv

import numpy as np
import pytest

from pointcept3m.datasets.rooms.categories import ROOMS_CLASSES
from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES
from pointcept3m.structures.label_sets import LABEL_SETS, LabelSet, free_labels, label_set, named_or_free


def test_sets_have_as_many_classes_as_their_names_say():
    for name, labels in LABEL_SETS.items():
        digits = "".join(filter(str.isdigit, name))
        assert labels.name == name and len(labels) == int(digits or len(ROOMS_CLASSES))
        assert len(set(labels.names)) == len(labels) == len(labels.prompts) == len(labels.foreground)


def test_sets_of_scannet_and_rooms_are_those_of_their_data():
    assert label_set("scannet20").names == SCANNET20_NAMES
    assert label_set("scannet200").names == SCANNET200_NAMES
    assert label_set("rooms").names == ROOMS_CLASSES


@pytest.mark.parametrize("number", [40, 80, 160])
def test_matterport_names_are_the_first_of_its_table(number, real_data):
    with open(real_data("metadata/matterport/metadata/category_mapping.tsv"), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = dict.fromkeys(row["nyuClass"] for row in rows if row["nyuClass"] not in ("", "void", "unknown"))
    assert label_set(f"matterport{number}").names == tuple(names)[:number]


def test_other_replaces_no_class():
    """OpenScene says "other" for the last but one class of every Matterport set, whichever that is."""
    says = {name: dict(zip(labels.names, labels.prompts, strict=True)) for name, labels in LABEL_SETS.items()}
    assert says["scannet20"]["otherfurniture"] == ("other",)
    assert label_set("matterport21").names[-2:] == ("other", "ceiling")
    assert says["matterport21"]["other"] == ("other",)
    for name, lost in (("matterport40", "air vent"), ("matterport80", "headboard"), ("matterport160", "person")):
        assert label_set(name).names[-2] == lost
        assert says[name][lost] == (lost,)
        assert ("other",) not in says[name].values()


def test_what_is_said_differs_from_the_name_only_where_that_is_no_word():
    said = {(name, words[0]) for labels in LABEL_SETS.values() for name, words in zip(labels.names, labels.prompts, strict=True) if len(words) == 1}
    assert {pair for pair in said if pair[0] != pair[1]} == {
        ("otherfurniture", "other"),
        ("refridgerator", "refrigerator"),
        ("excercise equipment", "exercise equipment"),
        ("drivable surface", "road"),
    }


def test_detailed_names_vote_for_the_classes_of_nuscenes():
    labels = label_set("nuscenes16")
    texts, mapping = labels.texts, labels.mapping
    assert len(texts) == len(mapping) == 43 and len(set(texts)) == 43
    told = dict(zip(texts, (labels.names[k] for k in mapping), strict=True))
    assert told["dump truck"] == "construction vehicle" and told["truck"] == "truck" and told["curb"] == "other flat"
    assert told["pedestrian"] == "person" and told["awning"] == "manmade" and told["woods"] == "vegetation"


def test_foreground():
    def background(name):
        labels = label_set(name)
        return [each for each, counts in zip(labels.names, labels.foreground, strict=True) if not counts]

    assert background("scannet20") == ["wall", "floor", "otherfurniture"]
    assert background("scannet200") == ["wall", "floor", "ceiling"]
    assert background("matterport21") == ["wall", "floor", "other", "ceiling"]
    assert background("matterport160") == ["wall", "ceiling", "floor"]
    assert background("nuscenes16") == ["other flat"]


def test_published_splits():
    for labels in LABEL_SETS.values():
        for split in labels.novel_classes:
            base, novel = labels.base_novel(split)
            assert split == f"B{len(base)}/N{len(novel)}"
            assert sorted([*base, *novel, *labels.left_out]) == list(range(len(labels)))
    base, novel = label_set("scannet20").base_novel("B15/N4")
    assert [SCANNET20_NAMES[k] for k in novel] == ["sofa", "bookshelf", "desk", "toilet"]
    assert 19 not in base
    assert [label_set("nuscenes16").names[k] for k in label_set("nuscenes16").base_novel("B12/N3")[1]] == ["motorcycle", "person", "traffic cone"]


def test_free_labels():
    labels = named_or_free(" office  chair, table,plant ")
    assert labels.names == ("office chair", "table", "plant") and labels.mapping.tolist() == [0, 1, 2]
    assert named_or_free("scannet20") is label_set("scannet20")
    assert free_labels(["somewhere to sit"]).texts == ("somewhere to sit",)
    assert np.array_equal(free_labels("wall,lamp").foreground, [False, True])


def test_bad_input():
    with pytest.raises(KeyError, match="did you mean.*'matterport160'"):
        label_set("matterport16")
    with pytest.raises(ValueError, match="did you mean 'scannet20'"):
        named_or_free("scannet2")
    with pytest.raises(KeyError, match="did you mean 'B15/N4'"):
        label_set("scannet20").base_novel("B15N4")
    with pytest.raises(KeyError, match="it has none"):
        label_set("rooms").base_novel("B15/N4")
    with pytest.raises(ValueError, match="no label"):
        free_labels("")
    with pytest.raises(ValueError, match="no label"):
        free_labels([])
    with pytest.raises(ValueError, match="empty label"):
        free_labels("chair,,table")
    with pytest.raises(ValueError, match="twice: chair"):
        free_labels("chair, table, Chair")
    with pytest.raises(TypeError, match="must be texts"):
        free_labels(["chair", 3])
    with pytest.raises(ValueError, match="empty label"):
        LabelSet("mine", ("chair", "table"), (("chair",), ()))
    with pytest.raises(ValueError, match="1 entries of prompts for 2"):
        LabelSet("mine", ("chair", "table"), (("chair",),))
