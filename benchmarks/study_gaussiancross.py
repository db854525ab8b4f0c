"""The miniature of the paper's Figure 3 and Table 5 on generated rooms, over seeds.

    python benchmarks/study_gaussiancross.py --data data/rooms --runs exp/study --seeds 0 1 2

Trains configs/gaussiancross/rooms.py in each variant and with each seed, a process a run, and writes means and spreads
to benchmarks/results/gaussiancross_rooms.json. A run whose metrics.json exists is not repeated, so a study that was
stopped goes on where it was. `--parallel 2` trains two runs at a time, each on its share of the cores.
"""

from concurrent.futures import ThreadPoolExecutor

from study import arguments, cell, summarise, train, write_record

from pointcept3m.utils.machine import usable_cores

CONFIG = "configs/gaussiancross/rooms.py"
VARIANTS = {
    "GaussianCross": [],
    "without cuboid normalisation": ["model.cuboid_normalize=False"],
    "without offset": ["model.offset_max=0"],
    "colour and depth only": ["model.targets=('image','depth')", "model.teacher=None"],
    "colour only": ["model.targets=('image',)", "model.teacher=None"],
    "geometric teacher": ["model.teacher.name='geometric'"],
}
COLUMNS = ("psnr", "psnr_at_start", "depth_mae", "depth_mae_at_start", "feature_cosine", "probe_mIoU", "probe_mIoU_at_start")


def main() -> None:
    parser = arguments(__doc__, "gaussiancross_rooms.json")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    threads = max(1, usable_cores() // args.parallel)
    jobs = [(variant, seed) for seed in args.seeds for variant in args.variants]

    def run(job: tuple[str, int]) -> dict:
        variant, seed = job
        folder = args.runs.absolute() / variant.replace(" ", "_") / f"seed{seed}"
        options = [f"seed={seed}", f"data_root={str(args.data.absolute())!r}", *VARIANTS[variant], *args.options]
        return train(CONFIG, folder, options, threads)

    with ThreadPoolExecutor(args.parallel) as pool:
        found = dict(zip(jobs, pool.map(run, jobs), strict=True))
    results = {}
    for variant in args.variants:
        rows = [found[variant, seed] for seed in args.seeds]
        results[variant] = {c: summarise([row[c] for row in rows]) for c in COLUMNS if all(c in row for row in rows)}
    write_record(args.output, {"seeds": args.seeds, "variants": results})
    print("| variant | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for variant, row in results.items():
        print(f"| {variant} | " + " | ".join(cell(row.get(column)) for column in COLUMNS) + " |")


if __name__ == "__main__":
    main()
