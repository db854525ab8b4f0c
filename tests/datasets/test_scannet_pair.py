"""Pairs of frames: their clouds lie on the room they show, overlap is what brute force says, bad files are named."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pointcept3m.datasets import build_dataset, collate_fn
from pointcept3m.datasets.preprocess_pairs import PairSettings, find_frame_folders, overlaps, preprocess_pairs
from pointcept3m.datasets.scannet_pair import ScanNetPairDataset, read_frame, read_overlap
from tests.conftest import REPOSITORY
from tests.datasets.synthetic import HIGH, LOW, write_scene

# In Pointcept's order: each frame is moved to its own centre before coord is copied, and view 2 forgets to say that
# origin_coord is sampled with the points.
VIEW2 = [
    dict(type="CenterShift", apply_z=True),
    dict(type="Copy", keys_dict={"coord": "origin_coord"}),
    dict(type="RandomRotate", angle=[-1, 1], axis="z", center=[0, 0, 0], p=1),
    dict(type="RandomFlip", p=0.5),
    dict(type="GridSample", grid_size=0.1, hash_type="fnv", mode="train", return_grid_coord=True),
    dict(type="NormalizeColor"),
    dict(type="ToTensor"),
    dict(
        type="Collect",
        keys=("origin_coord", "grid_coord", "coord", "color"),
        offset_keys_dict=dict(offset="coord"),
        feat_keys=["color"],
    ),
]
VIEW1 = [
    *VIEW2[:2],
    dict(type="Update", keys_dict={"index_valid_keys": ["coord", "color", "normal", "origin_coord"]}),
    *VIEW2[2:],
]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A room of known size, seen by nine cameras that look round."""
    root = tmp_path_factory.mktemp("frames")
    write_scene(root / "train" / "room", frames=9)
    return root / "train"


@pytest.fixture(scope="module")
def pairs(frames):
    root = frames.parent / "pairs"
    preprocess_pairs([frames], root)
    return root


def make(root, **arguments):
    arguments = {**dict(view1_transform=VIEW1, view2_transform=VIEW2), **arguments}
    return build_dataset(dict(type="ScanNetPairDataset", data_root=str(root), test_mode=False, **arguments))


def copy_of(pairs, tmp_path):
    return shutil.copytree(pairs, tmp_path / "pairs")


def test_clouds_lie_on_the_walls(pairs):
    for path in sorted((pairs / "room/pcd").glob("*.npz")):
        frame = read_frame(path)
        to_wall = np.minimum(np.abs(frame["coord"] - LOW), np.abs(frame["coord"] - HIGH)).min(1)
        assert to_wall.max() < 0.001  # depth is kept in millimetres
        wanted = (frame["coord"] - LOW) / (HIGH - LOW) * 255  # the room's colour is its position
        assert np.abs(frame["color"] - wanted).max() < 6
        assert np.abs(np.linalg.norm(frame["normal"], axis=1) - 1).max() < 1e-5


def test_overlap_against_brute_force(pairs):
    clouds = [read_frame(path)["coord"].astype(np.float64) for path in sorted((pairs / "room/pcd").glob("*.npz"))]
    centroids = []
    for cloud in clouds:
        cells = {}
        for point in cloud:
            cells.setdefault(tuple(np.floor(point / 0.05).astype(int)), []).append(point)
        centroids.append(np.array([np.mean(points, axis=0) for points in cells.values()]))
    lines = read_overlap(pairs / "room/pcd/overlap.txt")
    assert len(lines) == 9 * 8 // 2
    shares = []
    for first, second, share in lines:
        a, b = (centroids[int(name.split("/")[-1].removesuffix(".npz"))] for name in (first, second))
        near = cdist(a, b) <= 0.075
        shares.append(max(near.any(1).mean(), near.any(0).mean()))
        assert share == pytest.approx(shares[-1], abs=1e-6)
    assert min(shares) == 0 and max(shares) > 0.3  # cameras back to back, and neighbours


def test_overlap_of_equal_and_distant_clouds():
    cloud = np.random.rand(500, 3)
    share = overlaps([cloud, cloud + 0.001, cloud[:100], cloud + 50], 0.05)
    assert np.array_equal(share, share.T)
    assert share[0, 2] == 1.0  # all of the smaller one is in the greater
    assert (share[3, :3] == 0).all()
    assert (np.diag(share) == 1).all()


def test_threshold_decides_which_pairs(pairs):
    shares = [share for *_, share in read_overlap(pairs / "room/pcd/overlap.txt")]
    for threshold in (0.0, 0.3):
        assert len(make(pairs, overlap_threshold=threshold)) == sum(share > threshold for share in shares)
    assert len(make(pairs, loop=3)) == 3 * len(make(pairs))
    with pytest.raises(ValueError, match=r"none of 36 pairs overlaps by more than 0.99; the most is 0\.\d+"):
        make(pairs, overlap_threshold=0.99)


def test_a_batch_as_the_model_wants_it(pairs):
    dataset = make(pairs)
    batch = collate_fn([dataset[0], dataset[1]])
    for view in ("view1", "view2"):
        count = len(batch[f"{view}_coord"])
        assert batch[f"{view}_offset"].shape == (2,) and int(batch[f"{view}_offset"][-1]) == count
        for key in ("origin_coord", "grid_coord", "color", "feat"):
            assert batch[f"{view}_{key}"].shape == (count, 3), key
    assert dataset.get_data_name(0).startswith("room/")


def test_matches_are_the_same_place_whatever_the_transforms_do(pairs):
    """Pointcept's order would leave each frame's origin_coord at its own centre, metres apart."""
    dataset = make(pairs)
    for index in range(len(dataset)):
        sample = dataset[index]
        for view in ("view1", "view2"):
            origin = sample[f"{view}_origin_coord"].numpy()
            assert np.minimum(np.abs(origin - LOW), np.abs(origin - HIGH)).min(1).max() < 0.001
            # still the coordinates of the very points that were kept: moved rigidly, their distances are the same
            moved = sample[f"{view}_coord"].numpy()
            assert np.allclose(
                np.linalg.norm(np.diff(origin, axis=0), axis=1),
                np.linalg.norm(np.diff(moved, axis=0), axis=1),
                atol=1e-4,
            )
    shifts = [
        np.ptp(np.stack([frame["coord"].mean(0) for frame in dataset.get_data(i)]), axis=0).max()
        for i in range(len(dataset))
    ]
    assert max(shifts) > 0.3


def test_what_is_there_stays(frames, pairs, tmp_path):
    root = copy_of(pairs, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.*")}
    (again,) = preprocess_pairs([frames], root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.*")} == before
    (root / "room/pcd/overlap.txt").unlink()  # as a run that was stopped leaves it
    (fresh,) = preprocess_pairs([frames], root)
    assert fresh == again
    assert (root / "room/pcd/overlap.txt").read_text() == (pairs / "room/pcd/overlap.txt").read_text()


def test_other_settings_are_written_anew(frames, pairs, tmp_path):
    root = copy_of(pairs, tmp_path)
    (sparse,) = preprocess_pairs([frames], root, PairSettings(stride=3))
    assert sparse.num_frames == len(list((root / "room/pcd").glob("*.npz"))) < len(list((pairs / "room/pcd").glob("*.npz")))
    (root / "room/pcd/settings.json").unlink()  # as files of Pointcept's script, which says nothing of its settings
    assert preprocess_pairs([frames], root, PairSettings(stride=2))[0].num_pairs == sparse.num_pairs


def test_stride_voxel_and_lost_poses(frames, tmp_path):
    scene = shutil.copytree(frames / "room", tmp_path / "in/other")
    np.savetxt(scene / "pose/4.txt", np.full((4, 4), -np.inf))
    (report,) = preprocess_pairs([scene], tmp_path / "out", PairSettings(stride=2, voxel=0))
    assert report.num_frames == 4  # 0 2 5 7 of the eight that are left
    whole = read_frame(tmp_path / "out/other/pcd/0.npz")
    preprocess_pairs([scene], tmp_path / "thin", PairSettings(stride=2, voxel=0.2))
    thin = read_frame(tmp_path / "thin/other/pcd/0.npz")
    assert len(thin["coord"]) == len(np.unique(np.floor(whole["coord"].astype(np.float64) / 0.2), axis=0))


def test_the_tool(frames, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("pairs_tool", REPOSITORY / "tools/preprocess/pairs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    command = ["--workers", "0", "--output-root", str(tmp_path / "out"), "--input"]
    tool.main([*command, str(frames)])
    assert "1 scenes" in capsys.readouterr().out and len(make(tmp_path / "out")) > 3
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        tool.main([*command, str(tmp_path / "nowhere")])


class TestPointceptFiles:
    """Its script writes .pth with numpy arrays inside, coordinates as float64, no normals."""

    def write(self, pairs, tmp_path, slash="/"):
        root = copy_of(pairs, tmp_path)
        for path in (root / "room/pcd").glob("*.npz"):
            frame = np.load(path)
            torch.save(dict(coord=frame["coord"].astype(np.float64), color=frame["color"]), path.with_suffix(".pth"))
            path.unlink()
        listing = root / "room/pcd/overlap.txt"
        listing.write_text(listing.read_text().replace(".npz", ".pth").replace("/room/", f"{slash}room/"))
        return root

    @pytest.mark.parametrize("slash", ["/", ""])
    def test_are_read(self, pairs, tmp_path, slash):
        ours, theirs = make(pairs), make(self.write(pairs, tmp_path, slash))
        assert len(ours) == len(theirs)
        for mine, other in zip(ours.get_data(1), theirs.get_data(1), strict=True):
            assert sorted(other) == ["color", "coord"]
            assert all(np.array_equal(mine[key], other[key]) for key in other)
        assert theirs[0]["view1_feat"].shape[1] == 3

    def test_files_of_older_numpy(self, pairs, tmp_path):
        """numpy 1 wrote the names of its private modules without the underscore."""
        path = tmp_path / "old.pth"
        torch.save(
            dict(coord=np.ones((2, 3)), color=np.zeros((2, 3), np.uint8)), path, _use_new_zipfile_serialization=False
        )
        data = path.read_bytes()
        for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
            path.write_bytes(data.replace(b"numpy._core.multiarray", name))
            assert np.array_equal(read_frame(path)["coord"], np.ones((2, 3)))

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ("run",)

        torch.save(dict(coord=Evil()), tmp_path / "evil.pth")
        with pytest.raises(ValueError, match=r"evil.pth: not a plain torch file of numbers"):
            read_frame(tmp_path / "evil.pth")
        np.savez(tmp_path / "evil.npz", coord=np.array([Evil()], dtype=object))
        with pytest.raises(ValueError, match=r"evil.npz: not a readable .npz"):
            read_frame(tmp_path / "evil.npz")


class TestErrors:
    def test_no_pairs(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"tools/preprocess/pairs.py"):
            ScanNetPairDataset(tmp_path)

    def test_a_frame_that_is_gone(self, pairs, tmp_path):
        root = copy_of(pairs, tmp_path)
        first, _ = make(root).data_list[0]
        first.rename(first.with_name(f"{first.stem}_.npz"))
        with pytest.raises(FileNotFoundError, match=f"{first.name}: no such frame; near it: .*{first.stem}_.npz"):
            make(root)[0]

    @pytest.mark.parametrize(
        "line", ["/room/pcd/0.npz /room/pcd/1.npz", "/room/pcd/0.npz /room/pcd/1.npz much", "1 2 3 4"]
    )
    def test_a_line_that_does_not_fit(self, pairs, tmp_path, line):
        root = copy_of(pairs, tmp_path)
        with (root / "room/pcd/overlap.txt").open("a") as stream:
            stream.write(f"\n{line}\n")
        with pytest.raises(ValueError, match=r"overlap.txt, line 38: wanted two files and a number"):
            make(root)

    def test_paths_that_lead_outside(self, pairs, tmp_path):
        root = copy_of(pairs, tmp_path)
        (root / "room/pcd/overlap.txt").write_text("/../../secret.npz /room/pcd/1.npz 0.9\n")
        with pytest.raises(ValueError, match="outside"):
            make(root)

    @pytest.mark.parametrize(
        ("arrays", "words"),
        [
            (dict(coord=np.ones((4, 3))), "no 'color'"),
            (dict(coord=np.ones((4, 3)), color=np.ones((5, 3))), "as many rows"),
            (dict(coord=np.ones((0, 3)), color=np.ones((0, 3))), "at least one"),
            (dict(coord=np.ones((4, 2)), color=np.ones((4, 3))), r"coord must be numbers \[N, 3\]"),
            (dict(coord=np.full((4, 3), np.nan), color=np.ones((4, 3))), "not finite"),
        ],
    )
    def test_frames_that_do_not_fit(self, tmp_path, arrays, words):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(ValueError, match=f"a.npz: .*{words}"):
            read_frame(tmp_path / "a.npz")

    def test_a_file_cut_short(self, pairs, tmp_path):
        data = next((pairs / "room/pcd").glob("*.npz")).read_bytes()
        (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match="cut.npz: not a readable"):
            read_frame(tmp_path / "cut.npz")

    def test_no_frames_and_two_of_a_name(self, frames, tmp_path):
        with pytest.raises(FileNotFoundError, match="posed RGB-D frames"):
            find_frame_folders([tmp_path])
        shutil.copytree(frames / "room", tmp_path / "val/room")
        with pytest.raises(ValueError, match="two scenes are called room"):
            find_frame_folders([frames, tmp_path / "val"])

    def test_arguments(self, pairs):
        with pytest.raises(TypeError, match=r"overlap_treshold.*did you mean 'overlap_threshold'"):
            make(pairs, overlap_treshold=0.3)
        with pytest.raises(ValueError, match="test mode"):
            ScanNetPairDataset(pairs, test_mode=True)
        with pytest.raises(ValueError, match="stride"):
            PairSettings(stride=0)
