"""The miniature of the paper's Figure 3 and Table 5 on generated rooms, over seeds.

    python benchmarks/study_gaussiancross.py --data data/rooms --runs exp/study --seeds 0 1 2

Trains configs/gaussiancross/rooms.py in each variant and with each seed, a process a run, and writes means and spreads
to benchmarks/results/gaussiancross_rooms.json. A run whose metrics.json exists is not repeated, so a study that was
stopped goes on where it was. `--parallel 2` trains two runs at a time, each on its share of the cores.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = "configs/gaussiancross/rooms.py"
VARIANTS = {
    "GaussianCross": [],
    "without cuboid normalisation": ["model.cuboid_normalize=False"],
    "without offset": ["model.offset_max=0"],
    "colour and depth only": ["model.targets=('image','depth')", "model.teacher=None"],
    "colour only": ["model.targets=('image',)", "model.teacher=None"],
    "text-aligned teacher": ["model.teacher.name='text'"],
}
COLUMNS = ("psnr", "psnr_at_start", "depth_mae", "depth_mae_at_start", "feature_cosine", "probe_mIoU", "probe_mIoU_at_start")


def train(variant: str, seed: int, args: argparse.Namespace, threads: int) -> dict:
    """The metrics of one run, trained now or found finished."""
    folder = args.runs / variant.replace(" ", "_") / f"seed{seed}"
    metrics = folder / "metrics.json"
    if not metrics.exists():
        command = [sys.executable, "tools/train.py", "--config-file", CONFIG, "--options", f"save_path={str(folder)!r}", f"seed={seed}"]
        command += [f"data_root={str(args.data)!r}", *VARIANTS[variant], *args.options]
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "stdout.txt", "w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return json.loads(metrics.read_text())["metrics"]


def summarise(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "runs": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/rooms"))
    parser.add_argument("--runs", type=Path, default=Path("exp/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/gaussiancross_rooms.json")
    parser.add_argument("--options", nargs="+", default=[])
    args = parser.parse_args()
    args.data, args.runs = args.data.absolute(), args.runs.absolute()
    threads = max(1, (os.cpu_count() or 1) // args.parallel)
    jobs = [(variant, seed) for seed in args.seeds for variant in args.variants]
    with ThreadPoolExecutor(args.parallel) as pool:
        found = list(pool.map(lambda job: train(*job, args, threads), jobs))
    results = {
        variant: {
            column: summarise([m[column] for (v, _), m in zip(jobs, found, strict=True) if v == variant])
            for column in COLUMNS
            if all(column in m for (v, _), m in zip(jobs, found, strict=True) if v == variant)
        }
        for variant in args.variants
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    record = {
        "command": "python benchmarks/study_gaussiancross.py " + " ".join(f"{k}" for k in sys.argv[1:]),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seeds": args.seeds,
        "variants": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print("| variant | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for variant, row in results.items():
        cells = [f"{row[c]['mean']:.3f} ± {row[c]['std']:.3f}" if c in row else "-" for c in COLUMNS]
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
