"""The miniature of CUA-O3D's Tables 3, 5, 6, 7 and 8 on generated rooms, over seeds.

    python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6
    python tools/preprocess/rooms.py --output-root data/rooms_b --train 6 --val 32 --first-seed 1000
    python tools/preprocess/fuse_features.py --data-root data/rooms --split train val --teacher sentence geometric diffusion
    python tools/preprocess/fuse_features.py --data-root data/rooms_b --split train val --teacher sentence geometric diffusion
    python benchmarks/study_cua.py --data data/rooms --runs exp/study_cua --seeds 0 1 2

Distils every row and seed, a process a run, labels rooms by words, probes the heads, and writes means and spreads to
benchmarks/results/cua_o3d_rooms.json. A finished run is not repeated and one that was stopped is continued, so a stopped
study goes on where it was. Scores are of the last epoch on the raw points of rooms that were not trained on.

Rooms of the split "val" differ from those of "train" in textures and layout, so they are two domains: A trains on data/rooms/train,
B on data/rooms_b/val, and both are tested on 6 rooms of each. `--table` prints what is there and trains nothing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study import REPOSITORY, arguments, cell, finished, summarise, train, write_record

from pointcept3m.utils.machine import usable_cores

CONFIG, PROBE = "configs/cua_o3d/rooms.py", "configs/cua_o3d/rooms-probe.py"
ALL = ("sentence", "geometric", "diffusion")
FULL, BASELINE = "+ de-mean (the method)", "sentence (stands for LSeg)"


def row(teachers: tuple[str, ...] = ALL, losses: str = "{'geometric': 'l1'}", demean: str = "()", uncertainty: str = "None") -> list[str]:
    """The options of a row."""
    return [f"teachers={teachers!r}", f"losses={losses}", f"demean={demean}", f"uncertainty={uncertainty}"]


LEARNED = "{'kind': 'scalar', 'regulariser': 'log1p'}"
# table: its rows, name -> options; a row that is named elsewhere with the same options is run once
TABLES: dict[str, dict[str, list[str]]] = {
    "Table 6": {
        BASELINE: row(("sentence",)),
        "+ geometric (DINOv2)": row(("sentence", "geometric")),
        "+ diffusion (Stable Diffusion)": row(("sentence", "diffusion")),
        "+ both": row(),
        "+ both + uncertainty": row(uncertainty=LEARNED),
        "+ both + free weights (AutoW)": row(uncertainty="{'kind': 'auto_weight'}"),
        FULL: row(demean="('diffusion',)", uncertainty=LEARNED),
        "the method, sigma a scene": row(demean="('diffusion',)", uncertainty="{'kind': 'scene'}"),
        "the method, sigma a point": row(demean="('diffusion',)", uncertainty="{'kind': 'point'}"),
    },
    "Table 7": {
        "sentence by cosine": row(("sentence",)),
        "sentence by L1": row(("sentence",), "{'sentence': 'l1'}"),
        "sentence by L2": row(("sentence",), "{'sentence': 'l2'}"),
    },
    "Table 8": {
        "geometric by cosine": row(losses="{}"),
        "geometric by L1": row(),
        "geometric by L2": row(losses="{'geometric': 'l2'}"),
    },
}
CROSS = (BASELINE, FULL)  # Table 3
PROBES = {
    "3 heads, concat": ["mode=concat"],
    "3 heads, average": ["mode=average"],
    **{f"head {name}": ["mode=single", f"probe_heads={name}"] for name in ALL},
}
SCORES = ("3d_mIoU", "3d_mAcc", "3d_f-mIoU", "2d_mIoU", "2d3d_max_mIoU", "2d3d_mean_mIoU")


def slug(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def attempt(run: Callable[[], object]) -> None:
    """Runs; a training that ends in losses that are not finite is a result of the study, and leaves no metrics."""
    try:
        run()
    except SystemExit as error:
        print(f"{error}", flush=True)


def main() -> None:
    parser = arguments(__doc__, "cua_o3d_rooms.json")
    parser.add_argument("--data-b", type=Path, help="rooms of the other domain (<data>_b)")
    parser.add_argument("--features", type=Path, help="folder of the fused features of both (default: in the scene folders)")
    parser.add_argument("--table", action="store_true", help="print and write what is finished; train nothing")
    args = parser.parse_args()
    threads = max(1, usable_cores() // args.parallel)
    data, runs = args.data.absolute(), args.runs.absolute()
    data_b = (args.data_b or data.with_name(data.name + "_b")).absolute()
    unique: dict[str, str] = {}  # options -> the folder of the first row that has them
    for rows in TABLES.values():
        for name, options in rows.items():
            unique.setdefault(" ".join(options), slug(name))

    def common(root: Path, seed: int) -> list[str]:
        features = [] if args.features is None else [f"feature_root={str(args.features.absolute() / root.name)!r}"]
        return [f"seed={seed}", f"data_root={str(root)!r}", *features, *args.options]

    def folder(options: list[str], seed: int, domain: str = "a") -> Path:
        return runs / domain / unique[" ".join(options)] / f"seed{seed}"

    def distil(job: tuple[list[str], int, str]) -> None:
        options, seed, domain = job
        root = data if domain == "a" else data_b
        other = [] if domain == "a" else ["data.train.split=val", "data.val.split=train", "data.test.split=train"]
        attempt(lambda: train(CONFIG, folder(options, seed, domain), [*common(root, seed), *options, *other], threads))

    def cross(job: tuple[str, int, str]) -> None:
        """The model of one domain on 6 rooms of each."""
        name, seed, domain = job
        source = folder(TABLES["Table 6"][name], seed, domain)
        for target, root, split in (("a", data_b, "train"), ("b", data, "val")):
            out = source / f"on_{target}"
            if not (out / "metrics.json").exists() and finished(source):
                command = ["tools/test.py", "--config-file", str(source / "config.py"), "--options", f"save_path={str(out)!r}",
                           f"weight={str(source / 'model/model_last.pth')!r}", f"data.test.data_root={str(root)!r}",
                           f"data.test.split={split}", "test.feature=3d"]  # fmt: skip
                run_tool(command, out, threads)

    def probe(job: tuple[str, int]) -> None:
        name, seed = job
        source = folder(TABLES["Table 6"][FULL], seed)
        options = [*common(data, seed), *TABLES["Table 6"][FULL], f"weight={str(source / 'model/model_last.pth')!r}", *PROBES[name]]
        attempt(lambda: train(PROBE, runs / "probe" / slug(name) / f"seed{seed}", options, threads))

    if not args.table:
        with ThreadPoolExecutor(args.parallel) as pool:
            # Seed by seed, so that a study that is stopped early has whole columns.
            for seed in args.seeds:
                rows = {" ".join(options): options for table in TABLES.values() for options in table.values()}
                list(pool.map(distil, [(options, seed, "a") for options in rows.values()]))
                list(pool.map(distil, [(TABLES["Table 6"][name], seed, "b") for name in CROSS]))
                list(pool.map(cross, [(name, seed, domain) for name in CROSS for domain in "ab"]))
                list(pool.map(probe, [(name, seed) for name in PROBES]))
    report(args, runs, folder)


def run_tool(command: list[str], out: Path, threads: int) -> None:
    """A tool of this repository in a process of its own; what it prints goes to `out`/stdout.txt."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "stdout.txt", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{out}: {command[0]} ended with {done.returncode}; the reason is at the end of {log.name}")


def report(args: argparse.Namespace, runs: Path, folder: Callable[..., Path]) -> None:
    """Prints the tables and writes the record."""

    def scores(folders: list[Path], names: tuple[str, ...], prefix: str = "test_") -> dict:
        found = [json.loads((f / "metrics.json").read_text())["metrics"] for f in folders if (f / "metrics.json").exists()]
        return {name: summarise([each[prefix + name] for each in found]) for name in names} if found else {}

    def show(title: str, rows: dict[str, dict], names: tuple[str, ...]) -> None:
        print(f"\n{title}\n\n| row | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
        for name, each in rows.items():
            print(f"| {name} | " + " | ".join(cell(each.get(score), len(args.seeds)) for score in names) + " |")

    results: dict[str, dict] = {}
    for table, rows in TABLES.items():
        results[table] = {name: scores([folder(options, seed) for seed in args.seeds], SCORES) for name, options in rows.items()}
        show(table, results[table], SCORES if table == "Table 6" else SCORES[:2])
    results["Table 3"] = {}
    for domain, other in ("ab", "ba"):
        for name in CROSS:
            for target in (other, domain):
                folders = [folder(TABLES["Table 6"][name], seed, domain) / f"on_{target}" for seed in args.seeds]
                results["Table 3"][f"{domain.upper()} -> {target.upper()}: {name}"] = scores(folders, SCORES[:2], "")
    show("Table 3", results["Table 3"], SCORES[:2])
    results["Table 5"] = {
        name: scores([runs / "probe" / slug(name) / f"seed{seed}" for seed in args.seeds], ("mIoU", "mAcc"), "") for name in PROBES
    }
    show("Table 5", results["Table 5"], ("mIoU", "mAcc"))
    write_record(args.output, {"seeds": args.seeds, "tables": results})


if __name__ == "__main__":
    main()
