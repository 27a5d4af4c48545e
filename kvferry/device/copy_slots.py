"""What one launch of the copy kernel holds: its parameters, its table and its counters."""

import struct

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
"""A table of at most this goes with the launch itself. A larger one is uploaded beside the running kernel, which reads
it from pinned memory until it is there."""

CONTROL_BYTES = 32
CANCELLED_AT = 16
UPLOADED_AT = 20
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
        self._pointers = np.array([self._parameters.ctypes.data], dtype=np.uint64)
        self.parameter_pointers: int = self._pointers.ctypes.data
        """Where the address of the parameters lies."""
        self.begun = Event.create(timed=True)
        self.ended = Event.create(timed=True)
        self.uploaded = Event.create()
        self.uploads = False

    @property
    def cancel_address(self) -> int:
        """Where the number of a launch is written to cancel it."""
        return self._control + CANCELLED_AT

    def copied_bytes(self) -> int:
        """What the launch copied, once it has ended."""
        return int(self._copied[0])

    def seconds(self) -> float:
        """How long the launch took, once it has ended."""
        return self.ended.seconds_since(self.begun)

    def prepare(self, uploads: Stream, table: Table, windows: tuple[Window, Window], number: int) -> None:
        """Write the table and the parameters of a launch; start an upload in ``uploads`` if the table is not small.

        Whoever waits for the launch must then wait for ``uploaded`` too.
        """
        size = table.size_bytes
        plan = device_address = 0
        self.uploads = size > CARRIED_BYTES_MAX
        if self.uploads:
            pinned, device_address = self._with_room(size)
            plan = pinned.device_address
            write_table(table, windows, pinned.view())
            uploads.upload(device_address, pinned.address, size)
            uploads.write_word(self._control + UPLOADED_AT, number)
            uploads.record(self.uploaded)
        else:
            write_table(table, windows, self._parameters[LAUNCH_STRUCT.size :])
        addresses = plan, self._control, self._result.device_address
        counts = len(table.regions), table.tile_count, number, 0
        LAUNCH_STRUCT.pack_into(self._parameters.data, 0, *addresses, *counts, device_address)

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
        self.begun.destroy()
        self.ended.destroy()
        self.uploaded.destroy()
