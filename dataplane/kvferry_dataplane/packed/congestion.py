"""Which congestion control packed bytes are sent with."""

import socket

import structlog

from kvferry.core.errors import ConfigInvalid

AUTO = "auto"
_PACING = "bbr"
# Without CAP_NET_ADMIN, so in most containers, a system whose own is BBR grants that and Reno alone.
_UNPACED = ("cubic", "reno")
_log = structlog.get_logger("kvferry.dataplane.packed")


def set_congestion(connection: socket.socket, congestion: str) -> None:
    """Take the congestion control of that name.

    ``auto`` keeps the system's, but for BBR: it paces by timers, which between near hosts takes half of a stream's
    rate. So one that does not pace is taken there, if the system grants any.

    Raises:
        ConfigInvalid: the system has none of that name, or does not grant it.
    """
    if congestion == AUTO:
        if congestion_of(connection) == _PACING:
            _take_unpaced(connection)
        return
    try:
        _take(connection, congestion)
    except PermissionError as error:
        why = "neither in net.ipv4.tcp_allowed_congestion_control nor is there CAP_NET_ADMIN"
        raise ConfigInvalid.of_field("pack_congestion", congestion, why) from error
    except OSError as error:
        why = error.strerror or "not available"
        raise ConfigInvalid.of_field("pack_congestion", congestion, why) from error


def congestion_of(connection: socket.socket) -> str:
    """The name of the one that is taken."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def _take_unpaced(connection: socket.socket) -> None:
    refusals = {}
    for congestion in _UNPACED:
        try:
            _take(connection, congestion)
        except OSError as error:
            refusals[congestion] = error.strerror
        else:
            return
    _log.warning("packed bytes are paced", congestion=_PACING, refusals=refusals)


def _take(connection: socket.socket, congestion: str) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
