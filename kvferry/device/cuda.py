"""CUDA memory through the driver API. The only file that imports the CUDA bindings, and only when first used."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from kvferry.core.errors import ConfigInvalid, PoolTooLarge, TransportFailed

IPC_HANDLE_BYTES = 64
UUID_BYTES = 16


@dataclass(frozen=True)
class CudaDevice:
    """One device with its primary context retained for the life of the process."""

    index: int
    uuid: bytes
    context: Any

    def make_current(self) -> None:
        """Bind the primary context to the calling thread; every thread that touches the device's memory needs it."""
        call("cuCtxSetCurrent", self.context)

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor number of what the device can do."""
        return self.attribute("COMPUTE_CAPABILITY_MAJOR"), self.attribute("COMPUTE_CAPABILITY_MINOR")

    @property
    def multiprocessor_count(self) -> int:
        """Multiprocessors (SMs)."""
        return self.attribute("MULTIPROCESSOR_COUNT")

    @property
    def shared_bytes_per_block_max(self) -> int:
        """Shared memory that one block can be given."""
        return self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")

    def attribute(self, name: str) -> int:
        """A number that the driver keeps of the device, by the end of its name there, such as ``DMA_BUF_SUPPORTED``."""
        attribute = constant(f"CUdevice_attribute.CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", attribute, call("cuDeviceGet", self.index)))

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the device."""
        self.make_current()
        free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size_bytes: int, *, field: str = "pool_bytes", tail_bytes: int = 0) -> int:
        """Allocate memory whose IPC handle can be exported; returns its address.

        ``tail_bytes`` are added to what was asked for; errors do not count them.

        Raises:
            PoolTooLarge: the device has not so much; names ``field`` and both values.
        """
        free, _ = self.memory_bytes()
        if size_bytes + tail_bytes <= free:
            result, *values = raw_call("cuMemAlloc", size_bytes + tail_bytes)
            if result != _driver().CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise_unless_ok("cuMemAlloc", result)
                return int(values[0])
        raise PoolTooLarge(
            f"{field}={size_bytes}: only {free} bytes are free on cuda:{self.index}",
            metadata={"field": field, "value": str(size_bytes), "available_bytes": str(free)},
        )

    def free(self, address: int) -> None:
        """Free what :meth:`allocate` gave."""
        self.make_current()
        call("cuMemFree", address)

    def export_handle(self, address: int) -> bytes:
        """The IPC handle of an allocation, ``IPC_HANDLE_BYTES`` long, for other processes of this host."""
        self.make_current()
        handle = call("cuIpcGetMemHandle", address)
        return ctypes.string_at(int(handle.getPtr()), IPC_HANDLE_BYTES)

    def open_handle(self, handle: bytes) -> int:
        """Map another process's allocation; returns its address here. A process cannot open its own handle."""
        if len(handle) != IPC_HANDLE_BYTES:
            raise TransportFailed(f"a CUDA IPC handle has {IPC_HANDLE_BYTES} bytes, not {len(handle)}")
        self.make_current()
        foreign = _driver().CUipcMemHandle()
        ctypes.memmove(int(foreign.getPtr()), handle, IPC_HANDLE_BYTES)
        flag = _driver().CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(call("cuIpcOpenMemHandle", foreign, int(flag)))

    def close_handle(self, address: int) -> None:
        """Unmap what :meth:`open_handle` gave."""
        self.make_current()
        call("cuIpcCloseMemHandle", address)

    def reach(self, peer: CudaDevice) -> None:
        """Let this device use what this process allocated on ``peer``. Memory mapped by IPC needs no such call.

        Raises:
            TransportFailed: it cannot reach it.
        """
        self.make_current()
        (result,) = raw_call("cuCtxEnablePeerAccess", peer.context, 0)
        if result != constant("CUresult.CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"):
            raise_unless_ok("cuCtxEnablePeerAccess", result)

    def fill(self, address: int, value: int, size_bytes: int) -> None:
        """Set every byte to ``value`` and wait until it is done."""
        self.make_current()
        call("cuMemsetD8", address, value, size_bytes)
        call("cuCtxSynchronize")

    def write(self, address: int, data: bytes | bytearray) -> None:
        """Copy ``data`` to the device and wait until it is there."""
        self.make_current()
        call("cuMemcpyHtoD", address, data, len(data))
        call("cuCtxSynchronize")

    def read(self, address: int, size_bytes: int) -> bytes:
        """Copy ``size_bytes`` from the device."""
        self.make_current()
        data = bytearray(size_bytes)
        call("cuMemcpyDtoH", data, address, size_bytes)
        return bytes(data)


@dataclass(frozen=True)
class CudaBytes:
    """Device memory as a one-dimensional array of bytes, for consumers of the CUDA array interface such as torch."""

    address: int
    size_bytes: int

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {
            "shape": (self.size_bytes,),
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }


def bindings_major() -> int | None:
    """Major version of the CUDA bindings installed; None without them."""
    try:
        bindings = importlib.import_module("cuda.bindings")
    except ModuleNotFoundError:
        return None
    return int(str(bindings.__version__).split(".")[0])


def open_device(index: int, *, field: str = "device") -> CudaDevice:
    """The device of this index.

    Raises:
        ConfigInvalid: no such device, no driver, or no bindings; names ``field``.
    """
    _initialize(field, f"cuda:{index}")
    count = int(call("cuDeviceGetCount"))
    if not 0 <= index < count:
        raise ConfigInvalid.of_field(field, f"cuda:{index}", f"this process sees {count} CUDA devices")
    device = call("cuDeviceGet", index)
    # Release 12 of the bindings keeps the function's version in its name.
    uuid_function = "cuDeviceGetUuid_v2" if hasattr(_driver(), "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    uuid = ctypes.string_at(int(call(uuid_function, device).getPtr()), UUID_BYTES)
    context = call("cuDevicePrimaryCtxRetain", device)
    opened = CudaDevice(index, uuid, context)
    opened.make_current()
    return opened


def open_device_by_uuid(uuid: bytes) -> CudaDevice:
    """The device of this UUID, under whatever index it has in this process.

    Raises:
        ConfigInvalid: this process does not see it.
    """
    _initialize("cuda_device_uuid", uuid.hex())
    for index in range(int(call("cuDeviceGetCount"))):
        opened = open_device(index)
        if opened.uuid == uuid:
            return opened
    raise ConfigInvalid.of_field("cuda_device_uuid", uuid.hex(), "this process does not see that device")


def _initialize(field: str, value: str) -> None:
    try:
        call("cuInit", 0)
    except (ConfigInvalid, TransportFailed) as error:
        raise ConfigInvalid.of_field(field, value, error.message) from error


@cache
def _driver() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise ConfigInvalid.of_field(
            "device", "cuda", f"the package cuda-bindings cannot be loaded: {error}"
        ) from error


@cache
def constant(name: str) -> Any:
    """A constant or a function of the driver's interface, by its name or as ``enumeration.name``."""
    found = _driver()
    for part in name.split("."):
        found = getattr(found, part)
    return found


def compiler_version() -> str:
    """Release of the run-time compiler, as ``major.minor``.

    Raises:
        ConfigInvalid: there is none.
    """
    try:
        compiler = importlib.import_module("cuda.bindings.nvrtc")
        result, major, minor = compiler.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise ConfigInvalid.of_field("device", "cuda", f"the run-time compiler cannot be loaded: {error}") from error
    raise_unless_ok("nvrtcVersion", result)
    return f"{major}.{minor}"


def raw_call(name: str, *arguments: object) -> tuple[Any, ...]:
    """Call a function of the driver: its result code, and what it returned.

    Raises:
        TransportFailed: the driver library is absent.
    """
    function: Callable[..., tuple[Any, ...]] = constant(name)
    try:
        return function(*arguments)
    except RuntimeError as error:
        raise _absent(name, error) from error


def _absent(name: str, error: RuntimeError) -> TransportFailed:
    """What the bindings mean where they raise this: there is no driver library."""
    return TransportFailed(f"{name}: {error}")


def call(name: str, *arguments: object) -> Any:
    """Call a function of the driver: what it returned, None for nothing and a tuple for several values.

    Raises:
        TransportFailed: its result is an error; names it.
    """
    # A copy takes several calls: what it is to look each of them up and hand it on adds up.
    try:
        result, *values = constant(name)(*arguments)
    except RuntimeError as error:
        raise _absent(name, error) from error
    if int(result):
        raise_unless_ok(name, result)
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def raise_unless_ok(name: str, result: Any) -> None:
    """Turn an error of the function called ``name`` into an exception.

    Raises:
        TransportFailed: ``result`` is an error.
    """
    if int(result) != 0:
        raise TransportFailed(f"{name}: {result.name}", metadata={"cuda_result": str(int(result))})
