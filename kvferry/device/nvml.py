"""What NVIDIA's management library says about GPUs and the links between them: it needs a driver, no CUDA package."""

import ctypes
from dataclasses import dataclass

from kvferry.core.errors import ConfigInvalid, TransportFailed

LIBRARY = "libnvidia-ml.so.1"
LINKS_MAX = 36
"""More than any GPU has."""
_TEXT_BYTES = 96
_CAPS_NVLINK = 2
_INVALID_ARGUMENT, _NOT_SUPPORTED = 2, 3
_ENABLED, _P2P_OK = 1, 0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU."""

    name: str
    nvlink_count: int
    """Links that are up."""
    nvlink_peers: tuple[int, ...]
    """Indices of the GPUs of this machine that it reaches by NVLink."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """All GPUs that this process sees."""

    driver_version: str
    gpus: tuple[Gpu, ...]


def read_gpus(library: str = LIBRARY) -> Gpus:
    """Ask the library.

    Raises:
        ConfigInvalid: it cannot be loaded: there is no driver here.
        TransportFailed: it reports an error.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        raise ConfigInvalid.of_field("driver", library, f"cannot be loaded: {error}") from error
    _call(nvml, "nvmlInit_v2")
    try:
        return _read(nvml)
    finally:
        _call(nvml, "nvmlShutdown")


def _read(nvml: ctypes.CDLL) -> Gpus:
    driver = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, "nvmlSystemGetDriverVersion", driver, _TEXT_BYTES)
    count = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    handles = [_handle(nvml, index) for index in range(count.value)]
    return Gpus(driver.value.decode(), tuple(_gpu(nvml, handles, index) for index in range(count.value)))


def _handle(nvml: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
    return handle


def _gpu(nvml: ctypes.CDLL, handles: list[ctypes.c_void_p], index: int) -> Gpu:
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(nvml, "nvmlDeviceGetName", handles[index], name, _TEXT_BYTES)
    links = sum(_is_up(nvml, handles[index], link) for link in range(LINKS_MAX))
    peers = [other for other in range(len(handles)) if other != index and _reach(nvml, handles[index], handles[other])]
    return Gpu(name.value.decode(), links, tuple(peers))


def _is_up(nvml: ctypes.CDLL, handle: ctypes.c_void_p, link: int) -> bool:
    state = ctypes.c_uint()
    # A link that the GPU has not is an invalid argument, and a GPU without NVLink supports no such question.
    result = nvml.nvmlDeviceGetNvLinkState(handle, link, ctypes.byref(state))
    if result in (_INVALID_ARGUMENT, _NOT_SUPPORTED):
        return False
    _raise_unless_ok(nvml, "nvmlDeviceGetNvLinkState", result)
    return state.value == _ENABLED


def _reach(nvml: ctypes.CDLL, one: ctypes.c_void_p, other: ctypes.c_void_p) -> bool:
    status = ctypes.c_uint()
    _call(nvml, "nvmlDeviceGetP2PStatus", one, other, _CAPS_NVLINK, ctypes.byref(status))
    return status.value == _P2P_OK


def _call(nvml: ctypes.CDLL, name: str, *arguments: object) -> None:
    _raise_unless_ok(nvml, name, getattr(nvml, name)(*arguments))


def _raise_unless_ok(nvml: ctypes.CDLL, name: str, result: int) -> None:
    if result != 0:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise TransportFailed(f"{name}: {nvml.nvmlErrorString(result).decode()}")
