"""Reads the text of a config without running it: what a weight file says of the run that made it.

`Config.pretty_text` writes a config as assignments of literals and `dict(...)` calls. A checkpoint carries that text, and
a checkpoint may come from anyone, so nothing in it is executed: any other syntax is refused.
"""

import ast
from typing import Any

# What `Config.pretty_text` writes besides literals: each builds a plain value and runs nothing.
CALLS = {"dict": dict, "float": float, "set": set, "frozenset": frozenset, "range": range, "slice": slice}
MAX_CHARACTERS = 4_000_000


def parse_config_text(text: str, source: str = "config text") -> dict[str, Any]:
    """The settings in `text`, as plain values by name.

    source: what an error calls the text. Raises: ValueError for anything but `name = literal` lines.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{source}: a config of {len(text):,} characters is refused; at most {MAX_CHARACTERS:,} are read")
    try:
        tree = ast.parse(text)
        return dict(_assignment(node, source) for node in tree.body)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{source}: not the text of a config ({type(error).__name__}: {error})") from error


def _assignment(node: ast.stmt, source: str) -> tuple[str, Any]:
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
        raise ValueError(f"{source}, line {node.lineno}: wanted name = value, got {ast.unparse(node)[:80]!r}")
    return node.targets[0].id, plain_value(node.value, source)


def plain_value(node: ast.expr, source: str) -> Any:
    """What an expression of literals and `dict(...)` is, nothing in it run. Raises ValueError, which names `source`, for any other."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [plain_value(item, source) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(plain_value(item, source) for item in node.elts)
    if isinstance(node, ast.Set):
        return {plain_value(item, source) for item in node.elts}
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {plain_value(k, source): plain_value(v, source) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = plain_value(node.operand, source)
        if isinstance(value, (int, float, complex)):
            return -value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        names = [keyword.arg for keyword in node.keywords]
        if None not in names and not (node.func.id != "dict" and names):
            arguments = [plain_value(argument, source) for argument in node.args]
            keywords = {keyword.arg: plain_value(keyword.value, source) for keyword in node.keywords}
            return CALLS[node.func.id](*arguments, **keywords)
    raise ValueError(f"{source}, line {node.lineno}: only literals and dict(...) are read, got {ast.unparse(node)[:80]!r}")
