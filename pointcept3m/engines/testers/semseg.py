"""Semantic segmentation: every raw point is scored by all fragments and augmentations that hold it, or by one pass."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines import metrics, protocol
from pointcept3m.engines.defaults import class_settings, runtime_of, write_json
from pointcept3m.engines.facts import memory_words
from pointcept3m.engines.loader import shutdown_workers, to_device
from pointcept3m.engines.protocol import Through
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write, file_stem
from pointcept3m.utils.logger import Progress, format_seconds
from pointcept3m.utils.registry import near_names

from .base import TESTERS, Scores, TesterBase, check_writable, scene_files
from .parts import SceneParts, build_part_loader

MODES = ("vote", "fast", "compare")
# Points in one forward of the fast mode, where fragment_batch_size does not say how many fragments. A CPU gains nothing
# from batches: beyond some 100,000 points it loses, to its caches and to rulebooks that fewer forwards share.
FAST_POINTS = {"cpu": 100_000, "cuda": 400_000}
TOTALS = ("mIoU", "mAcc", "allAcc")


@TESTERS.register_module()
class SemSegTester(TesterBase):
    """mIoU, mAcc and allAcc over `data.test`.

    Samples are those of a dataset in test mode: `segment`, `name` and `fragment_list`, whose fragments carry
    `index`, rows of the raw points (and maybe `origin_segment` with `inverse`). The softmax of each fragment is added
    up at its rows, and the largest sum wins. Predictions go to `result/<name>_pred.npy` and are never read back: an
    earlier run's, of other weights, cannot slip in. The confusion matrix goes to `result/confusion.json`.

    Args:
        mode: "vote" is Pointcept's protocol, the fragments of every augmentation of test_cfg. "fast" leaves
            aug_transform out, takes at most `fast_fragments` fragments, several in one forward, and adds their softmax
            up in each voxel, whose class all its points get. "compare" runs both and says what voting gains; its scores
            and predictions are those of the vote, the others are `fast_<name>`.
        fragment_batch_size: fragments in one forward. By default 1 in a vote, as Pointcept's, and in the fast mode as
            many as hold 100,000 points, on a GPU 400,000.
        fast_fragments: more of them change little: on generated rooms of 14 fragments, mIoU was 0.2402 with 1, 0.2430
            with 2, 0.2447 with 4 and 0.2446 with all.
        save_predictions: false leaves the files out.
        save_submission: writes `result/submit/<name>.txt`, ScanNet's format: a line with the class's id for each
            point. The ids are the dataset's `class2id`; by default files are written where it has one.
        absent: see `metrics.segmentation_scores`. Where "skip" gives other means than Pointcept's rule, theirs stand beside
            them, `mIoU_absent_zero` and `mAcc_absent_zero`.
    """

    task = "semseg"

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        mode: str = "vote",
        fragment_batch_size: int | None = None,
        fast_fragments: int = 4,
        save_predictions: bool = True,
        save_submission: bool | None = None,
        absent: str = "skip",
    ):
        if mode not in MODES:
            raise ValueError(f"SemSegTester: mode must be one of {', '.join(MODES)}, got {mode!r}; {near_names(str(mode), MODES)}")
        sizes = {"fragment_batch_size": 1 if fragment_batch_size is None else fragment_batch_size, "fast_fragments": fast_fragments}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"SemSegTester: {name} must be at least 1, got {value!r}")
        if test_loader is not None and mode != "vote":
            raise ValueError(f"SemSegTester: mode={mode!r} makes its own loader of data.test, so test_loader cannot be given")
        self.mode, self.fragment_batch_size, self.fast_fragments, self.absent = mode, fragment_batch_size, fast_fragments, absent
        self.save_predictions, self.save_submission = save_predictions, save_submission
        super().__init__(cfg, model, test_loader, verbose)

    def build_test_loader(self) -> torch.utils.data.DataLoader:
        return self._loader("fast" if self.mode == "fast" else "vote")

    def _loader(self, mode: str) -> torch.utils.data.DataLoader:
        section = without_augmentation(self.test_section) if mode == "fast" else self.test_section
        ranks = dict(rank=comm.get_rank(), world=comm.get_world_size())
        runtime, seed = runtime_of(self.cfg), self.cfg.seed or 0
        parts = SceneParts(build_dataset(section), self.fast_fragments if mode == "fast" else None)
        return build_part_loader(parts, self.collate, seed, runtime.num_worker, self.cfg.worker_timeout, **ranks)

    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        if self.mode != "compare":
            return self._scores(self._pass(self.mode, self.test_loader, check_stop))
        loader = self._loader("fast")
        try:
            fast = self._pass("fast", loader, check_stop, keep=False)
        finally:
            shutdown_workers(loader)
        vote = self._pass("vote", self.test_loader, check_stop)
        return self._compared(fast, vote)

    @torch.no_grad()
    def _pass(self, mode: str, loader: Any, check_stop: Callable[[], None], keep: bool = True) -> "Pass":
        """Every scene of `loader` in one mode. keep: whether predictions are written, as the settings say."""
        number, _, ignore = class_settings(self.cfg)
        ids = self._class_ids(loader, number) if keep else None
        if keep and (self.save_predictions or ids is not None):
            check_writable(self.save_path / "result")
        self.model.eval()
        done, meeting, start = Pass(mode, torch.zeros(number, number, dtype=torch.int64)), comm.Meeting(), time.monotonic()
        votes = None
        with Progress(len(loader), "testing" if keep else "testing (fast)") as progress:
            for sample in _one_by_one(loader):
                check_stop()
                part, parts = sample.get("test_part", (0, 1))
                done.augmentations = max(done.augmentations, parts if "test_part" in sample else 0)
                votes = SceneVotes(sample, number, self.device) if part == 0 else votes
                for index, probability in self._fragment_scores(sample, mode, number, done, meeting.beat):
                    votes.add(index, probability)
                if part == parts - 1:
                    self._finish_scene(votes, done, number, ignore, ids, keep)
                del sample  # before the next one is made: they are large
                progress.update()
        meeting.wait()
        return done.gathered(time.monotonic() - start)

    def _finish_scene(self, votes: "SceneVotes", done: "Pass", number: int, ignore: int, ids: np.ndarray | None, keep: bool) -> None:
        pred, target = votes.result()
        try:
            scene = metrics.confusion_matrix(pred, target, number, ignore)
        except ValueError as error:
            raise ValueError(f"scene {votes.name}: {error}") from error
        done.confusion += scene
        done.scenes += 1
        done.through = max(done.through, Through.NOTHING if votes.inverse is None else Through.VOXEL)
        done.voxels |= votes.voxel is not None
        if keep:
            self._save(votes.name, pred, ids, done.scenes - 1)
        if self.verbose and keep and scene.sum():
            scores = metrics.segmentation_scores(scene, self.absent)
            self.logger.info(f"{votes.name}: {len(pred)} points, mIoU {scores['mIoU']:.4f}, allAcc {scores['allAcc']:.4f}")

    @torch.no_grad()
    def predict(self, sample: Mapping[str, Any], num_classes: int) -> tuple[Tensor, Tensor]:
        """Classes and labels [N] int64 of the raw points of one whole scene, on the CPU.

        Raises: ValueError where the fragments leave a point without a vote, or the model's output is not finite.
        """
        votes = SceneVotes(sample, num_classes, self.device)
        for index, probability in self._fragment_scores(sample, "fast" if self.mode == "fast" else "vote", num_classes):
            votes.add(index, probability)
        return votes.result()

    def _fragment_scores(
        self, sample: Mapping[str, Any], mode: str, num_classes: int, done: "Pass | None" = None, beat: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields rows and softmax [n, K] of each fragment of `sample`."""
        fragments = sample.get("fragment_list")
        if fragments is None:
            raise KeyError(f"SemSegTester: sample {sample.get('name')!r} has no 'fragment_list'; data.test needs test_mode=True and a test_cfg")
        voxels: dict[str, Any] = {}
        for part in self._batches(fragments, mode):
            batch = to_device(collate_fn(part), self.device)
            share_rulebooks(batch, voxels)
            with self.precision.autocast():
                output = self.model(batch)
            logits = self._checked(output, batch, num_classes, sample.get("name"))
            ends = [0, *batch["offset"].tolist()]
            probability = logits.float().softmax(-1)
            for i in range(len(part)):
                rows = slice(ends[i], ends[i + 1])
                yield batch["index"][rows].long(), probability[rows]
            if done is not None:
                done.fragments, done.forwards = done.fragments + len(part), done.forwards + 1
                done.most_points = max(done.most_points, ends[-1])
            beat()

    def _batches(self, fragments: Sequence[Mapping[str, Any]], mode: str) -> Iterator[list[Mapping[str, Any]]]:
        """The fragments of each forward."""
        if self.fragment_batch_size is not None or mode == "vote":
            size = self.fragment_batch_size or 1
            yield from (fragments[start : start + size] for start in range(0, len(fragments), size))
            return
        most = FAST_POINTS.get(self.device.type, FAST_POINTS["cuda"])
        held: list[Mapping[str, Any]] = []
        for fragment in fragments:
            if held and sum(len(one["index"]) for one in held) + len(fragment["index"]) > most:
                yield held
                held = []
            held.append(fragment)
        if held:
            yield held

    def _checked(self, output: Mapping[str, Tensor], batch: Mapping[str, Any], num_classes: int, name: Any) -> Tensor:
        """The logits [N, K] of a batch. Raises: KeyError or ValueError, with the scene, where they are none."""
        if "seg_logits" not in output:
            raise KeyError(f"SemSegTester: {type(self.model).__name__} gave {', '.join(sorted(output))}; wanted seg_logits")
        logits = output["seg_logits"]
        if logits.shape != (len(batch["index"]), num_classes):
            wanted = f"{[len(batch['index']), num_classes]} for {len(batch['index'])} points and data.num_classes={num_classes}"
            raise ValueError(f"scene {name}: the model gave logits {list(logits.shape)}, wanted {wanted}")
        if not torch.isfinite(logits).all():
            bad = (~torch.isfinite(logits)).any(1)
            raise ValueError(
                f"scene {name}: the model's output is not finite at {int(bad.sum()):,} of {len(bad):,} points; are there NaN in the "
                "weights, in the scene, or does float16 overflow (enable_amp=False, or amp_dtype='bfloat16')?"
            )
        return logits

    # what is written

    def _class_ids(self, loader: Any, number: int) -> np.ndarray | None:
        """The id of each class in a submission, or None where none is to be written."""
        if self.save_submission is False:
            return None
        dataset = getattr(loader, "dataset", None)
        while hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        ids = getattr(dataset, "class2id", None)
        if ids is None and self.save_submission:
            raise ValueError(f"SemSegTester: save_submission=True, but {type(dataset).__name__} has no class2id, the id of each class")
        if ids is not None and len(ids) != number:
            words = f"{type(dataset).__name__}.class2id has {len(ids)} ids, data.num_classes is {number}"
            if self.save_submission:
                raise ValueError(f"SemSegTester: no submission can be written, {words}")
            self.logger.warning(f"no submission is written: {words}")
            return None
        return None if ids is None else np.asarray(ids)

    def _save(self, name: str, pred: Tensor, ids: np.ndarray | None, finished: int) -> None:
        safe, folder, classes = file_stem(name), self.save_path / "result", pred.numpy().astype(np.int32)
        with scene_files(name, "result", folder, finished):
            if self.save_predictions:
                atomic_write(folder / f"{safe}_pred.npy", lambda stream: np.save(stream, classes, allow_pickle=False))
            if ids is not None:
                text = "\n".join(map(str, ids[classes].tolist())) + "\n"
                atomic_write(folder / "submit" / f"{safe}.txt", lambda stream: stream.write(text.encode()))

    def _scores(self, done: "Pass", record: bool = True) -> Scores:
        """The scores of a pass, into the log too. record: whether result/confusion.json is written."""
        names = class_settings(self.cfg)[1]
        number = int(done.confusion.sum())
        section = self.cfg.data.get("test") or {}
        scored, counted = protocol.points_scored(section, number, done.through), protocol.classes_counted(done.confusion, self.absent)
        self.protocol = done.protocol(f"{scored}, {counted}" if number else scored)
        size = self.fragment_batch_size or (1 if done.mode == "vote" else "automatic")
        self.logger.info(
            f"{memory_words()} so far with fragment_batch_size {size} (at most {done.most_points:,} points in one forward); "
            f"{done.scenes} scenes in {format_seconds(done.seconds)}"
        )
        if number == 0:
            self.logger.warning("test: data.test has no labels, so nothing is scored")
            return {}, {}
        scores = metrics.segmentation_scores(done.confusion, self.absent)
        totals = {name: scores[name] for name in TOTALS}
        zero = metrics.segmentation_scores(done.confusion, "zero")
        totals |= {f"{name}_absent_zero": zero[name] for name in TOTALS if zero[name] != totals[name]}
        per_class = {name: {"iou": iou, "acc": acc} for name, iou, acc in zip(names, scores["iou"], scores["acc"], strict=True)}
        self.logger.info("test: " + "  ".join(f"{name} {value:.4f}" for name, value in totals.items()) + f"  ({self.protocol})")
        if record and self.is_main:
            self._record(done, names)
        return totals, per_class

    def _record(self, done: "Pass", names: list[str]) -> None:
        """What cross-validation adds up: the counts of this test and what they are of."""
        section = self.cfg.data.get("test") or {}
        split = section.get("split", "test")
        content = {
            "dataset": section.get("type"),
            "split": split if isinstance(split, str) else "+".join(split),
            "names": names,
            "protocol": self.protocol,
            "confusion": done.confusion.tolist(),
        }
        write_json(self.save_path / "result" / "confusion.json", content)

    def _compared(self, fast: "Pass", vote: "Pass") -> Scores:
        """The vote's scores, and beside them those of the fast pass."""
        fast_totals, fast_classes = self._scores(fast, record=False)
        fast_protocol = self.protocol
        totals, per_class = self._scores(vote)
        if not totals:
            return totals, per_class
        self.protocol = f"{self.protocol}; fast_: {fast_protocol}"
        gain = totals["mIoU"] - fast_totals["mIoU"]
        self.logger.info(
            f"vote {totals['mIoU']:.4f} in {vote.seconds:.1f} s, fast {fast_totals['mIoU']:.4f} in {fast.seconds:.1f} s: "
            f"voting changes mIoU by {gain:+.4f} and takes {vote.seconds / fast.seconds:.1f} times as long"
        )
        totals |= {f"fast_{name}": value for name, value in fast_totals.items()}
        totals |= {"vote_seconds": vote.seconds, "fast_seconds": fast.seconds}
        for name, row in per_class.items():
            row["fast_iou"] = fast_classes[name]["iou"]
        return totals, per_class


@dataclass
class Pass:
    """What one pass over the scenes counted: of this process, or after `gathered` of all."""

    mode: str
    confusion: Tensor
    seconds: float = 0.0
    scenes: int = 0
    augmentations: int = 0  # 0 where the data set does not tell
    fragments: int = 0
    forwards: int = 0
    most_points: int = 0  # in one forward
    through: Through = Through.NOTHING
    voxels: bool = False  # whether votes were added up in voxels

    def gathered(self, seconds: float) -> "Pass":
        """The same over all processes."""
        counts = torch.tensor([self.scenes, self.fragments, self.forwards])
        scenes, fragments, forwards = comm.all_reduce_sum(counts).tolist()
        augmentations, most, through, voxels = comm.agree_max(self.augmentations, self.most_points, int(self.through), int(self.voxels))
        confusion = comm.all_reduce_sum(self.confusion)
        return Pass(self.mode, confusion, seconds, scenes, augmentations, fragments, forwards, most, Through(through), bool(voxels))

    def protocol(self, scored: str) -> str:
        """In words, with what was scored."""
        counts = (self.augmentations, self.scenes, self.fragments, self.forwards)
        return protocol.vote_protocol(self.mode, *counts, "in each voxel" if self.voxels else "at each point", scored)


class SceneVotes:
    """The sums of softmax of one scene, for each of N points, or of V voxels where the sample has `voxel` [N].

    sample: its `segment` and `name`, and where they differ from the raw points, `origin_segment` and `inverse`.
    """

    def __init__(self, sample: Mapping[str, Any], num_classes: int, device: torch.device):
        self.name, self.segment = sample.get("name"), torch.as_tensor(sample["segment"]).long()
        self.voxel = torch.as_tensor(sample["voxel"]).long().to(device) if "voxel" in sample else None
        rows = len(self.segment) if self.voxel is None else int(self.voxel.max()) + 1
        self.sums = torch.zeros(rows, num_classes, device=device)
        self.inverse = self.origin = None
        if "inverse" in sample and "origin_segment" in sample:
            self.inverse, self.origin = (torch.as_tensor(sample[key]).long() for key in ("inverse", "origin_segment"))

    def add(self, index: Tensor, probability: Tensor) -> None:
        """Adds one fragment's. It has each row once, so plain indexed addition is exact and deterministic."""
        self.sums[index if self.voxel is None else self.voxel[index]] += probability

    def result(self) -> tuple[Tensor, Tensor]:
        """Classes and labels [N] int64 of the raw points, on the CPU. Raises ValueError where one has no vote."""
        unseen = int((self.sums.sum(1) == 0).sum())
        if unseen:
            raise ValueError(f"scene {self.name}: {unseen} of {len(self.sums)} points are in no fragment; test_cfg must cover every point")
        pred = self.sums.argmax(1)
        pred = (pred if self.voxel is None else pred[self.voxel]).cpu()
        return (pred, self.segment) if self.inverse is None else (pred[self.inverse], self.origin)


def without_augmentation(section: Mapping[str, Any]) -> dict[str, Any]:
    """A data section whose test_cfg has no aug_transform: its fragments are those of the scene as it is."""
    section = dict(section)
    if section.get("test_cfg"):
        section["test_cfg"] = {**section["test_cfg"], "aug_transform": None}
    return section


def _one_by_one(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The samples of all batches, none of which stays here after it was given."""
    for samples in loader:
        while samples:
            yield samples.pop(0)


def share_rulebooks(batch: dict[str, Any], last: dict[str, Any]) -> None:
    """Gives a batch the rulebooks of the `last` one, if it has the same voxels in the same order.

    The fragments of an augmentation do: they differ in which point stands for a voxel. Sparse backbones keep their
    rulebooks in `indice_dict`, others leave it alone.
    """
    if "grid_coord" not in batch:
        return
    if not last or not all(torch.equal(batch[key], last[key]) for key in ("grid_coord", "offset")):
        last.update(grid_coord=batch["grid_coord"], offset=batch["offset"], indice_dict={})
    batch["indice_dict"] = last["indice_dict"]
