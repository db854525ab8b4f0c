"""What frozen encoders say of a scene's modalities: one file a scene, made once, all that CrossOver trains and is tested on.

CrossOver's words (Sec. 3): image (I), point (P), cad (M), text (R, object referrals), floorplan (F). Objects have a vector
in each of OBJECT_MODALITIES or lack it; scenes have tokens in each of TOKENS or lack them (the point cloud itself stays in
the scene folder). An entry that is missing is a mask, never a row of zeros that somebody takes for a vector.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.structures.checked_file import Kind, open_checked, read_header, write_checked

OBJECT_MODALITIES = ("image", "point", "cad", "text")
SCENE_MODALITIES = ("image", "point", "floorplan", "text")
TOKENS = ("image", "floorplan", "text")
KIND = Kind("modalities", version=1, again="run tools/preprocess/modalities.py again for its scene")


@dataclass
class ModalityFeatures:
    """The frozen features of one scene with O objects.

    scene, split, dataset, place, category, reference, moved, same_ids: as SceneFacts has them · object_id int64 [O], ascending
    · labels [O] · object_box, cad_box float32 [O, 6]: centre and extent of an object in the scene and of its CAD model in
    its own axes, metres, zeros without · objects: modality -> float32 [O, D_m] · known: modality -> bool [O]; rows that are
    not known are zeros · tokens: modality -> float32: image [V, 2D], a row a key frame ([CLS; mean of patches]); floorplan
    [1, 2D]; text [T, D], a row a referral; only those the scene has · frames [V]: names of the key frames · texts [T]: the
    referrals of tokens["text"] · encoders: modality -> fingerprint of what made it · details: what the writer adds.
    """

    scene: str
    split: str
    object_id: NDArray[np.int64]
    labels: list[str]
    object_box: NDArray[np.float32]
    objects: dict[str, NDArray[np.float32]]
    known: dict[str, NDArray[np.bool_]]
    tokens: dict[str, NDArray[np.float32]]
    encoders: dict[str, str]
    cad_box: NDArray[np.float32] | None = None
    frames: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    dataset: str = ""
    place: str = ""
    category: str = ""
    reference: str | None = None
    moved: list[int] = field(default_factory=list)
    same_ids: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.object_id = np.asarray(self.object_id, dtype=np.int64)
        if self.cad_box is None:
            self.cad_box = np.zeros((len(self.object_id), 6), dtype=np.float32)
        self.check()

    def __len__(self) -> int:
        """O, the number of objects."""
        return len(self.object_id)

    @property
    def widths(self) -> dict[str, int]:
        """Widths of what is there: D_m of "object_<m>" and of "<m>_token"."""
        objects = {f"object_{name}": rows.shape[1] for name, rows in self.objects.items()}
        return {**objects, **{f"{name}_token": rows.shape[1] for name, rows in self.tokens.items()}}

    def check(self) -> None:
        """Raises ValueError naming the scene: unknown modality, ids out of order, other numbers of rows, values not finite."""
        where, count = f"features of scene {self.scene!r}", len(self.object_id)
        if self.object_id.ndim != 1 or (np.diff(self.object_id) <= 0).any() or (count and self.object_id[0] < 0):
            raise ValueError(f"{where}: object ids must ascend from 0 on without repeats, got {self.object_id.tolist()[:20]}")
        if len(self.labels) != count:
            raise ValueError(f"{where}: {len(self.labels)} labels for {count} objects")
        for name, box in (("object_box", self.object_box), ("cad_box", self.cad_box)):
            _check_rows(f"{where}: {name}", box, count, 6)
        if set(self.objects) != set(self.known):
            raise ValueError(f"{where}: vectors of {sorted(self.objects)}, masks of {sorted(self.known)}")
        for name, rows in self.objects.items():
            _check_name(where, name, OBJECT_MODALITIES)
            _check_rows(f"{where}: objects' {name}", rows, count)
            mask = self.known[name]
            if mask.shape != (count,) or mask.dtype != np.bool_:
                raise ValueError(f"{where}: wanted a bool mask [{count}] of {name}, got {mask.dtype} {list(mask.shape)}")
            if np.any(rows[~mask]):
                raise ValueError(f"{where}: objects that are not known in {name} have vectors there")
        for name, rows in self.tokens.items():
            _check_name(where, name, TOKENS)
            _check_rows(f"{where}: tokens of {name}", rows, None)
            if len(rows) == 0 or (name == "floorplan" and len(rows) != 1):
                raise ValueError(f"{where}: {len(rows)} tokens of {name}; leave out a modality that the scene lacks")


def modality_path(scene_root: str | Path, recipe: str, feature_root: str | Path | None = None) -> Path:
    """`<scene_root>/modalities/<recipe>.safetensors`, or `<feature_root>/<recipe>/<split>/<scene>.safetensors`.

    recipe: which encoders: a name such as "pocket" or "paper".
    """
    if not re.fullmatch(r"\w[\w.-]*", recipe or ""):
        raise ValueError(f"a recipe's name becomes a file's: wanted letters, digits and . _ -, got {recipe!r}")
    root = Path(scene_root)
    if feature_root is None:
        return root / "modalities" / f"{recipe}.safetensors"
    return Path(feature_root) / recipe / root.parent.name / f"{root.name}.safetensors"


def write_modalities(path: str | Path, features: ModalityFeatures) -> None:
    """Writes one scene's features, vectors as float16, whole or not at all. Raises ValueError as `ModalityFeatures.check`."""
    features.check()
    arrays: dict[str, NDArray] = {
        "object_id": features.object_id, "object_box": features.object_box.astype(np.float32),
        "cad_box": features.cad_box.astype(np.float32),
    }  # fmt: skip
    for group, rows in (("object", features.objects), ("token", features.tokens)):
        for name, values in rows.items():
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float16)
            if not np.isfinite(narrow).all():
                raise ValueError(f"features of scene {features.scene!r}: {group}'s {name} has values beyond float16's 65504")
            arrays[f"{group}_{name}"] = narrow
    arrays |= {f"known_{name}": mask for name, mask in features.known.items()}
    told = ("scene", "split", "dataset", "place", "category", "reference", "moved", "same_ids", "labels", "frames", "texts", "encoders", "details")
    write_checked(path, arrays, KIND, {key: getattr(features, key) for key in told})


def read_modalities(path: str | Path) -> ModalityFeatures:
    """Reads what `write_modalities` wrote. Raises FileNotFoundError; ValueError where the file is damaged or of another kind."""
    arrays, header = open_checked(path, KIND)
    groups: dict[str, dict[str, NDArray]] = {"object": {}, "known": {}, "token": {}}
    own = {key: np.array(arrays.pop(key)) for key in ("object_id", "object_box", "cad_box")}
    for key, value in arrays.items():
        group, name = key.split("_", 1)
        groups[group][name] = np.array(value) if group == "known" else value.astype(np.float32)
    for key in ("format", "content", "digest"):
        header.pop(key)
    return ModalityFeatures(**own, **header, objects=groups["object"], known=groups["known"], tokens=groups["token"])


def read_widths(path: str | Path) -> dict[str, int]:
    """`ModalityFeatures.widths` of a file, its arrays unread. Raises as `read_modalities` does of a file of another kind."""
    from safetensors import safe_open

    read_header(path, KIND)
    with safe_open(path, framework="np") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  it is no mapping
    objects = {f"object_{name}": shapes[f"object_{name}"][1] for name in OBJECT_MODALITIES if f"object_{name}" in shapes}
    return {**objects, **{f"{name}_token": shapes[f"token_{name}"][1] for name in TOKENS if f"token_{name}" in shapes}}


def check_encoders(files: Mapping[str, Mapping[str, str]]) -> None:
    """Raises ValueError where two of `files` (path -> encoders) hold one modality of different encoders, naming both."""
    seen: dict[str, tuple[str, str]] = {}
    for path, encoders in files.items():
        for name, fingerprint in encoders.items():
            first, known = seen.setdefault(name, (path, fingerprint))
            if known != fingerprint:
                raise ValueError(
                    f"features of {name} do not go together: {known!r} in {first}, {fingerprint!r} in {path}; {KIND.again}, with one set of encoders"
                )


def _check_name(where: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{where}: {name!r} is none of the modalities {', '.join(known)}")


def _check_rows(where: str, rows: NDArray, count: int | None, width: int | None = None) -> None:
    if rows.ndim != 2 or (count is not None and len(rows) != count) or (width is not None and rows.shape[1] != width) or not rows.shape[1]:
        wanted = f"[{'N' if count is None else count}, {'D' if width is None else width}]"
        raise ValueError(f"{where}: wanted floats {wanted}, got {rows.dtype} {list(rows.shape)}")
    if rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise ValueError(f"{where}: wanted finite floats, got {rows.dtype}")
