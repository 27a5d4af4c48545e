"""Rules about who imports whom that need the whole tree: single importers and dead modules."""

import ast
from collections.abc import Iterable, Iterator, Mapping

from tests.style.rules import imported_names
from tests.style.tree import PythonFile, Violation

SINGLE_IMPORTERS: Mapping[str, tuple[str, ...]] = {
    "dataplane/kvferry_dataplane/nixl_agent.py": ("nixl", "nixl_cu12", "nixl_cu13"),
    "kvferry/device/cuda.py": ("cuda.bindings",),
    "kvferry/device/cuda_program.py": ("cuda.core",),
    "kvferry/device/native.py": ("kvferry.device._core",),
    "kvferry/device/ucx.py": ("kvferry.device._ucx", "libucx"),
    "control/kvferry_control/etcd/wire.py": ("kvferry.etcd",),
}
"""The one file that may import each foreign interface, so that its types and errors go no further."""

ENTRY_POINTS = frozenset({"kvferry", "kvferry.cli.main"})
"""Modules that something outside the tree imports: the public package and the console script."""


def _is_below(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def foreign_imports(files: Iterable[PythonFile]) -> Iterator[Violation]:
    """Imports of a guarded interface outside its file, and owners that do not import what they guard."""
    users: dict[str, set[str]] = {owner: set() for owner in SINGLE_IMPORTERS}
    for file in files:
        if file.module is None:
            continue
        for owner, prefixes in SINGLE_IMPORTERS.items():
            lines = {line for line, name in imported_names(file.tree) if _is_below(name, prefixes)}
            if lines:
                users[owner].add(file.path)
            if file.path != owner:
                for line in sorted(lines):
                    yield Violation(file.path, line, f"import of {prefixes[0]}: only {owner} may")
    for owner, prefixes in SINGLE_IMPORTERS.items():
        if owner not in users[owner]:
            yield Violation(owner, 1, f"does not import {' or '.join(prefixes)}: correct SINGLE_IMPORTERS")


def references(file: PythonFile, modules: Iterable[str]) -> set[str]:
    """Those of ``modules`` that ``file`` imports or names in a string (``python -m``, lazy exports)."""
    known = set(modules)
    names = {name for _, name in imported_names(file.tree)}
    names |= {
        node.value for node in ast.walk(file.tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return _with_parents(names) & known


def _with_parents(names: Iterable[str]) -> set[str]:
    """``a.b`` and ``a`` for ``a.b``: importing a module imports its packages."""
    paths = [name.split(".") for name in names]
    return {".".join(path[:length]) for path in paths for length in range(1, len(path) + 1)}


def dead_modules(files: Iterable[PythonFile]) -> Iterator[Violation]:
    """Modules that no entry point reaches. A test is no entry point: what only a test uses is dead."""
    modules = {file.module: file for file in files if file.module is not None}
    entries = {name for name in modules if name in ENTRY_POINTS or name.endswith(".__main__")}
    reached = _with_parents(entries) & modules.keys()
    pending = list(reached)
    while pending:
        found = references(modules[pending.pop()], modules) - reached
        reached |= found
        pending += found
    for name in modules.keys() - reached:
        yield Violation(
            modules[name].path, 1, f"dead module: nothing reaches it from {', '.join(sorted(ENTRY_POINTS))}"
        )
