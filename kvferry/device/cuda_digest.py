"""Sums regions of a CUDA device's memory, a launch at a time."""

from importlib.resources import files
from pathlib import Path
from threading import Lock

import numpy as np

from kvferry.core.checksums.formula import CHUNK_BYTES, CHUNK_STEP, TOKEN_STEP, Words
from kvferry.core.checksums.regions import DigestRegion, check_region
from kvferry.core.errors import Cancelled, ConfigInvalid
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_program import compiled
from kvferry.device.cuda_streams import Stream, kernel_of, load_module, unload_module
from kvferry.device.digest_table import ARGUMENTS, UNITS, Launch, launches_of
from kvferry.device.kernel_cache import default_directory
from kvferry.device.native import CancelFlag

SOURCE_NAME = "digest.cu"
BLOCK_THREADS = 256
BLOCKS_PER_MULTIPROCESSOR = 8
PLAIN_BLOCKS = 4
"""Of a multiprocessor, at a time: registers are divided accordingly."""
_SCRATCH_BYTES_MIN = 1 << 20
_ALIGNMENT = 256


def digest_source() -> str:
    """The kernel in CUDA C++."""
    return files("kvferry.device").joinpath("kernels", SOURCE_NAME).read_text(encoding="utf-8")


def digest_macros() -> dict[str, int | str]:
    """What the source is compiled with."""
    return {
        "BLOCK_THREADS": BLOCK_THREADS,
        "CHUNK_BYTES": CHUNK_BYTES,
        "UNITS": UNITS,
        "PLAIN_BLOCKS": PLAIN_BLOCKS,
        "ARGUMENT_BYTES": 8 * len(ARGUMENTS),
        "TOKEN_STEP": f"{TOKEN_STEP}ull",
        "CHUNK_STEP": f"{CHUNK_STEP}ull",
    }


class CudaDigester:
    """Sums memory of one device, on a stream that lets the copies' go first. Any thread may use it, one at a time."""

    def __init__(
        self, device: CudaDevice, *, sm_count_max: int | None = None, cache_directory: Path | None = None
    ) -> None:
        """Load the kernel, compiling it unless ``cache_directory`` has it.

        Raises:
            ConfigInvalid: there is no run-time compiler, or the device is too old for it.
            TransportFailed: the device or the compiler failed.
        """
        capability = device.compute_capability
        if capability < (7, 0):
            raise ConfigInvalid.of_field("device", f"cuda:{device.index}", "compute capability 7.0 or more is needed")
        directory = default_directory() if cache_directory is None else cache_directory
        architecture = f"sm_{capability[0]}{capability[1]}"
        image = compiled(SOURCE_NAME, digest_source(), architecture, digest_macros(), directory)
        device.make_current()
        self._device = device
        present = device.multiprocessor_count
        self._blocks_max = min(sm_count_max or present, present) * BLOCKS_PER_MULTIPROCESSOR
        self._module = load_module(image)
        self._plain = kernel_of(self._module, "digest_plain", BLOCK_THREADS)
        self._any = kernel_of(self._module, "digest_any", BLOCK_THREADS)
        self._stream = Stream.create(urgent=False)
        self._lock = Lock()
        self._scratch = 0
        self._scratch_bytes = 0

    def digest(self, window: Window, region: DigestRegion, flag: CancelFlag | None = None) -> Words:
        """The sums of a region, ``[row, cell]``; ``window`` is memory of the device.

        Raises:
            InvalidArgument: the region leaves the window.
            Cancelled: another thread raised ``flag``.
            PoolTooLarge: the device has no memory for the sums.
            TransportFailed: the device failed.
        """
        check_region(region, window.size_bytes)
        sums = np.zeros((region.row_count, region.cell_offsets.size), dtype=np.uint64)
        with self._lock:
            self._device.make_current()
            for launch in launches_of(region):
                if flag is not None and flag.raised:
                    raise Cancelled("the digest was cancelled")
                sums[launch.rows] += self._launch(window, launch)
        return sums

    def close(self) -> None:
        """Release what is on the device. No digest may be under way."""
        with self._lock:
            self._device.make_current()
            self._stream.synchronize()
            self._stream.destroy()
            if self._scratch:
                self._device.free(self._scratch)
                self._scratch = 0
            unload_module(self._module)

    def _launch(self, window: Window, launch: Launch) -> Words:
        table = launch.table()
        sums_at = -(-table.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._reserve(sums_at + launch.sums_bytes)
        arguments = launch.arguments(window.address, self._scratch, self._scratch + sums_at)
        found = np.empty((launch.rows.size, launch.region.cell_offsets.size), dtype=np.uint64)
        blocks = min(-(-launch.thread_count // BLOCK_THREADS), self._blocks_max)
        self._stream.upload(self._scratch, table.ctypes.data, table.nbytes)
        self._stream.clear(self._scratch + sums_at, launch.sums_bytes)
        kernel = self._plain if launch.is_plain(window.address) else self._any
        pointers = np.array([arguments.ctypes.data], dtype=np.uint64)
        kernel.launch(self._stream, blocks, 0, pointers.ctypes.data)
        self._stream.download(found.ctypes.data, self._scratch + sums_at, launch.sums_bytes)
        self._stream.synchronize()
        return found

    def _reserve(self, size_bytes: int) -> None:
        if size_bytes <= self._scratch_bytes:
            return
        if self._scratch:
            self._device.free(self._scratch)
            self._scratch = self._scratch_bytes = 0
        size_bytes = max(size_bytes, 2 * self._scratch_bytes, _SCRATCH_BYTES_MIN)
        self._scratch = self._device.allocate(size_bytes, field="checksums")
        self._scratch_bytes = size_bytes
