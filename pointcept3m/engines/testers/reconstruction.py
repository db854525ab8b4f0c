"""Objects decoded from their embeddings, beside retrieval and mean shapes; a sheet of pictures; what storing them costs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pointcept3m.datasets.builder import build_dataset
from pointcept3m.datasets.collate import collate_fn
from pointcept3m.engines.defaults import write_json
from pointcept3m.engines.loader import EvaluationSampler, build_loader
from pointcept3m.engines.pictures import save_side_by_side
from pointcept3m.engines.retrieval import reconstruct
from pointcept3m.utils.files import atomic_write

from .base import TESTERS, Scores, TesterBase, check_writable


@TESTERS.register_module()
class ReconstructionTester(TesterBase):
    """Decodes objects of data.test (an ObjectCloudDataset) and compares them with their points: PSNR of pictures and chamfer distance.

    Scores are `decoded_<modality>_psnr`, `nearest_<modality>_psnr`, `class_mean_psnr`, ..., and `_chamfer`; with the storage figures
    they are in `result/reconstruction.json` and `.txt`, pictures in `pictures/objects.png`.

    Args:
        train: settings of the training objects for the baselines; what is not given is data.test's.
        max_objects: so many test objects are drawn by the seed. num_pictures: rows of the sheet, each of another label where it can be.
    """

    task = "reconstruction"
    collate = staticmethod(collate_fn)

    def __init__(
        self,
        cfg: Mapping[str, Any],
        model: nn.Module | None = None,
        test_loader: Any = None,
        verbose: bool = False,
        train: Mapping[str, Any] | None = None,
        max_objects: int = 200,
        num_pictures: int = 10,
    ):
        if max_objects < 1 or num_pictures < 1:
            raise ValueError(f"ReconstructionTester: wanted max_objects and num_pictures of at least 1, got {max_objects} and {num_pictures}")
        self.train_settings, self.max_objects, self.num_pictures = dict(train or {}), max_objects, num_pictures
        super().__init__(cfg, model, test_loader, verbose)

    @torch.no_grad()
    def test(self, check_stop: Callable[[], None] = lambda: None) -> Scores:
        check_writable(self.save_path / "result")
        self.model.eval()
        data = build_dataset({**self.test_section, "split": "train", **self.train_settings})
        loader = build_loader(data, EvaluationSampler(len(data), 4, 0, 1), collate_fn, self.seed)
        train = reconstruct.gather_objects(self.model, loader, check_stop)
        every = reconstruct.gather_objects(self.model, self.test_loader, check_stop)
        order = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(self.seed))
        test = every.take(order[: self.max_objects])
        results = reconstruct.compare(self.model, train, test, check_stop=check_stop)
        dataset = self.test_loader.dataset
        dataset = getattr(dataset, "dataset", dataset)
        costs = reconstruct.storage(self.model, dataset.point_counts())
        self.protocol = (
            f"{len(test.labels)} of {len(every.labels)} test objects, {len(train.labels)} training objects for the baselines; "
            f"{reconstruct.VIEWS} pictures of 64 x 64 each; chamfer in half sides of the object; {self.model.gaussians} Gaussians, clouds of {test.cloud.shape[1] // 2} points"
        )
        if self.is_main:
            self._write(results, costs, train, test)
        return {f"{way.replace(' ', '_')}_{key}": each[key] for way, each in results.items() for key in ("psnr", "chamfer")}, {}

    def _write(self, results: Mapping, costs: Mapping, train: reconstruct.Objects, test: reconstruct.Objects) -> None:
        first = {label: row for row, label in reversed(list(enumerate(test.labels)))}
        rows = [*first.values(), *(row for row in range(len(test.labels)) if row not in first.values())][: self.num_pictures]
        path = self.save_path / "pictures" / "objects.png"
        save_side_by_side(path, reconstruct.sheet(self.model, train, test.take(rows)))
        table = reconstruct.text_table(results)
        words = (
            f"an object as embedding: {costs['embedding']:.0f} bytes, as coloured points {costs['points']:.0f}, {costs['ratio']:.1f} times as many; "
            f"the decoder, which all share, has {costs['decoder']:.0f}, so embeddings are smaller from {costs['worth_from']:.0f} objects on"
        )
        shown = ", ".join(f"{test.labels[row]} ({test.names[row]})" for row in rows)
        write_json(
            self.save_path / "result" / "reconstruction.json",
            {"protocol": self.protocol, "scores": results, "bytes": costs, "pictures": [test.names[row] for row in rows]},
        )
        document = f"{self.protocol}\n\n{table}\n{words}\n\npictures: {shown}\n"
        atomic_write(self.save_path / "result" / "reconstruction.txt", lambda stream: stream.write(document.encode()))
        self.logger.info(f"test: reconstruction ({path})\n{table}{words}")
