"""Six-fold scores: sums over folds by hand, and what is said about records that are missing, doubled or damaged."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.engines.folds import S3DIS_AREAS, find_folds, six_fold_main
from pointcept3m.engines.protocol import vote_protocol

NAMES = ["ceiling", "floor", "wall"]


def write_record(folder: Path, split: str, confusion: np.ndarray, names=NAMES, protocol="") -> Path:
    path = folder / "result" / "confusion.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(dataset="S3DISDataset", split=split, names=names, protocol=protocol, confusion=confusion.tolist())))
    return path


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    counts = {area: rng.integers(0, 50, (3, 3)) for area in S3DIS_AREAS}
    counts["Area_3"][2], counts["Area_3"][:, 2] = 0, 0  # a fold without walls
    for number, (area, confusion) in enumerate(counts.items()):
        protocol = vote_protocol("vote", 13, 10, 1300 + 177 * number, 1300 + 177 * number, "at each point", "7 raw points")
        write_record(tmp_path / f"run-{area}" / "test", area, confusion, protocol=protocol)
    return counts


def test_scores_are_of_all_points_together(records, tmp_path, capsys):
    assert six_fold_main(["--record_root", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "6fold.json").read_text())
    total = sum(records.values())
    hits = np.diag(total)
    iou = hits / (total.sum(0) + total.sum(1) - hits)
    assert result["metrics"]["mIoU"] == pytest.approx(iou.mean())
    assert result["metrics"]["mAcc"] == pytest.approx((hits / total.sum(1)).mean())
    assert result["metrics"]["allAcc"] == pytest.approx(hits.sum() / total.sum())
    assert [result["per_class"][name]["iou"] for name in NAMES] == pytest.approx(list(iou))
    third = records["Area_3"]
    two = np.diag(third)[:2] / (third.sum(0) + third.sum(1) - np.diag(third))[:2]
    assert result["folds"]["Area_3"]["mIoU"] == pytest.approx(two.mean())
    text = capsys.readouterr().out
    assert f"together  {iou.mean():6.4f}" in text and list(result["folds"]) == list(S3DIS_AREAS) and "not alike" not in text
    six_fold_main(["--record_root", str(tmp_path), "--absent", "zero"])
    zero = json.loads((tmp_path / "6fold.json").read_text())
    assert zero["folds"]["Area_3"]["mIoU"] == pytest.approx(two.sum() / 3) and zero["metrics"] == result["metrics"]


def test_records_by_name_and_the_command(records, tmp_path):
    paths = [str(path) for path in tmp_path.rglob("confusion.json")]
    tool = Path(__file__).resolve().parents[2] / "tools" / "test_s3dis_6fold.py"
    done = subprocess.run([sys.executable, str(tool), "--record_root", *paths[:5]], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "no confusion.json of Area_" in done.stderr and "Traceback" not in done.stderr
    assert [fold.split for fold in find_folds(paths)] == list(S3DIS_AREAS)


def test_wrong_records(records, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no such file or folder; near it"):
        find_folds([tmp_path / "run-Area_7"])
    extra = write_record(tmp_path / "again", "Area_5", records["Area_5"])
    with pytest.raises(ValueError, match="Area_5 has 2 records: .*again/result.*name the one"):
        find_folds([tmp_path])
    for content, words in (("{", "not the record"), ("[]", "not the record"), ('{"split": 1}', "not the record")):
        extra.write_text(content)
        with pytest.raises(ValueError, match=words):
            find_folds([tmp_path])
    extra.write_text(json.dumps(dict(split="Area_5", names=NAMES, protocol="", confusion=[[1, 2], [3, 4]])))
    with pytest.raises(ValueError, match=r"wanted 3 x 3 counts, got \[2, 2\]"):
        find_folds([tmp_path])
    extra.unlink()
    old = tmp_path / "run-Area_5" / "test" / "result" / "confusion.json"
    content = json.loads(old.read_text())
    old.write_text(json.dumps({**content, "names": ["wall", "floor", "ceiling"]}))
    with pytest.raises(ValueError, match="other classes than"):
        find_folds([tmp_path])
    for other in (("vote", 1, 10, 1300, 1300), ("fast", 13, 10, 1300, 1300)):
        old.write_text(json.dumps({**content, "protocol": vote_protocol(*other, "at each point", "7 raw points")}))
        six_fold_main(["--record_root", str(tmp_path)])
        assert "the tests were not alike" in capsys.readouterr().out
