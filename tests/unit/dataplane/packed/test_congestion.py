"""Which congestion control packed bytes are sent with, on systems that differ in what they grant."""

import errno
import os
import socket

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry_dataplane.packed.congestion import AUTO, congestion_of, set_congestion


class System(socket.socket):
    """A socket of a system with a congestion control of its own, which grants some to everyone."""

    def __init__(self, own: str, allowed: tuple[str, ...]) -> None:
        super().__init__()
        self._taken = own
        self._allowed = allowed

    def getsockopt(self, level: int, name: int, *rest: int) -> bytes:  # type: ignore[override]
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        return self._taken.encode() + b"\0"

    def setsockopt(self, level: int, name: int, value: bytes) -> None:  # type: ignore[override]
        assert (level, name) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        if value.decode() not in self._allowed:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self._taken = value.decode()


@pytest.mark.parametrize(
    ("own", "allowed", "taken"),
    [
        ("cubic", ("reno", "cubic"), "cubic"),
        ("dctcp", ("reno", "dctcp"), "dctcp"),
        ("bbr", ("reno", "bbr", "cubic"), "cubic"),
        ("bbr", ("reno", "bbr"), "reno"),
        ("bbr", ("bbr",), "bbr"),
    ],
)
def test_auto_takes_what_does_not_pace_of_what_is_granted(own: str, allowed: tuple[str, ...], taken: str) -> None:
    """Not being granted one never keeps a data plane from packing."""
    with System(own, allowed) as connection:
        set_congestion(connection, AUTO)
        assert taken == congestion_of(connection)


def test_a_named_one_that_is_not_granted_is_refused() -> None:
    """The refusal says what would grant it."""
    with System("bbr", ("reno", "bbr")) as connection, pytest.raises(ConfigInvalid, match="tcp_allowed_congestion"):
        set_congestion(connection, "cubic")


def test_a_named_one_that_there_is_not_is_refused() -> None:
    """A name that the real system does not know."""
    with socket.socket() as connection, pytest.raises(ConfigInvalid, match="pack_congestion=no-such"):
        set_congestion(connection, "no-such")
