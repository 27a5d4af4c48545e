"""Stands between NIXL's LIBFABRIC plugin and libfabric; native code in `dataplane/native/libfabric`.

The plugin repeats what libfabric answers "again" to for as long as it takes, for a minute or for ever: learning a peer
that has stopped or is gone, asking it for bytes, answering a reader that is gone. And it fails whichever transfer it is
asked about, for good, when libfabric tells of any failure.
"""

import ctypes
from pathlib import Path

from kvferry.core.errors import ConfigInvalid

_LIBRARY = Path(__file__).with_name("libkvferry_call_bounds.so")


class CallBounds:
    """Bounds for the calls of every thread."""

    def __init__(self, libfabric: ctypes.CDLL, seconds: float) -> None:
        """Stand between the plugin, which is not loaded yet, and ``libfabric``: nothing is repeated for longer.

        Raises:
            ConfigInvalid: the native library was not built.
        """
        if not _LIBRARY.is_file():
            why = f"{_LIBRARY} was not built: install kvferry anew, with a C++ compiler"
            raise ConfigInvalid.of_field("nixl_backend", "LIBFABRIC", why)
        # PyDLL keeps the interpreter's lock: the calls take nanoseconds, and giving it away takes longer.
        library = ctypes.PyDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL)
        library.kvferry_bound_calls.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        library.kvferry_bound_calls.restype = None
        library.kvferry_begin_particular.argtypes = [ctypes.c_int]
        library.kvferry_begin_particular.restype = None
        library.kvferry_end_particular.restype = ctypes.c_int
        library.kvferry_take_timed_out.restype = ctypes.c_int
        library.kvferry_bounded_endpoints.restype = ctypes.c_uint64
        library.kvferry_bound_calls(ctypes.cast(libfabric.fi_fabric, ctypes.c_void_p), round(seconds * 1e9))
        self._library = library

    @property
    def endpoint_count(self) -> int:
        """Endpoints so far whose calls are bounded."""
        return int(self._library.kvferry_bounded_endpoints())

    def begin_particular(self, *, waits: bool = False) -> None:
        """What this thread calls now is about one peer or read: failures that libfabric tells are held back.

        ``waits``: it may wait for the peer, as long as the bound says.
        """
        self._library.kvferry_begin_particular(waits)

    def end_particular(self) -> bool:
        """It no longer is. Says whether failures were held back: they are told by the next progress."""
        return bool(self._library.kvferry_end_particular())

    def take_timed_out(self) -> bool:
        """Whether a call of this thread met a bound since this was last asked."""
        return bool(self._library.kvferry_take_timed_out())
