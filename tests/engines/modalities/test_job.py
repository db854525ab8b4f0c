"""The job: runs that are stopped, resumed, shared out or hit bad scenes, and what the table says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pointcept3m.engines.modalities import Job, ModalitySettings, extract_scenes, find_scenes, summary
from pointcept3m.engines.modalities import job as job_module
from pointcept3m.engines.modalities.command import chosen_recipe, main
from pointcept3m.engines.modalities.recipe import recipe_config
from pointcept3m.structures.modality_features import modality_path, read_modalities
from tests.engines.modalities.scenes import RECIPE, make_scene

REPOSITORY = Path(__file__).resolve().parents[3]
SETTINGS = ModalitySettings(views=1, levels=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for seed, name in enumerate(("a", "b", "c")):
        make_scene(root / "train" / name, 2, seed)
    (root / "train" / "b" / "floorplan.png").unlink()
    for name in ("coord.npy", "instance.npy"):
        (root / "train" / "c" / name).unlink()
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "set")


def run(root, settings=SETTINGS, workers=0, recipe=RECIPE, **arguments):
    return extract_scenes(find_scenes(root, ["train"]), Job(recipe_config(recipe), settings, **arguments), workers)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


def test_files_and_table(root):
    reports = run(root)
    assert [report.name for report in reports] == ["a", "b", "c"] and not any(report.found for report in reports)
    features = read_modalities(modality_path(root / "train" / "a", "tiny"))
    assert features.scene == "a" and features.details["settings"]["views"] == 1 and features.known["image"].tolist() == [True, True, False]
    table = summary(reports)
    for part in ("3 made, 0 already there, 0 failed", "point          4   44.4% of objects", "floorplan      2   66.7% of scenes",
                 "without floorplan: train/b", "without point: train/c"):  # fmt: skip
        assert part in table, table


def test_finished_files_are_kept_and_others_made_anew(root, monkeypatch):
    run(root)
    before = contents(root)
    made = []
    monkeypatch.setattr(job_module, "extract_scene", lambda folder, *rest, f=job_module.extract_scene: made.append(folder.name) or f(folder, *rest))
    assert all(report.found for report in run(root)) and made == [] and contents(root) == before
    path = modality_path(root / "train" / "b", "tiny")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)  # damaged
    modality_path(root / "train" / "c", "tiny").unlink()
    run(root)
    assert made == ["b", "c"] and contents(root) == before
    text = (root / "train" / "a" / "objects.json").read_text()
    (root / "train" / "a" / "objects.json").write_text(text.replace("large", "small"))
    run(root)
    assert made == ["b", "c", "a"]  # its texts have changed
    run(root, ModalitySettings(views=2, levels=2))
    assert made[3:] == ["a", "b", "c"]
    run(root, ModalitySettings(views=2, levels=2), recipe={**RECIPE, "crop_size": 16})
    assert made[6:] == ["a", "b", "c"]
    run(root, ModalitySettings(views=2, levels=2), recipe={**RECIPE, "crop_size": 16}, overwrite=True)
    assert len(made) == 12


def test_a_killed_run_goes_on(root, monkeypatch):
    """Killed in the second scene, with a half-written file left behind: the first is kept, the end is as if nothing had been."""
    reference = root.parent / "reference"
    shutil.copytree(root, reference)
    run(reference)
    real = job_module.extract_scene

    def dies(folder, *rest):
        if folder.name == "b":
            (folder / "modalities").mkdir(exist_ok=True)
            (folder / "modalities" / "tiny.tmp-x.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(folder, *rest)

    monkeypatch.setattr(job_module, "extract_scene", dies)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    monkeypatch.setattr(job_module, "extract_scene", real)
    assert [report.found for report in run(root)] == [True, False, False]
    assert contents(root) == contents(reference)


def test_broken_scenes(root):
    (root / "train" / "b" / "color" / "0.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="b/color/0.png"):
        run(root)
    reports = run(root, skip_broken=True)
    assert [bool(report.error) for report in reports] == [False, True, False]
    assert "1 failed" in summary(reports) and "failed   train/b: " in summary(reports)


def test_elsewhere(root, tmp_path):
    """Files in a root of their own, frames in another."""
    for name in "abc":
        for kind in ("color", "pose"):
            shutil.move(root / "train" / name / kind, tmp_path / "frames" / name / kind)
    reports = run(root, ModalitySettings(views=1, levels=1, keyframes="pose"), feature_root=tmp_path / "features", frames_root=tmp_path / "frames")
    assert reports[0].known["image"] == 2 and (tmp_path / "features" / "tiny" / "train" / "a.safetensors").is_file()
    assert not list(root.rglob("*.safetensors"))


def test_finding_scenes(root):
    with pytest.raises(FileNotFoundError, match="val: no such split; .*train"):
        find_scenes(root, ["val"])
    with pytest.raises(KeyError, match="no scene 'd'"):
        find_scenes(root, ["train"], ["d"])
    shutil.copytree(root / "train" / "a", root / "train" / ".d.tmp-1")  # another job is writing it
    assert [path.name for path in find_scenes(root, ["train"])] == ["a", "b", "c"]
    (root / "val").mkdir()
    with pytest.raises(FileNotFoundError, match="no scene in it"):
        find_scenes(root, ["val"])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Job(recipe_config(RECIPE), batch=0)


def test_command_line(root, tmp_path, capsys):
    recipe = tmp_path / "mine.py"
    recipe.write_text("text = dict(type='ReferralEncoder')\n")
    assert main(["--data-root", str(root), "--split", "train", "--recipe", str(recipe), "--device", "cpu", "--scenes", "a"]) == 0
    assert "1 made" in capsys.readouterr().out
    features = read_modalities(root / "train" / "a" / "modalities" / "mine.safetensors")
    assert set(features.objects) == {"text"}
    with pytest.raises(ValueError, match="wanted PART=PATH"):
        chosen_recipe("paper", ["image"], None, [])
    with pytest.raises(ValueError, match="has no encoder of text"):
        chosen_recipe("pocket", [], Path("x"), ["text"])
    with pytest.raises(ValueError, match="has several encoders of image"):
        chosen_recipe("pocket", ["image=x.pth"], None, [])
    name, config = chosen_recipe("paper", ["shape=p.pt"], Path("bert"), ["image"])
    assert name == "paper" and config["shape"]["weight"] == "p.pt" and config["text"]["tokenizer"] == "bert" and config["image"] is None
    with pytest.raises(FileNotFoundError, match="none.py: no such file of a recipe"):
        chosen_recipe(str(tmp_path / "none.py"), [], None, [])


@pytest.mark.long
def test_processes_make_the_same_files(root, tmp_path):
    """Two workers, and two ranks of torchrun, write what one process writes."""
    reference = shutil.copytree(root, tmp_path / "reference")
    run(reference, workers=0)
    run(root, workers=2)
    same = contents(reference)
    assert contents(root) == same
    other = shutil.copytree(tmp_path / "reference", tmp_path / "other", ignore=shutil.ignore_patterns("modalities"))
    recipe = tmp_path / "tiny.py"
    recipe.write_text("".join(f"{key} = {value!r}\n" for key, value in RECIPE.items() if key != "name"))
    tool = str(REPOSITORY / "tools" / "preprocess" / "modalities.py")
    words = ["--data-root", str(other), "--split", "train", "--recipe", str(recipe), "--views", "1", "--levels", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tool, *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 made" in done.stdout
    for key, data in same.items():
        first, second = read_modalities(reference / key), read_modalities(other / key)
        assert data and all(np.allclose(first.objects[name], second.objects[name], atol=1e-3) for name in first.objects)
