"""A trained model with all it needs to label someone's scan: `load(weight).predict(points)`.

A scan too large for one pass is cut into boxes that overlap, and in the overlap each box's opinion counts the more the
farther the point is from the box's border.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.datasets.readers.cloud import Cloud, as_cloud, read_cloud
from pointcept3m.datasets.scan import ScanOptions, describe_extent, prepare_scan
from pointcept3m.datasets.tiles import Tile, cut_tiles
from pointcept3m.datasets.transforms.compose import DataDict
from pointcept3m.engines.checkpoint import load_weights, saved_config, tests_last
from pointcept3m.engines.convention import InputConvention, check_input, input_convention
from pointcept3m.engines.defaults import class_settings, fill_registries, import_custom, with_defaults
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.open_vocabulary.vocabulary import Vocabulary, give_vocabulary, is_open
from pointcept3m.engines.predict.prediction import Prediction
from pointcept3m.engines.predict.scan_input import ScanInput, scan_input
from pointcept3m.engines.predict.votes import InstanceMerge, Votes
from pointcept3m.engines.step import Precision
from pointcept3m.engines.testers.semseg import share_rulebooks
from pointcept3m.models.builder import MODELS, build_model
from pointcept3m.ops.voxelize import Voxels
from pointcept3m.structures.keys import index_operator
from pointcept3m.utils.config import Config
from pointcept3m.utils.files import near_files
from pointcept3m.utils.logger import Progress
from pointcept3m.utils.palette import palette_for
from pointcept3m.utils.seed import preserved_rng, set_seed

MODES = ("fast", "vote")
MAX_POINTS = 400_000  # voxels in one pass; SpUNet of 39 million parameters takes 2 to 5 KB for each
OVERLAP = 1.0  # metres on either side of a cut
FRAGMENTS = {"fast": 4, "vote": 64}  # the most turns through the points of a voxel; 4 is SemSegTester's fast_fragments
WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
STRIDE = 64  # cells by which a tile's grid may be shifted without a network of up to 6 halvings noticing


class Predictor:
    """A model that labels scans. Made by `load`.

    model: in eval mode, on `device`. cfg: the config of its training. names, palette: of its classes. input: the steps
    from a scan to its input. needs: which of "color" and "normal" it is fed. vocabulary: what a distilled model was told its
    classes are, None for models with classes of their own.
    """

    def __init__(self, model: nn.Module, cfg: Config, weight: str, device: torch.device, vocabulary: Vocabulary | None = None):
        self.vocabulary = vocabulary
        self.model, self.cfg, self.weight, self.device = model.to(device).eval(), cfg, weight, device
        self.num_classes, self.names, _ = class_settings(cfg)
        self.palette = palette_for(self.names)
        self.input: ScanInput = scan_input(cfg)
        self.needs = self.input.needs
        self.precision = Precision(cfg.enable_amp, cfg.amp_dtype, device)
        self.tells_instances = getattr(model, "task", None) == "insseg"

    def __str__(self) -> str:
        """What the model is, in one paragraph."""
        # how many classes stands before; a distilled network has been told its words just now
        convention: InputConvention = replace(input_convention(self.cfg, self.input.section), num_classes=None)
        backbone = (self.cfg.model.get("backbone") or {}).get("type")
        kind = self.cfg.model.type + (f" on {backbone}" if backbone else "")
        shown = ", ".join(self.names[:6]) + (f", ... {len(self.names) - 6} more" if len(self.names) > 6 else "")
        number = sum(parameter.numel() for parameter in self.model.parameters())
        task = "instance segmentation" if self.tells_instances else "semantic segmentation"
        if self.vocabulary is not None:
            task = f"labels said as {self.vocabulary.prompt!r} to {self.vocabulary.encoder}"
        notice = f" Licence: {self.licence}." if self.licence else ""
        return (
            f"{self.weight}: {kind}, {number:,} parameters, {task}, {self.num_classes} classes ({shown}). "
            f"Trained on {convention}. Runs on {self.device}.{notice}"
        )

    @property
    def licence(self) -> str:
        """What the metadata of a .safetensors file say under `license`; "" where they say nothing."""
        if not self.weight.endswith(".safetensors"):
            return ""
        from safetensors import safe_open

        with safe_open(self.weight, framework="pt") as file:
            return (file.metadata() or {}).get("license", "")

    def predict(
        self,
        points: Any,
        mode: str = "fast",
        max_points: int = MAX_POINTS,
        overlap: float = OVERLAP,
        fragments: int | None = None,
        seed: int = 0,
        columns: str = "auto",
        rgbd: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
        **options: Any,
    ) -> Prediction:
        """The class of each of `points`, in their order.

        Args:
            points: a path (`read_cloud` lists the kinds), an array or tensor [N, 3] (or [N, 6], [N, 9] with colours
                and normals), or a dict of coord and maybe color and normal [N, 3].
            mode: "fast" looks at the scan as it is: up to 4 points of each voxel take turns in standing for it, and all
                points of a voxel get the class of their sum, as in `SemSegTester`'s fast mode. "vote" adds the augmented
                views of the config's test, and every point is predicted from its own attributes, as in its vote.
            max_points: voxels in one pass through the network; larger scans are cut into boxes. This bounds memory.
            overlap: metres by which boxes reach beyond a cut. At least what the network looks at around a point gives
                the very result of the uncut scan.
            fragments: the most turns through the points of a voxel; None: 4 in the fast mode, 64 in a vote, where a point
                that had no turn gets its voxel's class. Instances always come from one turn.
            seed: of the augmentations. columns: of an array [N, 6], "color" or "normal".
            rgbd: for a folder of RGB-D frames, what `read_cloud` takes.
            say: gets a sentence for each guess. options: of `ScanOptions`.

        Raises: ValueError, TypeError, KeyError or FileNotFoundError as `read_cloud`, `as_cloud` and `prepare_scan`, and
            where a mode or number does not fit.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if max_points < 1 or overlap < 0 or (fragments is not None and fragments < 1):
            raise ValueError(f"wanted max_points and fragments of at least 1 and overlap of at least 0, got {max_points}, {fragments}, {overlap}")
        scan_options = ScanOptions(**options)
        if isinstance(points, (str, Path)):
            cloud = read_cloud(points, columns, up_axis=scan_options.up_axis, **(rgbd or {}))
        else:
            cloud = as_cloud(points, columns=columns)
        scan = prepare_scan(cloud, scan_options, self.needs, self.input.voxelize.grid_size)
        for guess in scan.guesses:
            say(guess)
        if self.precision.note:
            say(self.precision.note)
        say(f"{cloud.name}: {len(scan.coord):,} point{'s' if len(scan.coord) > 1 else ''} over {describe_extent(scan.coord)}")
        sample = {"coord": scan.coord, "color": scan.color, "normal": scan.normal}
        guesses, valid, scan = scan.guesses, scan.valid, None
        with preserved_rng(), torch.no_grad():
            set_seed(seed)
            run = _Run(self, mode, max_points, overlap, fragments, say)
            votes, merge, inverse = run({key: value for key, value in sample.items() if value is not None})
        return self._result(cloud, guesses, valid, votes, merge, inverse)

    def _result(self, cloud: Cloud, guesses: list[str], valid: NDArray, votes: Votes, merge: InstanceMerge | None, inverse: NDArray | None) -> Prediction:
        """Back from the points that were predicted to all that went in."""

        def spread(values: NDArray, missing: Any) -> NDArray:
            values = values if inverse is None else values[inverse]
            if len(values) == len(valid):
                return values
            result = np.full(len(valid), missing, values.dtype)
            result[valid] = values
            return result

        label, found = spread(votes.label, -1), {}
        if merge is not None:
            instance, classes, scores = merge.result()
            found = {"instance": spread(instance, -1), "classes": classes, "scores": scores}
        confidence = spread(votes.confidence, 0)
        return Prediction(cloud.coord, cloud.color, label, confidence, list(self.names), self.palette, guesses=guesses, **found)


class _Run:
    """One prediction: cutting, forward passes, votes."""

    def __init__(self, predictor: Predictor, mode: str, max_points: int, overlap: float, fragments: int | None, say: Callable[[str], None]):
        self.predictor, self.input = predictor, predictor.input
        self.max_points, self.overlap, self.say = max_points, overlap, say
        self.chains = self.input.augmentations if mode == "vote" else [None]
        self.fragments = 1 if predictor.tells_instances else fragments or FRAGMENTS[mode]
        self.mode = mode

    def __call__(self, sample: DataDict) -> tuple[Votes, InstanceMerge | None, NDArray | None]:
        """Votes and objects of the points of the prepared scan, and which of them each given point became (None: itself)."""
        sample = self.input.prepare(sample)
        inverse = sample.pop("inverse", None)
        coord = np.asarray(sample["coord"])
        tiles, lowest, turns = self._plan(coord)
        votes = Votes(len(coord), tiles)
        merge = InstanceMerge(len(coord)) if self.predictor.tells_instances else None
        with Progress(sum(turns) * len(self.chains), "predicting") as progress:
            for tile, low, turn in zip(tiles, lowest, turns, strict=True):
                probability, objects = self._tile(sample, tile, low, turn, progress)
                here = coord[tile.rows]
                votes.add(tile, here, probability)
                if merge is not None:
                    merge.add(tile, here, *objects)
        return votes, merge, None if inverse is None else np.asarray(inverse)

    def _plan(self, coord: NDArray) -> tuple[list[Tile], list[NDArray], list[int]]:
        """Tiles; of each, the cells from the scan's lowest to its own along each axis; its number of fragments."""
        voxels = self.input.voxels({"coord": coord})
        counts, inverse, cells = voxels.counts.numpy(), voxels.inverse.numpy(), voxels.grid_coord.numpy()
        stands = np.zeros(len(coord), np.uint8)
        stands[voxels.order[voxels.start[:-1]].numpy()] = 1  # one point counts for each voxel
        tiles = cut_tiles(coord, stands, self.max_points, self.overlap)
        if len(tiles) > 1 and self.overlap == 0 and self.predictor.tells_instances:
            raise ValueError(
                f"--overlap 0 would cut objects in two at the borders of the {len(tiles)} boxes that this scan needs: pieces are joined by what two "
                "boxes both see. Give an overlap above 0, or one box (--max-points)"
            )
        turns = [int(min(self.fragments, counts[inverse[tile.rows]].max())) for tile in tiles]
        lowest = [cells[tile.rows].min(axis=0) for tile in tiles]
        self._tell(len(counts), int(counts.max()), len(tiles), sum(turns))
        return tiles, lowest, turns

    def _tell(self, num_voxels: int, fullest: int, num_tiles: int, turns: int) -> None:
        words = f"{num_voxels:,} voxels of {self.input.voxelize.grid_size} m of up to {fullest} points"
        if num_tiles > 1:
            words += f", in {num_tiles} boxes of at most {self.max_points:,} that overlap by {2 * self.overlap:g} m (--max-points, --overlap)"
        views = f"{len(self.chains)} views, " if len(self.chains) > 1 else ""
        passes = turns * len(self.chains)
        words += f"; mode {self.mode} (--mode): {views}at most {self.fragments} turn{'s' if self.fragments > 1 else ''} through the points of a voxel"
        self.say(words + f" (--fragments), {passes} pass{'es' if passes > 1 else ''} in all")

    def _tile(self, sample: DataDict, tile: Tile, low: NDArray, turns: int, progress: Progress) -> tuple[NDArray[np.float32], tuple]:
        """(probabilities [n, K] of the tile's points, its objects or ())."""
        part = index_operator(dict(sample), tile.rows)
        points = torch.zeros(len(tile.rows), self.predictor.num_classes)  # sums at each point
        by_voxel, objects = torch.zeros_like(points), ()  # sums in the voxel of each point
        for chain in self.chains:
            # an augmentation may turn the scan, and then the grids of tiles do not match anyway
            view = chain({key: _copy(value) for key, value in part.items()}) if chain is not None else dict(part)
            voxels = self.input.voxels(view)
            progress.total += min(self.fragments, int(voxels.counts.max())) - turns  # a view has voxels of its own
            in_voxel, rulebooks = 0, {}
            for batch, index in self._batches(view, voxels, low if chain is None else None):
                share_rulebooks(batch, rulebooks)
                output = self._forward(batch)
                probability = output["seg_logits"].float().softmax(-1).cpu()
                ends = [0, *batch["offset"].tolist()]
                for rows in (slice(a, b) for a, b in zip(ends, ends[1:], strict=False)):
                    in_voxel = in_voxel + probability[rows]  # a fragment has one row of each voxel, in the order of voxels
                    if self.mode == "vote":
                        # and each row of the tile at most once, so plain indexed addition is exact and deterministic
                        points[index[rows]] += probability[rows]
                if self.predictor.tells_instances and not objects:
                    objects = _objects(output, voxels.inverse, ends[1])
                progress.update(len(ends) - 1)
            by_voxel += in_voxel[voxels.inverse]
        silent = points.sum(1) == 0  # all of them in the fast mode
        points[silent] = by_voxel[silent]
        if not points.isfinite().all():
            raise FloatingPointError(f"{self.predictor.weight}: the network's output is not finite on this scan")
        return (points / points.sum(1, keepdim=True)).numpy(), objects

    def _batches(self, view: DataDict, voxels: Voxels, low: NDArray | None) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """(batch, the row in the view of each of its points), fragments of at most max_points together.

        low: the tile's lowest cell, counted from the scan's: the grid is shifted so that cells are paired, and pairs of
        cells paired, as in the uncut scan.
        """
        waiting: list[DataDict] = []
        for fragment in self.input.fragments(view, voxels, self.fragments):
            if low is not None and "grid_coord" in fragment:
                fragment["grid_coord"] = fragment["grid_coord"] + torch.from_numpy(low % STRIDE)
            if waiting and (len(waiting) + 1) * len(fragment["index"]) > self.max_points:
                yield self._batch(waiting)
                waiting = []
            waiting.append(fragment)
        if waiting:
            yield self._batch(waiting)

    def _batch(self, fragments: list[DataDict]) -> tuple[dict[str, Any], Tensor]:
        batch = collate_fn(fragments)
        return to_device(batch, self.predictor.device), batch["index"].long()

    def _forward(self, batch: dict[str, Any]) -> Mapping[str, Any]:
        with self.predictor.precision.autocast():
            output = self.predictor.model(batch)
        if output["seg_logits"].shape[1] != self.predictor.num_classes:
            raise ValueError(
                f"{self.predictor.weight}: the model gives {output['seg_logits'].shape[1]} classes, data.num_classes is {self.predictor.num_classes}"
            )
        return output


def _objects(output: Mapping[str, Any], inverse: Tensor, count: int) -> tuple[NDArray[np.int32], list[int], list[float]]:
    """(object of each point [n], -1 none; class and score of each object) of the first scene of a forward."""
    masks = output["pred_masks"]
    masks = (masks if masks.is_sparse else masks.to_sparse()).coalesce()
    member, point = masks.indices().numpy()
    scores = output["pred_scores"].float().cpu().numpy()
    of_voxel = np.full(count, -1, np.int32)
    inside = point < count
    order = np.argsort(scores[member[inside]], kind="stable")  # where masks overlap, the surest one has the last word
    of_voxel[point[inside][order]] = member[inside][order]
    return of_voxel[inverse.numpy()], output["pred_classes"].cpu().tolist(), scores.tolist()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value.copy() if isinstance(value, np.ndarray) else value


def load(
    weight: str | Path,
    config: str | Path | None = None,
    device: str | torch.device | None = None,
    labels: str | Sequence[str] | None = None,
) -> Predictor:
    """A model that labels scans, with classes, transforms and range of colours as it was trained.

    Args:
        weight: a `.pth` or `.safetensors` file, or a run folder (its model_best, else model_last). The config of the
            training is in the files that this project writes; it is read as data, nothing in it is executed.
        config: a config file, for weights that carry none; it wins over theirs.
        device: "cpu", "cuda", ...; by default the GPU where there is one.
        labels: for a distilled model, its classes: labels (a list, or with commas between them) or the name of a label set; by
            default the names in its config.

    Raises: FileNotFoundError; ValueError where the file carries no config and none is given, is a pretraining (which has
        no classes), does not fit the config's model, was trained on another input than the config feeds, or has classes of its
        own and is given labels; what `build_vocabulary` raises.
    """
    path = find_weight(weight)
    fill_registries()
    cfg = Config.fromfile(config) if config else saved_config(path)
    if cfg is None:
        raise ValueError(f"{path} does not carry the config it was trained with; give it: --config FILE (load(..., config=...))")
    cfg = with_defaults(cfg)
    if config:
        import_custom(cfg)
    _check_task(path, cfg)
    if labels is not None and not is_open(MODELS.get(cfg.model.type)):
        names = class_settings(cfg)[1]
        raise ValueError(
            f"{path}: is a {cfg.model.type}, which learnt {len(names)} classes and knows no others ({', '.join(names[:4])}, ...); labels are "
            "for models distilled from 2D models that share a space with text (CUA-O3D)"
        )
    model = build_model(cfg.model)
    if config:
        check_input(path, cfg, section=scan_input(cfg).section)
    load_weights(model, path)
    vocabulary = None
    if is_open(model):
        vocabulary = give_vocabulary(model, cfg, labels)
        cfg.data.update(names=list(vocabulary.labels.names), num_classes=len(vocabulary.labels))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model, cfg, str(path), device, vocabulary)


def find_weight(weight: str | Path) -> Path:
    """The weight file: `weight` itself, or that of a run folder which its final test is of: the best, or the last (`tests_last`).

    Raises: FileNotFoundError with near files; ValueError for a file that is none by its name and its first bytes.
    """
    path = Path(weight)
    if path.is_file():
        with open(path, "rb") as file:
            head = file.read(9)
        # a zip and a pickle, as torch.save writes them; safetensors begin with the length of a JSON text
        if path.suffix.lower() not in WEIGHTS and not head.startswith((b"PK\3\4", b"\x80")) and head[8:] != b"{":
            raise ValueError(f"weight: {path} is no weight file; wanted a .pth or .safetensors file, or a run folder")
        return path
    if path.is_dir():
        for folder in (path / "model", path):
            best, last = (
                next((file for suffix in (".pth", ".safetensors") if (file := folder / f"{stem}{suffix}").is_file()), None) for stem in ("model_best", "model_last")
            )
            if best and last:
                return last if tests_last(saved_config(last) or {}) else best
            if best or last:
                return best or last
        raise FileNotFoundError(f"weight: {path} holds no model/model_best.pth or model_last.pth; it is no run folder, or nothing was saved yet")
    raise FileNotFoundError(f"weight: no file or run folder {path}; {near_files(path)}")


def _check_task(path: Path, cfg: Config) -> None:
    """Raises ValueError where the model has no classes to give."""
    if "type" not in (cfg.get("model") or {}):
        raise ValueError(f"{path}: its config has no model")
    kind = cfg.model.type
    if kind not in MODELS:
        custom = " It is imported by custom_imports, which a weight file may not do: pass --config." if cfg.get("custom_imports") else ""
        raise ValueError(f"{path}: is a {kind}, which this version does not know.{custom}")
    if getattr(MODELS.get(kind), "task", None) not in ("semseg", "insseg") and not is_open(MODELS.get(kind)):
        raise ValueError(
            f"{path}: is a {kind}, a pretraining without a class head, so it has nothing to predict. Fine-tune it on labelled scenes first: "
            f"pointcept3m train --config-file configs/rooms/semseg-spunet-v1m1-0-base.py --options weight={path}"
        )
