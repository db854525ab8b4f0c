"""What the benchmarks share: medians of runs that take turns, the machine's own limits, Markdown tables."""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pointcept3m.ops import _library

Run = Callable[[], object]


def compare(runs: dict[str, Run], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median milliseconds of each run. They take turns, so that a drift of the machine meets all of them alike."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(_cuda_seconds(run) if device == "cuda" else _seconds(run))
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def median_ms(run: Run, repeats: int, device: str = "cpu") -> float:
    """Median milliseconds of one run, after one that does not count."""
    return compare({"": run}, repeats, device)[""]


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _cuda_seconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_bandwidth(device: str = "cpu", repeats: int = 9) -> float:
    """Bytes a second, read and written together, of a copy of 256 MB."""
    source = torch.zeros(64_000_000, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source), repeats, device) / 1e3)


def gemm_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, repeats: int = 5) -> float:
    """Flop a second of torch's own square matrix product, at the best of three sizes.

    It says how fast the machine multiplies in practice and is no upper limit: a kernel can do better where the matrix
    library does not know the processor.
    """
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * size**3 / (median_ms(lambda a=a, b=b: a @ b, repeats, device) / 1e3))
    return best


def parser(description: str, repeats: int = 7) -> argparse.ArgumentParser:
    """The options that every benchmark takes; `start` reads them."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of ours and of the peers")
    result.add_argument("--repeats", type=int, default=repeats, help="runs of which the median is taken")
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return result


def start(options: argparse.Namespace) -> None:
    """Sets threads and seed, and prints what a reader of the numbers has to know about the machine."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(f"{datetime.date.today()}, commit {_commit()}, torch {torch.__version__}, {_machine(options)}; {_library.status()}\n")


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    result = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def _machine(options: argparse.Namespace) -> str:
    if options.device == "cuda":
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table; floats get three digits that count."""
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(_cell(value) for value in row) + " |")
    print(flush=True)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if value != value:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def data_folder(name: str) -> Path:
    """The folder `name` in $POINTCEPT3M_DATA. Raises SystemExit with a sentence where it is absent."""
    root = os.environ.get("POINTCEPT3M_DATA")
    if not root:
        raise SystemExit(f"POINTCEPT3M_DATA is not set; it must name the folder of real data that holds {name}/")
    path = Path(root) / name
    if not path.is_dir():
        raise SystemExit(f"{path} is absent; POINTCEPT3M_DATA must name the folder of real data that holds {name}/")
    return path
