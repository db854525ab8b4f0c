"""`pointcept3m visualize`: clouds coloured by what a backbone makes of them, as ply files and pictures.

By the principal components or UMAP of its features (paper, Fig. S.1), by their cosine similarity to a chosen point, in the
same scene or in others (Fig. S.2 to S.4), by predicted class and by error.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pointcept3m.datasets.readers.ply import needs_double, write_ply
from pointcept3m.datasets.scannet_labels import SCANNET20_NAMES, SCANNET200_NAMES
from pointcept3m.engines.predict.predictor import Predictor, load
from pointcept3m.engines.visualize import cloud_picture, embedding, point_features, sheet
from pointcept3m.engines.visualize.point_features import InputRecipe, VoxelOutput
from pointcept3m.engines.visualize.scene_files import SEGMENTS, PointScene, open_scenes, parse_spot, segment_asset_of
from pointcept3m.utils import palette
from pointcept3m.utils.config import Config
from pointcept3m.utils.files import near_files, replacing, try_folder
from pointcept3m.utils.registry import near_names

Say = Callable[[str], None]
TITLES = {
    "rgb": "RGB", "label": "labels", "pca": "PCA", "umap": "UMAP", "similarity": "cosine similarity",
    "prediction": "prediction", "error": "error",
}  # fmt: skip
NEEDS_FEATURES = {"pca", "umap", "similarity"}
NEEDS_CLASSES = {"prediction", "error"}
NEEDS_LABELS = {"label", "error"}
ASSET_NAMES = {"segment20": SCANNET20_NAMES, "segment200": SCANNET200_NAMES}  # the classes of label files with a meaning of their own
MAX_QUERY_DISTANCE = 0.5  # metres from a query to the nearest point, beyond which it is a mistake


@dataclass(frozen=True)
class Query:
    """A chosen point: the scene, its row there, and how a panel calls it."""

    scene: PointScene
    row: int
    title: str


@dataclass
class Coloring:
    """One way of colouring: colours uint8 [N_i, 3] of each scene, further ply properties, legends, crosses."""

    name: str
    title: str
    colors: list[NDArray[np.uint8]]
    properties: list[dict[str, NDArray]]
    legends: list[sheet.Legend] = field(default_factory=list)
    query: Query | None = None


def run_visualize(arguments: argparse.Namespace, say: Say = print) -> list[Path]:
    """Does what `pointcept3m visualize` was asked for; returns the files written.

    Raises: FileNotFoundError, ValueError, ImportError, OSError for what cannot work, before any feature is computed.
    """
    kinds = read_kinds(arguments.color)
    check_arguments(arguments, kinds)
    out = writable_folder(arguments.out)
    if "umap" in kinds:
        embedding.import_umap()
    model = open_model(kinds, arguments)
    scenes = open_scenes(arguments.scene, segment_asset_of(model.cfg), arguments)
    queries, others = read_queries(arguments.query, scenes, lambda path: open_scenes([path], None, arguments)[0])
    check_scenes(kinds, scenes, others, model)
    for scene in [*scenes, *others]:
        for note in scene.notes:
            say(f"{scene.name}: {note}")
    colorings = color_scenes(kinds, scenes, others, queries, model, arguments, say)
    return write_results(out, scenes, colorings, arguments, say)


@dataclass(frozen=True)
class Model:
    """What a weight brings, as far as the colours asked for need it: its config, input, backbone, and class predictor."""

    weight: str = ""
    cfg: Mapping[str, Any] = field(default_factory=dict)
    recipe: InputRecipe | None = None
    backbone: torch.nn.Module | None = None
    predictor: Predictor | None = None


def open_model(kinds: Sequence[str], arguments: argparse.Namespace) -> Model:
    """Loads what `kinds` need. Raises ValueError, FileNotFoundError where the weight cannot give it."""
    needs_features, needs_classes = set(kinds) & NEEDS_FEATURES, set(kinds) & NEEDS_CLASSES
    if not needs_features and not needs_classes:  # the names of classes are all that is left to learn from either
        if arguments.weight not in (None, point_features.RANDOM):
            return Model(cfg=point_features.config_of(arguments.weight, arguments.config)[1])
        return Model(cfg=Config.fromfile(arguments.config) if arguments.config else {})
    if arguments.weight is None:
        raise ValueError(f"--color {','.join(kinds)} needs --weight, a file or 'random'")
    weight, cfg = point_features.config_of(arguments.weight, arguments.config)
    backbone = predictor = None
    if needs_classes:
        if weight == point_features.RANDOM:
            raise ValueError(f"--color {','.join(kinds)}: the classes that random weights predict mean nothing; give trained ones")
        predictor = load(weight, arguments.config, arguments.device)
    if needs_features:
        backbone = point_features.load_backbone(weight, cfg, arguments.seed).to(arguments.device)
    return Model(weight, cfg, point_features.input_recipe(cfg) if needs_features else None, backbone, predictor)


# what was asked for


def read_kinds(words: Sequence[str]) -> list[str]:
    """The ways of colouring in order: each word may hold several, with commas. Raises ValueError for an unknown one."""
    kinds = list(dict.fromkeys(kind for word in words for kind in word.split(",") if kind))
    for kind in kinds:
        if kind not in TITLES:
            raise ValueError(f"--color knows no {kind!r}; {near_names(kind, TITLES)}")
    if not kinds:
        raise ValueError(f"--color: wanted one or more of {', '.join(TITLES)}")
    return kinds


def check_arguments(arguments: argparse.Namespace, kinds: Sequence[str]) -> None:
    """Raises ValueError or FileNotFoundError for what can be told to be wrong without opening anything."""
    for path in arguments.scene:
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such scene; {near_files(path)}")
    for name, least in (("size", 64), ("max_points", 1), ("umap_points", 10)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(arguments, name)}")
    if arguments.point_size is not None and not arguments.point_size > 0:
        raise ValueError(f"--point-size must be positive metres, got {arguments.point_size}")
    if not isinstance(arguments.ceiling, str) and not arguments.ceiling > 0:
        raise ValueError(f"--ceiling: wanted auto, keep or metres above the floor, got {arguments.ceiling}")
    if arguments.range is not None and not arguments.range[0] < arguments.range[1]:
        raise ValueError(f"--range: wanted LOW,HIGH with LOW below HIGH, got {arguments.range}")
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=arguments.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {arguments.device}: not to be had here ({str(error).splitlines()[0]})") from error
    if "similarity" in kinds and not arguments.query:
        raise ValueError("--color similarity needs --query, a point of the first scene: --query INDEX, --query x,y,z or --query SCENE:INDEX")
    if arguments.query and "similarity" not in kinds:
        raise ValueError("--query chooses a point for --color similarity, which was not asked for")
    for word in arguments.query:
        _read_spot(word)


def writable_folder(path: str | Path) -> Path:
    """The folder, made where it is not there. Raises OSError that names it where nothing can be written into it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        try_folder(path)
    except OSError as error:
        raise OSError(f"--out {path}: nothing can be written there ({error.strerror or error})") from error
    return path


def read_queries(
    words: Sequence[str], scenes: Sequence[PointScene], open_other: Callable[[str], PointScene]
) -> tuple[list[Query], list[PointScene]]:
    """The chosen points, and scenes that only hold such points.

    A query is INDEX or x,y,z in the first scene, or SCENE:INDEX, SCENE:x,y,z, where SCENE is the name of one of the scenes
    or the path of another.

    Raises: ValueError for another form, a row beyond the scene, or a place with no point near it.
    """
    by_name = {scene.name: scene for scene in scenes}
    by_path = {str(Path(scene.path).resolve()): scene for scene in scenes}
    queries, others = [], []
    for word in words:
        place, spot = _read_spot(word)
        scene = scenes[0] if not place else by_name.get(place) or by_path.get(str(Path(place).resolve()))
        if scene is None:
            if not Path(place).exists():
                raise ValueError(f"--query {word}: {place!r} is neither one of the scenes nor a path; {near_names(place, by_name)}")
            scene = by_path[str(Path(place).resolve())] = open_other(place)
            others.append(scene)
        row = query_row(word, spot, scene)
        at = ", ".join(f"{value:.2f}" for value in scene.original_coord[row])
        queries.append(Query(scene, row, f"similarity to ({at}) of {scene.name}" if len(words) > 1 else TITLES["similarity"]))
    return queries, others


def _read_spot(word: str) -> tuple[str, int | NDArray[np.float64]]:
    """The scene in a query ("" for the first one) and the row or place [3] there. Raises ValueError for another form."""
    place, _, spot = word.rpartition(":")
    found = parse_spot(spot)
    if found is None:
        raise ValueError(f"--query {word}: wanted INDEX, x,y,z, SCENE:INDEX or SCENE:x,y,z, got {spot!r}")
    return place, found


def query_row(word: str, spot: int | NDArray[np.float64], scene: PointScene) -> int:
    """The row of `scene` that a row or place [3] of its file means; `word` is quoted in errors.

    Raises: ValueError for a row that the file does not have, or a place with no point near it.
    """
    if isinstance(spot, int):
        row = int(np.searchsorted(scene.rows, spot))
        if row == len(scene) or scene.rows[row] != spot:
            raise ValueError(f"--query {word}: {scene.name} has points in rows {scene.rows[0]} to {scene.rows[-1]}, none in row {spot}")
        return row
    distance = np.linalg.norm(scene.original_coord - spot, axis=1)
    row = int(distance.argmin())
    if distance[row] * scene.unit > MAX_QUERY_DISTANCE:
        low, high = (", ".join(f"{v:.2f}" for v in end) for end in (scene.original_coord.min(0), scene.original_coord.max(0)))
        raise ValueError(
            f"--query {word}: the nearest point of {scene.name} is {distance[row] * scene.unit:.2f} m away; "
            f"its points lie in ({low}) to ({high})"
        )
    return row


def check_scenes(
    kinds: Sequence[str], scenes: Sequence[PointScene], others: Sequence[PointScene], model: Model
) -> None:
    """Raises ValueError where a scene lacks the colours, labels or attributes that a colouring needs."""
    if model.recipe is not None:
        point_features.check_attributes(model.recipe.needs, [*scenes, *others], model.weight)
    if model.predictor is not None:
        point_features.check_attributes(model.predictor.needs, scenes, model.weight)
    if "rgb" in kinds:
        bare = [scene.name for scene in scenes if scene.color is None]
        if bare:
            raise ValueError(f"--color rgb: {', '.join(bare)} has no colours")
    if set(kinds) & NEEDS_LABELS:
        bare = [scene.name for scene in scenes if scene.segment is None]
        if bare:
            asset = segment_asset_of(model.cfg)
            wanted = f"{asset}.npy, the labels of the weight's data set" if asset else " or ".join(f"{name}.npy" for name in SEGMENTS)
            raise ValueError(f"--color {'label' if 'label' in kinds else 'error'}: {', '.join(bare)} has no labels; wanted a scene folder with {wanted}")


# colours


def color_scenes(
    kinds: Sequence[str],
    scenes: Sequence[PointScene],
    others: Sequence[PointScene],
    queries: Sequence[Query],
    model: Model,
    arguments: argparse.Namespace,
    say: Say,
) -> list[Coloring]:
    """Every colouring asked for, in order; one colour scale for all scenes."""
    features = [_features(scene, model, arguments, say) for scene in (*scenes, *others)] if model.backbone is not None else []
    predictions = [_predict(scene, model.predictor, arguments) for scene in scenes] if model.predictor is not None else []
    own = features[: len(scenes)]
    made: list[Coloring] = []
    for kind in kinds:
        if kind == "rgb":
            made.append(_coloring(kind, [np.clip(scene.color, 0, 255).astype(np.uint8) for scene in scenes]))
        elif kind == "pca":
            made.append(_pca(own, arguments, say))
        elif kind == "umap":
            colors, said = embedding.umap_colors([f.value for f in own], arguments.seed, arguments.umap_points)
            say(said)
            made.append(_coloring(kind, [c[f.inverse] for c, f in zip(colors, own, strict=True)]))
        elif kind == "similarity":
            made += _similarities(scenes, others, features, queries, arguments, say)
        else:
            made.append(_classes(kind, kinds, scenes, predictions, model, say))
    return made


def _coloring(kind: str, colors: list[NDArray], properties: list[dict[str, NDArray]] | None = None, **rest: Any) -> Coloring:
    return Coloring(kind, rest.pop("title", TITLES[kind]), colors, properties or [{} for _ in colors], **rest)


def _features(scene: PointScene, model: Model, arguments: argparse.Namespace, say: Say) -> VoxelOutput:
    found = point_features.voxel_features(scene, model.recipe, model.backbone, arguments.device, arguments.max_points, arguments.seed)
    if not torch.isfinite(found.value).all():
        raise FloatingPointError(f"{scene.name}: the backbone gives features that are not finite")
    say(f"{scene.name}: features of {len(found.value):,} voxels of {model.recipe.grid_size:g} m for {len(scene):,} points")
    return found


def _predict(scene: PointScene, predictor: Predictor, arguments: argparse.Namespace) -> NDArray[np.int32]:
    """The class of each point, that of its voxel. The scan is prepared already, so nothing is left to guess."""
    points = {"coord": scene.coord, "color": scene.color, "normal": scene.normal}
    settled = dict(up_axis="z", unit="m", color_range="0..255", normals="file")
    return predictor.predict(
        points, fragments=1, seed=arguments.seed, max_points=arguments.max_points, say=lambda sentence: None, **settled
    ).label


def _pca(features: Sequence[VoxelOutput], arguments: argparse.Namespace, say: Say) -> Coloring:
    values = [f.value for f in features]
    if arguments.normalize:
        values = [torch.nn.functional.normalize(value, dim=1) for value in values]
    colors = embedding.pca_colors(values, joint=not arguments.per_scene)
    if not arguments.per_scene:
        share = embedding.explained_share(values)
        say(f"PCA of {sum(len(f.value) for f in features):,} voxels: the three components hold {share:.0%} of the variance")
    return _coloring("pca", [c[f.inverse] for c, f in zip(colors, features, strict=True)])


def _similarities(
    scenes: Sequence[PointScene],
    others: Sequence[PointScene],
    features: Sequence[VoxelOutput],
    queries: Sequence[Query],
    arguments: argparse.Namespace,
    say: Say,
) -> list[Coloring]:
    """A colouring for each query, all on one scale."""
    place = {id(scene): number for number, scene in enumerate([*scenes, *others])}
    own, scores = features[: len(scenes)], []
    for query in queries:
        source = features[place[id(query.scene)]]
        vector = source.value[int(source.inverse[query.row])]
        scores.append([embedding.cosine_similarity(f.value, vector) for f in own])
    low, high = arguments.range or embedding.similarity_range([score for row in scores for score in row])
    say(f"similarity: colours from {low:.2f} to {high:.2f} (--range LOW,HIGH)")
    made = []
    for number, (query, row) in enumerate(zip(queries, scores, strict=True), 1):
        points = [score.numpy()[f.inverse] for score, f in zip(row, own, strict=True)]
        coloring = _coloring(
            "similarity",
            [palette.score_colors(p, low, high) for p in points],
            [{"similarity": p} for p in points],
            title=query.title,
            legends=[sheet.ScaleLegend("cosine similarity", low, high)],
            query=query,
        )
        coloring.name = "similarity" if len(queries) == 1 else f"similarity{number}"
        made.append(coloring)
    return made


def _classes(
    kind: str, kinds: Sequence[str], scenes: Sequence[PointScene], predictions: Sequence[NDArray], model: Model, say: Say
) -> Coloring:
    """Colours by label, prediction or error."""
    ignore = (model.cfg.get("data") or {}).get("ignore_index", -1)
    labels = [scene.segment for scene in scenes]
    if kind == "error":
        for scene, prediction in zip(scenes, predictions, strict=True):
            counted = (scene.segment >= 0) & (scene.segment != ignore)
            right = int((prediction == scene.segment)[counted].sum())
            share = f"{right / counted.sum():.1%} of {counted.sum():,} labelled points are right" if counted.any() else "no point is labelled"
            say(f"{scene.name}: {share}")
        colors = [palette.error_colors(p, segment, ignore) for p, segment in zip(predictions, labels, strict=True)]
        legend = sheet.ClassLegend("error", ("right", "wrong", "ignored"), np.array([palette.RIGHT, palette.WRONG, palette.UNLABELLED]))
        return _coloring(kind, colors, [{"prediction": p} for p in predictions], legends=[legend])
    values = predictions if kind == "prediction" else labels
    # labels and predictions share one list and one legend, or a class would have two colours in one figure
    every = [v for v in (*predictions, *(labels if "label" in kinds else ())) if v is not None]
    present = sorted({int(k) for v in every for k in np.unique(v)})
    names = point_features.class_names(model.cfg) or _names_of_assets(scenes, say)
    names += [f"class {k}" for k in range(len(names), max(present) + 1)]
    colors_of = palette.palette_for(names)
    classes = [k for k in present if k >= 0]
    swatches = [names[k] for k in classes], colors_of[classes]
    if present[0] < 0:
        swatches = [*swatches[0], "no label"], np.concatenate([swatches[1], [palette.UNLABELLED]])
    legend = sheet.ClassLegend("classes", *swatches)
    return _coloring(kind, [palette.class_colors(v, colors_of) for v in values], [{kind: v} for v in values], legends=[legend])


def _names_of_assets(scenes: Sequence[PointScene], say: Say) -> list[str]:
    """The class names that the scenes' files of labels tell by their own name; what to give, and [], where they do not."""
    assets = {scene.segment_asset for scene in scenes if scene.segment is not None}
    names = list(ASSET_NAMES.get(next(iter(assets)), ())) if len(assets) == 1 else []
    if not names:
        files = " and ".join(f"{asset}.npy" for asset in sorted(filter(None, assets)))
        say(f"{files} does not tell the names of its classes, nor their colours: --config FILE or --weight W of its data set brings both")
    return names


# files


def write_results(
    out: Path, scenes: Sequence[PointScene], colorings: Sequence[Coloring], arguments: argparse.Namespace, say: Say
) -> list[Path]:
    """Writes `<scene>_<colour>.ply` and `.png` of every scene, and with --figure one `figure.png` of all; returns their paths."""
    written: list[Path] = []
    rows, letters = [], max(12, arguments.size // 36)
    for number, scene in enumerate(scenes):
        images = scene_pictures(scene, [(c.colors[number], c) for c in colorings], arguments, say)
        rows.append((scene.name, sheet.crop_together(images)))
        for coloring, image in zip(colorings, rows[-1][1], strict=True):
            stem = out / f"{scene.name}_{coloring.name}"
            with replacing(f"{stem}.ply") as temporary:
                write_ply(temporary, scene.original_coord, coloring.colors[number], double=needs_double(scene.original_coord), **coloring.properties[number])
            sheet.save_png(f"{stem}.png", sheet.compose([f"{scene.name}: {coloring.title}"], [("", [image])], coloring.legends, letters))
            written += [Path(f"{stem}.ply"), Path(f"{stem}.png")]
    if arguments.figure:
        legends = {repr(legend): legend for coloring in colorings for legend in coloring.legends}
        written.append(out / "figure.png")
        sheet.save_png(written[-1], sheet.compose([c.title for c in colorings], rows, list(legends.values()), letters))
    for path in written:
        say(str(path))
    return written


def scene_pictures(
    scene: PointScene, colored: Sequence[tuple[NDArray, Coloring]], arguments: argparse.Namespace, say: Say
) -> list[NDArray[np.uint8]]:
    """The scene from one camera in each of the colours; the query is marked by a red cross where it is in this scene."""
    seen = cloud_picture.choose_points(scene.coord, arguments.ceiling)
    height = arguments.size * 3 // 4
    camera = cloud_picture.looking(arguments.view, scene.coord[seen], (height, arguments.size), arguments.azimuth)
    normal = None if scene.normal is None else scene.normal[seen]
    seen[seen] = cloud_picture.facing(scene.coord[seen], normal, camera, scene.estimated_normals)
    picture = cloud_picture.Picture(scene.coord[seen], camera, arguments.point_size)
    queries = [coloring.query for _, coloring in colored if coloring.query is not None and coloring.query.scene is scene]
    for query in queries:
        if not seen[query.row]:
            say(f"{scene.name}: the query is on a wall or ceiling that the picture leaves out; --azimuth or --ceiling keep show it")
    images = []
    for color, coloring in colored:
        image = picture.draw(color[seen])
        marks = queries if coloring.name == "rgb" else [query for query in queries if query is coloring.query]
        for query in marks:
            (x, y), _ = (value[0] for value in camera.project(scene.coord[query.row : query.row + 1]))
            image = sheet.draw_cross(image, x, y)
        images.append(image)
    return images
