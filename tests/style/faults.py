"""What FAULTS.md refers to: tests and faults by path and name, and bounds with their defaults."""

import ast
import re
from collections.abc import Iterator, Mapping

from tests.style.tree import PythonFile, TextFile, Violation

_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::([\w.]+)`")
_BOUND_ROW = re.compile(r"\| `([\w.]+)` \| ([\d.]+) \| `([\w/]+\.py)` \|")
_BOUND = re.compile(r"`((?:[A-Z]\w*[a-z]\w*\.[a-z]\w*)|(?:[A-Z]+_[A-Z_]*[A-Z]|ATTEMPTS))`")
_UNITS = ("_S", "_MS", "_SECONDS", "_SECONDS_MAX", "ATTEMPTS")


def missing_references(document: TextFile, files: Mapping[str, PythonFile]) -> Iterator[Violation]:
    """Tests and faults that are named and do not exist."""
    for number, line in enumerate(document.text.splitlines(), start=1):
        for path, name in _REFERENCE.findall(line):
            if path not in files or name not in set(_defined(files[path].tree)):
                yield Violation(document.path, number, f"no such test: {path}::{name}")


def wrong_bounds(document: TextFile, files: Mapping[str, PythonFile]) -> Iterator[Violation]:
    """Bounds that do not exist, have another default, or are named without being listed."""
    listed: set[str] = set()
    for number, line in enumerate(document.text.splitlines(), start=1):
        if row := _BOUND_ROW.match(line):
            name, value, path = row.groups()
            listed.add(name)
            defaults = dict(_defaults(files[path].tree)) if path in files else {}
            if defaults.get(name) != float(value):
                yield Violation(document.path, number, f"{name} is {defaults.get(name)} in {path}, not {value}")
    for number, line in enumerate(document.text.splitlines(), start=1):
        for name in _BOUND.findall(line):
            if name not in listed and (name.endswith(_UNITS) or "." in name):
                yield Violation(document.path, number, f"{name} is not in the table of times")


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


def _defaults(tree: ast.Module) -> Iterator[tuple[str, float]]:
    """Numbers that are assigned in a module or as the defaults of a class's fields."""
    for node in tree.body:
        body, prefix = (node.body, f"{node.name}.") if isinstance(node, ast.ClassDef) else ([node], "")
        for statement in body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    found = _number(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    found = _number(value)
                case _:
                    continue
            if found is not None:
                yield prefix + name, found


def _number(value: ast.expr) -> float | None:
    match value:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Call(keywords=keywords):
            return next((_number(keyword.value) for keyword in keywords if keyword.arg == "default"), None)
    return None
