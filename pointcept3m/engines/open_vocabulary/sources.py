"""Where the answers of a query come from: a distilled weight, files of fused features, the text encoder of either."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointcept3m.datasets.readers.cloud import check_rgbd, is_rgbd, read_cloud
from pointcept3m.datasets.scan import ScanOptions, describe_extent, prepare_scan
from pointcept3m.engines.checkpoint import load_weights
from pointcept3m.engines.open_vocabulary.scene_embedding import (
    Embedding,
    EnsembleEmbedding,
    SceneEmbedding,
    embed_files,
    embed_scan,
)
from pointcept3m.engines.open_vocabulary.vocabulary import ENCODERS, build_encoder, configured_labels, prompt_of
from pointcept3m.engines.visualize.point_features import InputRecipe, config_of, input_recipe
from pointcept3m.engines.visualize.scene_files import PointScene
from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.models.text import TextEncoder
from pointcept3m.structures.fused_features import find_features, open_features
from pointcept3m.structures.label_sets import LABEL_SETS, LabelSet
from pointcept3m.utils.config import Config
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

Say = Callable[[str], None]
SOURCES = ("3d", "2d", "2d3d")


@dataclass
class AskedScene:
    """A scan to be asked about: its points with finite coordinates, how many the file has, and where they lie there.

    coord: [N, 3] float32 metres, z up, of all points of the file; NaN where the file's are not finite. original_coord:
    [N, 3] as the file has them. color: uint8 [N, 3], or None.
    """

    scene: PointScene
    coord: NDArray[np.float32]
    original_coord: NDArray
    color: NDArray[np.uint8] | None

    def __len__(self) -> int:
        return len(self.coord)

    @property
    def name(self) -> str:
        return self.scene.name


def read_scene(
    path: str | Path,
    recipe: InputRecipe | None = None,
    columns: str = "auto",
    rgbd: Mapping[str, Any] | None = None,
    say: Say = print,
    **options: Any,
) -> AskedScene:
    """The scan in `path`, anything that `read_cloud` knows, with what the network of `recipe` needs.

    columns, rgbd: of `read_cloud`. options: of `ScanOptions`. say: gets a sentence for each guess.
    Raises: as `read_cloud` and `prepare_scan`.
    """
    path, settings = Path(path), ScanOptions(**options)
    cloud = read_cloud(path, columns, **({"up_axis": settings.up_axis, **(rgbd or {})} if path.is_dir() else {}))
    needs = set(recipe.needs if recipe else ())
    wanted = sorted(needs | {key for key in ("color", "normal") if getattr(cloud, key) is not None})
    scan = prepare_scan(cloud, settings, wanted, recipe.grid_size if recipe else None)
    for guess in scan.guesses:
        if needs or not guess.startswith(("colours", "normals")):
            say(guess)
    name = path.resolve().name if path.is_dir() else path.stem
    say(f"{name}: {len(scan.coord):,} point{'s' if len(scan.coord) > 1 else ''} over {describe_extent(scan.coord)}")
    coord = np.full((len(scan.valid), 3), np.nan, np.float32)
    coord[scan.valid] = scan.coord
    color = None
    if cloud.color is not None:
        color = np.zeros((len(scan.valid), 3), np.uint8)
        color[scan.valid] = np.rint(np.clip(scan.color, 0, 255)).astype(np.uint8)
    estimated = cloud.normal is None or settings.normals == "estimate"
    scene = PointScene(
        name, path, scan.coord, cloud.coord[scan.valid], np.flatnonzero(scan.valid), scan.color, scan.normal, estimated_normals=estimated
    )
    return AskedScene(scene, coord, cloud.coord, color)


@dataclass
class DistilledModel:
    """A weight of CUA-O3D with its config, its input, and the head that shares its space with text."""

    weight: str
    cfg: Mapping[str, Any]
    recipe: InputRecipe
    network: nn.Module
    device: torch.device

    @property
    def head(self) -> str:
        return self.network.text_head


def open_model(weight: str, config: str | Path | None = None, device: str | torch.device | None = None) -> DistilledModel:
    """The distilled model in a weight file or run folder, in eval mode.

    Raises: FileNotFoundError; ValueError where the weight is none of a distillation, carries no config, or does not fit it.
    """
    path, cfg = config_of(weight, config)
    kind = (cfg.get("model") or {}).get("type")
    if kind not in MODELS or getattr(MODELS.get(kind), "task", None) != "distillation":
        raise ValueError(
            f"{path}: is a {kind}, which has no head in the space of a text encoder; a query needs a distilled model "
            "(configs/cua_o3d), or fused features: --source 2d"
        )
    network = build_model(cfg.model)
    load_weights(network, path)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return DistilledModel(path, cfg, input_recipe(cfg), network.to(device).eval(), device)


@dataclass
class Sources:
    """All that a query needs: the scene, its embedding, the encoder of its text space, and how labels are asked for."""

    scene: AskedScene
    embedding: Embedding
    encoder: TextEncoder
    prompt: str | Sequence[str]
    names: Sequence[str] = ()  # of the config's classes
    model: DistilledModel | None = None

    def labels(self) -> LabelSet:
        """The label set of the config's classes, by its own name where it is a known one; ScanNet's 20 where there is no config."""
        if not self.names:
            return LABEL_SETS["scannet20"]
        return configured_labels({"data": {"names": self.names}})


def check_source(source: str | None, weight: str | None, scene: Path) -> str:
    """`source`, by default "3d" where there is a weight and else "2d".

    Raises: ValueError or FileNotFoundError for what can be told to be wrong before anything is read.
    """
    source = source or ("3d" if weight else "2d")
    if not scene.exists():
        raise FileNotFoundError(f"--scene {scene}: no such file or folder; {near_files(scene)}")
    if source not in SOURCES:
        raise ValueError(f"--source knows no {source!r}; {near_names(source, SOURCES)}")
    if "3d" in source and weight is None:
        raise ValueError(f"--source {source} needs --weight, a distilled model; --source 2d asks the fused features alone")
    if scene.is_dir() and not (scene / "coord.npy").is_file() and (inside := sorted(scene.glob("*/coord.npy"))):
        raise ValueError(f"--scene {scene}: a folder of {len(inside)} scenes; name one of them, such as {inside[0].parent}")
    if "2d" in source and is_rgbd(scene):
        raise ValueError(f"--source {source}: {scene} is a folder of frames, whose fused cloud has no feature files; preprocess it first")
    return source


def open_sources(
    scene: str | Path,
    weight: str | None = None,
    source: str | None = None,
    config: str | Path | None = None,
    teacher: str | None = None,
    features: str | Path | None = None,
    feature_root: str | Path | None = None,
    text_encoder: str | Mapping[str, Any] | None = None,
    prompt: str | None = None,
    device: str | None = None,
    max_points: int = 400_000,
    seed: int = 0,
    columns: str = "auto",
    rgbd: Mapping[str, Any] | None = None,
    say: Say = print,
    **options: Any,
) -> Sources:
    """Opens a scene to be asked: reads it, runs the network over it, opens its features.

    Args:
        source: "3d", the network of `weight`; "2d", features fused from images, of `features` or by `teacher`'s name;
            "2d3d", both (`EnsembleEmbedding`).
        config: for weights that carry none, and for `text_encoder` and `prompt` where there is no weight.
        teacher: whose features; by default the weight's text head, else "text", "sentence" or the only file there.
        max_points: voxels in one pass. seed: which point stands for a voxel. options: of `ScanOptions`.

    Raises: what its parts raise; ValueError where the spaces of encoder, network and features do not fit.
    """
    scene = Path(scene)
    source = check_source(source, weight, scene)
    model = None
    if weight is not None:
        model = open_model(weight, config, device)
        say(f"{model.weight}: {model.cfg.model.type}, heads {', '.join(model.network.heads)}; text is asked of {model.head!r}")
    cfg = model.cfg if model else Config.fromfile(config) if config else None
    files: list[Path] = []
    if "2d" in source:
        teacher = teacher or (model.head if model else None) or (None if features else _only_teacher(scene, feature_root))
        files = [Path(features)] if features else find_features(scene, teacher, feature_root)
        teacher = teacher or open_features(files[0]).teacher
    encoder = build_encoder(text_encoder, cfg, model.head if model else teacher)
    if is_rgbd(scene):
        check_rgbd(scene, **(rgbd or {}))
    asked = read_scene(scene, model.recipe if model and "3d" in source else None, columns, rgbd, say, **options)
    parts: list[SceneEmbedding] = []
    if "3d" in source:
        parts.append(embed_scan(asked.scene, len(asked), model.network, model.recipe, model.device, max_points, seed))
        say(f"{asked.name}: {len(parts[0].unit):,} voxels of {model.recipe.grid_size:g} m through the network")
    if files:
        parts.append(embed_files(files, asked.original_coord))
        known = int(parts[-1].known.sum())
        say(f"{files[0]}: features of {known:,} of {len(asked):,} points ({100 * known / len(asked):.0f} %), the others are in no image")
    for part in parts:
        if part.dim != encoder.dim:
            raise ValueError(
                f"{encoder.name} makes vectors of {encoder.dim} channels, the {part.source} features have {part.dim}: "
                "not the text encoder of that teacher"
            )
    embedding = EnsembleEmbedding(*parts) if len(parts) > 1 else parts[0]
    names = [str(name) for name in ((cfg or {}).get("data") or {}).get("names") or ()]
    return Sources(asked, embedding, encoder, prompt or prompt_of(cfg), names, model)


def _only_teacher(scene: Path, feature_root: str | Path | None) -> str:
    """The teacher whose features lie in the scene's folder and whose text encoder is known, or the only one there."""
    if feature_root is not None:
        raise ValueError(f"--source 2d: whose features of {feature_root}? --teacher NAME says it")
    have = sorted(path.stem for path in (scene / "features").glob("*.safetensors"))
    if not have:
        raise FileNotFoundError(
            f"--source 2d: no features of images at {scene / 'features'}; tools/preprocess/fuse_features.py makes them from the scene's "
            "frames, --features FILE or --feature-root FOLDER --teacher NAME says where others lie, --weight asks a distilled network instead"
        )
    known = [name for name in have if name in ENCODERS] or have
    if len(known) != 1:
        raise ValueError(
            f"--source 2d: whose features? --teacher {' or '.join(known)} says it, or --features FILE; "
            f"{scene / 'features'} has {', '.join(have)}"
        )
    return known[0]
