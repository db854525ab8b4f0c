"""Limited labels: the lists that data sets read."""

import numpy as np
import pytest
import torch

from pointcept3m.datasets import build_dataset
from tests.datasets.synthetic import write_scene


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "Area_1" / name, frames=1, count=500)
        segment = np.load(tmp_path / "Area_1" / name / "segment.npy")
        np.save(tmp_path / "Area_1" / name / "segment20.npy", segment)
    return tmp_path


def build(root, kind, **arguments):
    return build_dataset(dict(type=kind, data_root=str(root), split="Area_1", **arguments))


# every data set takes both; S3DIS calls a room by its area too
@pytest.mark.parametrize("kind, prefix", [("ScanNetDataset", ""), ("RoomsDataset", ""), ("S3DISDataset", "Area_1-")])
def test_limited_reconstructions_and_annotations(root, kind, prefix):
    (root / "few.txt").write_text(f"{prefix}c\n{prefix}a\n\n")
    few = build(root, kind, lr_file=str(root / "few.txt"))
    assert [few[i]["name"] for i in range(len(few))] == [f"{prefix}c", f"{prefix}a"]
    rows = np.array([11, 3, 7, 3])
    torch.save({f"{prefix}{name}": rows for name in ("a", "b", "c")}, root / "points")
    data = build(root, kind, la_file=str(root / "points"))[1]
    assert np.flatnonzero(data["segment"] >= 0).tolist() == [3, 7, 11] == data["sampled_index"].tolist()
    labels = np.load(root / "Area_1" / "b" / "segment.npy")
    assert data["segment"][[3, 7, 11]].tolist() == labels[[3, 7, 11]].tolist()
    both = build(root, kind, lr_file=str(root / "few.txt"), la_file=root / "points", ignore_index=255)
    assert (both[0]["segment"] != 255).sum() == 3 and both[0]["name"] == f"{prefix}c"


def test_lists_that_do_not_fit_are_named(root):
    (root / "few.txt").write_text("zz\n")
    with pytest.raises(FileNotFoundError, match="1 scenes of lr_file are not in .* first 'zz'"):
        build(root, "RoomsDataset", lr_file=str(root / "few.txt"))
    (root / "few.txt").write_text("\n")
    with pytest.raises(ValueError, match="few.txt: the list of scenes .* is empty"):
        build(root, "RoomsDataset", lr_file=str(root / "few.txt"))
    with pytest.raises(FileNotFoundError, match=r"fw.txt: no such list of scenes .*few.txt"):
        build(root, "RoomsDataset", lr_file=str(root / "fw.txt"))
    for row, wrong in ((500, "500"), (-1, "-1")):
        torch.save({name: torch.tensor([row]) for name in "abc"}, root / "points")
        with pytest.raises(ValueError, match=f"la_file names row {wrong} of 'a', which has 500 points"):
            _ = build(root, "RoomsDataset", la_file=str(root / "points"))[0]
    torch.save({"a": [1], "c": [2], "bb": [1]}, root / "points")
    with pytest.raises(KeyError, match="leaves out 1 scenes of the split, first 'b'; did you mean 'bb'"):
        build(root, "RoomsDataset", la_file=str(root / "points"))
    torch.save({"a": np.random.default_rng(0)}, root / "points")
    with pytest.raises(ValueError, match="not a plain torch file"):
        build(root, "RoomsDataset", la_file=str(root / "points"))
    torch.save([1], root / "points")
    with pytest.raises(ValueError, match="wanted a dict of scene names, got list"):
        build(root, "RoomsDataset", la_file=str(root / "points"))
