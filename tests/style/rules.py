"""Rules that look at one file at a time. Each takes a file and yields what is wrong in it."""

import ast
import re
from collections.abc import Callable, Iterator

from tests.style.tree import PythonFile, TextFile, Violation

MAX_FUNCTION_LINES = 60
"""Lines of a body without its docstring. Lower it when the longest function allows; never raise it."""

MAX_FILE_LINES = 400
"""Lines of a Python file. Lower it when the longest file allows; never raise it."""

TASK_HELPERS = frozenset({"control/kvferry_control/etcd/watch.py"})
"""Files that start a task outside a TaskGroup, keep it and pass its failure on; a generator has no group."""

WALL_CLOCKS = frozenset(
    {
        "control/kvferry_control/publications/manager.py",
        "control/kvferry_control/transfers/manager.py",
        "control/kvferry_control/transfers/record.py",
        "kvferry/doctor/clock.py",
    }
)
"""Files that tell people the time, or that it is wrong. Nothing is decided by it: the wall clock jumps."""

_WALL_CLOCK_READS = frozenset(
    {
        *("time.time", "time.time_ns", "time.CLOCK_REALTIME", "datetime.datetime.now", "datetime.datetime.utcnow"),
        *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    }
)

UNSAFE_SERIALIZERS = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve"})

# Spelled so that this file does not break its own rules.
_MARKER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|X{3})\b")
_MACHINE_PATH = re.compile(r"(?<![\w.~$}*-])/(?:home|Users|root|work|workspaces?)/[\w.]")
_INDEX_HOST = re.compile(
    r"(?:extra[-_])?index[-_]url|find[-_]links|trusted[-_]host|https?://[^\s\"'<>)]+/simple\b|//(?:\w+\.)*pypi\.",
    re.IGNORECASE,
)


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported at any depth, by statement or by ``import_module``.

    ``from a import b`` gives both ``a`` and ``a.b``, since either may be the module. In a file that imports
    by a computed name every string may be that name.
    """
    computed = False
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield node.lineno, module
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if _is_dynamic_import(function):
                yield node.lineno, name
            case ast.Call(func=function) if _is_dynamic_import(function):
                computed = True
    if computed:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value


def _is_dynamic_import(function: ast.expr) -> bool:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in {"import_module", "__import__", "find_spec"}
    return False


def leftover_marker(file: TextFile) -> Iterator[Violation]:
    """Work that is left to do belongs into an issue."""
    yield from _matches(file, _MARKER, "leftover marker {!r}: do it or file it")


def machine_path(file: TextFile) -> Iterator[Violation]:
    """A path of one machine means nothing on another."""
    yield from _matches(file, _MACHINE_PATH, "path of one machine {!r}: make it relative or configurable")


def index_host(file: TextFile) -> Iterator[Violation]:
    """Where packages come from is the configuration of the machine that installs them."""
    yield from _matches(file, _INDEX_HOST, "package index {!r}: leave it to the installer's configuration")


def _matches(file: TextFile, pattern: re.Pattern[str], message: str) -> Iterator[Violation]:
    for number, line in enumerate(file.text.splitlines(), start=1):
        if match := pattern.search(line):
            yield Violation(file.path, number, message.format(match.group()))


def long_function(file: PythonFile) -> Iterator[Violation]:
    """A function that does one thing fits on a screen."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            lines = (node.end_lineno or node.lineno) - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                message = f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}: split it"
                yield Violation(file.path, node.lineno, message)


def long_file(file: PythonFile) -> Iterator[Violation]:
    """A file has one purpose."""
    lines = len(file.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield Violation(file.path, lines, f"{lines} lines, at most {MAX_FILE_LINES}: split it by purpose")


def bare_task(file: PythonFile) -> Iterator[Violation]:
    """A task outside a TaskGroup can be collected while it runs, and its failure goes unseen."""
    if file.path in TASK_HELPERS:
        return
    for node in ast.walk(file.tree):
        match node:
            case ast.ImportFrom(module="asyncio", names=names, lineno=line):
                found = any(alias.name in {"create_task", "ensure_future"} for alias in names)
            case ast.Call(func=ast.Attribute(attr="ensure_future"), lineno=line):
                found = True
            case ast.Call(func=ast.Attribute(attr="create_task", value=receiver), lineno=line):
                found = _is_event_loop(receiver)
            case _:
                continue
        if found:
            yield Violation(file.path, line, "task outside a TaskGroup: open one, or add a helper to TASK_HELPERS")


def _is_event_loop(receiver: ast.expr) -> bool:
    match receiver:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == "asyncio" or name.strip("_").endswith("loop")
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name.endswith("_loop")
    return False


def swallowed_exception(file: PythonFile) -> Iterator[Violation]:
    """An error that nobody hears of is worse than a crash."""
    for node in ast.walk(file.tree):
        match node:
            case ast.ExceptHandler(type=None):
                yield Violation(file.path, node.lineno, "bare except: name the exceptions")
            case ast.ExceptHandler(type=ast.expr() as caught, body=body) if _is_broad(caught) and _does_nothing(body):
                yield Violation(file.path, node.lineno, "swallowed exception: name the exceptions, or handle them")
            case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
                if any(_is_broad(argument) for argument in args):
                    yield Violation(file.path, node.lineno, "swallowed exception: name the exceptions to suppress")


def _is_broad(caught: ast.expr) -> bool:
    match caught:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in {"Exception", "BaseException"}
        case ast.Tuple(elts=elements):
            return any(_is_broad(element) for element in elements)
    return False


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Continue)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def wall_clock(file: PythonFile) -> Iterator[Violation]:
    """Leases, deadlines and identities must not depend on a clock that somebody sets: the monotonic one decides."""
    if file.module is None or file.path in WALL_CLOCKS:
        return
    for node in ast.walk(file.tree):
        match node:
            case ast.ImportFrom(module="time", names=names, lineno=line):
                found = any(f"time.{alias.name}" in _WALL_CLOCK_READS for alias in names)
            case ast.Attribute(lineno=line):
                found = ast.unparse(node) in _WALL_CLOCK_READS or node.attr == "GetCurrentTime"
            case _:
                continue
        if found:
            yield Violation(file.path, line, "wall clock: use the monotonic one, or add the file to WALL_CLOCKS")


def unsafe_serializer(file: PythonFile) -> Iterator[Violation]:
    """Unpickling a peer's bytes runs the peer's code."""
    found = {(line, name.partition(".")[0]) for line, name in imported_names(file.tree)}
    for line, name in sorted(found):
        if name in UNSAFE_SERIALIZERS:
            yield Violation(file.path, line, f"import of {name}: use protobuf, JSON or plain bytes")


def missing_docstring(file: PythonFile) -> Iterator[Violation]:
    """A module says what it is for; an empty ``__init__.py`` has nothing to say."""
    if file.tree.body and ast.get_docstring(file.tree) is None:
        yield Violation(file.path, 1, "module without a docstring")


TEXT_RULES: tuple[Callable[[TextFile], Iterator[Violation]], ...] = (
    leftover_marker,
    machine_path,
    index_host,
)

PYTHON_RULES: tuple[Callable[[PythonFile], Iterator[Violation]], ...] = (
    long_function,
    long_file,
    bare_task,
    swallowed_exception,
    unsafe_serializer,
    wall_clock,
    missing_docstring,
)
