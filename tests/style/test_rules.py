"""Each style rule fails on a bad example and passes a good one."""

import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.style import faults, imports, rules
from tests.style.tree import PythonFile, TextFile, Violation

MARKER = "TO" + "DO"
MACHINE_FOLDER = "/".join(["", "home", "someone"])
INDEX_OPTION = "--index" + "-url"

PythonRule = Callable[[PythonFile], Iterator[Violation]]
TextRule = Callable[[TextFile], Iterator[Violation]]


def python(source: str, path: str = "kvferry/core/example.py") -> PythonFile:
    """A parsed file from an indented snippet."""
    return PythonFile.parse(path, textwrap.dedent(source))


def function_of(lines: int) -> str:
    """A function with a docstring and a body of ``lines`` lines."""
    return 'def long():\n    """Docstring."""\n' + "    call()\n" * lines


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (rules.leftover_marker, f"x = 1  # {MARKER}: later"),
        (rules.machine_path, f"cp {MACHINE_FOLDER}/file ."),
        (rules.index_host, f"pip install {INDEX_OPTION} somewhere"),
        (rules.index_host, "see https://packages.example.org" + "/simple"),
    ],
)
def test_text_rule_fails(rule: TextRule, text: str) -> None:
    """A text rule names the line that breaks it."""
    assert [2] == [violation.line for violation in rule(TextFile("notes.md", f"first\n{text}\n"))]


@pytest.mark.parametrize("rule", rules.TEXT_RULES)
@pytest.mark.parametrize(
    "text",
    ["a method for the hot path", "./work/x", "~/home/x", "/run/kvferry/gpu0.sock", "the index of a url"],
)
def test_text_rule_passes(rule: TextRule, text: str) -> None:
    """Text that only resembles a violation passes."""
    assert [] == list(rule(TextFile("notes.md", text)))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (rules.long_function, function_of(rules.MAX_FUNCTION_LINES + 1)),
        (rules.long_file, "x = 1\n" * (rules.MAX_FILE_LINES + 1)),
        (rules.bare_task, "import asyncio\nasyncio.create_task(work())"),
        (rules.bare_task, "task = asyncio.get_running_loop().create_task(work())"),
        (rules.bare_task, "self._loop.create_task(work())"),
        (rules.bare_task, "from asyncio import create_task"),
        (rules.bare_task, "asyncio.ensure_future(work())"),
        (rules.swallowed_exception, "try:\n    f()\nexcept:\n    raise"),
        (rules.swallowed_exception, "try:\n    f()\nexcept Exception:\n    pass"),
        (
            rules.swallowed_exception,
            "for x in y:\n    try:\n        f()\n    except (OSError, BaseException):\n        continue",
        ),
        (rules.swallowed_exception, "with contextlib.suppress(Exception):\n    f()"),
        (rules.unsafe_serializer, "import pickle"),
        (rules.unsafe_serializer, "def f():\n    from marshal import loads"),
        (rules.unsafe_serializer, "importlib.import_module('dill')"),
        (rules.missing_docstring, "x = 1"),
        (rules.wall_clock, "import time\nexpires = time.time() + 1"),
        (rules.wall_clock, "field(default_factory=time.time)"),
        (rules.wall_clock, "from time import time_ns"),
        (rules.wall_clock, "datetime.now(UTC)"),
        (rules.wall_clock, "stamp.GetCurrentTime()"),
    ],
)
def test_python_rule_fails(rule: PythonRule, source: str) -> None:
    """A rule on Python files finds exactly the one violation of its bad example."""
    assert ["kvferry/core/example.py"] == [violation.path for violation in rule(python(source))]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (rules.long_function, function_of(rules.MAX_FUNCTION_LINES)),
        (rules.long_file, "x = 1\n" * rules.MAX_FILE_LINES),
        (rules.bare_task, "async with asyncio.TaskGroup() as group:\n    group.create_task(work())"),
        (rules.swallowed_exception, "try:\n    f()\nexcept OSError:\n    pass"),
        (rules.swallowed_exception, "try:\n    f()\nexcept Exception as error:\n    raise Failed from error"),
        (rules.unsafe_serializer, "import json"),
        (rules.missing_docstring, ""),
        (rules.wall_clock, "import time\nexpires = time.monotonic() + 1"),
        (rules.wall_clock, "datetime.fromtimestamp(wire.create_time, UTC)"),
        (rules.missing_docstring, '"""What it is for."""\nx = 1'),
    ],
)
def test_python_rule_passes(rule: PythonRule, source: str) -> None:
    """What a rule asks for passes it."""
    source = source.replace("async with", "async def f():\n  async with").replace("\n    group", "\n      group")
    assert [] == list(rule(python(source)))


OWNERS = [python(f"import {prefixes[0]}", path) for path, prefixes in imports.SINGLE_IMPORTERS.items()]


def test_foreign_import_elsewhere_fails() -> None:
    """A second importer of NIXL is named, also when it imports late, by name or by a computed name."""
    stray = python("def f():\n    import nixl._api\n    importlib.import_module(name)\nname = 'nixl_cu12'")
    assert [(stray.path, 2), (stray.path, 4)] == [(v.path, v.line) for v in imports.foreign_imports([*OWNERS, stray])]


def test_foreign_import_owner_without_import_fails() -> None:
    """A guarded file that no longer imports its interface is named, so that the table cannot go stale."""
    assert [OWNERS[0].path] == [violation.path for violation in imports.foreign_imports(OWNERS[1:])]


def test_foreign_import_in_its_place_passes() -> None:
    """The owners alone break nothing."""
    assert [] == list(imports.foreign_imports(OWNERS))


def test_dead_module_fails() -> None:
    """Modules that only import each other are dead."""
    files = [
        python("from kvferry.cli import alive", "kvferry/cli/main.py"),
        python("", "kvferry/cli/__init__.py"),
        python("LAZY = {'x': 'kvferry.sdk'}", "kvferry/cli/alive.py"),
        python("", "kvferry/sdk/__init__.py"),
        python("import kvferry.core.two", "kvferry/core/one.py"),
        python("import kvferry.core.one", "kvferry/core/two.py"),
        python("import kvferry_control.server", "control/kvferry_control/__main__.py"),
        python("", "control/kvferry_control/server.py"),
        python("", "control/kvferry_control/__init__.py"),
    ]
    assert ["kvferry/core/one.py", "kvferry/core/two.py"] == sorted(v.path for v in imports.dead_modules(files))


PLACE = "tests/process/test_place.py"
FAULTY = {
    PLACE: python("def test_one():\n    ...\nclass Fault:\n    def inject(self):\n        ...", PLACE),
    "control/bounds.py": python("WAIT_S = 2.0\nclass Limits:\n    wait_s: float = Field(default=5.0, ge=1)", PLACE),
}


def found(text: str) -> list[int]:
    """Lines of a document that name what there is not."""
    document = TextFile("FAULTS.md", text)
    broken = [*faults.missing_references(document, FAULTY), *faults.wrong_bounds(document, FAULTY)]
    return [violation.line for violation in broken]


def test_fault_table_fails() -> None:
    """Tests and methods that do not exist, bounds that do not exist, differ or are not listed, are named."""
    lines = [f"`{PLACE}::test_two`", f"`{PLACE}::Fault.heal`", "`tests/none.py::test_one`"]
    lines += ["| `WAIT_S` | 3.0 | `control/bounds.py` | x |", "| `MORE_S` | 3.0 | `control/bounds.py` | x |"]
    lines += ["| `Limits.wait_s` | 4 | `control/bounds.py` | x |", "within `OTHER_S`", "within `Limits.other_s`"]
    assert [1, 2, 3, 4, 5, 6, 7, 8] == found("\n".join(lines))


def test_fault_table_passes() -> None:
    """What is there, with the default that is said, breaks nothing; reasons and states are no bounds."""
    lines = ["| `WAIT_S` | 2.0 | `control/bounds.py` | x |", "| `Limits.wait_s` | 5 | `control/bounds.py` | x |"]
    lines += [f"`WAIT_S`, `Limits.wait_s`, `PEER_LOST`: `{PLACE}::test_one`, `{PLACE}::Fault.inject`"]
    assert [] == found("\n".join(lines))
