"""What one launch of the copy kernel holds: its table in pinned memory and on the device, and its counters."""

import struct
from dataclasses import dataclass

import numpy as np

from kvferry.device.copy_table import Table, write_table
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_memory import PinnedMemory, allocate_pinned, free_pinned
from kvferry.device.cuda_streams import Event, Stream

FIRST_CAPACITY_BYTES = 256 << 10
CAPACITY_BYTES_MAX = 32 << 20
"""A larger table is launched in parts."""

IN_PLACE_BYTES_MAX = 32 << 10
"""The device reads a table of at most this straight from pinned memory: an upload costs more."""

CONTROL_BYTES = 32
_CANCELLED_AT = 16
_LAUNCH = struct.Struct("<QQQIIII")


@dataclass(frozen=True, slots=True)
class _Buffers:
    pinned: PinnedMemory
    device_address: int


class Slot:
    """Buffers of one launch at a time, kept for the next one."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._buffers: _Buffers | None = None
        self._control = device.allocate(CONTROL_BYTES)
        device.fill(self._control, 0, CONTROL_BYTES)
        self._result = allocate_pinned(device, 8)
        self._parameters = np.zeros(_LAUNCH.size, dtype=np.uint8)
        self.parameter_pointers = np.array([self._parameters.ctypes.data], dtype=np.uint64)
        self.ended = Event.create()

    @property
    def cancel_address(self) -> int:
        """Where the number of a launch is written to cancel it."""
        return self._control + _CANCELLED_AT

    def copied_bytes(self) -> int:
        """What the launch copied, once it has ended."""
        return int(self._result.view().view(np.uint64)[0])

    def prepare(self, stream: Stream, table: Table, windows: tuple[Window, Window], number: int) -> None:
        """Write the table and the parameters, and put the upload into ``stream``."""
        size = table.size_bytes
        buffers = self._with_room(size)
        write_table(table, windows, buffers.pinned.view())
        plan = buffers.pinned.device_address
        if size > IN_PLACE_BYTES_MAX:
            plan = buffers.device_address
            stream.upload(plan, buffers.pinned.address, size)
        counts = len(table.regions), table.tile_count, number, 0
        _LAUNCH.pack_into(self._parameters.data, 0, plan, self._control, self._result.device_address, *counts)

    def _with_room(self, size: int) -> _Buffers:
        if self._buffers is None or self._buffers.pinned.size_bytes < size:
            capacity = FIRST_CAPACITY_BYTES
            while capacity < size:
                capacity *= 2
            self._free_buffers()
            pinned = allocate_pinned(self._device, capacity)
            try:
                self._buffers = _Buffers(pinned, self._device.allocate(capacity, field="copy_table_bytes"))
            except BaseException:
                free_pinned(self._device, pinned)
                raise
        return self._buffers

    def _free_buffers(self) -> None:
        if self._buffers is not None:
            buffers, self._buffers = self._buffers, None
            free_pinned(self._device, buffers.pinned)
            self._device.free(buffers.device_address)

    def close(self) -> None:
        """Free everything; no launch may be under way."""
        self._free_buffers()
        self._device.free(self._control)
        free_pinned(self._device, self._result)
        self.ended.destroy()
