"""Streams, events and kernels of a CUDA device. The device must be current in the calling thread."""

from dataclasses import dataclass
from typing import Any

from kvferry.device.cuda import call, constant, raise_unless_ok, raw_call


@dataclass(frozen=True, slots=True)
class Event:
    """A point in a stream."""

    handle: Any

    @classmethod
    def create(cls, *, timed: bool = False) -> "Event":
        """``timed`` events can be subtracted."""
        return cls(call("cuEventCreate", 0 if timed else int(constant("CUevent_flags.CU_EVENT_DISABLE_TIMING"))))

    def is_past(self) -> bool:
        """Whether all work before it has ended.

        Raises:
            TransportFailed: some of the work failed.
        """
        (result,) = raw_call("cuEventQuery", self.handle)
        if result == constant("CUresult.CUDA_ERROR_NOT_READY"):
            return False
        raise_unless_ok("cuEventQuery", result)
        return True

    def seconds_since(self, earlier: "Event") -> float:
        """Time between two timed events that are past."""
        return float(call("cuEventElapsedTime", earlier.handle, self.handle)) / 1000

    def destroy(self) -> None:
        """Give it back."""
        call("cuEventDestroy", self.handle)


@dataclass(frozen=True, slots=True)
class Stream:
    """Work in order, beside that of other streams."""

    handle: Any

    @classmethod
    def create(cls, *, urgent: bool) -> "Stream":
        """A stream that does not wait for the default one; ``urgent``: its kernels start before those of others."""
        least, greatest = call("cuCtxGetStreamPriorityRange")
        flags = int(constant("CUstream_flags.CU_STREAM_NON_BLOCKING"))
        return cls(call("cuStreamCreateWithPriority", flags, int(greatest if urgent else least)))

    def record(self, event: Event) -> None:
        """Put ``event`` behind what is in the stream."""
        call("cuEventRecord", event.handle, self.handle)

    def wait_for(self, event: Event) -> None:
        """Let what comes next into the stream begin only after ``event``."""
        call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def upload(self, device_address: int, host_address: int, size_bytes: int) -> None:
        """Copy from host memory; where that is not pinned, the driver copies it to memory of its own first."""
        call("cuMemcpyHtoDAsync", device_address, host_address, size_bytes, self.handle)

    def download(self, host_address: int, device_address: int, size_bytes: int) -> None:
        """Copy to host memory."""
        call("cuMemcpyDtoHAsync", host_address, device_address, size_bytes, self.handle)

    def clear(self, device_address: int, size_bytes: int) -> None:
        """Set device memory to zeros."""
        call("cuMemsetD8Async", device_address, 0, size_bytes, self.handle)

    def write_word(self, address: int, value: int) -> None:
        """Write 32 bits of device memory, without a kernel."""
        call("cuStreamWriteValue32", self.handle, address, value, 0)

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        call("cuStreamSynchronize", self.handle)

    def destroy(self) -> None:
        """Give it back; its work goes on."""
        call("cuStreamDestroy", self.handle)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function of a module."""

    handle: Any
    block_threads: int

    def allow_shared_bytes(self, size: int) -> None:
        """Raise the bound on dynamic shared memory."""
        attribute = constant("CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES")
        call("cuFuncSetAttribute", self.handle, attribute, size)

    def launch(self, stream: Stream, blocks: int, shared_bytes: int, pointers: int) -> None:
        """Launch; at the address ``pointers`` lies the address of each parameter."""
        grid = (blocks, 1, 1, self.block_threads, 1, 1)
        call("cuLaunchKernel", self.handle, *grid, shared_bytes, stream.handle, pointers, 0)


def load_module(image: bytes) -> Any:
    """Load a cubin.

    Raises:
        TransportFailed: it is not for this device.
    """
    return call("cuModuleLoadData", image)


def kernel_of(module: Any, name: str, block_threads: int) -> Kernel:
    """A kernel by its name."""
    return Kernel(call("cuModuleGetFunction", module, name.encode()), block_threads)


def unload_module(module: Any) -> None:
    """Unload it; none of its kernels may be running."""
    call("cuModuleUnload", module)
