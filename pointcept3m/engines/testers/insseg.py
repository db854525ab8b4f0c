"""The test of instance segmentation, and its predictions as files that ScanNet's benchmark reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines import instance_metrics
from pointcept3m.engines.defaults import class_settings, runtime_of
from pointcept3m.engines.facts import memory_words
from pointcept3m.engines.instance_metrics import Instances
from pointcept3m.engines.loader import to_device
from pointcept3m.engines.protocol import Through, val_protocol
from pointcept3m.utils import comm
from pointcept3m.utils.files import atomic_write, file_stem
from pointcept3m.utils.logger import Progress

from .base import TESTERS, Scores, TesterBase, check_writable, scene_files


@TESTERS.register_module()
class InsSegTester(TesterBase):
    """mAP, AP50 and AP25 over `data.test`, a pass over each whole scene.

    Samples are those that `InsSegEvaluator` takes, and so are segment_ignore_index, instance_ignore_index and
    min_region_size. Scenes without labels are predicted and not scored.

    save_predictions: writes result/instances/<scene>.txt and result/instances/predicted_masks/, the benchmark's format
    (`write_scene`), in place of what an earlier test left there; 160 KB a mask on a scan of 81,000 points.
    class_ids: the number that stands for each of the num_classes classes there; those of the dataset (`class2id`) by
    default, else the class itself. verbose: a log line for each scene.
    """

    task = "insseg"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        segment_ignore_index: Sequence[int] = (-1,),
        instance_ignore_index: int = -1,
        min_region_size: int = instance_metrics.MIN_REGION_SIZE,
        save_predictions: bool = False,
        class_ids: Sequence[int] | None = None,
    ):
        self.segment_ignore_index, self.instance_ignore_index = tuple(segment_ignore_index), instance_ignore_index
        self.min_region_size, self.save_predictions, self.class_ids = min_region_size, save_predictions, class_ids
        super().__init__(cfg, model, test_loader, verbose)

    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        names = class_settings(self.cfg)[1]
        classes = instance_metrics.scored_classes(names, self.segment_ignore_index)
        folder = self.save_path / "result" / "instances"
        if self.save_predictions:
            class_ids = self._class_ids(len(names))
            check_writable(folder)
            if self.is_main:
                remove_scenes(folder)
            comm.synchronize()
        matches, scenes, points, through, meeting = [], 0, 0, Through.NOTHING, comm.Meeting()
        with Progress(len(self.test_loader), "testing") as progress:
            for batch in self.test_loader:
                check_stop()
                for name, instances, segment, instance in self.predict(batch):
                    scenes += 1
                    if self.save_predictions:
                        self._save(folder, name, instances, {k: class_ids[k] for k in classes}, scenes - 1)
                    mine = []
                    if segment is not None and instance is not None:
                        args = (list(classes), self.instance_ignore_index, self.min_region_size)
                        mine = [instance_metrics.match_instances(instances, segment, instance, *args)]
                        points += instances.num_points
                    matches += mine
                    if self.verbose:
                        self._tell(name, instances, mine, classes)
                through = max(through, instance_metrics.way_to_raw_points(batch))
                meeting.beat()
                progress.update()
        meeting.wait()
        gathered = comm.all_gather((matches, scenes, points, through))
        matches = [match for of_rank, *_ in gathered for match in of_rank]
        scenes, points = sum(part[1] for part in gathered), sum(part[2] for part in gathered)
        self.protocol = val_protocol(self.cfg.data.get("test") or {}, points, max(part[3] for part in gathered), instances=True)
        self.logger.info(f"{memory_words()} so far with batch_size_test {runtime_of(self.cfg).batch_size_test}; {scenes} scenes")
        if self.save_predictions:
            self.logger.info(f"predictions of {scenes} scenes are in {folder}")
        return self._score(matches, classes)

    def predict(self, batch: Mapping[str, Any]) -> Iterator[tuple[str, Instances, np.ndarray | None, np.ndarray | None]]:
        """Yields name, predictions and labels of each scene of a batch, on the raw points where it carries them."""
        if not isinstance(batch, Mapping) or "fragment_list" in batch or "offset" not in batch:
            raise ValueError(
                "InsSegTester: wants whole scenes, as data.val gives them; data.test must have test_mode=False, no test_cfg, "
                "and a Collect that makes offset"
            )
        batch = to_device(batch, self.device)
        self.model.eval()
        with torch.no_grad(), self.precision.autocast():
            output = self.model(batch)
        names = batch.get("name") or [None] * len(batch["offset"])
        for name, (instances, segment, instance) in zip(names, instance_metrics.raw_scenes(output, batch), strict=True):
            if name is None and self.save_predictions:
                raise KeyError("InsSegTester: files are named after scenes, and the samples have no 'name'; Collect must keep it")
            yield str(name), instances, segment, instance

    def _save(self, folder: Path, name: str, instances: Instances, class_ids: Mapping[int, int], finished: int) -> None:
        with scene_files(name, "instances", folder, finished):
            write_scene(folder, name, instances, class_ids)

    def _score(self, matches: Sequence[Any], classes: Mapping[int, str]) -> Scores:
        if not matches:
            self.logger.warning("test: data.test has no labels, so nothing is scored")
            return {}, {}
        ap = instance_metrics.average_precision(matches, list(classes), min_region_size=self.min_region_size)
        totals, per_class = instance_metrics.instance_scores(ap, list(classes.values()))
        line = "  ".join(f"{name} {value:.4f}" for name, value in totals.items())
        self.logger.info(f"test: {line}  ({self.protocol})\n{instance_metrics.score_table(totals, per_class)}")
        return totals, per_class

    def _tell(self, name: str, instances: Instances, matches: Sequence[Any], classes: Mapping[int, str]) -> None:
        words = f"{name}: {instances.num_points} points, {len(instances.classes)} instances predicted"
        if matches:
            ap = instance_metrics.average_precision(matches, list(classes), min_region_size=self.min_region_size)
            words += f", {len(matches[0].true_size)} there, AP50 {instance_metrics.instance_scores(ap, classes)[0]['AP50']:.4f}"
        self.logger.info(words)

    def _class_ids(self, num_classes: int) -> list[int]:
        dataset = getattr(self.test_loader, "dataset", None)
        dataset = getattr(dataset, "dataset", dataset)  # inside the one that seeds its samples
        found = self.class_ids if self.class_ids is not None else getattr(dataset, "class2id", None)
        ids = list(range(num_classes)) if found is None else [int(k) for k in found]
        if len(ids) != num_classes:
            raise ValueError(f"InsSegTester: wanted a class id for each of data.num_classes = {num_classes}, got {len(ids)}")
        return ids


def write_scene(folder: Path, name: str, instances: Instances, class_ids: Mapping[int, int]) -> Path:
    """Writes a scene's predictions as ScanNet's benchmark reads them, and returns the path of `<name>.txt`.

    `<name>.txt` has a line for each instance of a class in `class_ids`: the mask's path relative to `folder`, the id of
    its class, its score. A mask, `predicted_masks/<name>_000.txt`, has a line for each point, 1 inside and 0 outside.
    """
    safe = "_".join(file_stem(name).split())  # a blank would end the path of a mask
    order = np.argsort(instances.member, kind="stable")
    points = np.split(instances.point[order], np.cumsum(np.bincount(instances.member, minlength=len(instances.classes))))
    lines = []
    for number, (kind, score) in enumerate(zip(instances.classes.tolist(), instances.scores.tolist(), strict=True)):
        if kind not in class_ids:
            continue
        path = f"predicted_masks/{safe}_{len(lines):03d}.txt"
        text = np.tile(np.frombuffer(b"0\n", dtype=np.uint8), (instances.num_points, 1))
        text[points[number], 0] = ord("1")
        atomic_write(folder / path, lambda stream, text=text: stream.write(text.tobytes()))
        lines.append(f"{path} {class_ids[kind]} {score!r}\n")
    target = folder / f"{safe}.txt"
    atomic_write(target, lambda stream: stream.write("".join(lines).encode()))
    return target


def remove_scenes(folder: Path) -> None:
    """Deletes what `write_scene` has written into `folder`: the benchmark would score every scene it finds there."""
    for path in [*folder.glob("*.txt"), *(folder / "predicted_masks").glob("*.txt")]:
        path.unlink()
