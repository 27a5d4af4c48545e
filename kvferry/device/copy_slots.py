"""What one launch of the copy kernel holds: its parameters, its table and its counters."""

import struct
from math import gcd

import numpy as np

from kvferry.device.copy_table import Table, write_table
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_memory import PinnedMemory, allocate_pinned, free_pinned
from kvferry.device.cuda_streams import Event, Stream

FIRST_CAPACITY_BYTES = 256 << 10
CAPACITY_BYTES_MAX = 32 << 20
"""A larger table is launched in parts."""

CARRIED_BYTES_MAX = 4032
"""A table of at most this goes with the launch itself."""

UPLOADED_BYTES_MAX = 64 << 10
"""A table of at most this is uploaded before the launch. A larger one is read from pinned memory by the kernel, each
entry once and ahead of its use, while other entries' bytes are copied; that takes many warps."""

IN_PLACE_BLOCKS_MIN = 48

CONTROL_BYTES = 32
CANCELLED_AT = 16
_GOLDEN = 0.6180339887
LAUNCH_STRUCT = struct.Struct("<QQQIIIIQ")


class Slot:
    """Buffers of one launch at a time, kept for the next one."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._buffers: tuple[PinnedMemory, int] | None = None
        self._control = device.allocate(CONTROL_BYTES)
        device.fill(self._control, 0, CONTROL_BYTES)
        self._result = allocate_pinned(device, 8)
        self._copied = self._result.view().view(np.uint64)
        self._parameters = np.zeros(LAUNCH_STRUCT.size + CARRIED_BYTES_MAX, dtype=np.uint8)
        self.parameter_pointers = np.array([self._parameters.ctypes.data], dtype=np.uint64)
        self.ended = Event.create()

    @property
    def cancel_address(self) -> int:
        """Where the number of a launch is written to cancel it."""
        return self._control + CANCELLED_AT

    def copied_bytes(self) -> int:
        """What the launch copied, once it has ended."""
        return int(self._copied[0])

    def prepare(self, stream: Stream, table: Table, windows: tuple[Window, Window], number: int, blocks: int) -> None:
        """Write the table and the parameters of a launch of ``blocks``; an upload, if it pays, goes into ``stream``."""
        size = table.size_bytes
        if size <= CARRIED_BYTES_MAX:
            plan = 0
            write_table(table, windows, self._parameters[LAUNCH_STRUCT.size :])
        else:
            pinned, device_address = self._with_room(size)
            write_table(table, windows, pinned.view())
            if size <= UPLOADED_BYTES_MAX or blocks < IN_PLACE_BLOCKS_MIN:
                plan = device_address
                stream.upload(plan, pinned.address, size)
            else:
                plan = pinned.device_address
        counts = len(table.regions), table.tile_count, tile_stride(table.tile_count), number, 0
        LAUNCH_STRUCT.pack_into(self._parameters.data, 0, plan, self._control, self._result.device_address, *counts)

    def _with_room(self, size: int) -> tuple[PinnedMemory, int]:
        if self._buffers is None or self._buffers[0].size_bytes < size:
            capacity = FIRST_CAPACITY_BYTES
            while capacity < size:
                capacity *= 2
            self._free_buffers()
            pinned = allocate_pinned(self._device, capacity)
            try:
                self._buffers = pinned, self._device.allocate(capacity, field="copy_table_bytes")
            except BaseException:
                free_pinned(self._device, pinned)
                raise
        return self._buffers

    def _free_buffers(self) -> None:
        if self._buffers is not None:
            (pinned, device_address), self._buffers = self._buffers, None
            free_pinned(self._device, pinned)
            self._device.free(device_address)

    def close(self) -> None:
        """Free everything; no launch may be under way."""
        self._free_buffers()
        self._device.free(self._control)
        free_pinned(self._device, self._result)
        self.ended.destroy()


def tile_stride(tile_count: int) -> int:
    """A step that visits all tiles, each far from the one before."""
    stride = round(tile_count * _GOLDEN) | 1
    while gcd(stride, tile_count) != 1:
        stride += 2
    return stride
