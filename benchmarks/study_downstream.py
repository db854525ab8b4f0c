"""The miniature of the paper's Tables 1 to 4 on generated rooms: does pretraining help, and which one, over seeds.

    python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6
    python tools/preprocess/limited.py --data-root data/rooms --scenes 10 --points 20
    python tools/preprocess/pairs.py --input data/rooms/train --output-root data/rooms_pair
    python benchmarks/study_downstream.py --data data/rooms --runs exp/study --seeds 0 1 2

Pretrains with each method and seed, then trains every task from each pretraining and from scratch, a process a run, and
writes means and spreads to benchmarks/results/downstream_rooms.json. A finished run is not repeated and one that was
stopped is continued, so a stopped study goes on where it was. Scores are of the last epoch, not of the best one, on the
raw points of the validation rooms. `--table` prints what is there and trains nothing.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study import arguments, cell, finished, summarise, train, write_record

from pointcept3m.utils.machine import usable_cores

PRETRAININGS = {
    "GaussianCross": "configs/gaussiancross/rooms.py",
    "MSC": "configs/rooms/pretrain-msc-v1m1-0-spunet-base.py",
    "PointContrast": "configs/rooms/pretrain-msc-v1m1-1-spunet-pointcontrast.py",
}
SCRATCH = "from scratch"
# task: its config, the scores shown, what is paper's table
TASKS = {
    "linear probe": ("configs/rooms/semseg-spunet-v1m1-1-lin.py", ("mIoU", "mAcc"), "Table 1"),
    "limited scenes, 10 %": ("configs/rooms/semseg-spunet-v1m1-2-efficient-lr10.py", ("mIoU", "mAcc"), "Table 2"),
    "limited annotations, 20 points": ("configs/rooms/semseg-spunet-v1m1-2-efficient-la20.py", ("mIoU", "mAcc"), "Table 2"),
    "semantic segmentation": ("configs/rooms/semseg-spunet-v1m1-0-base.py", ("mIoU", "mAcc"), "Table 3"),
    "instance segmentation": ("configs/rooms/insseg-pointgroup-v1m1-0-spunet-base.py", ("mAP", "AP50", "AP25"), "Table 4"),
}


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def main() -> None:
    parser = arguments(__doc__, "downstream_rooms.json")
    parser.add_argument("--starts", nargs="+", default=[SCRATCH, *PRETRAININGS], choices=[SCRATCH, *PRETRAININGS])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--table", action="store_true", help="print and write what is finished; train nothing")
    args = parser.parse_args()
    threads = max(1, usable_cores() // args.parallel)
    data, runs = args.data.absolute(), args.runs.absolute()

    def pretrained(start: str, seed: int) -> Path:
        return runs / "pretrain" / slug(start) / f"seed{seed}"

    def task_folder(job: tuple[str, str, int]) -> Path:
        task, start, seed = job
        return runs / slug(task) / slug(start) / f"seed{seed}"

    def run(job: tuple[str, str, int]) -> None:
        task, start, seed = job
        options = [f"seed={seed}", f"data_root={str(data)!r}", *args.options]
        if start != SCRATCH:
            options.append(f"weight={str(pretrained(start, seed) / 'model' / 'model_last.pth')!r}")
        train(TASKS[task][0], task_folder(job), options, threads)

    def pretrain(job: tuple[str, int]) -> None:
        start, seed = job
        options = [f"seed={seed}", f"data_root={str(data)!r}"]
        if start == "PointContrast":  # which learns from pairs of frames
            options.append(f"pair_root={str(data.with_name(data.name + '_pair'))!r}")
        train(PRETRAININGS[start], pretrained(start, seed), options, threads)

    jobs = [(task, start, seed) for seed in args.seeds for start in args.starts for task in args.tasks]
    if not args.table:
        with ThreadPoolExecutor(args.parallel) as pool:
            # Seed by seed, so that a study that is stopped early has whole columns.
            for seed in args.seeds:
                list(pool.map(pretrain, [(start, seed) for start in args.starts if start != SCRATCH]))
                list(pool.map(run, [job for job in jobs if job[2] == seed]))

    def scores_of(folders: list[Path], names: tuple[str, ...]) -> dict:
        rows = [json.loads((f / "metrics.json").read_text())["metrics"] for f in folders if finished(f)]
        return {name: summarise([row[name] for row in rows]) for name in names} if rows else {}

    results: dict[str, dict] = {"probe after pretraining": {}}
    for start in args.starts:
        folders = [pretrained(start, seed) for seed in args.seeds]
        results["probe after pretraining"][start] = scores_of(folders, ("probe_mIoU", "probe_mIoU_at_start"))
        for task in args.tasks:
            folders = [task_folder((task, start, seed)) for seed in args.seeds]
            results.setdefault(task, {})[start] = scores_of(folders, TASKS[task][1])
    write_record(args.output, {"seeds": args.seeds, "tasks": results})
    print("| task | score | " + " | ".join(args.starts) + " |\n" + "|---" * (len(args.starts) + 2) + "|")
    for task, row in results.items():
        title = f"{task} ({TASKS[task][2]})" if task in TASKS else task
        for score in TASKS[task][1] if task in TASKS else ("probe_mIoU",):
            print(f"| {title} | {score} | " + " | ".join(cell(row[start].get(score), len(args.seeds)) for start in args.starts) + " |")


if __name__ == "__main__":
    main()
