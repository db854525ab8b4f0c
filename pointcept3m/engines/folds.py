"""Cross-validation: the confusion matrices of one test a fold, added up and scored, as for S3DIS's six areas."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointcept3m.engines import metrics
from pointcept3m.engines.defaults import write_json
from pointcept3m.utils.files import near_files

RECORD = "confusion.json"
S3DIS_AREAS = tuple(f"Area_{number}" for number in range(1, 7))
TOTALS = ("mIoU", "mAcc", "allAcc")


@dataclass(frozen=True)
class Fold:
    """The record of one test: confusion int64 [K, K], rows the true class."""

    path: Path
    split: str
    names: tuple[str, ...]
    protocol: str
    confusion: Tensor


def read_fold(path: Path) -> Fold:
    """A `result/confusion.json` of SemSegTester. Raises ValueError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(str(name) for name in content["names"])
        fold = Fold(path, str(content["split"]), names, str(content["protocol"]), torch.tensor(content["confusion"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the record of a test ({type(error).__name__}: {error})") from error
    if fold.confusion.shape != (len(names), len(names)) or fold.confusion.dtype != torch.int64 or (fold.confusion < 0).any():
        raise ValueError(f"{path}: wanted {len(names)} x {len(names)} counts, got {list(fold.confusion.shape)} {fold.confusion.dtype}")
    return fold


def find_folds(roots: Sequence[str | Path], splits: Sequence[str] = S3DIS_AREAS) -> list[Fold]:
    """One record of each of `splits`, in their order, from files or from folders and all below them.

    Raises: FileNotFoundError where a root is not there or a split has no record; ValueError where a split has several
        or the records do not have the same classes.
    """
    found: dict[str, list[Fold]] = {}
    for root in map(Path, roots):
        if not root.exists():
            raise FileNotFoundError(f"{root}: no such file or folder; {near_files(root)}")
        for path in [root] if root.is_file() else sorted(root.rglob(RECORD)):
            fold = read_fold(path)
            found.setdefault(fold.split, []).append(fold)
    where = ", ".join(map(str, roots))
    if missing := [split for split in splits if split not in found]:
        raise FileNotFoundError(
            f"no {RECORD} of {', '.join(missing)} below {where}, which has {', '.join(sorted(found)) or 'none'}; "
            "a test of each fold leaves its record in <save_path>/result/"
        )
    for split in splits:
        if len(found[split]) > 1:
            paths = ", ".join(str(fold.path) for fold in found[split])
            raise ValueError(f"{split} has {len(found[split])} records: {paths}; name the one that counts in --record_root")
    folds = [found[split][0] for split in splits]
    for fold in folds[1:]:
        if fold.names != folds[0].names:
            raise ValueError(f"{fold.path} has other classes than {folds[0].path}: {', '.join(fold.names)} and {', '.join(folds[0].names)}")
    return folds


def score_folds(folds: Sequence[Fold], absent: str = "skip") -> dict[str, Any]:
    """The scores of all points of all folds together, and of each fold: {metrics, per_class, folds, protocol}."""
    confusion = torch.stack([fold.confusion for fold in folds]).sum(0)
    scores = metrics.segmentation_scores(confusion, absent)
    rows = zip(folds[0].names, scores["iou"], scores["acc"], strict=True)
    each = {fold.split: metrics.segmentation_scores(fold.confusion, absent) for fold in folds}
    return {
        "metrics": {name: scores[name] for name in TOTALS},
        "per_class": {name: {"iou": iou, "acc": acc} for name, iou, acc in rows},
        "folds": {split: {name: of_fold[name] for name in TOTALS} for split, of_fold in each.items()},
        "protocol": {fold.split: fold.protocol for fold in folds},
    }


def score_table(result: Mapping[str, Any]) -> str:
    """The scores as text: a line for each fold, for all, and for each class."""
    width = max(len(name) for name in (*result["folds"], *result["per_class"], "together"))
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>6}" for name in TOTALS)]
    for name, scores in (*result["folds"].items(), ("together", result["metrics"])):
        lines.append(f"{name:{width}}  " + "  ".join(f"{scores[key]:6.4f}" for key in TOTALS))
    lines.append(f"\n{'':{width}}  {'IoU':>6}  {'acc':>6}")
    lines += [f"{name:{width}}  {row['iou']:6.4f}  {row['acc']:6.4f}" for name, row in result["per_class"].items()]
    return "\n".join(lines)


def _way(protocol: str) -> str:
    """What folds must have in common of a protocol: mode and augmentations. How many fragments a scene has is the area's."""
    return re.sub(r" x [\d.e+]+ fragments?.*", "", protocol.split(",")[0])


def six_fold_main(argv: Sequence[str] | None = None) -> int:
    """S3DIS's six-fold scores of six tests, printed and written to 6fold.json beside the records; returns 0."""
    parser = argparse.ArgumentParser(prog="test_s3dis_6fold.py", description=six_fold_main.__doc__)
    parser.add_argument(
        "--record_root", "--record-root", nargs="+", required=True, metavar="PATH",
        help=f"folders that hold, at any depth, the {RECORD} of a test of each area; or those six files",
    )  # fmt: skip
    parser.add_argument("--absent", choices=("skip", "zero"), default="skip", help="what a class that is nowhere counts (Pointcept: zero)")
    options = parser.parse_args(argv)
    folds = find_folds(options.record_root)
    result = score_folds(folds, options.absent)
    first = Path(options.record_root[0])
    path = (first if first.is_dir() else first.parent) / "6fold.json"
    write_json(path, result)
    print(score_table(result))
    if len({_way(words) for words in result["protocol"].values()}) > 1:
        print("\nthe tests were not alike:\n" + "\n".join(f"{split}  {words}" for split, words in result["protocol"].items()))
    print(f"\nwritten to {path}")
    return 0
