"""Anything a user has of a scene, as a batch of a CrossOver model: pictures, a floorplan, words, points, a scene folder."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.datasets.readers.cloud import MESHES, READERS, read_cloud, way_out
from pointcept3m.datasets.scan import ScanOptions, describe_extent, prepare_scan
from pointcept3m.datasets.transforms.compose import Compose
from pointcept3m.engines.checkpoint import load_weights
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.modalities.command import chosen_recipe
from pointcept3m.engines.modalities.recipe import RECIPES, Recipe
from pointcept3m.engines.retrieval.embed import model_fingerprint
from pointcept3m.engines.retrieval.scene_pictures import cloud_from_above
from pointcept3m.engines.visualize.point_features import InputRecipe, config_of, input_recipe
from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.structures.images import read_picture
from pointcept3m.structures.modality_features import OBJECT_MODALITIES, TOKENS, ModalityFeatures
from pointcept3m.structures.panorama import is_panorama, perspectives
from pointcept3m.structures.scene_objects import SCENE_FILES
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

Say = Callable[[str], None]
PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CLOUDS = tuple(READERS)
KINDS = ("image", "panorama", "floorplan", "text", "point", "scene")
PAPER_ABOVE = 235  # grey value from which a pixel is nearly white
PAPER_SHARE = 0.35  # share of nearly white pixels from which a picture is taken for a plan
NAME_OF_A_FILE = re.compile(r"[\w-][\w.-]*\.[A-Za-z]\w{1,4}")  # "scan.e57" and "plan.pngg" are no words to search for
MODALITY_OF = {"image": "image", "panorama": "image", "floorplan": "floorplan", "text": "text", "point": "point", "scene": "scene"}


@dataclass
class RetrievalModel:
    """A trained model of CrossOver with its frozen encoders: what turns a scene into vectors.

    points: what its 3D encoder needs of a cloud, None without one · transform: what the config's test does to a cloud
    · fingerprint: of weights and encoders; galleries of others are in another space.
    """

    weight: str
    cfg: Mapping[str, Any]
    network: nn.Module
    recipe: Recipe
    points: InputRecipe | None
    transform: Compose
    device: torch.device
    fingerprint: str

    @property
    def widths(self) -> dict[str, int]:
        """Widths that the network was made for, by the names of `ModalityFeatures.widths`; also of encoders that are left out."""
        return {**self.recipe.widths, **(self.cfg["data"]["test"].get("widths") or {})}


def open_retrieval_model(
    weight: str,
    config: str | Path | None = None,
    device: str | None = None,
    say: Say = print,
    recipe: str | None = None,
    encoder_weight: Sequence[str] = (),
    tokenizer: Path | None = None,
    leave_out: Sequence[str] = (),
) -> RetrievalModel:
    """The model in a weight file or run folder (one of all stages too), in eval mode, with the encoders of its recipe.

    A run folder stands for the weights that its tables are of. recipe: its name or .py file, by default the name that the model was
    trained with; encoder_weight ("image=PATH"), tokenizer, leave_out: as tools/preprocess/modalities.py takes them.
    Raises: FileNotFoundError; ValueError where it is no model of CrossOver, carries no config or does not fit it, or was trained with
    another recipe; what encoders raise whose weights are missing.
    """
    staged = Path(weight) / "unified"  # the stage of a run of all stages that embeds scenes
    if staged.is_dir() and not (Path(weight) / "model").exists():
        weight = str(staged)
    path, cfg = config_of(weight, config)
    kind = (cfg.get("model") or {}).get("type")
    if kind not in MODELS or getattr(MODELS.get(kind), "task", None) != "retrieval":
        raise ValueError(f"{path}: is a {kind}; retrieval needs a model of CrossOver (configs/crossover)")
    section = (cfg.get("data") or {}).get("test") or {}
    if "recipe" not in section:
        raise KeyError(f"{path}: its config does not say data.test.recipe, the frozen encoders; {near_names('recipe', section)}")
    trained = section["recipe"]
    if recipe is None and trained not in RECIPES:
        raise ValueError(f"{path}: was trained with a recipe {trained!r} of one's own: --recipe FILE.py says what it is")
    name, encoders = chosen_recipe(recipe or trained, encoder_weight, tokenizer, leave_out, "--encoder-weight")
    if name != trained:
        raise ValueError(f"{path}: was trained with the recipe {trained!r}, and --recipe is {name!r}; vectors of other encoders mean nothing to it")
    network = build_model(cfg.model)
    load_weights(network, path)
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = Recipe(name, encoders, str(chosen))
    network = network.to(chosen).eval()
    points = input_recipe(cfg) if getattr(network, "backbone", None) is not None else None
    transform = Compose(section.get("transform") or [])
    found = RetrievalModel(path, cfg, network, recipe, points, transform, chosen, model_fingerprint(network, recipe.encoders))
    say(f"{path}: {kind}, recipe {recipe.name!r}, {found.fingerprint}")
    return found


@dataclass
class Query:
    """What a user gave, read: name, kind, and the parts of a batch it fills. picture: uint8 [H, W, 3] to show, or None."""

    name: str
    kind: str
    image: NDArray[np.float32] | None = None
    floorplan: NDArray[np.float32] | None = None
    text: NDArray[np.float32] | None = None
    points: Mapping[str, torch.Tensor] | None = None
    features: ModalityFeatures | None = None
    picture: NDArray[np.uint8] | None = None


def guess_kind(given: str | Path) -> str:
    """What `given` is: a file or folder by its name and content, anything else is text. The caller says the guess.

    Raises: FileNotFoundError where it looks like a path and is none; ValueError for a file of no known kind.
    """
    words = str(given)
    if len(words.encode()) > 250 and "/" not in words or "\n" in words:  # no name of a file
        return "text"
    path = Path(given)
    if os.path.isdir(path):  # unlike Path.is_dir, false for what is too long for a name
        if any((path / name).is_file() for name in SCENE_FILES):  # frames alone are read as a scan, or as pictures
            return "scene"
        held = sorted(file.name.lower() for file in path.iterdir())
        if not held:
            raise FileNotFoundError(f"{given}: an empty folder")
        depth = any(name == "depth" or "depth." in name for name in held)
        return "image" if not depth and ("color" in held or any(name.endswith(PICTURES) for name in held)) else "point"
    suffix = path.suffix.lower()
    if not os.path.isfile(path):
        if suffix in (*PICTURES, *CLOUDS) or ("/" in words and " " not in words) or NAME_OF_A_FILE.fullmatch(words):
            raise FileNotFoundError(f"{given}: no such file or folder (--as text searches for the words); {near_files(path)}")
        return "text"
    if suffix in PICTURES:
        picture = read_picture(path)
        white = picture.min(axis=2) > PAPER_ABOVE
        edges = float(white[:, [0, -1]].mean())  # of a room around a camera they show the room, of a plan the paper's margin
        if is_panorama(picture) and edges < 0.9:
            return "panorama"
        return "floorplan" if float(white.mean()) > PAPER_SHARE else "image"
    if suffix == ".txt" and not _is_numbers(path):
        return "text"
    if suffix in CLOUDS:
        return "point"
    if suffix in MESHES:
        raise ValueError(f"{given}: a mesh; scenes are searched for by points. {way_out(path)}")
    raise ValueError(f"{given}: neither a picture ({', '.join(PICTURES)}), nor points ({', '.join(CLOUDS)}), nor a text file")


def _is_numbers(path: Path) -> bool:
    """Whether a text file's first line that is not empty holds numbers alone, as a file of points does."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        line = next((line for line in stream if line.strip()), "")
    try:
        return len([float(word) for word in line.replace(",", " ").replace(";", " ").split()]) >= 3
    except ValueError:
        return False


def read_query(given: str | Path, model: RetrievalModel, kind: str | None = None, say: Say = print, **options: Any) -> Query:
    """Reads a query and runs the frozen encoders over it.

    kind: of KINDS, guessed by default. options: of `ScanOptions`, `columns` and `rgbd` (of `read_cloud`), for points.
    Raises: what reading raises; ValueError for an unknown kind, an empty text, a kind that the model has no encoder for.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--as knows no {kind!r}; {near_names(kind, KINDS)}")
    if not str(given).strip():
        raise ValueError("an empty text cannot be searched for; wanted words, or a file")
    guessed = kind or guess_kind(given)
    if kind is None:
        say(f"{given}: taken for {'a ' if guessed != 'image' else 'an '}{guessed} (--as {'|'.join(KINDS)} says otherwise)")
    path = Path(given)
    if guessed == "scene":
        raise ValueError(f"{given}: not a scene folder; --as image, panorama, floorplan, text or point")
    if guessed == "text":
        return _read_text(str(given), path, model)
    if guessed == "point":
        return _read_points(path, model, say, **options)
    return _read_pictures(path, guessed, model, say)


def _read_text(given: str, path: Path, model: RetrievalModel) -> Query:
    if not os.path.isfile(path):
        return text_query(given, model)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{given}: no text in UTF-8 ({error.reason} at byte {error.start}); wanted sentences, a line each") from error
    if not text.strip():
        raise ValueError(f"{given}: an empty text; wanted one or more sentences, a line each")
    return text_query(text, model)


def text_query(text: str, model: RetrievalModel) -> Query:
    """Sentences, a line each, as a query; nothing is read from the disk. Raises: ValueError for an empty text or no text encoder."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{text!r}: an empty text; wanted one or more sentences, a line each")
    return Query(lines[0][:60], "text", text=model.recipe.texts(lines))


def _read_pictures(path: Path, kind: str, model: RetrievalModel, say: Say) -> Query:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES) if path.is_dir() else [path]
    if not files and path.is_dir() and (path / "color").is_dir():  # a scene folder of frames alone
        files = sorted(file for file in (path / "color").iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(f"{path}: no picture in this folder ({', '.join(PICTURES)})")
    pictures = [read_picture(file) for file in files]
    first = pictures[0]
    if kind == "floorplan":
        return Query(path.stem, kind, floorplan=model.recipe.image_tokens(pictures[:1]), picture=first)
    if kind == "panorama":
        pictures = [view for picture in pictures for view in perspectives(picture)]
        say(f"{path}: {len(pictures)} views cut out of the panorama")
    name = f"{path.parent.name}/{path.name}" if path.name == "color" else path.stem
    return Query(name, kind, image=model.recipe.image_tokens(pictures), picture=first)


def _read_points(
    path: Path, model: RetrievalModel, say: Say, columns: str = "auto", rgbd: Mapping[str, Any] | None = None, **options: Any
) -> Query:
    if model.points is None:
        raise ValueError(f"{path}: points, but {model.weight} has no 3D encoder (an object level alone); wanted a CrossOver-v1m1")
    settings = ScanOptions(**options)
    cloud = read_cloud(path, columns, **(rgbd or {}))
    scan = prepare_scan(cloud, settings, model.points.needs, model.points.grid_size)
    for guess in scan.guesses:
        say(guess)
    say(f"{path.name}: {len(scan.coord):,} points over {describe_extent(scan.coord)}")
    sample = {"coord": scan.coord, **{key: getattr(scan, key) for key in model.points.needs}}
    return Query(path.stem, "point", points=point_sample(sample, model), picture=cloud_from_above(scan.coord, scan.color))


def point_sample(sample: dict[str, NDArray], model: RetrievalModel) -> dict[str, torch.Tensor]:
    """A cloud (coord, color, normal as the network needs them) as the model's config makes it: coord, grid_coord, feat, offset."""
    state = np.random.get_state()
    np.random.seed(0)  # which point stands for a cell: the same each time
    try:
        made = model.transform(dict(sample))
    finally:
        np.random.set_state(state)
    made = {key: made[key] for key in ("coord", "grid_coord", "feat")}
    return {**made, "offset": torch.tensor([len(made["coord"])])}


def make_batch(queries: Sequence[Query], model: RetrievalModel) -> dict[str, Any]:
    """One scene of a batch for each query, what it lacks empty: the keys of CrossOverDataset."""
    return to_device(collate_fn([_sample(query, model) for query in queries]), model.device)


def _sample(query: Query, model: RetrievalModel) -> dict[str, Any]:
    widths = {**{f"object_{name}": 0 for name in OBJECT_MODALITIES}, **{f"{name}_token": 0 for name in TOKENS}, **model.widths}
    feat = getattr(model.network, "backbone", None)
    channels = getattr(feat, "in_channels", 3)
    empty = dict(coord=torch.zeros(0, 3), grid_coord=torch.zeros(0, 3, dtype=torch.int64), feat=torch.zeros(0, channels), offset=torch.tensor([0]))
    sample: dict[str, Any] = dict(query.points) if query.points is not None else empty
    features = query.features
    count = 0 if features is None else len(features)
    known = np.zeros((count, len(OBJECT_MODALITIES)), dtype=np.bool_)
    for column, name in enumerate(OBJECT_MODALITIES):
        rows = np.zeros((count, widths[f"object_{name}"]), dtype=np.float32)
        if features is not None and name in features.objects:
            rows, known[:, column] = features.objects[name], features.known[name]
        sample[f"object_{name}"] = torch.from_numpy(rows)
    ids = np.zeros(0, np.int64) if features is None else features.object_id
    moved = np.zeros(count, np.bool_) if features is None else np.isin(ids, features.moved)
    boxes = [np.zeros((0, 6), np.float32)] * 2 if features is None else [features.object_box, features.cad_box]
    sample |= dict(
        object_id=torch.from_numpy(ids), object_known=torch.from_numpy(known), object_moved=torch.from_numpy(moved),
        object_box=torch.from_numpy(boxes[0]), cad_box=torch.from_numpy(boxes[1]), object_offset=torch.tensor([count]),
        labels=[] if features is None else list(features.labels),
    )  # fmt: skip
    for name in TOKENS:
        rows = getattr(query, name)
        if rows is None and features is not None:
            rows = features.tokens.get(name)
        rows = np.zeros((0, widths[f"{name}_token"]), np.float32) if rows is None else rows
        sample |= {f"{name}_token": torch.from_numpy(rows), f"{name}_offset": torch.tensor([len(rows)])}
    told = dict(name=query.name, split="", dataset="", place=query.name, category="", reference=None, same_ids=False)
    if features is not None:
        told |= {key: getattr(features, key) for key in ("split", "dataset", "category", "reference", "same_ids")} | {"place": features.place or features.scene}
    return sample | told


@torch.no_grad()
def embed_query(query: Query, model: RetrievalModel) -> NDArray[np.float32]:
    """The unit vector [D] of a query of one kind. Raises ValueError where the model has no encoder for it."""
    rows, known = model.network.embed_scenes(make_batch([query], model))
    modality = MODALITY_OF[query.kind]
    if modality not in rows or not bool(known[modality][0]):
        have = ", ".join(sorted(name for name in rows if name != "scene"))
        raise ValueError(f"{query.name}: {model.weight} does not embed {modality} of whole scenes; it embeds {have}")
    return rows[modality][0].float().cpu().numpy()
