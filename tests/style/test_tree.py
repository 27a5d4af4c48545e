"""The style rules, applied to the project's files."""

from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.style.faults import missing_references, wrong_bounds
from tests.style.imports import dead_modules, foreign_imports
from tests.style.rules import PYTHON_RULES, TASK_HELPERS, TEXT_RULES, WALL_CLOCKS
from tests.style.tree import PythonFile, TextFile, Violation, python_files, text_files


def report(violations: Iterable[Violation]) -> None:
    """Fail with one line per violation."""
    lines = [str(violation) for violation in sorted(violations)]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_walk_finds_the_project() -> None:
    """The rules see the project's files, so that none of them passes for lack of files."""
    expected = {"Makefile", ".ci/run", "pyproject.toml", "protos/generate.py", "tests/style/test_tree.py"}
    assert expected <= {file.path for file in text_files()}


def test_task_helpers_exist() -> None:
    """No permission to start tasks outlives its file."""
    assert set() == TASK_HELPERS - {file.path for file in python_files()}


def test_wall_clock_readers_exist() -> None:
    """No permission to read the wall clock outlives its use."""
    unlisted = {file.path for file in python_files() if "time.time" in file.text or "time_ns" in file.text}
    assert set() == WALL_CLOCKS - unlisted


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda rule: rule.__name__)
def test_text_files_follow(rule: Callable[[TextFile], Iterator[Violation]]) -> None:
    """Every handwritten text file follows the rule."""
    report(violation for file in text_files() if not file.is_generated for violation in rule(file))


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_files_follow(rule: Callable[[PythonFile], Iterator[Violation]]) -> None:
    """Every handwritten Python file follows the rule."""
    report(violation for file in python_files() for violation in rule(file))


def test_foreign_interfaces_have_one_importer() -> None:
    """One file each imports NIXL, the CUDA bindings, the native core and the etcd messages."""
    report(foreign_imports(python_files()))


def test_no_module_is_dead() -> None:
    """Every module of the packages is reached from an entry point."""
    report(dead_modules(python_files()))


def test_the_fault_table_names_what_there_is() -> None:
    """Every test, fault and bound that FAULTS.md names exists, the bounds with the defaults that it says."""
    files = {file.path: file for file in python_files()}
    (document,) = (file for file in text_files() if file.path == "FAULTS.md")
    report(missing_references(document, files))
    report(wrong_bounds(document, files))
