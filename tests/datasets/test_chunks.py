"""The tool that splits scenes into two chunks (Table 4)."""

import sys

import pytest

from pointcept3m.datasets import build_dataset
from pointcept3m.datasets.limited import read_names
from tests.conftest import REPOSITORY
from tests.datasets.crossover_scenes import write_set

sys.path.insert(0, str(REPOSITORY / "tools" / "preprocess"))
import chunks as tool  # noqa: E402


def lists(root, share):
    return [set(read_names(root / "tasks/chunks" / share / f"{name}.txt")) for name in ("point", "cad")]


def test_chunks_share_no_scene_and_grow(tmp_path, capsys):
    names = {f"scene{i:04d}_00" for i in range(40)}
    for name in names:
        (tmp_path / "train" / name).mkdir(parents=True)
    assert tool.main(["--data-root", str(tmp_path)]) == 0
    assert f"25_75/point.txt: {len(lists(tmp_path, '25_75')[0])} of 40 scenes" in capsys.readouterr().out
    before = set()
    for share, count in (("25_75", 10), ("50_50", 20), ("75_25", 30)):
        point, cad = lists(tmp_path, share)
        assert abs(len(point) - count) < 8 and not point & cad and point | cad == names and before < point
        before = point
    with pytest.raises(FileExistsError, match="--overwrite"):
        tool.main(["--data-root", str(tmp_path)])
    tool.main(["--data-root", str(tmp_path), "--seed", "1", "--overwrite"])
    assert lists(tmp_path, "75_25")[0] != before


def test_a_list_does_not_depend_on_what_else_is_there(tmp_path):
    """ScanNet's first scene is in the same chunk whether all scenes are preprocessed or half of them."""
    for root, count in (("all", 200), ("half", 100)):
        for number in range(count):
            (tmp_path / root / "train" / f"scene{number:04d}_00").mkdir(parents=True)
        tool.main(["--data-root", str(tmp_path / root)])
    for share in ("25_75", "50_50", "75_25"):
        half = {f"scene{number:04d}_00" for number in range(100)}
        assert all(few == many & half for few, many in zip(lists(tmp_path / "half", share), lists(tmp_path / "all", share), strict=True))


def test_the_data_set_takes_them(tmp_path):
    write_set(tmp_path, train=4, val=0)
    tool.main(["--data-root", str(tmp_path), "--shares", "50"])
    folder = tmp_path / "tasks/chunks/50_50"
    data = build_dataset(dict(type="CrossOverDataset", data_root=str(tmp_path), points=False, chunks={name: str(folder / f"{name}.txt") for name in ("point", "cad")}))
    known = [tuple(data[i]["object_known"].any(0)[1:3].tolist()) for i in range(4)]
    first = len(read_names(folder / "point.txt"))
    assert sorted(known) == [(False, True)] * (4 - first) + [(True, False)] * first


@pytest.mark.parametrize(("arguments", "error", "words"), [(["--split", "val"], FileNotFoundError, "val: no such folder"), ([], ValueError, "0 scenes")])
def test_bad_folders(tmp_path, arguments, error, words):
    (tmp_path / "train").mkdir()
    with pytest.raises(error, match=words):
        tool.main(["--data-root", str(tmp_path), *arguments])
