"""Bounds the time that NIXL's LIBFABRIC plugin takes for a call; native code in `dataplane/native/libfabric`.

The plugin repeats what libfabric answers "again" to for as long as it takes, for a minute or for ever: learning a peer
that has stopped or is gone, asking it for bytes, answering a reader that is gone.
"""

import ctypes
from pathlib import Path

from kvferry.core.errors import ConfigInvalid

_LIBRARY = Path(__file__).with_name("libkvferry_call_bounds.so")


class CallBounds:
    """Bounds for the calls of each thread."""

    def __init__(self, libfabric: ctypes.CDLL) -> None:
        """Stand between the plugin, which is not loaded yet, and ``libfabric``.

        Raises:
            ConfigInvalid: the native library was not built.
        """
        if not _LIBRARY.is_file():
            why = f"{_LIBRARY} was not built: install kvferry anew, with a C++ compiler"
            raise ConfigInvalid.of_field("nixl_backend", "LIBFABRIC", why)
        # PyDLL keeps the interpreter's lock: the calls take nanoseconds, and giving it away takes longer.
        library = ctypes.PyDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL)
        library.kvferry_set_fabric.argtypes = [ctypes.c_void_p]
        library.kvferry_set_fabric.restype = None
        library.kvferry_bound_calls.argtypes = [ctypes.c_int64]
        library.kvferry_bound_calls.restype = None
        library.kvferry_bound_was_met.restype = ctypes.c_int
        library.kvferry_bounded_endpoints.restype = ctypes.c_uint64
        library.kvferry_set_fabric(ctypes.cast(libfabric.fi_fabric, ctypes.c_void_p))
        self._library = library

    @property
    def endpoint_count(self) -> int:
        """Endpoints so far whose calls are bounded."""
        return int(self._library.kvferry_bounded_endpoints())

    def begin(self, seconds: float) -> None:
        """What this thread calls from now on takes so long at most, in all."""
        self._library.kvferry_bound_calls(round(seconds * 1e9))

    def end(self) -> bool:
        """No bound from now on; says whether it was met."""
        was_met = bool(self._library.kvferry_bound_was_met())
        self._library.kvferry_bound_calls(0)
        return was_met
