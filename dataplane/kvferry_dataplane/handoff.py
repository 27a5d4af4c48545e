"""Hands memory to processes of this user, over a Unix socket: the pool to engines, and to data planes for reading."""

import asyncio
import os
import socket
from pathlib import Path

import structlog

from kvferry.core.errors import AddressInUse, TransportFailed
from kvferry.device.descriptors import is_trusted, peer_of, send_offer
from kvferry_dataplane.pool import Offer

ACCEPT_PAUSE_SECONDS = 0.1
"""When a connection cannot be accepted, the next attempt comes after so long."""
_log = structlog.get_logger("kvferry.dataplane.handoff")


class OfferSocket:
    """Sends every process that connects one offer, and keeps the connection so that both see the other's end."""

    def __init__(self, path: Path, offer: Offer, what: str, connections_max: int) -> None:
        """Bind ``path``, which was claimed before; ``what`` names the offer in the log.

        Raises:
            AddressInUse: somebody took the path in between.
        """
        self._path = path
        self._offer = offer
        self._connections_max = connections_max
        self._log = _log.bind(offer=what)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        previous = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        except OSError as error:
            self._socket.close()
            raise AddressInUse.of_field("socket", str(path), error.strerror or "cannot be bound") from error
        finally:
            os.umask(previous)
        self._socket.listen(connections_max)

    async def serve(self) -> None:
        """Serve until cancelled."""
        free = asyncio.Semaphore(self._connections_max)
        async with asyncio.TaskGroup() as connections:
            while True:
                await free.acquire()
                connection = await self._accept()
                served = connections.create_task(self._hand_over(connection))
                served.add_done_callback(lambda _: free.release())

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        self._socket.close()
        self._path.unlink(missing_ok=True)

    async def _accept(self) -> socket.socket:
        """The next connection. Who connects while there are no descriptors waits in the backlog until there are."""
        said = False
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
            except OSError as error:
                if not said:
                    self._log.warning("a connection cannot be accepted; trying on", message=str(error))
                    said = True
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
            else:
                return connection

    async def _hand_over(self, connection: socket.socket) -> None:
        with connection:
            pid, uid = peer_of(connection)
            if not is_trusted(uid):
                self._log.warning("memory refused to another user", pid=pid, uid=uid)
                return
            connection.setblocking(False)
            try:
                send_offer(connection, self._offer.message, self._offer.descriptors)
                self._log.info("memory handed over", pid=pid)
                await asyncio.get_running_loop().sock_recv(connection, 1)
            except (TransportFailed, OSError) as error:
                self._log.info("connection failed", pid=pid, message=str(error))
            self._log.info("connection ended", pid=pid)
