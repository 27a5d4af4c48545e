"""The copy kernels: how they are shaped, compiled and loaded."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from kvferry.core.errors import ConfigInvalid
from kvferry.device.copy_slots import CARRIED_BYTES_MAX, CONTROL_BYTES, LAUNCH_STRUCT
from kvferry.device.copy_table import BULK_RUNS_MAX, REGION_BYTES, TILE_BYTES_MAX
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_program import compiled
from kvferry.device.cuda_streams import Kernel, kernel_of, load_module, unload_module

SOURCE_NAME = "copy.cu"
BULK_CAPABILITY = (9, 0)
"""From here on devices have the bulk copy engine."""

_LANES = 32
_PIECE_BYTES = 24


@dataclass(frozen=True, slots=True)
class KernelShape:
    """Sizes that the kernels are compiled with."""

    plain_warps: int = 16
    """Of a block that copies through registers."""
    bulk_warps: int = 6
    """Of a block that copies through shared memory; each has a ring of its own."""
    bulk_slots: int = 2
    """Of a ring, each for one tile."""
    bulk_loads: int = 1
    """Tiles that are being loaded while one is stored."""

    def macros(self) -> dict[str, int | str]:
        """What the source is compiled with."""
        return {
            "PLAIN_WARPS": self.plain_warps,
            "BULK_WARPS": self.bulk_warps,
            "BULK_SLOTS": self.bulk_slots,
            "BULK_LOADS": self.bulk_loads,
            "REGION_BYTES": REGION_BYTES,
            "LAUNCH_BYTES": LAUNCH_STRUCT.size + CARRIED_BYTES_MAX,
            "CONTROL_BYTES": CONTROL_BYTES,
            "CARRIED_BYTES_MAX": CARRIED_BYTES_MAX,
            "BULK_RUNS_MAX": BULK_RUNS_MAX,
            "TILE_BYTES_MAX": TILE_BYTES_MAX,
        }


@dataclass(frozen=True, slots=True)
class CopyKernels:
    """The loaded kernels of one device."""

    module: Any
    shape: KernelShape
    plain: Kernel
    bulk: Kernel | None
    """None where the device has no bulk copy engine."""

    def shared_bytes(self, region_count: int, *, bulk: bool) -> int:
        """Dynamic shared memory of a launch."""
        regions = region_count * REGION_BYTES
        if bulk:
            return regions + self.shape.bulk_warps * self.shape.bulk_slots * TILE_BYTES_MAX
        return regions + self.shape.plain_warps * _LANES * _PIECE_BYTES

    def unload(self) -> None:
        """Unload the module; no kernel may be running."""
        unload_module(self.module)


def kernel_source() -> str:
    """The kernels in CUDA C++."""
    return files("kvferry.device").joinpath("kernels", SOURCE_NAME).read_text(encoding="utf-8")


def load_kernels(device: CudaDevice, directory: Path, shape: KernelShape, regions_max: int) -> CopyKernels:
    """Compile, or take from ``directory``, and load the kernels for ``device``.

    Raises:
        ConfigInvalid: there is no run-time compiler, or the device is too old for it.
        TransportFailed: the source does not compile, or the driver cannot load the image.
    """
    capability = device.compute_capability
    if capability < (7, 0):
        raise ConfigInvalid.of_field("device", f"cuda:{device.index}", "compute capability 7.0 or more is needed")
    image = compiled(SOURCE_NAME, kernel_source(), f"sm_{capability[0]}{capability[1]}", shape.macros(), directory)
    device.make_current()
    module = load_module(image)
    plain = kernel_of(module, "copy_plain", shape.plain_warps * _LANES)
    bulk = kernel_of(module, "copy_bulk", shape.bulk_warps * _LANES) if capability >= BULK_CAPABILITY else None
    kernels = CopyKernels(module, shape, plain, bulk)
    plain.allow_shared_bytes(kernels.shared_bytes(regions_max, bulk=False))
    if bulk is not None:
        bulk.allow_shared_bytes(kernels.shared_bytes(regions_max, bulk=True))
    return kernels
