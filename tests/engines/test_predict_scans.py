"""What `predict` says of scans that cannot be read or are doubtful, and of results: names, shares, objects at borders."""

import numpy as np
import pytest

import pointcept3m
from pointcept3m.datasets.readers.ply import read_ply, write_ply
from pointcept3m.engines.predict.prediction import percent
from tests.datasets.test_cloud_readers import room
from tests.engines.test_predict import config, quiet, run, save


@pytest.fixture
def weight(tmp_path):
    return save(config(), tmp_path / "w.safetensors")


@pytest.fixture
def cloud():
    coord, normal = room(0.06)
    color = np.random.default_rng(2).integers(0, 256, coord.shape).astype(np.uint8)
    return {"coord": coord, "color": color, "normal": normal}


def test_a_scan_that_cannot_be_read_is_noticed_before_the_weight_is_loaded(tmp_path, weight, cloud, capsys, monkeypatch):
    from pointcept3m.engines.predict import predictor

    monkeypatch.setattr(predictor, "load", lambda *a, **k: pytest.fail("the weight was loaded"))
    write_ply(tmp_path / "whole.ply", cloud["coord"])
    (tmp_path / "short.ply").write_bytes((tmp_path / "whole.ply").read_bytes()[:-50])
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "mesh.obj").write_text("v 0 0 0\n")
    (tmp_path / "frames").mkdir()
    for name, message in (("short.ply", "cut short"), ("empty.xyz", "no line of numbers"), ("mesh.obj", "trimesh"), ("frames", "RGB-D")):
        assert run(tmp_path / name, "--weight", weight, "--out", tmp_path / "p.ply") == 1
        error = capsys.readouterr().err
        assert name in error and message in error, error


def test_without_out_the_result_lies_here_under_the_scans_name(tmp_path, weight, cloud, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    np.savetxt(tmp_path / "my.scan.xyz", np.hstack([cloud["coord"], cloud["color"]]), fmt="%.9g")
    assert run(tmp_path / "my.scan.xyz", "--weight", weight) == 0
    assert "writes my.scan.pred.ply into this folder (--out)" in capsys.readouterr().out
    written = read_ply("my.scan.pred.ply")
    expected = pointcept3m.load(weight).predict({"coord": cloud["coord"].astype(np.float64), "color": cloud["color"]}, say=quiet)
    np.testing.assert_array_equal(written.vertex["label"], expected.label)
    assert run(tmp_path / "my.scan.xyz", "--weight", weight) == 1 and "--overwrite" in capsys.readouterr().err


def test_what_is_there_is_never_0(tmp_path, weight, cloud):
    assert [percent(*pair) for pair in ((0, 10_000), (1, 10_000), (5, 10_000), (12, 10_000), (1, 1))] == ["0.0 %", "< 0.1 %", "0.1 %", "0.1 %", "100.0 %"]
    result = pointcept3m.load(weight).predict(cloud, say=quiet)
    result.label[:] = 2
    result.label[0] = 0
    assert "< 0.1 %" in result.table() and " 0.0 %" not in result.table()


def test_the_models_grid_judges_coordinates(weight, cloud):
    """0.1 m: steps of 0.25 m are refused, of 0.03 m noted."""
    model, said = pointcept3m.load(weight), []
    near, far = ({**cloud, "coord": (cloud["coord"] + np.float64([offset, 0, 0])).astype(np.float32)} for offset in (500_000, 4_000_000))
    model.predict(near, say=said.append)
    with pytest.raises(ValueError, match=r"0\.25 x .* the model's grid is 0\.1 m"):
        model.predict(far, say=quiet)
    assert any("caution" in line and "0.031 x" in line for line in said)


def test_objects_are_not_cut_at_borders_without_overlap(tmp_path, cloud):
    cfg = config()
    cfg.model = dict(type="HalvesForTest")
    model = pointcept3m.load(save(cfg, tmp_path / "i.safetensors"))
    with pytest.raises(ValueError, match="--overlap 0 would cut objects in two at the borders of the"):
        model.predict(cloud, max_points=3000, overlap=0, say=quiet)
    assert model.predict(cloud, overlap=0, say=quiet).instance is not None  # one box has no borders
