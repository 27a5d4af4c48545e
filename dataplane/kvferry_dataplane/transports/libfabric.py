"""Finds and loads what NIXL's LIBFABRIC plugin links to and NIXL's wheels lack.

The loader takes a library that is loaded already for every later request of its name, so nothing has to be in its
search path. What the system has goes first: a site's own libfabric knows its network. Then come the packages of the
extra `libfabric`. The driver's libcuda.so.1 alone has a stand-in, for machines without a driver.
"""

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from kvferry.core.errors import ConfigInvalid

FABRIC_VERSION = "FABRIC_1.7"
"""Version of libfabric's symbols that the plugin of NIXL 1.5.0 asks for; libfabric has it since 1.20."""
CUDA_RUNTIMES = {
    "nixl_cu13": ("libcudart.so.13", "nvidia-cuda-runtime"),
    "nixl_cu12": ("libcudart.so.12", "nvidia-cuda-runtime-cu12"),
}
"""The CUDA runtime that each wheel's plugin links to, and the package that has it."""
_LIBFABRIC = ("libfabric.so.1", "impi-rt")
_HWLOC = ("libhwloc.so.15", "libhwloc15")
_CUDA_DRIVER = "libcuda.so.1"
_STAND_IN = Path(__file__).with_name("libkvferry_no_cuda.so")


@dataclass(frozen=True, slots=True)
class Libfabric:
    """What was loaded."""

    library: ctypes.CDLL
    wheel: str
    """The wheel of NIXL whose plugin can be loaded now."""
    settings: dict[str, str]
    """Settings that go with it, unless the user has others."""


def load_libfabric(wheels: tuple[str, ...]) -> Libfabric:
    """Load everything for the first of ``wheels``, packages of NIXL, that has its CUDA runtime here.

    Raises:
        ConfigInvalid: something is missing; names it, and what to install.
    """
    library, settings = _load_fabric()
    if _open(_HWLOC[0]) is None:
        raise _missing(_HWLOC[0], f"install the Debian or Ubuntu package {_HWLOC[1]}")
    wheel = _load_cuda_runtime(wheels)
    if _open(_CUDA_DRIVER) is None and _open(str(_STAND_IN)) is None:
        raise _missing(_CUDA_DRIVER, f"there is no driver, and {_STAND_IN} was not built: install kvferry anew")
    return Libfabric(library, wheel, settings)


def _load_fabric() -> tuple[ctypes.CDLL, dict[str, str]]:
    name, package = _LIBFABRIC
    library = _open(name)
    if library is not None:
        if _has_version(library, "fi_getinfo", FABRIC_VERSION):
            return library, {}
        # Closed, so that the plugin does not get it.
        _close(library)
    for path in _files_of(package, name):
        library = _open(str(path))
        if library is not None and _has_version(library, "fi_getinfo", FABRIC_VERSION):
            # Its providers are libraries of their own, beside it.
            return library, {"FI_PROVIDER_PATH": str(path.parent)}
    why = f"install the extra: pip install 'kvferry[libfabric]' (package {package}), or libfabric 1.20 or newer"
    raise _missing(f"{name} with {FABRIC_VERSION}", why)


def _load_cuda_runtime(wheels: tuple[str, ...]) -> str:
    for wheel in wheels:
        name, package = CUDA_RUNTIMES[wheel]
        if any(_open(candidate) is not None for candidate in (name, *map(str, _files_of(package, name)))):
            return wheel
    runtimes = [CUDA_RUNTIMES[wheel] for wheel in wheels]
    names, packages = (" or ".join(part) for part in zip(*runtimes, strict=True))
    raise _missing(names, f"install the extra: pip install 'kvferry[libfabric]' (package {packages})")


def _missing(what: str, remedy: str) -> ConfigInvalid:
    return ConfigInvalid.of_field("nixl_backend", "LIBFABRIC", f"{what} is missing: {remedy}")


def _files_of(package: str, name: str) -> Iterator[Path]:
    """Where an installed package has a file of that name."""
    try:
        found = files(package) or []
    except PackageNotFoundError:
        return
    for file in found:
        if file.name == name:
            yield Path(os.path.realpath(str(file.locate())))


def _open(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _close(library: ctypes.CDLL) -> None:
    process = ctypes.CDLL(None)
    process.dlclose.argtypes = [ctypes.c_void_p]
    process.dlclose(library._handle)


def _has_version(library: ctypes.CDLL, symbol: str, version: str) -> bool:
    process = ctypes.CDLL(None)
    process.dlvsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]
    process.dlvsym.restype = ctypes.c_void_p
    return bool(process.dlvsym(library._handle, symbol.encode(), version.encode()))
