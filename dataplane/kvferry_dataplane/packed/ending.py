"""Waits for the end of copies that were cancelled and whose end nobody tells."""

import time
from collections.abc import Callable

from kvferry.core.errors import TransportFailed

_POLL_SECONDS = 200e-6
_SECONDS_MAX = 30.0


def wait_for_end(have_ended: Callable[[], bool]) -> None:
    """Ask until ``have_ended``.

    Raises:
        TransportFailed: they did not in time.
    """
    until = time.monotonic() + _SECONDS_MAX
    while not have_ended():
        if time.monotonic() > until:
            raise TransportFailed(f"copies did not end within {_SECONDS_MAX:g} s of being cancelled")
        time.sleep(_POLL_SECONDS)
