"""Feature files: what goes in comes out within what the storage promises, and files that do not belong are refused."""

import json
import os
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pointcept3m.structures import fused_features
from pointcept3m.structures.feature_storage import default_components
from pointcept3m.structures.fused_features import (
    check_masks,
    coord_digest,
    feature_path,
    find_features,
    open_features,
    read_header,
    write_features,
)

STORAGES = ("pca", "int8", "float16")


def make(num_points=900, dim=80, rank=12, noise=0.02, seed=0):
    """(features float32 [M, dim] with channels of unequal size, mask [N], coord [N, 3])."""
    rng = np.random.default_rng(seed)
    mask = rng.random(num_points) < 0.7
    features = rng.normal(size=(mask.sum(), rank)) @ rng.normal(size=(rank, dim)) + rng.normal(size=(mask.sum(), dim)) * noise + 0.3
    features *= 10.0 ** rng.uniform(-1, 1, size=dim)
    return features.astype(np.float32), mask, rng.random((num_points, 3)).astype(np.float32)


def write(path, storage="pca", components=None, **arguments):
    features, mask, coord = make(**arguments)
    kept = write_features(path, features, mask, "lseg", "scene0000_00", coord, storage, components, {"fingerprint": "lseg-1"})
    return features, mask, coord, kept


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def by_hand(path):
    """The features of one of our files as numpy and the docstring of `encode` say, float64."""
    arrays = {key: value.astype(np.float64) for key, value in load_file(path).items() if key != "mask"}
    if "values" in arrays:
        return arrays["values"] * arrays.get("scale", 1.0)
    if "basis" not in arrays:
        return arrays["codes"] * arrays["scale"] * arrays["norm"][:, None]
    return (arrays["mean"] + (arrays["codes"] * arrays["scale"]) @ arrays["basis"]) * arrays["norm"][:, None]


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_read_is_what_the_file_holds(tmp_path, storage):
    path = tmp_path / "a.safetensors"
    features, mask, coord, kept = write(path, storage, components=20 if storage == "pca" else None)
    file = open_features(path, len(coord), coord)
    assert (file.teacher, file.scene, file.dim, file.num_points, file.storage) == ("lseg", "scene0000_00", 80, 900, storage)
    assert file.details == {"fingerprint": "lseg-1"} and len(file) == mask.sum()
    assert file.mask.dtype == bool and np.array_equal(file.mask, mask)
    values = file.read_all()
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, by_hand(path), rtol=1e-4, atol=1e-3)
    # what the writer says it kept, computed from what is read
    found = cosines(features, values)
    assert kept == pytest.approx(found.mean(), abs=1e-6) and file.cosine == pytest.approx((kept, np.quantile(found, 0.01)), abs=1e-6)
    assert kept > {"pca": 0.999, "int8": 0.9999, "float16": 0.999999}[storage]


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_are_read_by_point_number(tmp_path, storage):
    path = tmp_path / "a.safetensors"
    _, mask, coord, _ = write(path, storage)
    file = open_features(path, coord=coord)
    whole = np.full((len(mask), 80), np.nan, np.float32)
    whole[mask] = file.read_all()
    points = np.random.default_rng(1).choice(np.flatnonzero(mask), 200)  # any order, some twice
    np.testing.assert_allclose(file.read(points), whole[points], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(file.read(torch.from_numpy(points)), whole[points], rtol=1e-5, atol=1e-4)
    assert file.read(np.zeros(0, np.int64)).shape == (0, 80)
    hidden = np.flatnonzero(~mask)[:3]
    with pytest.raises(ValueError, match=f"3 of 4 points have no features.*number {hidden[0]}"):
        file.read([*hidden, points[0]])
    for wrong in ([-1], [len(mask)]):
        with pytest.raises(ValueError, match="the scene has 900 points"):
            file.read(wrong)
    for wrong in ([0.5], mask, points[None]):
        with pytest.raises(TypeError, match="integers"):
            file.read(wrong)


def test_reading_rows_leaves_the_file_on_disk(tmp_path):
    """Only the small arrays are in memory; those with a row for each point are maps of the file."""
    write(tmp_path / "a.safetensors")
    encoding = open_features(tmp_path / "a.safetensors").encoding
    for key in ("codes", "norm"):
        base = encoding[key]
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert base is not None, key


def test_pca_is_the_best_subspace_of_the_directions(tmp_path):
    """The residual of numpy's singular values; the rows of int8 add less than a hundredth to it."""
    path = tmp_path / "a.safetensors"
    features, *_ = write(path, components=10, rank=40)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    best = (np.linalg.svd(unit - unit.mean(0), compute_uv=False)[10:] ** 2).sum()
    got = open_features(path).read_all() / np.linalg.norm(features, axis=1, keepdims=True)
    assert best <= ((got - unit) ** 2).sum() < 1.01 * best
    basis = load_file(path)["basis"].astype(np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(10), atol=2e-3)


def test_fewer_points_than_channels_and_components(tmp_path):
    path = tmp_path / "a.safetensors"
    features, *_ = write(path, num_points=30, dim=400)
    file = open_features(path)
    assert load_file(path)["codes"].shape == (len(file), min(len(file), default_components(400)))
    assert cosines(features, file.read_all()).min() > 0.999


def test_one_visible_point_and_a_row_of_zeros(tmp_path):
    coord = np.zeros((3, 3), np.float32)
    for storage in STORAGES:
        path = tmp_path / f"{storage}.safetensors"
        write_features(path, np.ones((1, 5), np.float32), np.array([False, True, False]), "a", "s", coord, storage)
        np.testing.assert_allclose(open_features(path).read([1]), np.ones((1, 5)), rtol=1e-3)
        rows = np.array([[0, 0, 0], [1, 2, 2]], np.float32)
        assert write_features(path, rows, np.array([True, False, True]), "a", "s", coord, storage, None) > 0.9999
        np.testing.assert_allclose(open_features(path).read_all(), rows, atol=0.02)


def test_values_beyond_half_precision_are_scaled_not_lost(tmp_path):
    features, mask, coord = make()
    features *= 1e6 / np.abs(features).max()
    assert np.abs(features).max() > np.finfo(np.float16).max
    for storage in STORAGES:
        path = tmp_path / f"{storage}.safetensors"
        write_features(path, features, mask, "sd", "s", coord, storage)
        values = open_features(path).read_all()
        assert np.isfinite(values).all() and cosines(features, values).min() > 0.999
    values = open_features(tmp_path / "float16.safetensors").read_all()
    np.testing.assert_allclose(values, features, rtol=1e-3, atol=1)
    assert load_file(tmp_path / "float16.safetensors")["scale"] == 16  # 1e6 / 65504 is 15.3


def test_small_channels_beside_large_ones_survive_int8(tmp_path):
    """Stable Diffusion's channels differ by orders of magnitude; a scale a row would erase the small ones."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(500, 40)) * np.where(np.arange(40) < 2, 100, 0.1)).astype(np.float32)
    features *= 10 ** rng.uniform(-2, 2, size=(500, 1)).astype(np.float32)  # and points of unequal strength
    path = tmp_path / "a.safetensors"
    write_features(path, features, np.ones(500, bool), "sd", "s", np.zeros((500, 3)), "int8")
    values = open_features(path).read_all()
    strength = np.linalg.norm(features, axis=1)
    strong = strength > np.quantile(strength, 0.5)
    assert cosines(features[strong, 2:], values[strong, 2:]).mean() > 0.9


def test_scannets_three_teachers_need_a_tenth_of_the_release(tmp_path):
    """Real files of few points, whose arrays with a row a point are scaled to ScanNet's 150k visible ones of 159k."""
    rng = np.random.default_rng(0)
    ours = release = 0
    for teacher, dim in (("lseg", 512), ("dinov2", 1024), ("sd", 3200)):
        path, count = tmp_path / f"{teacher}.safetensors", 620
        write_features(path, rng.normal(size=(count, dim)).astype(np.float32), np.ones(count, bool), teacher, "s", np.zeros((count, 3)))
        arrays = load_file(path)
        by_point = sum(value.nbytes for key, value in arrays.items() if len(value) == count and key != "mask")
        fixed = path.stat().st_size - by_point - arrays["mask"].nbytes
        assert by_point and fixed >= arrays["basis"].nbytes
        ours += 1201 * (fixed + by_point * 150_000 / count + 159_000 / 8)
        release += 1201 * 150_000 * dim * 2
    assert release == pytest.approx(1.7e12, rel=0.01)
    assert 0.09 < ours / release < 0.1


@pytest.mark.parametrize("storage", STORAGES)
def test_the_same_features_give_the_same_bytes(tmp_path, storage):
    write(tmp_path / "a.safetensors", storage)
    write(tmp_path / "b.safetensors", storage)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_features_of_another_cloud_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    _, _, coord, _ = write(path)
    open_features(path, coord=coord.copy())
    with pytest.raises(ValueError, match="made for 900 points of scene 'scene0000_00', the scene here has 899"):
        open_features(path, coord=coord[:-1])
    with pytest.raises(ValueError, match="has 5"):
        open_features(path, num_points=5)
    for other in (coord[::-1], coord + np.float32(1e-4), np.roll(coord, 1, axis=0)):
        with pytest.raises(ValueError, match="other points of scene 'scene0000_00'.*coordinates differ"):
            open_features(path, coord=other)
    assert coord_digest(coord) == coord_digest(coord.astype(np.float64))


def test_damage_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, header, 3), *np.linspace(header, len(whole) - 1, 60).astype(int)]
    for number, place in enumerate(places):
        broken = tmp_path / f"{number}.safetensors"
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged|format|none of fused features"):
            open_features(broken)
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            open_features(broken)


def test_a_file_that_changes_is_checked_again(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    open_features(path)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**7))
    with pytest.raises(ValueError, match="digest"):
        open_features(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file of features"):
        open_features(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="none of fused features"):
        open_features(path)
    write(path)
    header = {**read_header(path), "format": 99}
    save_file(load_file(path), path, metadata={fused_features.KIND.entry: json.dumps(header)})
    with pytest.raises(ValueError, match="format 99"):
        open_features(path)


def test_what_cannot_be_written_is_refused_before_it_is(tmp_path, monkeypatch):
    features, mask, coord = make()
    path = tmp_path / "new" / "a.safetensors"
    bad = features.copy()
    bad[3, 5] = np.nan
    cases = [
        ((bad, mask), "not finite"), ((features * 1e30, mask), "squares"), ((features[1:], mask), "rows for"), ((features, mask[1:]), "one for each point"),
        ((features[:0], np.zeros_like(mask)), "no point is visible"), ((features, mask.astype(int)), "bool mask"),
        ((features.astype(int), mask), "wanted floats"), ((features.astype(np.float64) * 1e60, mask), "squares"),
    ]  # fmt: skip
    for (values, seen), message in cases:
        with pytest.raises(ValueError, match=message):
            write_features(path, values, seen, "lseg", "s", coord)
    for arguments, message in (
        (dict(storage="int4"), "no storage 'int4'.*int8"), (dict(components=81), "1 to 80"), (dict(components=0), "1 to 80"),
        (dict(storage="int8", components=3), "for storage 'pca'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_features(path, features, mask, "lseg", "s", coord, **arguments)
    assert not path.parent.exists()
    write_features(path, features, mask, "lseg", "s", coord)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="space"):
        write_features(path, features + 1, mask, "lseg", "s", coord)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


def test_openscenes_files_are_read_as_they_are(tmp_path):
    features, mask, coord = make()
    half = torch.from_numpy(features).half()
    rng = np.random.default_rng(3)
    shown = rng.random(len(features)) < 0.6
    all_mask = torch.from_numpy(mask)
    legacy = mask.copy()
    legacy[mask] = shown
    cases = {
        "two keys": ({"feat": half, "mask_full": all_mask}, mask, half),
        "numpy mask": ({"feat": half, "mask_full": mask}, mask, half),
        "three dimensions": ({"feat": half[..., None], "mask_full": all_mask}, mask, half),
        "legacy, numbers": ({"feat": half, "mask": torch.from_numpy(np.flatnonzero(shown)), "mask_full": all_mask}, legacy, half[shown]),
        "legacy, bool": ({"feat": half, "mask": torch.from_numpy(shown), "mask_full": all_mask}, legacy, half[shown]),
    }
    for number, (name, (content, seen, wanted)) in enumerate(cases.items()):
        path = tmp_path / "lseg" / f"scene0000_00_{number}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save(content, path)
        file = open_features(path, coord=coord)
        assert (file.teacher, file.scene, file.dim, file.storage) == ("lseg", "scene0000_00", 80, "pt"), name
        assert np.array_equal(file.mask, seen), name
        np.testing.assert_array_equal(file.read_all(), wanted.float().numpy(), err_msg=name)
        points = np.flatnonzero(seen)[::-5]
        np.testing.assert_array_equal(file.read(points), wanted.float().numpy()[(np.cumsum(seen) - 1)[points]], err_msg=name)
    torch.save(cases["two keys"][0], path, _use_new_zipfile_serialization=False)  # torch before 1.6
    np.testing.assert_array_equal(open_features(path).read_all(), half.float().numpy())
    with pytest.raises(ValueError, match="has 7"):
        open_features(path, num_points=7)
    for content, message in (
        ({"feat": half}, "'feat' and 'mask_full'"), ({"feat": half[1:], "mask_full": all_mask}, "does not fit"),
        ({"feat": half, "mask": torch.tensor([5000]), "mask_full": all_mask}, "'mask' does not fit"), ([1], "'feat' and 'mask_full'"),
    ):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            open_features(path)


class Surprise:
    """Unpickling this would run a command."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_a_pt_that_runs_code_is_refused(tmp_path, capsys):
    path = tmp_path / "scene0000_00_0.pt"
    torch.save({"feat": Surprise(), "mask_full": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="weights_only"):
        open_features(path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="refuses this file"):
        open_features(path)
    assert "unpickled" not in capsys.readouterr().out


def test_where_files_are(tmp_path):
    scene = tmp_path / "data" / "train" / "scene0000_00"
    scene.mkdir(parents=True)
    root = tmp_path / "features"
    assert feature_path(scene, "lseg") == scene / "features" / "lseg.safetensors"
    assert feature_path(scene, "lseg", root) == root / "lseg" / "train" / "scene0000_00.safetensors"
    for bad in ("", "../lseg", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="name becomes a file"):
            feature_path(scene, bad)
    with pytest.raises(FileNotFoundError, match="no features of teacher 'lseg'.*fuse_features"):
        find_features(scene, "lseg", root)

    def touch(*paths):
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return list(paths)

    flat = touch(*(root / "lseg" / f"scene0000_00_{n}.pt" for n in range(5)))
    touch(root / "lseg" / "scene0000_01_0.pt", root / "lseg" / "scene0000_00_extra.pt")
    assert find_features(scene, "lseg", root) == flat
    by_split = touch(*(root / "lseg" / "train" / f"scene0000_00_{n}.pt" for n in range(2)))
    assert find_features(scene, "lseg", root) == by_split
    own = touch(root / "lseg" / "train" / "scene0000_00.safetensors")
    assert find_features(scene, "lseg", root) == own
    inside = touch(scene / "features" / "sd" / "scene0000_00.pt")
    assert find_features(scene, "sd") == inside
    touch(scene / "features" / "dinov2.safetensors")
    with pytest.raises(FileNotFoundError, match="did you mean 'dinov2'"):
        find_features(scene, "dinov")
    with pytest.raises(FileNotFoundError, match="did you mean 'lseg'"):
        find_features(scene, "lsegs", root)


def test_masks_of_teachers_are_compared(tmp_path):
    features, mask, coord = make()
    moved = mask.copy()
    moved[np.flatnonzero(mask)[:2]], moved[np.flatnonzero(~mask)[:2]] = False, True
    files = []
    for name, seen in (("lseg", mask), ("dinov2", mask), ("sd", moved)):
        write_features(tmp_path / name, features, seen, name, "scene0000_00", coord, "float16")
        files.append(open_features(tmp_path / name))
    check_masks([])
    check_masks(files[:1])
    check_masks(files[:2])
    with pytest.raises(ValueError, match=re.escape("scene 'scene0000_00': features of 'lseg' and 'sd' do not go together: 4 of 900 points")):
        check_masks(files)
    torch.save({"feat": torch.zeros(2, 4), "mask_full": torch.tensor([True, True, False])}, tmp_path / "s_0.pt")
    with pytest.raises(ValueError, match="900 and 3 points"):
        check_masks([files[0], open_features(tmp_path / "s_0.pt")])
