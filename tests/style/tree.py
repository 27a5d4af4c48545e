"""The project's files as the style rules see them: read once, parsed once."""

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGE_ROOTS = {"kvferry": "", "kvferry_control": "control/", "kvferry_dataplane": "dataplane/"}
"""Importable package to the folder it lives in, as a prefix of repository paths."""

SKIPPED_FOLDERS = frozenset({"build", "dist", "__pycache__", "inplace", "node_modules"})
DOTTED_FOLDERS = frozenset({".ci", ".github"})
BINARY_SUFFIXES = frozenset({".binpb", ".ico", ".png", ".pyc", ".so", ".svgz", ".whl"})


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One broken rule at one place."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file by its path relative to the repository, in posix form."""

    path: str
    text: str

    @property
    def is_generated(self) -> bool:
        """Whether a generator wrote it, so that no rule on style applies."""
        return PurePosixPath(self.path).name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"))


@dataclass(frozen=True, slots=True)
class PythonFile(TextFile):
    """A Python source file with its syntax tree."""

    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> "PythonFile":
        """Parse ``text``; raises SyntaxError."""
        return cls(path, text, ast.parse(text, filename=path))

    @property
    def module(self) -> str | None:
        """Dotted name for a file of one of the packages, else None."""
        for package, prefix in PACKAGE_ROOTS.items():
            if self.path.startswith(f"{prefix}{package}/"):
                parts = list(PurePosixPath(self.path.removeprefix(prefix)).with_suffix("").parts)
                return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        return None


def _walk() -> Iterator[Path]:
    for folder, subfolders, names in os.walk(REPOSITORY):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in SKIPPED_FOLDERS and (not name.startswith(".") or name in DOTTED_FOLDERS)
        )
        yield from (Path(folder, name) for name in sorted(names))


@cache
def text_files() -> tuple[TextFile, ...]:
    """Every text file of the project, generated ones included."""
    return tuple(
        TextFile(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
        for path in _walk()
        if path.suffix not in BINARY_SUFFIXES and path.name != ".git"
    )


@cache
def python_files() -> tuple[PythonFile, ...]:
    """Every handwritten Python file."""
    return tuple(
        PythonFile.parse(file.path, file.text)
        for file in text_files()
        if file.path.endswith(".py") and not file.is_generated
    )
