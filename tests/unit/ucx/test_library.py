"""UCX is found where it is said to be, and what cannot be used is named."""

import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.device.ucx import find_ucx
from tests.style.tree import REPOSITORY

SAME_ABI = REPOSITORY / "dataplane/native/ucx/same_abi.cpp"
VERSION = "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) { *a = %d; *b = %d; *c = 0; }"
Compile = Callable[[str], Path]


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """Makes a shared library of a line of C."""

    def compiled(source: str) -> Path:
        library = tmp_path / "libucp.so.0"
        command = [os.environ.get("CXX", "c++"), "-x", "c", "-shared", "-fPIC", "-o", str(library), "-"]
        subprocess.run(command, input=source, text=True, check=True, timeout=60)  # noqa: S603 - our own compiler
        return library

    return compiled


def headers() -> Path:
    """UCX's own headers."""
    spec = find_spec("libucx")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "include"


def test_what_make_installs_is_found() -> None:
    """After `make setup` there is a UCX, of a known release."""
    assert (1, 13) <= find_ucx().version[:2]


def test_the_declarations_are_ucx_own() -> None:
    """Offsets, sizes and values of the declarations that kvferry is built with are those of UCX's headers."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    assert compiler is not None
    done = subprocess.run(  # noqa: S603 - our own compiler
        [compiler, "-std=c++17", "-fsyntax-only", "-I", str(headers()), str(SAME_ABI)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)


def test_a_named_library_that_is_missing_is_no_reason_to_take_another() -> None:
    """Whoever names a library gets that one or an error that says what is wrong and what to do."""
    with pytest.raises(ConfigInvalid, match=r"/nowhere/libucp\.so\.0.*No such file.*install kvferry\[ucx\]") as caught:
        find_ucx("/nowhere/libucp.so.0")
    assert {"field": "ucx_library", "value": "/nowhere/libucp.so.0"} == caught.value.metadata


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int nothing;", "lacks ucp_get_version"),
        (VERSION % (1, 12), "is UCX 1.12.0, not 1.13 or a later one of 1"),
        (VERSION % (2, 0), "is UCX 2.0.0, not 1.13"),
        (VERSION % (1, 23), "lacks ucs_status_string"),
    ],
)
def test_a_library_that_cannot_be_used_says_why(compile_library: Compile, source: str, why: str) -> None:
    """Another library, a release before or after those that were tried, or half of one."""
    with pytest.raises(ConfigInvalid, match=why):
        find_ucx(str(compile_library(source)))
