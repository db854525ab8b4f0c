"""Configurations written as Python files. Knows their syntax and the names of settings, not what they mean.

A file is executed once; its top-level names become settings. `_base_` names files to start from, a dict in a
later file is merged into the earlier one (`_delete_=True` inside it replaces instead), and `{{ _base_.x.y }}`,
`{{ fileDirname }}`, `{{ fileBasename }}`, `{{ fileBasenameNoExtension }}` and `{{ fileExtname }}` stand for
values. A top-level name that is no setting must be a helper variable, that is, be read in its own file: a
mistyped setting is read by nobody and is refused. Helper variables are not part of the loaded config.
`_options_ = dict(area=1)` gives helper variables of the bases other values, as `--options area=1` does; what the command
line says wins.
"""

import ast
import builtins
import copy
import io
import keyword
import math
import re
import tokenize
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .config_text import parse_config_text, plain_value
from .files import atomic_write, near_files
from .registry import near_names

# Every setting a config may have at its top level: those of configs/_base_/default_runtime.py and the tasks' own.
SETTINGS = frozenset(
    """weight resume evaluate test_only seed deterministic save_path num_worker worker_timeout batch_size
    gradient_accumulation_steps batch_size_val batch_size_test epoch eval_epoch clip_grad sync_bn enable_amp amp_dtype
    empty_cache empty_cache_per_epoch find_unused_parameters enable_wandb wandb_project wandb_key mix_prob param_dicts
    hooks train test task dist_timeout evaluate_interval custom_imports model data optimizer scheduler
    text_encoder prompt""".split()
)
# Helper variables that need not be read in their own file: published configs define some that nothing reads, and a file of
# `_base_` may do no more than hand one on.
COMMON_HELPERS = frozenset({"dataset_type", "data_root", "num_classes", "ignore_index", "class_names", "names", "backbone"})
FILE_VARIABLES = ("fileDirname", "fileBasename", "fileBasenameNoExtension", "fileExtname")
# Modules of Pointcept that lie elsewhere in this package.
MOVED_MODULES = {
    "pointcept3m.datasets.preprocessing.scannet.meta_data.scannet200_constants": "pointcept3m.datasets.scannet_labels",
}
PLACEHOLDER = re.compile(r"\{\{\s*(_base_(?:\.\w+)+|" + "|".join(FILE_VARIABLES) + r")\s*\}\}")


class ConfigDict(dict):
    """A dict whose entries are attributes too; dicts inside it, also inside lists and tuples, become the same."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__()
        self.update(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(f"config has no {name!r}; {near_names(name, self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, _to_config(value))

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def copy(self) -> "ConfigDict":
        return copy.copy(self)

    def to_dict(self) -> dict:
        """The same tree in plain dicts."""
        return _to_plain(self)


class Config(ConfigDict):
    """A whole configuration. `Config(dict)` wraps values; `Config.fromfile(path)` reads a file."""

    @classmethod
    def fromfile(cls, filename: str | Path, options: Mapping[str, Any] | None = None) -> "Config":
        """The configuration in a Python file, with `options` (dotted names to values) on top.

        An option that names a helper variable (`data_root`) takes effect where the file assigns it, so that
        everything computed from it follows.

        Raises: FileNotFoundError, with near names, for the file or a base; ValueError for a cyclic or escaping
        base or a broken file; KeyError for an unknown setting or the same setting in two bases.
        """
        options = dict(options or {})
        path = Path(filename)
        helpers = {name: value for name, value in options.items() if "." not in name and name not in SETTINGS}
        used: set[str] = set()
        settings, known_helpers = _load(path, helpers, used, _allowed_root(path), ())
        config = cls(settings)
        object.__setattr__(config, "filename", str(path))
        for name in helpers:
            if name not in used:
                raise KeyError(f"option {name!r} is no setting of {path}; {near_names(name, SETTINGS | set(known_helpers))}")
        rest = {name: value for name, value in options.items() if name not in helpers}
        for name in rest:
            _refuse_helper_entry(name, rest[name], config, known_helpers, path)
        config.merge_from_dict(rest)
        return config

    @classmethod
    def fromtext(cls, text: str, source: str = "config text") -> "Config":
        """The configuration that `pretty_text` wrote, read without running anything (see `config_text`).

        Raises: ValueError, which names `source`, for any syntax but literals and `dict(...)`.
        """
        return cls(parse_config_text(text, source))

    @property
    def pretty_text(self) -> str:
        """Python source that loads back as an equal config. Raises TypeError for a value that has no source."""
        return "".join(f"{key} = {_source(value, 0, key)}\n" for key, value in self.items())

    def dump(self, file: str | Path) -> None:
        """Writes `pretty_text` to `file`, whole or not at all."""
        text = self.pretty_text
        atomic_write(file, lambda stream: stream.write(text.encode()))

    def merge_from_dict(self, options: Mapping[str, Any]) -> None:
        """Sets `{"a.b": c, "hooks.0.save_freq": 5}`; a number walks into a list, a dict is merged into a dict.

        Every name but the last must exist, so that a mistyped path is no new setting.
        Raises: KeyError with near names, IndexError beyond a list, TypeError where the path enters a plain value.
        """
        for name, value in options.items():
            _set_dotted(self, name, value)


def parse_options(pairs: Iterable[str] | None) -> dict[str, Any]:
    """`["a.b=1e-3", "c=[1,2]", "d=text"]` as `{"a.b": 0.001, "c": [1, 2], "d": "text"}`.

    Values are Python literals and `dict(...)` of them; anything else is text; `true`, `false`, `none` are understood, and `1,2` is a list.
    Raises: ValueError for a pair without `=`.
    """
    options = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"option {pair!r}: wanted name=value, for example optimizer.lr=0.001")
        options[name.strip()] = _literal(text.strip())
    return options


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if text.startswith("dict("):
        return plain_value(_expression(text), f"option value {text!r}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith(("[", "(")) and text.endswith(("]", ")")):  # [a,b] of unquoted words
            inside = text[1:-1].strip()
            items = [_literal(item.strip()) for item in inside.split(",")] if inside else []
            return tuple(items) if text[0] == "(" else items
        return [_literal(item.strip()) for item in text.split(",")] if "," in text and " " not in text else text
    return list(value) if isinstance(value, tuple) and not text.startswith("(") else value


def _expression(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"option value {text!r}: {error.msg}; text inside dict(...) wants quotes") from error


def _refuse_helper_entry(name: str, given: Any, config: Mapping[str, Any], helpers: Mapping[str, Any], path: Path) -> None:
    """Raises KeyError where the dotted `name` begins with no setting: with a helper variable, or something like one."""
    first, dot, entry = name.partition(".")
    if not dot or first in config or first in SETTINGS:
        return
    if first not in helpers:
        raise KeyError(f"option {name!r}: the config has no {first!r}; {near_names(first, SETTINGS | set(config) | set(helpers))}")
    value = helpers[first]
    if isinstance(value, Mapping) and "." not in entry and entry not in value:
        raise KeyError(f"option {name!r}: {first}, a helper variable of {path}, has no {entry!r}; {near_names(entry, value)}")
    whole = repr({**_to_plain(value), entry: given}) if isinstance(value, Mapping) and "." not in entry else ""
    shown = f'"{whole}"' if whole and len(whole) < 300 and '"' not in whole else "VALUE"
    raise KeyError(
        f"option {name!r}: {first} is a helper variable of {path}, whose entries cannot be set by dots; it can be as a whole: "
        f"--options {first}={shown}"
    )


def _set_dotted(config: ConfigDict, name: str, value: Any) -> None:
    node: Any = config
    parts = name.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        where = ".".join(parts[:depth]) or "the config"
        if isinstance(node, list):
            if not re.fullmatch(r"-?\d+", part):
                raise KeyError(f"option {name!r}: {where} is a list, wanted a number, got {part!r}")
            if not -len(node) <= int(part) < len(node):
                raise IndexError(f"option {name!r}: {where} has {len(node)} entries, got index {part}")
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
            if part not in node and (not last or (node is config and part not in SETTINGS)):
                known = set(node) | (SETTINGS if node is config else set())
                raise KeyError(f"option {name!r}: {where} has no {part!r}; {near_names(part, known)}")
        else:
            raise TypeError(f"option {name!r}: {where} is {node!r}, which has no entry {part!r}")
        if not last:
            node = node[key]
        elif isinstance(value, dict) and isinstance(node, dict):
            _merge(node, {key: value}, where)
        else:
            node[key] = _to_config(value)


def _to_config(value: Any) -> Any:
    if isinstance(value, Mapping) and not isinstance(value, ConfigDict):
        return ConfigDict(value)
    if type(value) in (list, tuple):
        return type(value)(_to_config(item) for item in value)
    return value


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item) for item in value)
    return value


def _merge(base: dict, update: Mapping[str, Any], where: str) -> None:
    """Merges `update` into `base` in place; `_delete_=True` in a dict of `update` drops what `base` had there."""
    for key, value in update.items():
        if isinstance(value, Mapping):
            old = base.get(key)
            if isinstance(old, list):
                raise TypeError(f"{where}: {key!r} is a list below, and a dict does not merge into it; write a list")
            fresh = value.get("_delete_", False) or not isinstance(old, dict)
            target = ConfigDict() if fresh else old
            _merge(target, {k: v for k, v in value.items() if k != "_delete_"}, where)
            base[key] = target
        else:
            base[key] = copy.deepcopy(value)


def _allowed_root(path: Path) -> Path:
    """The folder that bases may lie in: the outermost `configs` above the file, else the parent of its folder."""
    path = path.resolve()
    named = [parent for parent in path.parents if parent.name == "configs"]
    return named[-1] if named else path.parent.parent


def _load(
    path: Path, overrides: Mapping[str, Any], used: set[str], root: Path, chain: tuple[Path, ...]
) -> tuple[ConfigDict, dict[str, Any]]:
    """Settings and helper variables of a file and its bases."""
    if path.suffix != ".py":
        raise ValueError(f"config {path}: only Python files (.py) are read")
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}; {near_files(path)}")
    path = path.resolve()
    if path in chain:
        raise ValueError("config: bases form a cycle: " + " -> ".join(map(str, (*chain, path))))
    source = path.read_text(encoding="utf-8")
    settings, helpers = ConfigDict(), {}
    origin: dict[str, Path] = {}
    options = _literal_assignment(source, path, "_options_", dict()) if "_options_" in source else {}
    own, overrides = set(), {**options, **overrides}
    for base in _base_paths(source, path):
        if not base.resolve().is_relative_to(root):
            raise ValueError(f"config {path}: base {base} lies outside {root}")
        base_settings, base_helpers = _load(base, overrides, own, root, (*chain, path))
        for key in base_settings:
            if key in origin:
                raise KeyError(f"config {path}: {key!r} is set in two bases, {origin[key]} and {base}")
            origin[key] = base
        settings.update(base_settings)
        helpers.update(base_helpers)
    for name in options:
        if name not in own:
            raise KeyError(f"config {path}: _options_ names {name!r}, no helper variable of its bases; {near_names(name, helpers)}")
    used |= own
    own_settings, own_helpers = _execute(source, path, {**helpers, **settings}, overrides, used)
    _merge(settings, own_settings, str(path))
    return settings, {**helpers, **own_helpers}


def _base_paths(source: str, path: Path) -> list[Path]:
    value = _literal_assignment(source, path, "_base_", [])
    names = [value] if isinstance(value, str) else list(value)
    return [path.parent / name for name in names]


def _literal_assignment(source: str, path: Path, name: str, default: Any) -> Any:
    """What a file assigns to `name`, read before the file is run, so that it must be of `default`'s kind, literals and `dict(...)`.

    Raises: ValueError, with the line, for anything else or a file that is no Python.
    """
    try:
        tree = ast.parse(PLACEHOLDER.sub("None", source), str(path))
    except SyntaxError as error:
        raise ValueError(f"config {path}: line {error.lineno}: {error.msg}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return plain_value(node.value, f"config {path}")
            except (ValueError, TypeError) as error:
                wanted = "a dict of literals" if isinstance(default, dict) else "a string or a list of strings"
                raise ValueError(f"config {path}: line {node.lineno}: {name} must be {wanted}") from error
    return default


def _execute(
    source: str, path: Path, base: Mapping[str, Any], overrides: Mapping[str, Any], used: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs one file; returns what it sets and its helper variables. `used` collects the overrides that applied."""

    def value_of(name: str) -> Any:
        return copy.deepcopy(_placeholder_value(name, path, base))

    tree = ast.parse(_substitute(source, path, value_of), str(path))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in overrides:
            used.add(node.targets[0].id)
            node.value = ast.copy_location(
                ast.parse(f"_override_({node.targets[0].id!r})", mode="eval").body, node.value
            )
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    imported = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
    }  # fmt: skip
    namespace: dict[str, Any] = {
        "__builtins__": {**vars(builtins), "__import__": _import_ours},
        "__file__": str(path),
        "_value_": value_of,
        "_override_": lambda name: copy.deepcopy(overrides[name]),
    }
    exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), namespace)
    settings, helpers = {}, {}
    for name, value in namespace.items():
        if name.startswith("_") or isinstance(value, (types.ModuleType, types.FunctionType)):
            continue
        if name in SETTINGS:
            settings[name] = value
        elif name in read or name in imported or name in COMMON_HELPERS:
            helpers[name] = value
        elif name in base:
            raise KeyError(f"config {path}: {name!r} is a helper variable of a base and has no effect here; `_options_ = dict({name}=...)` changes it")
        else:
            raise KeyError(f"config {path}: unknown setting {name!r}; {near_names(name, SETTINGS)}")
    return settings, helpers


def _import_ours(name: str, *args: Any, **kwargs: Any) -> Any:
    """`__import__` for config files: what they import from `pointcept` comes from this package."""
    if name == "pointcept" or name.startswith("pointcept."):
        name = name.replace("pointcept", "pointcept3m", 1)
        name = MOVED_MODULES.get(name, name)
    return __import__(name, *args, **kwargs)


def _placeholder_value(name: str, path: Path, base: Mapping[str, Any]) -> Any:
    if name in FILE_VARIABLES:
        return dict(zip(FILE_VARIABLES, (str(path.parent), path.name, path.stem, path.suffix), strict=True))[name]
    node: Any = base
    for part in name.split(".")[1:]:
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            known = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, (list, tuple)) else ()
            raise KeyError(f"config {path}: {{{{ {name} }}}}: the bases have no {part!r} there; {near_names(part, known)}")
    return node


def _substitute(source: str, path: Path, value_of: Any) -> str:
    """`source` with each `{{ name }}` as a call that returns the value, or as text inside a longer string."""
    if not PLACEHOLDER.search(source):
        return source
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    quoted, comments = [], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        span = (starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1])
        if token.type == tokenize.STRING:
            quoted.append(span)
        elif token.type == tokenize.COMMENT:
            comments.append(span)
    pieces, position = [], 0
    for match in PLACEHOLDER.finditer(source):
        start, end = match.span()
        if any(a <= start < b for a, b in comments):
            continue
        call = f"_value_({match[1]!r})"
        string = next(((a, b) for a, b in quoted if a <= start < b), None)
        if string is None:
            new = call
        elif (start - string[0], string[1] - end) == (1, 1):  # the whole string is the placeholder
            (start, end), new = string, call
        else:
            new = repr(str(value_of(match[1])))[1:-1]
        pieces += [source[position:start], new]
        position = end
    return "".join(pieces) + source[position:]


def _source(value: Any, depth: int, where: str) -> str:
    """Python source of a config value, dicts and long lists one entry a line."""
    pad, end = "    " * (depth + 1), "    " * depth
    if isinstance(value, Mapping):
        if not value:
            return "dict()"
        plain = all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)
        rows = [
            f"{pad}{key if plain else repr(key)}{'=' if plain else ': '}{_source(item, depth + 1, f'{where}.{key}')},\n"
            for key, item in value.items()
        ]
        return ("dict(\n" if plain else "{\n") + "".join(rows) + end + (")" if plain else "}")
    if isinstance(value, (list, tuple)):
        items = [_source(item, depth + 1, f"{where}.{i}") for i, item in enumerate(value)]
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
        line = ", ".join(items) + ("," if isinstance(value, tuple) and len(items) == 1 else "")
        if "\n" not in line and len(line) < 100:
            return left + line + right
        return left + "\n" + "".join(f"{pad}{item},\n" for item in items) + end + right
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a numpy or torch scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (set, frozenset, range, slice)):
        return repr(value)
    if isinstance(value, Path):
        return repr(str(value))
    raise TypeError(f"config: {where} is a {type(value).__name__}, which cannot be written to a Python file; wanted literals")
