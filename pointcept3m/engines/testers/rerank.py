"""Floorplan retrieval before and after re-ranking."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.datasets.collate import collate_fn
from pointcept3m.datasets.plan_pairs import plan_raster, scan_raster
from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.retrieval import rerank
from pointcept3m.structures.scene_embeddings import SceneEmbeddings, read_embeddings
from pointcept3m.structures.scene_objects import read_floorplan
from pointcept3m.utils.files import atomic_write
from pointcept3m.utils.seed import mix_seed

from .base import TESTERS, Scores, TesterBase, check_writable


@TESTERS.register_module()
class RerankTester(TesterBase):
    """Re-ranks, for each floorplan of data.test (a PlanPairDataset), the scenes that a first stage found; and for each scan the plans.

    Scores of `<direction>` (floorplan->point, point->floorplan): top1 and top5 (the very scan), place_top1 (any scan of its place):
    first stage, re-ranked, and the re-ranker over the whole gallery. `result/rerank.json` and `.txt` have them with chance levels.

    Args:
        embeddings: file that RetrievalTester wrote, of the same scenes: the first stage. None: the re-ranker alone.
        top: candidates that are re-ranked.
        turn: each scan is turned about z by an angle of its name first, so that its axes say nothing.
    """

    task = "rerank"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        embeddings: str | Path | None = None,
        top: int = 10,
        turn: bool = True,
    ):
        if top < 1:
            raise ValueError(f"RerankTester: top must be at least 1, got {top}")
        self.first = None if embeddings is None else read_embeddings(embeddings)
        self.top, self.turn = top, turn
        super().__init__(cfg, model, test_loader, verbose)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        check_writable(self.save_path / "result")
        data, model = build_dataset(self.test_section), self.model.eval()
        names, places = [data.get_data_name(row) for row in range(len(data.data_list))], np.array(data.places)
        plans, scans = [], []
        for name, folder in zip(names, data.data_list, strict=True):
            check_stop()
            angle = mix_seed("turn", name) % 3600 / 3600 * 2 * np.pi if self.turn else 0.0
            plans.append(plan_raster(read_floorplan(folder), model.size, model.cell))
            scans.append(scan_raster(folder, model.size, model.cell, angle))
        tensors = [torch.from_numpy(np.stack(each)).to(self.device) for each in (plans, scans)]
        second = rerank.all_scores(model, *tensors, check_stop).cpu().numpy()
        own, place = np.eye(len(names), dtype=bool), places[:, None] == places
        results = {"floorplan->point": self._ways(names, second, own, place), "point->floorplan": self._ways(names, second.T, own, place, back=True)}
        self.protocol = f"{len(names)} scenes of {len(set(data.places))} places" + (", every scan turned by an angle of its own" if self.turn else "")
        if self.first is not None:
            limits = " and ".join(f"{ways['re-ranked']['limit'] * 100:.1f} %" for ways in results.values())
            self.protocol += f"; the first {self.top} candidates are re-ranked, among which is the answer in {limits}"
        if self.is_main:
            table = rerank.text_table(results)
            write_json(self.save_path / "result" / "rerank.json", {"protocol": self.protocol, "scores": results})
            atomic_write(self.save_path / "result" / "rerank.txt", lambda stream: stream.write(f"{self.protocol}\n\n{table}".encode()))
            self.logger.info(f"test: re-ranking, in percent ({self.protocol})\n{table}")
        keys = ("top1", "top5", "place_top1")
        return {
            f"{direction.replace('->', '_')}_{way.replace(' ', '_')}_{key}": each[key]
            for direction, ways in results.items() for way, each in ways.items() for key in keys
        }, {}  # fmt: skip

    def _ways(self, names: Sequence[str], second: NDArray, own: NDArray, place: NDArray, back: bool = False) -> dict[str, dict[str, float]]:
        found = {"re-ranker alone": second}
        if self.first is not None:
            first = first_stage(self.first, names)
            found = {"first stage": first.T if back else first} | found
            found["re-ranked"] = rerank.reorder(found["first stage"], second, self.top)
        order = [way for way in ("first stage", "re-ranked", "re-ranker alone") if way in found]
        scores = {way: rerank.recall(found[way], own) | {"place_top1": rerank.recall(found[way], place, (1,))["top1"]} for way in order}
        if self.first is not None:  # no re-ranking finds what is no candidate
            scores["re-ranked"]["limit"] = rerank.recall(found["first stage"], own, (self.top,))[f"top{self.top}"]
        return scores


def first_stage(embeddings: SceneEmbeddings, names: Sequence[str]) -> NDArray[np.float64]:
    """Cosines [N, N] of the floorplans of scenes `names` and their points. Raises ValueError where one has no such embedding."""
    row_of = {name: row for row, name in enumerate(embeddings.names)}
    rows = [row_of.get(name, -1) for name in names]
    for modality in ("floorplan", "point"):
        known = embeddings.scene_known.get(modality, np.zeros(len(embeddings), bool))
        lacking = [name for name, row in zip(names, rows, strict=True) if row < 0 or not known[row]]
        if lacking:
            raise ValueError(
                f"RerankTester: embeddings have no {modality} of {len(lacking)} of {len(names)} scenes, first {lacking[0]!r}; "
                "wanted a file that RetrievalTester wrote of this split by a model of scenes (rooms-unified)"
            )
    return embeddings.scenes["floorplan"][rows].astype(np.float64) @ embeddings.scenes["point"][rows].astype(np.float64).T
