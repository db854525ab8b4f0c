"""Class tokens of objects' crops: the job beside the way of CrossOver's release, which takes crops one at a time.

    python benchmarks/bench_modalities.py [--threads 1] [--repeats 3] [--only pocket,vit_small] [--objects 12]

A generated room is rendered at 480 x 640 and written as JPEG and masks. "one by one" does, written anew, what the release's
scripts do for the same crops: the picture is decoded for every object and view, the box found anew for every level, each
crop encoded alone. "decoded once" has each picture decoded once and crops still encoded alone; "batched" decodes for every
view and encodes 64 crops together; "ours" is the job's own code. "ours, bfloat16" has the encoder in bfloat16, which is an
option of teachers (precision=) and no default. Runs take turns; numbers are crops a second, and the last columns say how much
faster ours is by the clock and by processor time, the one that other work on the machine disturbs least. Before anything is
timed, vectors of both ways are compared. `--only` names of: pocket (the recipe's two networks), vit_small (DINOv2's
ViT-S/14 at 224 x 224, random weights).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
import torch
from PIL import Image

from pointcept3m.datasets.rooms.layout import SHELL, generate_room
from pointcept3m.datasets.rooms.render import render_frames
from pointcept3m.engines.modalities import build_recipe
from pointcept3m.engines.modalities.crops import View, cut_crops, grown_box, mask_names, top_views
from pointcept3m.engines.modalities.frames import color_paths
from pointcept3m.engines.modalities.recipe import RECIPES, Recipe
from pointcept3m.structures.scene_objects import read_mask, write_mask

SIZE, LEVELS, VIEWS = (480, 640), 3, 10
Views = dict[int, list[View]]
Sums = dict[int, np.ndarray]


def write_room(folder: Path, frames: int) -> list[int]:
    """Pictures and masks of a room; returns the ids of its objects."""
    room = generate_room(7, "val")
    shown = render_frames(room, frames, SIZE)
    ids = [thing.id for thing in room.objects if thing.category not in SHELL]
    (folder / "color").mkdir()
    for row in range(frames):
        Image.fromarray(shown.rgb[row]).save(folder / "color" / f"{row}.jpg", quality=95)
        write_mask(folder, str(row), np.where(np.isin(shown.instance[row], ids), shown.instance[row], -1))
    return ids


def vit_small(precision: str = "float32") -> dict:
    teacher = dict(type="TimmTeacher", model_name="vit_small_patch14_dinov2", random_init=True, precision=precision, max_batch=64)
    return dict(name="vit", image=teacher, frame_size=(224, 224), crop_size=224)


def recipes(name: str) -> dict[str, Recipe]:
    torch.manual_seed(0)
    if name == "pocket":
        config = {**RECIPES["pocket"], "shape": None, "text": None}
        half = {**config, "image": [{**one, "precision": "bfloat16"} for one in config["image"]]}
        return {"float32": build_recipe(config), "bfloat16": build_recipe(half)}
    first = build_recipe(vit_small())
    second = build_recipe(vit_small("bfloat16"))
    second.images[0].network.load_state_dict(first.images[0].network.state_dict())
    return {"float32": first, "bfloat16": second}


def boxed(mask: np.ndarray, level: int) -> tuple[int, int, int, int]:
    """The release's way to a box: the whole mask as floats, nonzero rows and columns, grown by a fifth of the sides."""
    mask = torch.from_numpy(mask).float()
    columns, rows = torch.nonzero(mask.sum(0))[:, 0], torch.nonzero(mask.sum(1))[:, 0]
    box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    return grown_box(box, level, mask.shape)


def crops_of(folder: Path, views: Views, side: int, masks: dict[str, np.ndarray]):
    """(object id, crop) of the release's loops: a picture is opened for each object and view."""
    for object_id, seen in views.items():
        for view in seen:
            picture = Image.open(folder / "color" / f"{view.frame}.jpg").convert("RGB")
            for level in range(LEVELS):
                crop = picture.crop(boxed(masks[view.frame] == object_id, level))
                yield object_id, np.asarray(crop.resize((side, side), Image.Resampling.BICUBIC))


def encoded(crops, recipe: Recipe, batch: int) -> Sums:
    """Mean of the crops' vectors, by object."""
    sums: dict[int, list[np.ndarray]] = {}
    waiting: list[tuple[int, np.ndarray]] = []

    def encode() -> None:
        for (object_id, _), vector in zip(waiting, recipe.image_crops([crop for _, crop in waiting]), strict=True):
            sums.setdefault(object_id, []).append(vector)
        waiting.clear()

    for one in crops:
        waiting.append(one)
        if len(waiting) == batch:
            encode()
    encode()
    return {object_id: np.mean(vectors, axis=0) for object_id, vectors in sums.items()}


def take_turns(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each run, by the clock and of the processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {name: tuple(statistics.median(column) for column in zip(*taken, strict=True)) for name, taken in times.items()}


def compare(folder: Path, ids: list[int], name: str, repeats: int) -> tuple[list[object], list[object]]:
    made = recipes(name)
    recipe, half = made["float32"], made["bfloat16"]
    paths, side = color_paths(folder), recipe.crop_size
    names = mask_names(folder, paths)
    views, _ = top_views(folder, names, ids, VIEWS)
    masks = {frame: read_mask(folder, frame) for frame in names}  # held in memory, as the release holds them
    total = sum(LEVELS * len(seen) for seen in views.values())
    runs = {
        "one by one": lambda: encoded(crops_of(folder, views, side, masks), recipe, 1),
        "decoded once": lambda: encoded(cut_crops(paths, views, LEVELS, side), recipe, 1),
        "batched": lambda: encoded(crops_of(folder, views, side, masks), recipe, 64),
        "ours": lambda: encoded(cut_crops(paths, views, LEVELS, side), recipe, 64),
        "ours, bfloat16": lambda: encoded(cut_crops(paths, views, LEVELS, side), half, 64),
    }
    results = {key: run() for key, run in runs.items()}
    first, ours, low = results["one by one"], results["ours"], results["ours, bfloat16"]
    error = max(np.abs(first[key] - ours[key]).max() for key in first)
    if error > 1e-3:
        raise SystemExit(f"{name}: ours and the release's way differ by {error:.2g}")
    cosine = min(float(ours[k] @ low[k] / np.linalg.norm(ours[k]) / np.linalg.norm(low[k])) for k in ours)
    taken = take_turns(runs, repeats)
    pictures = take_turns({
        "release": lambda: sum(1 for _ in crops_of(folder, views, side, masks)), "ours": lambda: sum(1 for _ in cut_crops(paths, views, LEVELS, side)),
    }, repeats)  # fmt: skip
    what = f"{name}: {total} crops of {len(views)} objects in {len(names)} frames, {side} x {side}"
    speed = [total / taken[key][0] for key in runs]
    ratios = [taken["one by one"][i] / taken[key][i] for key in ("ours", "ours, bfloat16") for i in (0, 1)]
    shares = [1e3 * pictures[key][1] / total for key in ("release", "ours")]
    encode = [1e3 * (taken[key][1] - pictures[part][1]) / total for key, part in (("one by one", "release"), ("ours", "ours"), ("ours, bfloat16", "ours"))]
    return [what, *speed, *ratios], [name, *shares, *encode, f"{cosine:.5f}"]


def main() -> None:
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument("--only", default="pocket,vit_small", help="encoders, by name")
    parser.add_argument("--frames", type=int, default=16, help="pictures of the room")
    parser.add_argument("--objects", type=int, default=12, help="objects whose crops are taken")
    options = parser.parse_args()
    measure.start(options)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ids = write_room(Path(folder), options.frames)[: options.objects]
        rows = [compare(Path(folder), ids, name, options.repeats) for name in options.only.split(",")]
    print("Crops a second:\n")
    measure.table(["", "one by one", "decoded once", "batched", "ours", "ours, bfloat16", "ours is faster", "of processor time",
                   "bfloat16 is faster", "of processor time"], [row for row, _ in rows])  # fmt: skip
    print("Milliseconds of the processor a crop, and the smallest cosine between vectors of float32 and bfloat16:\n")
    measure.table(["", "pictures, release", "pictures, ours", "encoder, one by one", "encoder, ours", "encoder, bfloat16", "cosine"], [row for _, row in rows])


if __name__ == "__main__":
    main()
