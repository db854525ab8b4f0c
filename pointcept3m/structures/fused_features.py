"""Features of 2D teachers fused onto a scene's points: one file a scene and teacher, written once, read by point number.

Our file is a safetensors file: `mask`, the visible points as packed bits, the arrays of `feature_storage.encode`, and one
JSON entry of metadata that says whose features they are, with digests of the points they belong to and of all it holds.
OpenScene's and CUA-O3D's `.pt` files are read as they are.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pointcept3m.structures.checked_file import Kind, open_checked, write_checked
from pointcept3m.structures.checked_file import read_header as read_checked_header
from pointcept3m.structures.feature_storage import CHUNK, Encoding, cosine_kept, decode, encode
from pointcept3m.structures.scene import natural_key
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

KIND = Kind("fused_features", version=1, again="fuse its scene again")
SUFFIX = ".safetensors"


# where files are


def feature_path(scene_root: str | Path, teacher: str, feature_root: str | Path | None = None) -> Path:
    """`<scene_root>/features/<teacher>.safetensors`, or `<feature_root>/<teacher>/<split>/<scene>.safetensors`."""
    root = Path(scene_root)
    if not teacher or not re.fullmatch(r"[\w.-]+", teacher) or teacher.startswith("."):
        raise ValueError(f"a teacher's name becomes a file's: wanted letters, digits and . _ -, got {teacher!r}")
    if feature_root is None:
        return root / "features" / f"{teacher}{SUFFIX}"
    return Path(feature_root) / teacher / root.parent.name / f"{root.name}{SUFFIX}"


def find_features(scene_root: str | Path, teacher: str, feature_root: str | Path | None = None) -> list[Path]:
    """The files that hold `teacher`'s features of a scene: ours, or else OpenScene's `{scene}_{n}.pt` or `{scene}.pt`.

    Those are looked for in `<scene_root>/features/<teacher>/`, or in `<feature_root>/<teacher>/` and its folder of the
    split. Several are views of the same scene, of which a training draws one each time.
    Raises: FileNotFoundError that says where it looked, what does lie there, and how to make the file.
    """
    root, own = Path(scene_root), feature_path(scene_root, teacher, feature_root)
    if own.is_file():
        return [own]
    folders = [own.with_suffix("")] if feature_root is None else [own.parent, own.parent.parent]
    named = re.compile(re.escape(root.name) + r"(_\d)?\.pt")
    for folder in folders:
        found = [path for path in folder.glob(f"{root.name}*.pt") if named.fullmatch(path.name)] if folder.is_dir() else []
        if found:
            return sorted(found, key=lambda path: natural_key(path.name))
    have = sorted(path.stem for path in own.parent.glob(f"*{SUFFIX}")) if feature_root is None else []
    if feature_root is not None and Path(feature_root).is_dir():
        have = sorted(path.name for path in Path(feature_root).iterdir() if path.is_dir())
    hint = near_names(teacher, have) if have and teacher not in have else near_files(own)
    raise FileNotFoundError(
        f"scene {root.name!r} has no features of teacher {teacher!r}: no {own} and no {root.name}_0.pt in "
        f"{' or '.join(map(str, folders))}; {hint}. Make them with tools/preprocess/fuse_features.py"
    )


# reading


class FusedFeatures:
    """One file of features, open. Rows are decoded when they are read; the file is mapped, not loaded.

    teacher, scene, dim, num_points, storage ("pca", "int8", "float16"; "pt" for OpenScene's) · mask [N] bool, the
    points that have features · cosine (mean, first percentile) that the storage kept, None for a "pt" · details, what
    the writer added.
    """

    def __init__(self, path: Path, mask: NDArray[np.bool_], encoding: Mapping[str, NDArray], header: Mapping[str, Any]):
        self.path, self.mask, self.encoding = path, mask, encoding
        self.teacher, self.scene = str(header["teacher"]), str(header["scene"])
        self.dim, self.storage = int(header["dim"]), str(header["storage"])
        self.cosine: tuple[float, float] | None = tuple(header["cosine"]) if header.get("cosine") else None
        self.details: dict[str, Any] = dict(header.get("details", {}))
        self.num_points = len(mask)
        self._rows: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        """M, the number of points that have features."""
        return len(next(self.encoding[key] for key in ("values", "codes") if key in self.encoding))

    def __repr__(self) -> str:
        return f"FusedFeatures({str(self.path)!r}: {self.teacher}, {len(self)} of {self.num_points} points, {self.dim}-d {self.storage})"

    def read(self, points: ArrayLike | torch.Tensor) -> NDArray[np.float32]:
        """Features float32 [S, dim] of the points with these numbers (integers [S], any order, repeats allowed).

        Raises: TypeError for anything but integers; ValueError where one is out of range or has no features.
        """
        points = np.asarray(points)
        if points.ndim != 1 or (points.size and points.dtype.kind not in "iu"):
            raise TypeError(f"{self.path}: wanted point numbers, integers [S], got {points.dtype} {list(points.shape)}")
        points = points.astype(np.int64, copy=False)
        if points.size and not (0 <= points.min() and points.max() < self.num_points):
            raise ValueError(
                f"{self.path}: point numbers run from {points.min()} to {points.max()}, the scene has {self.num_points} points"
            )
        hidden = ~self.mask[points]
        if hidden.any():
            raise ValueError(
                f"{self.path}: {int(hidden.sum())} of {len(points)} points have no features (no view shows them), "
                f"the first is number {int(points[hidden][0])}; ask only for points where mask is true"
            )
        if self._rows is None:
            self._rows = np.cumsum(self.mask, dtype=np.int32) - 1
        return decode(self.encoding, self._rows[points])

    def read_all(self) -> NDArray[np.float32]:
        """Features float32 [M, dim] of all visible points, in the order of their numbers."""
        result = np.empty((len(self), self.dim), dtype=np.float32)
        for start in range(0, len(self), CHUNK):
            result[start : start + CHUNK] = decode(self.encoding, slice(start, start + CHUNK))
        return result


def open_features(path: str | Path, num_points: int | None = None, coord: NDArray | None = None) -> FusedFeatures:
    """Opens a file of features, ours or OpenScene's.

    Args:
        num_points: how many points the scene has.
        coord: [N, 3], the scene's points as its file has them; compared with those that the features were made for.
            (A `.pt` does not know them: there the number alone is compared.)

    The digest of the content is compared when this process first opens the file, and again when it has changed.
    Raises: FileNotFoundError; ValueError where the file is damaged, of another format, or of other points.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features; {near_files(path)}")
    if path.suffix == ".pt":
        features, made_for = _open_pt(path), None
    else:
        mask, encoding, header = _open_safetensors(path)
        features, made_for = FusedFeatures(path, mask, encoding, header), header["coord"]
    count = len(coord) if coord is not None else num_points
    if count is not None and count != features.num_points:
        raise ValueError(
            f"{path}: made for {features.num_points} points of scene {features.scene!r}, the scene here has {count}: "
            "the features of another scene or of another version of its cloud"
        )
    if coord is not None and made_for is not None and coord_digest(coord) != made_for:
        raise ValueError(
            f"{path}: made for other points of scene {features.scene!r} than the {count} here (coordinates differ): the features "
            "of another scene, or the cloud was made anew; run tools/preprocess/fuse_features.py again for this scene"
        )
    return features


def check_masks(files: Sequence[FusedFeatures]) -> None:
    """Raises ValueError where the visible points of one scene are not the same in all `files`, naming teachers and scene."""
    for file in files[1:]:
        first = files[0]
        told = f"scene {first.scene!r}: features of {first.teacher!r} and {file.teacher!r} do not go together"
        paths = f"{first.path}, {file.path}"
        if file.num_points != first.num_points:
            raise ValueError(f"{told}: {first.num_points} and {file.num_points} points ({paths})")
        different = int(np.count_nonzero(first.mask != file.mask))
        if different:
            raise ValueError(
                f"{told}: {different} of {first.num_points} points are visible in one and not in the other "
                f"({int(first.mask.sum())} and {int(file.mask.sum())} visible; {paths}): fused from other frames or with another depth "
                "tolerance; fuse both with the same settings"
            )


# writing


def write_features(
    path: str | Path,
    features: NDArray | torch.Tensor,
    mask: NDArray[np.bool_] | torch.Tensor,
    teacher: str,
    scene: str,
    coord: NDArray,
    storage: str = "pca",
    components: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> float:
    """Writes features [M, dim] of the M points where `mask` [N] is true; whole or not at all. Returns the mean cosine kept.

    Args:
        coord: [N, 3], the scene's points as its file has them; their digest tells the features of another scene.
        storage, components: as `feature_storage.encode`.
        details: anything that JSON holds: the teacher's fingerprint, frames, tolerance.

    Raises: ValueError, before anything is written, where counts differ, no point is visible, a value or a row's length is
        not finite in float32, or the storage is unknown.
    """
    features, mask = torch.as_tensor(features).detach().cpu(), np.asarray(mask)
    where = f"features of {teacher!r} for scene {scene!r}"
    if features.dim() != 2 or not features.is_floating_point():
        raise ValueError(f"{where}: wanted floats [M, dim], got {features.dtype} {list(features.shape)}")
    if mask.dtype != np.bool_ or mask.shape != (len(coord),):
        raise ValueError(f"{where}: wanted a bool mask [{len(coord)}], one for each point, got {mask.dtype} {list(mask.shape)}")
    if len(features) != np.count_nonzero(mask):
        raise ValueError(f"{where}: {len(features)} rows for {np.count_nonzero(mask)} visible points")
    if not len(features):
        raise ValueError(f"{where}: no point is visible, so there is nothing to write")
    features = features if features.dtype in (torch.float16, torch.float32) else features.float()
    if not all(bool(torch.isfinite(part.float().norm(dim=1)).all()) for part in features.split(CHUNK)):
        raise ValueError(f"{where}: values that are not finite, or whose squares are not in float32; nothing was written")
    encoding = encode(features, storage, components)
    cosine = cosine_kept(features, encoding)
    header = {
        "teacher": teacher, "scene": scene, "num_points": len(mask), "num_visible": len(features), "dim": features.shape[1],
        "storage": storage, "cosine": cosine, "coord": coord_digest(coord), "details": dict(details or {}),
    }  # fmt: skip
    write_checked(path, {"mask": np.packbits(mask), **encoding}, KIND, header)
    return cosine[0]


def coord_digest(coord: NDArray) -> str:
    """sha256 (hex) of points [N, 3] as float32, which is what tells one cloud from another."""
    coord = np.ascontiguousarray(coord, dtype="<f4")
    return hashlib.sha256(f"{coord.shape};".encode() + coord.tobytes()).hexdigest()


# the formats


def read_header(path: str | Path) -> dict[str, Any]:
    """What our file says of itself, its arrays unread. Raises FileNotFoundError; ValueError where it is none of ours."""
    return read_checked_header(path, KIND)


def _open_safetensors(path: Path) -> tuple[NDArray[np.bool_], Encoding, dict[str, Any]]:
    """(mask, encoding as memory maps, header) of our file, with its digest compared."""
    arrays, header = open_checked(path, KIND)
    mask = np.unpackbits(arrays.pop("mask"), count=header["num_points"]).astype(bool)
    # small arrays in memory, in the type they are computed in; those with a row for each point stay in the file
    small = {key: np.array(arrays[key], dtype=np.float32) for key in ("mean", "basis", "scale") if key in arrays}
    return mask, {**arrays, **small}, header


def _open_pt(path: Path) -> FusedFeatures:
    """OpenScene's {feat [M, C], mask_full [N]}, or its older {feat [K, C], mask, mask_full [N]}.

    There the K rows belong to the points of `mask_full`, and `mask` (numbers or bool [K]) says which rows a view shows.
    """
    content = _load_pt(path)
    if not isinstance(content, dict) or not {"feat", "mask_full"} <= content.keys():
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: wanted OpenScene's dict with 'feat' and 'mask_full', got {keys}")
    feat, mask = torch.as_tensor(content["feat"]), torch.as_tensor(content["mask_full"]).bool().numpy().copy()
    feat = feat[..., 0] if feat.dim() == 3 else feat
    if feat.dim() != 2 or mask.ndim != 1 or len(feat) != np.count_nonzero(mask):
        raise ValueError(f"{path}: feat {list(feat.shape)} does not fit the {np.count_nonzero(mask)} points of mask_full {list(mask.shape)}")
    if "mask" in content:
        shown = np.zeros(len(feat), dtype=bool)
        try:
            shown[torch.as_tensor(content["mask"]).numpy()] = True
        except IndexError as error:
            raise ValueError(f"{path}: 'mask' does not fit the {len(feat)} rows of 'feat' ({error})") from error
        mask[mask] = shown
        feat = feat[torch.from_numpy(shown)]
    scene = re.sub(r"_\d$", "", path.stem)  # scene0000_00_3 is scene0000_00
    teacher = path.parent.parent.name if path.parent.name in ("train", "val", "test") else path.parent.name
    header = {"teacher": teacher, "scene": scene, "dim": feat.shape[1], "storage": "pt"}
    return FusedFeatures(path, mask, {"values": feat.numpy()}, header)


def _load_pt(path: Path) -> Any:
    with _numpy_arrays():
        for mapped in (True, False):  # files of torch before 1.6 cannot be mapped
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            except Exception as error:
                if not mapped:
                    raise ValueError(f"{path}: torch.load(weights_only=True) refuses this file ({str(error).splitlines()[0]})") from error


@contextmanager
def _numpy_arrays():
    """Lets torch.load read plain numpy arrays too, in which some files keep their mask."""
    rebuild = np.core.multiarray if not hasattr(np, "_core") else np._core.multiarray
    kinds = [type(np.dtype(kind)) for kind in (np.bool_, np.int64, np.uint8, np.float16, np.float32)]
    with torch.serialization.safe_globals([rebuild._reconstruct, np.ndarray, np.dtype, *kinds]):
        yield
