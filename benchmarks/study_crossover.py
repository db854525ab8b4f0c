"""The miniature of CrossOver's tables on generated rooms, over seeds.

    python tools/preprocess/rooms.py --output-root data/rooms_modalities --train 250 --val 40 --modalities --rescans 1 --rescan-splits val
    python tools/preprocess/modalities.py --data-root data/rooms_modalities --split train val --recipe pocket --views 4 --num-texts 60 --workers 2
    python tools/preprocess/chunks.py --data-root data/rooms_modalities
    python benchmarks/study_crossover.py --data data/rooms_modalities --runs exp/study_crossover --seeds 0 1 2

Trains every row and seed, a process a run, and writes means and spreads of the scores on val to
benchmarks/results/crossover_rooms.json. A finished run is not repeated and one that was stopped is continued, so a stopped study
goes on where it was. `--only` runs some rows, `--table` prints what is there and trains nothing.

- The method's own rows (Instance Baseline, object level, scene level; Fig. 4 and 6, Tables 1 to 3) are stages of one run of
  configs/crossover/rooms.py; "chance" is what random answers get, "untrained" what random weights get, frozen features standardised.
- Table 4 trains the object level with image-point pairs in one chunk of scenes and image-CAD pairs in the other.
- "all pairs" aligns every modality with every other, not with the image alone (supplementary); "without F" never sees floorplans in
  training; "joint" trains the object level along with the scene level (Eq. 4).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

from study import REPOSITORY, arguments, cell, finished, summarise, write_record

from pointcept3m.utils.machine import usable_cores

WHOLE, INSTANCE = "configs/crossover/rooms.py", "configs/crossover/rooms-instance.py"
NO_TEXT = "drop={'text': 1.0}"


# row: its config and options
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "base": (WHOLE, []),
    "all pairs": (WHOLE, ["pairs=all"]),
    "joint": (WHOLE, ["chain=(('instance', None), ('joint', 'instance'))", "rows=('instance',)"]),
    "without F": (WHOLE, ["drop={'floorplan': 1.0}"]),
    "untrained": (WHOLE, ["lr=0.0", "rounds=1", "epochs={'baseline': 1, 'instance': 1, 'scene': 1, 'unified': 1}"]),
    **{f"Table 4, {share.replace('_', '/')}": (INSTANCE, [f"share={share!r}", NO_TEXT]) for share in ("25_75", "50_50", "75_25")},
    "Table 4, 100/100": (INSTANCE, [NO_TEXT]),
}


# table: (metric, score) columns, each the mean over the table's pairs of modalities
SCENE_COLUMNS = (("scene", "top1"), ("scene", "top5"), ("category", "top1"), ("temporal", "top1"), ("temporal", "top5"), ("intra_category", "top1"))
COLUMNS = {
    "scenes": SCENE_COLUMNS,
    "floorplans": SCENE_COLUMNS,
    "objects": (("instance", "top1"), ("instance", "top3"), ("instance", "R@50"), ("temporal_instance", "recall"), ("temporal_instance", "R@50")),
    "P->M": (("instance", "same"), ("instance", "diff"), ("instance", "top1"), ("instance", "top3")),
}
# Objects have no floorplan, so "scenes" are pairs that the mean of objects has, too.
PAIRS = {
    "scenes": list(permutations(("image", "point", "text"), 2)),
    "floorplans": [pair for name in ("image", "point", "text") for pair in ((name, "floorplan"), ("floorplan", name))],
    "objects": list(permutations(("image", "point", "cad", "text"), 2)),
    "P->M": [("point", "cad")],
}
KEPT = ("top1", "top5", "same", "diff", "R@50", "recall", "static_recall", "moved_recall")  # scores of every pair in the record


def slug(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def main() -> None:
    parser = arguments(__doc__, "crossover_rooms.json")
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--table", action="store_true", help="print and write what is finished; train nothing")
    args = parser.parse_args()
    data, runs, threads = args.data.absolute(), args.runs.absolute(), max(1, usable_cores() // args.parallel)
    rows = VARIANTS
    unknown = [name for name in args.only or () if name not in rows]
    if unknown:
        raise SystemExit(f"--only {unknown[0]!r}: wanted some of {', '.join(rows)}")

    def folder(name: str, seed: int) -> Path:
        return runs / slug(name) / f"seed{seed}"

    failed: list[str] = []

    def run(job: tuple[str, int]) -> None:
        name, seed = job
        config, options = rows[name]
        options = [f"seed={seed}", f"data_root={str(data)!r}", *options, *args.options]
        try:
            train(config, folder(name, seed), options, threads)
        except SystemExit as error:  # the other runs go on
            failed.append(str(error))
            print(f"{error}", flush=True)

    if not args.table:
        with ThreadPoolExecutor(args.parallel) as pool:
            # Seed by seed, so that a study that is stopped early has whole columns.
            list(pool.map(run, [(name, seed) for seed in args.seeds for name in args.only or rows]))
    report(args, folder, list(rows))
    if failed:
        raise SystemExit(f"{len(failed)} runs failed and are not in the tables; the first: {failed[0]}")


def train(config: str, folder: Path, options: list[str], threads: int) -> None:
    """A run in `folder`: made now, continued where it was stopped, or found finished. Stages find out by themselves what is left."""
    if finished(folder):
        return
    command = [sys.executable, "tools/train.py", "--config-file", config]
    if (folder / "config.py").exists() and any(folder.rglob("model_last.pth")):
        command.append("--resume")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "stdout.txt", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command += ["--options", f"save_path={str(folder)!r}", *options]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{folder}: training ended with {done.returncode}; the reason is at the end of {log.name}")


def scores_of(results: dict, table: str, metric: str, score: str) -> float | None:
    """A column of one run: the mean over its pairs, None where there are none. results: metric -> pair -> scores."""
    pairs = [f"{a}->{b}" for a, b in PAIRS[table]]
    found = [results[metric][pair][score] for pair in pairs if score in results.get(metric, {}).get(pair, {})]
    return sum(found) / len(found) if found else None


def report(args: argparse.Namespace, folder: Callable[[str, int], Path], rows: list[str]) -> None:
    """Prints the tables and writes the record, which has every pair of every metric as well."""
    runs: dict[str, list[dict]] = {}  # row -> for each seed metric -> pair -> scores
    for name in rows:
        for seed in args.seeds:
            path = folder(name, seed) / "result/retrieval.json"
            if not (path.exists() and finished(folder(name, seed))):
                continue
            content = json.loads(path.read_text())
            (methods,) = content["datasets"].values()
            for method, results in methods.items():
                runs.setdefault(name if method == "ours" else f"{name}: {method}", []).append(results)
    tables: dict[str, dict] = {}
    for table, columns in COLUMNS.items():
        tables[table] = {}
        for name, each in runs.items():
            if (table == "P->M") != name.startswith("Table 4"):
                continue
            values = {f"{m} {s}": [v for results in each if (v := scores_of(results, table, m, s)) is not None] for m, s in columns}
            if any(values.values()):
                tables[table][name] = {column: summarise(v) for column, v in values.items() if v}
        chances = {
            f"{m} {s}": [v for each in runs.values() for r in each if (v := scores_of(r, table, m, f"chance_{s}")) is not None] for m, s in columns
        }
        tables[table]["chance"] = {column: summarise(v[:1]) for column, v in chances.items() if v}
        names = [f"{m} {s}" for m, s in columns]
        print(f"\n{table}\n\n| row | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
        for name, row in tables[table].items():
            print(f"| {name} | " + " | ".join(cell(row.get(column), 1 if name == "chance" else len(args.seeds)) for column in names) + " |")
    write_record(args.output, {"seeds": args.seeds, "tables": tables, "pairs": {name: pairs_of(each) for name, each in runs.items()}})


def pairs_of(runs: list[dict]) -> dict:
    """metric -> pair of modalities -> score of `KEPT` -> its values over the seeds, of one row."""
    first = runs[0]
    return {
        metric: {
            pair: {score: [round(run[metric][pair][score], 4) for run in runs if score in run[metric].get(pair, {})] for score in KEPT if score in first[metric][pair]}
            for pair in first[metric]
        }
        for metric in first
    }


if __name__ == "__main__":
    main()
