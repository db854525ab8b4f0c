"""What preprocessings of labelled reconstructions share (3RScan, ARKitScenes, MultiScan): objects, referrals, frames with masks.

Referrals are SceneVerse's: a JSON list of {scan_id, target_id, utterance, ...}, of which ssg_ref_rel2_template.json (relations of
two objects, by templates) is what CrossOver reads; target_id is an object's own id.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.datasets.limited import read_names
from pointcept3m.datasets.object_boxes import upright_box
from pointcept3m.datasets.object_masks import LabelledMesh, View
from pointcept3m.datasets.preprocess_scenes import SPLITS, SceneReport, save_camera, save_color, shrunk
from pointcept3m.datasets.referrals import describe
from pointcept3m.structures.camera import SizeHW, resize_nearest, scale_intrinsic, turn_view, upright_quarters
from pointcept3m.structures.images import read_color, read_depth, write_depth
from pointcept3m.structures.scene_objects import SceneObject, write_mask, write_objects
from pointcept3m.utils.files import near_files
from pointcept3m.utils.seed import mix_seed

NONE = -1
LARGEST = 65534  # an id, plus one, has 16 bits in masks
# What bounds a room is no object. The names are those that 3RScan and MultiScan have.
SHELL = frozenset({
    "wall", "floor", "ceiling", "roof", "partition", "half wall", "low wall", "short wall", "glass wall", "slanted wall",
    "upholstered wall", "shower wall", "shower floor", "suspended ceiling", "wall paper",
})  # fmt: skip

Referrals = dict[str, list[tuple[int, str]]]


@dataclass(frozen=True)
class ObjectSettings:
    """What the user chose.

    frame_stride: every n-th picture, 0 none; num_frames: at most so many of those, evenly spaced, 0 all · image_width: of pictures
    and masks, at most, 0 as they are · masks: cast them · referrals: "" none, "template" our own sentences (datasets/referrals.py),
    or the path of SceneVerse's file · upright: turn a scan's pictures by the quarter turn after which most stand upright.
    """

    frame_stride: int = 5
    num_frames: int = 0
    image_width: int = 640
    masks: bool = True
    referrals: str = ""
    upright: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        for name in ("frame_stride", "num_frames", "image_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


# the command line that the tools share


def object_parser(doc: str, raw: str, output: str, splits: Sequence[str] = SPLITS, frame_stride: int = 5, recorded: bool = True) -> argparse.ArgumentParser:
    """The options of a preprocessing into scenes with objects. raw, output: what to say of --raw-root, an example of --output-root.
    recorded: pictures come from a camera that may have been held sideways."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--raw-root", "--dataset_root", type=Path, required=True, help=raw)
    add("--output-root", "--output_root", type=Path, required=True, help=f"writes <output-root>/<split>/<scene>/, e.g. {output}")
    add("--splits", nargs="+", default=list(splits), choices=splits, help="which splits (all)")
    add("--lists", nargs="+", default=[], metavar="SPLIT=FILE", help="text files of scenes in place of the data set's own splits, e.g. val=val_scans.txt")
    add("--frame-stride", type=int, default=frame_stride, help=f"every n-th picture; 0: points and objects only ({frame_stride}; CrossOver takes each)")
    add("--num-frames", type=int, default=0, help="at most this many of those a scene, evenly spaced; 0: all (0)")
    add("--image-width", type=int, default=640, help="of the pictures and masks written, at most; 0: as they are (640)")
    if recorded:
        add("--as-recorded", action="store_true", help="leave pictures that were taken sideways as they are; else a scan's are turned upright, by a quarter or half, by their poses")
    add("--no-masks", action="store_true", help="do not cast masks of objects")
    add("--referrals", default="", metavar="FILE", help="SceneVerse's ssg_ref_rel2_template.json, or 'template' for sentences made from the boxes")
    add("--skip-broken", action="store_true", help="go on past scenes that cannot be read, and list them at the end")
    add("--workers", "--num_workers", type=int, default=2, help="processes (2)")
    return parser


def chosen_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `ObjectSettings` that the options of `object_parser` say."""
    referrals = args.referrals if args.referrals in ("", "template") else str(Path(args.referrals).resolve())
    chosen = dict(frame_stride=args.frame_stride, num_frames=args.num_frames, image_width=args.image_width)
    return dict(**chosen, masks=not args.no_masks, referrals=referrals, upright=not getattr(args, "as_recorded", False))


def chosen_lists(args: argparse.Namespace) -> dict[str, str]:
    """split -> file of --lists. Raises ValueError for an option without "="."""
    pairs = [pair.partition("=") for pair in args.lists]
    bad = next((split for split, equals, path in pairs if not equals or not path), None)
    if bad is not None:
        raise ValueError(f"--lists: wanted SPLIT=FILE, got {bad!r}")
    return {split: path for split, _, path in pairs}


# files


def load_json(path: Path, wanted: type, what: str) -> Any:
    """What a JSON file holds. Raises: FileNotFoundError; ValueError where it is no JSON or no `wanted` (list or dict)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, wanted {what}; {near_files(path)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"{path}: is no valid JSON ({error})") from error
    if not isinstance(content, wanted):
        raise ValueError(f"{path}: wanted {what}, a {wanted.__name__} in JSON, got {type(content).__name__}")
    return content


def find_file(root: Path, name: str, *folders: str) -> Path:
    """The file `name` in `root` or the first of its `folders` that has it; where none has, the path in `root`."""
    return next((root / folder / name for folder in ("", *folders) if (root / folder / name).is_file()), root / name)


def read_lists(lists: Mapping[str, str | Path]) -> dict[str, str]:
    """scene -> split, of text files of names, one for each split. Raises ValueError where a scene is in two."""
    found: dict[str, str] = {}
    for split, path in lists.items():
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split; wanted {', '.join(SPLITS)}")
        for name in read_names(path):
            if found.setdefault(name, split) != split:
                raise ValueError(f"{path}: scene {name!r} is in the list of {found[name]} too")
    return found


def read_referrals(path: str | Path) -> Referrals:
    """scan -> (id of the object that is meant, sentence), each once, in the order of SceneVerse's file.

    Raises: FileNotFoundError; ValueError naming the first entry that lacks scan_id, target_id or utterance.
    """
    found: Referrals = {}
    for number, entry in enumerate(load_json(Path(path), list, "SceneVerse's referrals")):
        try:
            scan, target, text = str(entry["scan_id"]), int(entry["target_id"]), " ".join(str(entry["utterance"]).split())
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: entry {number}: wanted scan_id, target_id and utterance, got {str(entry)[:120]!r}") from error
        if text and (target, text) not in (known := found.setdefault(scan, [])):
            known.append((target, text))
    return found


def referrals_of(setting: str) -> Referrals:
    """The referrals of SceneVerse's file that a setting names; none for "" and "template"."""
    return {} if setting in ("", "template") else read_referrals(setting)


# objects


def is_shell(label: str) -> bool:
    """Whether a label names what bounds a room (wall, floor, ceiling), of another room too."""
    return re.sub(r"\s*/?\s*other ?room$", "", label) in SHELL


def objects_of_points(coord: NDArray, instance: NDArray, labels: Mapping[int, str], report: SceneReport,
                      heading: float | None = None) -> list[SceneObject]:  # fmt: skip
    """An object for each id of `labels` that bounds no room and has points; its box is the least upright one around them, or that
    turned by `heading`.

    What does not match is noted: ids without a point, ids of points without a label.
    """
    order = np.argsort(instance, kind="stable")
    ids, starts = np.unique(instance[order], return_index=True)
    points = dict(zip(ids.tolist(), np.split(coord[order], starts[1:]), strict=True))
    points.pop(NONE, None)
    report.note("objects in the annotation without a point, left out", sum(number not in points for number in labels))
    report.note("ids of points that the annotation has no label for, left out", sum(number not in labels for number in points))
    found = []
    for number in sorted(points):
        if number in labels and not is_shell(labels[number]):
            found.append(SceneObject(number, labels[number], *upright_box(points[number], heading)))
    return found


def save_objects(folder: Path, report: SceneReport, objects: Sequence[SceneObject], settings: ObjectSettings,
                 referrals: Iterable[tuple[int, str]]) -> None:  # fmt: skip
    """Writes objects.json with the referrals of `settings`; those of objects that are not there are counted in a note."""
    by_id = {thing.id: thing for thing in objects}
    if settings.referrals == "template":
        rng = np.random.default_rng(mix_seed("referrals", report.name))
        for thing, texts in zip(objects, describe(objects, rng), strict=True):
            thing.texts = texts
    unknown = 0
    for number, text in referrals:
        if number in by_id:
            by_id[number].texts.append(text)
        else:
            unknown += 1
    report.note("referrals to objects that are not in the scene, left out", unknown)
    report.note("objects", len(objects))
    report.note("objects with referrals", sum(bool(thing.texts) for thing in objects))
    write_objects(folder, objects)


# frames


@dataclass(frozen=True)
class RawFrame:
    """A posed picture: pose [4, 4] camera->world · intrinsic [3, 3] for pictures of `size` (H, W) · depth: millimetres, or None."""

    name: str
    color: Path
    depth: Path | None
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    size: SizeHW


def write_frames(folder: Path, report: SceneReport, frames: Iterable[RawFrame], settings: ObjectSettings, mesh: LabelledMesh | None,
                 depth_intrinsic: tuple[NDArray, SizeHW] | None = None) -> None:  # fmt: skip
    """Writes color/ depth/ pose/ intrinsic/ and, with `mesh`, mask/ of frames.

    depth_intrinsic: (matrix, (H, W) it is for) where one camera took all colour and one all depth, which then keep sizes of their
    own; without it each frame has an intrinsic of its own, and its depth the size of its colour.
    """
    frames, seen = list(frames), 0
    quarters = upright_quarters([frame.pose for frame in frames]) if settings.upright else 0
    report.note(f"pictures turned clockwise by {90 * quarters} degrees to stand upright", len(frames) if quarters else 0)
    for frame in frames:
        color = read_color(frame.color)
        if abs(color.shape[1] * frame.size[0] / (color.shape[0] * frame.size[1]) - 1) > 0.03:
            raise ValueError(f"{frame.color}: {color.shape[1]} x {color.shape[0]} pixels, its camera is calibrated for {frame.size[1]} x {frame.size[0]}")
        intrinsic, calibrated, pose = turn_view(frame.intrinsic, frame.size, frame.pose, quarters)
        color = np.ascontiguousarray(np.rot90(color, -quarters))
        size = shrunk(color.shape[:2], settings.image_width)
        intrinsic = scale_intrinsic(intrinsic, calibrated, size)
        save_color(folder / "color" / f"{frame.name}.jpg", color, size)
        save_camera(folder, frame.name, pose, intrinsic if depth_intrinsic is None else None)
        if depth_intrinsic:
            save_camera(folder, "intrinsic_color", None, intrinsic)
        if frame.depth is not None:
            depth = np.ascontiguousarray(np.rot90(read_depth(frame.depth), -quarters))
            (folder / "depth").mkdir(exist_ok=True)
            write_depth(folder / "depth" / f"{frame.name}.png", depth if depth_intrinsic else resize_nearest(depth, size))
            if depth_intrinsic:
                matrix, calibrated, _ = turn_view(*depth_intrinsic, frame.pose, quarters)
                save_camera(folder, "intrinsic_depth", None, scale_intrinsic(matrix, calibrated, depth.shape))
        if mesh is not None:
            ids, _ = mesh.look(View(intrinsic, pose, size))
            write_mask(folder, frame.name, ids)
            seen += bool((ids >= 0).any())
        report.num_frames += 1
    if mesh is not None and report.num_frames > 2 and not seen:
        raise ValueError(f"scene {report.name!r}: none of its {report.num_frames} pictures shows an object; do poses and mesh have the same axes?")


def spaced(names: Sequence[str], settings: ObjectSettings) -> list[str]:
    """Every `frame_stride`-th of names, and of those `num_frames` spread evenly where that is set."""
    chosen = list(names[:: settings.frame_stride]) if settings.frame_stride else []
    if settings.num_frames and len(chosen) > settings.num_frames:
        chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, settings.num_frames).round().astype(int)]
    return chosen


def mesh_of_objects(coord: NDArray, faces: NDArray, instance: NDArray, objects: Sequence[SceneObject], report: SceneReport) -> LabelledMesh | None:
    """The mesh with the ids of `objects` alone, what else there is hides them; None (and a note) without a face or an object.

    Raises: ValueError for an id beyond 65534, which masks cannot hold.
    """
    if objects and max(thing.id for thing in objects) > LARGEST:
        raise ValueError(f"scene {report.name!r}: object ids go to {max(thing.id for thing in objects)}, masks hold {LARGEST}")
    if not len(faces) or not objects:
        report.note("scenes without masks, as they have no " + ("faces" if objects else "objects"))
        return None
    ids = np.where(np.isin(instance, [thing.id for thing in objects]), instance, NONE)
    return LabelledMesh(coord, faces, ids.astype(np.int64))
