"""What UCX prints in this process, kept where it can be read instead of on the standard streams."""

import ctypes
import os
import threading
from collections.abc import Mapping

from kvferry_dataplane.transports.transport import TransportUse
from kvferry_dataplane.transports.ucx_report import NAME_CHARS_MAX, read_uses

_SETTING_NAMES = ("UCX_LOG_LEVEL", "UCX_LOG_FILE", "UCX_PROTO_INFO")
_NOTHING = TransportUse("", "", "UCX has printed nothing of these reads")
_READ_BYTES_MAX = 1 << 20
"""The newest of what was printed is read; agents that report print some 15 KiB each."""


class UcxLog:
    """Holds what UCX prints, in memory, until it is taken. To be made before UCX is loaded. Any thread may ask.

    Without it UCX would print nothing but fatal errors. A user who has set where or how much UCX prints gets what he
    asked for; then nothing is known here.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        set_by_user = [name for name in _SETTING_NAMES if name in environment]
        self.refusal = f"{set_by_user[0]} is set by whoever started the process" if set_by_user else ""
        """Why nothing is known; empty where it is."""
        self._descriptor = os.memfd_create("kvferry-ucx-log", os.MFD_CLOEXEC)
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def settings(self) -> dict[str, str]:
        """What has to be set for it."""
        if self.refusal:
            return {}
        return {"UCX_LOG_LEVEL": "info", "UCX_LOG_FILE": f"/proc/self/fd/{self._descriptor}"}

    def use_of(self, worker: str) -> TransportUse:
        """What a worker of this name uses for its reads, by what was printed since this was last asked."""
        if self.refusal:
            return TransportUse("", "", self.refusal)
        return read_uses(self.take()).get(worker[:NAME_CHARS_MAX], _NOTHING)

    def use_of_one(self) -> TransportUse:
        """The same where workers have no names that are known, but only one has begun to read since."""
        if self.refusal:
            return TransportUse("", "", self.refusal)
        found = list(read_uses(self.take()).values())
        if len(found) > 1:
            return TransportUse("", "", f"{len(found)} workers of UCX have chosen at the same time")
        return found[0] if found else _NOTHING

    def take(self) -> str:
        """What was printed since this was last asked, at most the newest ``_READ_BYTES_MAX``; it is kept no longer."""
        with self._lock:
            # UCX writes through the C library, which holds back what does not fill a page.
            ctypes.CDLL(None).fflush(None)
            end = os.fstat(self._descriptor).st_size
            start = max(self._taken, end - _READ_BYTES_MAX)
            text = os.pread(self._descriptor, max(end - start, 0), start)
            # UCX goes on where it was: what lies before that takes no memory from now on.
            os.ftruncate(self._descriptor, 0)
            self._taken = max(end, self._taken)
        return text.decode(errors="replace")
