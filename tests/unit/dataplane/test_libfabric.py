"""What NIXL's LIBFABRIC plugin needs: what is missing is named, and what the system has goes first."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry_dataplane.transports import libfabric
from kvferry_dataplane.transports.libfabric import CUDA_RUNTIMES, FABRIC_VERSION, load_libfabric

WHEELS = tuple(CUDA_RUNTIMES)
STAND_IN = Path(libfabric.__file__).with_name("libkvferry_no_cuda.so")
NO_DEVICE = 100


class System:
    """Libraries that can be opened, by name or path; the packages of the extra have theirs in `/extra`."""

    def __init__(self, *present: str) -> None:
        self.present = present
        self.opened: list[str] = []

    def open(self, name: str) -> object | None:
        """As the loader does."""
        if name not in self.present:
            return None
        self.opened.append(name)
        return name


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> type[System]:
    """Makes a system the one that is looked at, once one is made."""

    class Current(System):
        def __init__(self, *present: str) -> None:
            super().__init__(*present)
            monkeypatch.setattr(libfabric, "_open", self.open)
            monkeypatch.setattr(libfabric, "_close", lambda name: self.opened.append(f"closed {name}"))
            monkeypatch.setattr(libfabric, "_has_version", lambda name, *_: "old" not in name)
            monkeypatch.setattr(libfabric, "_files_of", lambda package, name: [Path(f"/extra/{package}/{name}")])

    return Current


COMPLETE = ("libfabric.so.1", "libhwloc.so.15", "libcudart.so.13", "libcuda.so.1", str(STAND_IN))


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        ("libfabric.so.1", r"libfabric\.so\.1 with FABRIC_1\.7 is missing: .*kvferry\[libfabric\].*impi-rt"),
        ("libhwloc.so.15", r"libhwloc\.so\.15 is missing: .*libhwloc15"),
        ("libcudart.so.13", r"libcudart\.so\.13 or libcudart\.so\.12 is missing: .*nvidia-cuda-runtime-cu12"),
    ],
)
def test_what_is_missing_is_named_with_what_to_install(on: type[System], library: str, remedy: str) -> None:
    """Each library that cannot be found is a refusal that names it and the package that has it."""
    on(*(name for name in COMPLETE if name != library))
    with pytest.raises(ConfigInvalid, match=remedy) as caught:
        load_libfabric(WHEELS)
    assert ("nixl_backend", "LIBFABRIC") == (caught.value.metadata["field"], caught.value.metadata["value"])


def test_without_driver_and_stand_in_it_is_refused(on: type[System]) -> None:
    """A machine without a driver, where the stand-in was not built either, says both."""
    on(*COMPLETE[:3])
    with pytest.raises(ConfigInvalid, match=r"libcuda\.so\.1 is missing: .*no driver.*was not built"):
        load_libfabric(WHEELS)


def test_the_stand_in_is_not_touched_where_there_is_a_driver(on: type[System]) -> None:
    """Where libcuda.so.1 can be loaded the stand-in is not; where it cannot, the stand-in is."""
    with_driver = on(*COMPLETE)
    load_libfabric(WHEELS)
    assert str(STAND_IN) not in with_driver.opened
    without = on(*(name for name in COMPLETE if name != "libcuda.so.1"))
    load_libfabric(WHEELS)
    assert str(STAND_IN) in without.opened


def test_the_systems_libfabric_goes_before_the_packages(on: type[System]) -> None:
    """A libfabric of the system is taken with its own providers; without one the package's, with the package's."""
    packaged = "/extra/impi-rt/libfabric.so.1"
    on(*COMPLETE, packaged)
    assert {} == load_libfabric(WHEELS).settings
    on(*COMPLETE[1:], packaged)
    assert {"FI_PROVIDER_PATH": "/extra/impi-rt"} == load_libfabric(WHEELS).settings


def test_the_wheel_follows_the_runtime_that_is_there(on: type[System]) -> None:
    """With the runtime of CUDA 12 alone the wheel for CUDA 12 is taken."""
    on(*(name for name in COMPLETE if name != "libcudart.so.13"), "libcudart.so.12")
    assert "nixl_cu12" == load_libfabric(WHEELS).wheel


def test_a_libfabric_that_is_too_old_is_let_go(tmp_path: Path) -> None:
    """A system's libfabric without the version of its symbols is closed, and the package's is what is loaded."""
    script, library = tmp_path / "versions", tmp_path / "libfabric.so.1"
    script.write_text("FABRIC_1.6 { global: fi_getinfo; local: *; };\n")
    source = tmp_path / "old.c"
    source.write_text("int fi_getinfo(void) { return 0; }\n")
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    linking = [f"-Wl,--version-script={script}", "-Wl,-soname,libfabric.so.1"]
    command = [*compiler, "-x", "c", "-shared", "-fPIC", *linking, "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=60)  # noqa: S603 - the compiler that builds the native core
    program = (
        "from kvferry_dataplane.transports.libfabric import CUDA_RUNTIMES, load_libfabric\n"
        "print(load_libfabric(tuple(CUDA_RUNTIMES)).settings)\n"
        "print(sorted({line.split()[-1] for line in open('/proc/self/maps') if 'libfabric.so' in line}))\n"
    )
    ran = subprocess.run(  # noqa: S603 - the interpreter of this test
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    settings, loaded = ran.stdout.splitlines()
    assert "FI_PROVIDER_PATH" in settings
    assert str(tmp_path) not in loaded
    assert "libfabric.so.1" in loaded


def undefined(library: Path) -> set[str]:
    """Functions of the CUDA driver that a library takes from elsewhere."""
    nm = shutil.which("nm")
    assert nm is not None, "the compiler that builds the native core brings nm"
    listed = subprocess.run(  # noqa: S603 - a program of the system on a file of this environment
        [nm, "--dynamic", "--undefined-only", str(library)], capture_output=True, text=True, check=True, timeout=60
    )
    return set(re.findall(r" U (cu[A-Z]\w+)", listed.stdout))


@pytest.mark.parametrize("wheel", WHEELS)
def test_the_stand_in_has_what_nixls_libraries_take_from_the_driver(wheel: str) -> None:
    """Every function of the driver that a library of the wheel links to is there, and answers that there is no device:
    one that is missing would end the process at its first call."""
    found = find_spec(wheel)
    assert found is not None
    assert found.origin is not None
    libraries = [
        path
        for path in Path(found.origin).parent.with_name(f"{wheel}.libs").rglob("*.so*")
        if b"libcuda.so.1\0" in path.read_bytes()
    ]
    needed = set().union(*map(undefined, libraries))
    assert "cuPointerGetAttributes" in needed
    stand_in = ctypes.CDLL(str(STAND_IN))
    assert {NO_DEVICE} == {getattr(stand_in, name)() for name in needed}


def test_the_plugins_ask_for_the_version_that_is_looked_for() -> None:
    """No plugin asks for newer symbols of libfabric than are looked for, so that NIXL's refusal is never the first."""
    for wheel in WHEELS:
        found = find_spec(wheel)
        assert found is not None
        assert found.origin is not None
        (plugin,) = Path(found.origin).parent.with_name(f"{wheel}.libs").rglob("libplugin_LIBFABRIC.so")
        asked = {tuple(map(int, pair)) for pair in re.findall(rb"FABRIC_(\d+)\.(\d+)\0", plugin.read_bytes())}
        assert f"FABRIC_{'.'.join(map(str, max(asked)))}" == FABRIC_VERSION
