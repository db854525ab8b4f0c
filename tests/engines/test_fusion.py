"""The fusion job: features against a brute force in float64, runs that are stopped or shared out, and bad input."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointcept3m.datasets.rooms import write_rooms
from pointcept3m.engines.fusion import Job, Output, ViewSettings, find_scenes, fuse_scenes, guess_dataset, summary
from pointcept3m.engines.fusion import scene as scene_module
from pointcept3m.engines.fusion.teachers import DOWNLOAD, PRESETS, build_teachers, teacher_configs
from pointcept3m.engines.fusion.views import choose_frames, shrink
from pointcept3m.engines.scene_jobs import share_out
from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers import PocketTeacher, Teacher
from pointcept3m.structures.camera import project
from pointcept3m.structures.fused_features import open_features, write_features
from pointcept3m.structures.scene import Scene

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools" / "preprocess"))
import fuse_features as tool  # noqa: E402

TEXT, GEOMETRIC = PRESETS["text"], PRESETS["geometric"]
SETTINGS = ViewSettings(tolerance=0.02)


@TEACHERS.register_module()
class PaleTeacher(Teacher):
    """Three colours at a quarter of the size; `lie` makes it wrong in one way."""

    dim, patch = 3, 4

    def __init__(self, lie: str = ""):
        super().__init__()
        self.lie = lie
        self.adopt(torch.nn.Conv2d(3, 3, 1))

    def features(self, images):
        maps = torch.nn.functional.avg_pool2d(images, 4)
        if self.lie == "channels":
            return maps[:, :2]
        if self.lie == "size":
            return maps[..., :-1]
        return maps / 0 if self.lie == "infinite" else maps


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Two rooms of four frames each."""
    root = tmp_path_factory.mktemp("fusion")
    write_rooms(root, "train", 2, num_frames=4, size=(60, 80), workers=0, spacing=0.05)
    return root


@pytest.fixture
def rooms(original, tmp_path):
    """A copy that may be spoilt."""
    shutil.copytree(original, tmp_path / "rooms")
    return tmp_path / "rooms"


def run(root, teachers=None, output=None, settings=SETTINGS, workers=0, **arguments):
    output = output or Output(storage="float16")
    job = Job(teachers or {"pale": dict(type="PaleTeacher")}, settings, output, **arguments)
    return fuse_scenes(find_scenes(root, ["train"]), job, workers)


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


# against a brute force


def brute_force(scene, teacher, settings, border):
    """(sums [N, C], views [N]) in float64: every point and frame on its own terms, from the frames as they lie on disk."""
    coord = scene.load("coord").astype(np.float64)
    total, count = np.zeros((len(coord), teacher.dim)), np.zeros(len(coord), int)
    for name in scene.frame_names:
        frame = scene.frame(name)
        height, width = frame.depth.shape
        pixel, z = project(coord, frame.intrinsic, frame.extrinsic)
        maps = teacher(torch.from_numpy(frame.rgb).movedim(-1, 0)[None])[0].double().numpy()
        for point in np.flatnonzero(z > 0):
            u, v = pixel[point]
            if not (border <= u < width - border and border <= v < height - border):
                continue
            depth = float(frame.depth[int(v), int(u)])
            if depth <= 0 or abs(depth - z[point]) > settings.tolerance * depth:
                continue
            total[point] += bilinear(maps, u / width, v / height)
            count[point] += 1
    return total, count


def bilinear(maps, x, y):
    """The map [C, h, w] at shares x, y of its extent; cells beyond the edge are the edge's."""
    channels, h, w = maps.shape
    x, y = min(max(x * w - 0.5, 0), w - 1), min(max(y * h - 0.5, 0), h - 1)
    left, top = min(int(x), w - 2), min(int(y), h - 2)
    a, b = x - left, y - top
    corners = maps[:, top : top + 2, left : left + 2]
    return (1 - b) * ((1 - a) * corners[:, 0, 0] + a * corners[:, 0, 1]) + b * ((1 - a) * corners[:, 1, 0] + a * corners[:, 1, 1])


def test_features_are_those_of_a_brute_force(rooms):
    """Two teachers at once, batches that do not divide the frames."""
    reports = run(rooms, {"text": TEXT, "geometric": GEOMETRIC}, batch=3)
    for folder, report in zip(find_scenes(rooms, ["train"]), reports, strict=True):
        scene = Scene(folder)
        for name in ("text", "geometric"):
            file = open_features(folder / "features" / f"{name}.safetensors", coord=scene.load("coord"))
            total, count = brute_force(scene, PocketTeacher(name), SETTINGS, border=2)  # 10 pixels of 320 are 2.5 of 80
            seen = count > 0
            # a point on the very edge of a test may fall either way in float32 and float64
            assert np.count_nonzero(file.mask != seen) <= 2 and seen.sum() > 1000
            both = np.flatnonzero(file.mask & seen)
            wanted = total[both] / count[both, None]
            error = np.abs(file.read(both) - wanted).max(axis=1) / np.abs(wanted).max()
            assert np.quantile(error, 0.999) < 1e-3
            assert report.views_per_point == pytest.approx(count[seen].mean(), abs=0.01)
        assert (report.num_visible, report.num_points, report.num_frames) == (file.mask.sum(), len(count), 4)


def test_color_of_points_comes_back(rooms):
    """A teacher of plain colours: the mean of what the frames show is near what the scan recorded, by another way."""
    run(rooms)
    scene = Scene(find_scenes(rooms, ["train"])[0])
    file = open_features(scene.root / "features" / "pale.safetensors")
    color = scene.load("color")[file.mask] / 255
    found = [np.corrcoef(color[:, channel], file.read_all()[:, channel])[0, 1] for channel in range(3)]
    shuffled = np.corrcoef(np.random.default_rng(0).permutation(color[:, 0]), file.read_all()[:, 0])[0, 1]
    assert min(found) > 0.5 and abs(shuffled) < 0.1


def test_without_depth_all_before_a_camera_is_visible(rooms):
    shown = run(rooms)[0].num_visible
    for folder in find_scenes(rooms, ["train"]):
        shutil.rmtree(folder / "depth")
        shutil.rmtree(folder / "features")
    with pytest.raises(FileNotFoundError, match="--no-depth"):
        run(rooms)
    assert run(rooms, settings=ViewSettings(depth=False))[0].num_visible > shown


# which frames, at what size


def test_frames_are_chosen_as_asked(rooms):
    scene = Scene(find_scenes(rooms, ["train"])[0])
    names = list(scene.frame_names)
    assert choose_frames(scene, ViewSettings())[0] == names
    assert choose_frames(scene, ViewSettings(every=2))[0] == names[::2]
    assert choose_frames(scene, ViewSettings(frames_per_scene=2))[0] == [names[1], names[3]]
    assert choose_frames(scene, ViewSettings(holdout=4))[0] == [names[0], names[1], names[3]]  # as structures.heldout
    with pytest.raises(ValueError, match="tolerance is a share"):
        ViewSettings(tolerance=1.5)
    with pytest.raises(ValueError, match="holdout"):
        ViewSettings(holdout=1)


def test_sizes_keep_proportions_and_are_never_enlarged():
    assert shrink((480, 640), 320) == (240, 320) and shrink((1024, 1280), 640) == (512, 640)
    assert shrink((120, 160), 320) == (120, 160) and shrink((640, 480), 320) == (320, 240)


def test_the_data_set_is_guessed_from_its_folder():
    assert guess_dataset("/data/scannet/v2")[0] == "scannet" and guess_dataset("/scannet/rooms")[0] == "rooms"
    assert guess_dataset("data/mine")[0] == "scannet" and guess_dataset("data/mine", "matterport")[1].tolerance == 0.02
    with pytest.raises(KeyError, match="did you mean 'scannet'"):
        guess_dataset("data/mine", "scanet")


# runs that stop and go on, or are shared out


def test_a_stopped_run_goes_on_to_the_same_bytes(rooms, monkeypatch):
    teachers = {"text": TEXT, "geometric": GEOMETRIC}
    output = Output(rooms / "f", "pca")
    run(rooms, teachers, output)
    wanted = contents(rooms / "f")
    assert len(wanted) == 4
    shutil.rmtree(rooms / "f")

    written = []

    def die_at_the_fourth(path, *arguments):
        written.append(path)
        if len(written) == 4:
            (path.parent / f"{path.stem}.tmp-killed.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        return write_features(path, *arguments)

    monkeypatch.setattr(scene_module, "write_features", die_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(rooms, teachers, output)
    monkeypatch.undo()
    assert len(contents(rooms / "f")) == 4  # three files and a half
    times = {path: path.stat().st_mtime_ns for path in written[:3]}
    reports = run(rooms, teachers, output)
    assert contents(rooms / "f") == wanted
    assert {path: path.stat().st_mtime_ns for path in times} == times
    monkeypatch.setattr(Scene, "depth", lambda *_: pytest.fail("a scene that is done needs no depth"))
    assert all(t.found for report in run(rooms, teachers, output) for t in report.teachers.values())
    monkeypatch.undo()
    assert [t.found for report in reports for t in report.teachers.values()] == [True, True, True, False]


def test_only_what_these_settings_made_is_finished(rooms):
    def fused(**arguments):
        return [t.found for report in run(rooms, **arguments) for t in report.teachers.values()]

    assert fused() == [False, False] and fused() == [True, True]
    assert fused(output=Output(storage="int8")) == [False, False]
    assert fused() == [False, False]  # float16 again
    assert fused(settings=ViewSettings(tolerance=0.02, sampling="nearest")) == [False, False]
    assert fused() == [False, False]
    assert fused(output=Output(storage="float16", overwrite=True)) == [False, False]
    folder = find_scenes(rooms, ["train"])[0]
    path = folder / "features" / "pale.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**7))
    assert fused() == [False, True]  # what is damaged is made anew
    coord = np.load(folder / "coord.npy")
    np.save(folder / "coord.npy", coord[:-5])
    assert fused() == [False, True]  # a cloud made anew
    pose = next((folder / "pose").iterdir())
    np.savetxt(pose, np.loadtxt(pose) @ np.diag([1, -1, -1, 1]))
    assert fused() == [False, True]  # and so are poses


def test_work_is_shared_out_evenly():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, 101).tolist()
    shares = share_out(sizes, 7)
    assert sorted(row for share in shares for row in share) == list(range(101))
    loads = [sum(sizes[row] for row in share) for share in shares]
    assert max(loads) - min(loads) < 20
    assert share_out([5], 3) == [[0], [], []] and share_out([0, 0], 2) == [[0], [1]]


@pytest.mark.long
def test_two_ranks_and_two_workers_make_the_same_files(rooms):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the others have: the last bits of a convolution depend on their number
    try:
        run(rooms, {"text": TEXT}, Output(rooms / "one", "pca"))
    finally:
        torch.set_num_threads(threads)
    script = str(REPOSITORY / "tools" / "preprocess" / "fuse_features.py")
    arguments = [script, "--data-root", str(rooms), "--split", "train", "--teacher", "text", "--feature-root"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*ranks, *arguments, str(rooms / "two")], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 fused" in done.stdout and done.stdout.count("cosine kept") == 1  # one table, of both ranks
    assert contents(rooms / "one") == contents(rooms / "two")
    command = [sys.executable, *arguments, str(rooms / "workers"), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert contents(rooms / "one") == contents(rooms / "workers")


# bad input


def test_teachers_that_would_not_go_together_are_an_error_with_the_command_that_mends_it(rooms, capsys):
    output = Output(rooms / "f")
    run(rooms, {"text": TEXT}, output, ViewSettings(tolerance=0.3))
    with pytest.raises(ValueError, match="'text'.*and geometric.*would not go together.*tolerance 0.3") as caught:
        run(rooms, {"geometric": GEOMETRIC}, output)
    assert len(contents(rooms / "f")) == 2  # no teacher ran
    command = re.search(r"python (tools\S+ .*?); or", str(caught.value)).group(1)
    assert tool.main(shlex.split(command)[1:]) == 0
    assert [r.teachers["geometric"].found for r in run(rooms, {"geometric": GEOMETRIC}, output)] == [False, False]
    capsys.readouterr()


def test_files_of_another_scene_that_lie_there_are_an_error(rooms):
    run(rooms, {"text": TEXT})
    first, second = find_scenes(rooms, ["train"])
    shutil.copy(first / "features" / "text.safetensors", second / "features" / "text.safetensors")
    with pytest.raises(ValueError, match=f"points of scene '{first.name}'.*fuse 'text' again"):
        run(rooms, {"geometric": GEOMETRIC})
    run(rooms, {"text": TEXT})  # the mending
    run(rooms, {"geometric": GEOMETRIC})


@pytest.mark.parametrize(("factor", "told"), [(4, r"4000 units a metre \(Matterport3D's\)"), (5, r"5000 .*\(TUM's\)"), (0.1, "centimetres"), (2.5, r"2\d{3}")])
def test_depth_in_other_units_is_told(rooms, factor, told):
    for path in find_scenes(rooms, ["train"])[0].joinpath("depth").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) * factor).astype(np.uint16)).save(path)
    for tolerance in (0.02, 0.25):
        with pytest.raises(ValueError, match=f"depth pictures seem to have .*{told}"):
            run(rooms, settings=ViewSettings(tolerance=tolerance))


def test_points_in_millimetres_are_told(rooms):
    folder = find_scenes(rooms, ["train"])[0]
    np.save(folder / "coord.npy", np.load(folder / "coord.npy") * 1000)
    for path in (folder / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[:3, 3] *= 1000
        np.savetxt(path, pose)
    with pytest.raises(ValueError, match="0.001 times their distance.*1 units a metre.*coord and poses are not in metres"):
        run(rooms)


def test_frames_without_usable_poses(rooms):
    folder = find_scenes(rooms, ["train"])[0]
    lost = sorted((folder / "pose").iterdir())[1]
    np.savetxt(lost, np.full((4, 4), -np.inf))
    with pytest.raises(ValueError, match=f"{lost.name}.*not finite"):
        run(rooms)
    report = run(rooms, settings=ViewSettings(tolerance=0.02, skip_bad_frames=True))[0]
    assert report.left_out == [lost.stem] and report.num_frames == 3
    away = sorted((folder / "depth").iterdir())[3]
    kept = away.rename(folder / away.name)
    with pytest.raises(ValueError, match=rf"1 of 4 frames with colour have no pose or depth.*\({away.stem}\).*--skip-bad-frames"):
        run(rooms)
    report = run(rooms, settings=ViewSettings(tolerance=0.02, skip_bad_frames=True))[0]
    assert report.left_out == [away.stem, lost.stem] and report.num_frames == 2
    kept.rename(away)
    for path in (folder / "pose").iterdir():
        np.savetxt(path, np.full((4, 4), -np.inf))
    with pytest.raises(ValueError, match="none of its 4 frames is left.*4 without a usable pose"):
        run(rooms, settings=ViewSettings(skip_bad_frames=True))
    shutil.rmtree(folder / "pose")
    with pytest.raises(FileNotFoundError, match="has no frames.*pose"):
        run(rooms)
    reports = run(rooms, skip_broken=True)
    assert "no frames" in reports[0].error and reports[1].teachers
    assert f"failed   train/{folder.name}" in summary(reports)


@pytest.mark.parametrize(
    ("lie", "message"),
    [("channels", r"gave features \(4, 2, 15, 20\).*dim=3.*\(4, 3, 15, 20\)"), ("size", r"\(4, 3, 15, 19\)"), ("infinite", "not finite")],
)
def test_a_teacher_that_is_not_what_it_says(rooms, lie, message):
    with pytest.raises(ValueError, match=message):
        run(rooms, {"pale": dict(type="PaleTeacher", lie=lie)})
    assert not contents(rooms)


def test_a_scene_without_a_visible_point_is_skipped_and_told(rooms, capsys):
    first, second = find_scenes(rooms, ["train"])
    np.save(first / "coord.npy", np.load(first / "coord.npy") + 500)
    arguments = ["--data-root", str(rooms), "--split", "train", "--teacher", "text"]
    assert tool.main(arguments) == 0
    told = capsys.readouterr()
    assert re.search(r"scenes   1 fused, 0 already there, 1 skipped, 0 failed", told.out)
    assert f"skipped  train/{first.name}: none of its" in told.out
    assert not (first / "features").exists() and (second / "features" / "text.safetensors").is_file()
    np.save(second / "coord.npy", np.load(second / "coord.npy") + 500)
    assert tool.main([*arguments, "--overwrite"]) == 1


# the command line


def test_the_table_says_what_was_made(rooms, capsys):
    assert tool.main(["--data-root", str(rooms), "--split", "train", "--teacher", "text", "a=diffusion", "--storage", "int8"]) == 0
    told = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in told.splitlines()}
    sizes = sum(path.stat().st_size for path in rooms.rglob("a.safetensors"))
    assert rows["a"][1:4] == ["64", "int8", f"{sizes:,}"] and rows["a"][5] == "128" and float(rows["a"][7].rstrip(",")) > 0.999
    assert tool.main(["--data-root", str(rooms), "--split", "train", "--teacher", "text", "--storage", "int8"]) == 0
    assert "0 fused, 2 already there" in capsys.readouterr().out


def test_mistyped_words_are_told(rooms):
    arguments = ["--data-root", str(rooms), "--teacher", "text"]
    for words, error, message in (
        (["--split", "trian"], FileNotFoundError, "did you mean 'train'"),
        (["--data-root", str(rooms / "train"), "--split", "val"], FileNotFoundError, f"give --data-root {rooms} --split train"),
        (["--split", "train", "--scenes", "nowhere"], KeyError, "no scene 'nowhere'"),
        (["--split", "train", "--weight", "lseg=x"], KeyError, "no teacher is called 'lseg'"),
        (["--split", "train", "--device", "cuda"], ValueError, "no GPU"),
    ):
        if "cuda" not in words or not torch.cuda.is_available():
            with pytest.raises(error, match=message):
                tool.main([*arguments, *words])


def test_how_teachers_are_named(tmp_path):
    named = teacher_configs(["text", "mine=geometric", "dict(type='PocketTeacher', name='diffusion')"])
    assert named == {"text": TEXT, "mine": GEOMETRIC, "diffusion": PRESETS["diffusion"]}
    file = tmp_path / "two.py"
    file.write_text("small = dict(type='TimmTeacher', model_name='vit_tiny_patch16_224', random_init=True)\nother = dict(type='PocketTeacher')\n")
    assert list(teacher_configs([str(file)])) == ["small", "other"]
    assert teacher_configs(["lseg"], ["lseg=w/a.ckpt"])["lseg"]["weight"] == "w/a.ckpt"
    assert teacher_configs(["d=dinov2"], download=True)["d"]["pretrained"] is True
    assert "pretrained" not in teacher_configs(["dinov2"], ["dinov2=a.pth"], download=True)["dinov2"]
    assert teacher_configs(["lseg"], dataset="matterport")["lseg"]["image_size"] == 1280 and "image_size" not in teacher_configs(["lseg"])["lseg"]
    for words, error, message in (
        (["txt"], KeyError, "did you mean 'text'"), (["text", "text"], ValueError, "two teachers are called 'text'"),
        (["a/b=text"], ValueError, "becomes a folder"), ([str(tmp_path / "tow.py")], FileNotFoundError, "two.py"),
        (["x=dict(type='NoTeacher')"], KeyError, "NoTeacher"), (["x=dict(name='text')"], ValueError, "wanted dict"),
        (["x=__import__('os').getcwd()"], ValueError, "--teacher"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            teacher_configs(words)
    with pytest.raises(ValueError, match="needs weights") as caught:
        build_teachers(teacher_configs(["lseg"]), "cpu")
    assert any("--weight lseg=PATH" in note for note in caught.value.__notes__)


def test_presets_of_open_clip_name_models_and_published_weights():
    open_clip = pytest.importorskip("open_clip", exc_type=Exception)
    for name in ("clip", "siglip"):
        assert DOWNLOAD[name]["pretrained"] in open_clip.list_pretrained_tags_by_model(PRESETS[name]["model_name"])


def test_every_preset_names_a_teacher_and_its_arguments():
    assert set(DOWNLOAD) == {name for name, config in PRESETS.items() if config["type"] not in ("PocketTeacher", "LSegTeacher")}  # LSeg: no hub
    for name, config in PRESETS.items():
        config = config | DOWNLOAD.get(name, {})
        TEACHERS._check_arguments(TEACHERS.get(config["type"]), name, {k: v for k, v in config.items() if k != "type"})


@pytest.mark.long
def test_real_frames(real_data, tmp_path):
    """ScanNet frames fused to a cloud by our own preprocessing: nearly all of it is visible in them, in several views."""
    import rgbd

    source = real_data("rgbd_scannet_scene0014_00")
    target = tmp_path / "scannet" / "train" / "scene0014_00"
    target.parent.mkdir(parents=True)
    assert rgbd.main(["--input", str(source), "--output", str(target), "--voxel", "0.04"]) == 0
    settings = ViewSettings(tolerance=0.25)
    (report,) = run(tmp_path / "scannet", {"text": TEXT, "geometric": GEOMETRIC}, settings=settings)
    assert report.num_visible / report.num_points > 0.9 and report.views_per_point > 1.5
    file = open_features(target / "features" / "text.safetensors")
    lengths = np.linalg.norm(file.read_all(), axis=1)  # means of unit vectors
    assert 0.5 < lengths.mean() <= 1 and lengths.max() <= 1.001
