"""The network between simulated processes: connections that delay, stall and break, but keep their order, as TCP does.

A message is lost only with its connection. A partition or a stopped process stalls connections; after a while, as with
gRPC's keep-alive, both ends give up, each at a time of its own.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tests.simulation.trace import Trace
from tests.simulation.virtual_loop import Process, VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.rpc_server import SimServer

WINDOW_MESSAGES = 64
"""Messages under way in one direction of a stream; a writer waits for the others to arrive."""
KEEPALIVE_SECONDS = 2.0
"""gRPC's ping interval and the bound on its answer, together."""
CONNECT_SECONDS = 1.0
RETRANSMIT_SECONDS = 0.05
FRAY_SECONDS_MAX = 0.002
NOTICE_SECONDS_MAX = 0.5
"""How much later than one end the other may notice a break."""


class End(Protocol):
    """What is told that a connection broke."""

    def broke(self, why: str) -> None:
        """It did."""


@dataclass(eq=False)
class Connection:
    """One call between two processes."""

    path: str
    client: Process
    server: Process
    ends: tuple[End, ...]
    closed: bool = False

    def touches(self, process: Process) -> bool:
        """Whether a process is at one end."""
        return process in (self.client, self.server)


def place_of(process: Process) -> str:
    """The host of a process: its name's first part."""
    return process.name.partition("/")[0]


class Network:
    """Who reaches whom, and how fast."""

    def __init__(self, loop: VirtualLoop, seeded: random.Random, trace: Trace) -> None:
        self.loop = loop
        self.trace = trace
        self.message_count = 0
        self.spike_chance = 0.0
        self.spike_seconds = 0.0
        self.fray_chance = 0.0
        """Of a message to break its connection around the time when it arrives."""
        self._random = seeded
        self._connections: dict[Connection, None] = {}
        self._servers: dict[str, SimServer] = {}
        self._cut: dict[frozenset[str], int] = {}

    def delay(self, sender: Process, receiver: Process) -> float:
        """How long the next message takes."""
        near = place_of(sender) == place_of(receiver)
        seconds = self._random.expovariate(1.0) * (50e-6 if near else 400e-6)
        if self.spike_chance and self._random.random() < self.spike_chance:
            seconds += self._random.random() * self.spike_seconds
        return seconds

    def is_cut(self, one: Process, other: Process) -> bool:
        """Whether nothing gets through at the moment."""
        return frozenset((place_of(one), place_of(other))) in self._cut

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Do something that belongs to no process."""
        self.loop.world(self.loop.now + seconds, callback)

    def open(self, connection: Connection) -> None:
        """Note a connection."""
        self._connections[connection] = None

    def close(self, connection: Connection) -> None:
        """It has ended in order."""
        connection.closed = True
        self._connections.pop(connection, None)

    def listen(self, address: str, server: "SimServer") -> None:
        """Have a server found under an address."""
        self._servers[address] = server

    def unlisten(self, address: str, server: "SimServer") -> None:
        """Have it found no more."""
        if self._servers.get(address) is server:
            del self._servers[address]

    def find(self, address: str) -> "SimServer | None":
        """Who listens at an address."""
        return self._servers.get(address)

    def connections(self) -> list[Connection]:
        """Those that are in place."""
        return list(self._connections)

    # Faults

    def break_connection(self, connection: Connection, why: str) -> None:
        """Lose what is under way; each end notices in its own time."""
        if connection.closed:
            return
        self.close(connection)
        for end in connection.ends:
            self.later(self._random.random() ** 3 * NOTICE_SECONDS_MAX, lambda end=end: end.broke(why))  # type: ignore[misc]

    def fray(self, connection: Connection) -> None:
        """Break a connection soon after a message was sent, if the weather is so."""
        if self.fray_chance and self._random.random() < self.fray_chance:
            self.later(self._random.random() * FRAY_SECONDS_MAX, lambda: self.break_connection(connection, "broken"))

    def break_now(self, connection: Connection, why: str) -> None:
        """Have both ends notice at once."""
        if not connection.closed:
            self.close(connection)
            for end in connection.ends:
                end.broke(why)

    def process_ended(self, process: Process) -> None:
        """The kernel closes the connections of a process that was killed."""
        self.unlisten_all(process)
        for connection in self._of(lambda c: c.touches(process)):
            cut = self.is_cut(connection.client, connection.server)
            wait = KEEPALIVE_SECONDS if cut else self.delay(connection.client, connection.server)
            self.later(wait, lambda c=connection: self.break_connection(c, "connection reset"))  # type: ignore[misc]

    def stop(self, process: Process, seconds: float) -> None:
        """Give a process no processor for so long."""
        process.stopped_until = self.loop.now + seconds
        self.later(
            KEEPALIVE_SECONDS, lambda: self._give_up(lambda c: c.touches(process) and process.is_stopped(self.loop.now))
        )

    def cut(self, one: str, other: str, seconds: float) -> None:
        """Let nothing through between two hosts for so long."""
        pair = frozenset((one, other))
        self._cut[pair] = self._cut.get(pair, 0) + 1
        self.later(seconds, lambda: self._heal(pair))
        self.later(KEEPALIVE_SECONDS, lambda: self._give_up(lambda c: self._crosses(c, pair) and pair in self._cut))

    def heal(self) -> None:
        """End every partition and delay."""
        self._cut.clear()
        self.spike_chance = self.fray_chance = 0.0

    def _heal(self, pair: frozenset[str]) -> None:
        left = self._cut.get(pair, 0) - 1
        if left > 0:
            self._cut[pair] = left
        else:
            self._cut.pop(pair, None)

    def unlisten_all(self, process: Process) -> None:
        """A process that listens no more."""
        for address in [a for a, server in self._servers.items() if server.process is process]:
            del self._servers[address]

    @staticmethod
    def _crosses(connection: Connection, pair: frozenset[str]) -> bool:
        return pair == {place_of(connection.client), place_of(connection.server)}

    def _of(self, wanted: Callable[[Connection], bool]) -> Iterator[Connection]:
        return iter([connection for connection in self._connections if wanted(connection)])

    def _give_up(self, wanted: Callable[[Connection], bool]) -> None:
        for connection in self._of(wanted):
            self.break_connection(connection, "keep-alive timed out")


class Pipe:
    """One direction of a connection: messages arrive in their order, or not at all once it has broken."""

    def __init__(
        self, network: Network, connection: Connection, *, to_server: bool, arrived: Callable[[bytes], None]
    ) -> None:
        self._network = network
        self._connection = connection
        ends = connection.client, connection.server
        self._sender, self._receiver = ends if to_server else ends[::-1]
        self._arrived = arrived
        self._under_way: deque[Callable[[], None]] = deque()
        self._arrives_at = 0.0
        self._room: asyncio.Future[None] | None = None

    async def room(self) -> None:
        """Wait until no more than a window is under way."""
        if len(self._under_way) > WINDOW_MESSAGES:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def send(self, data: bytes) -> None:
        """Send a message."""
        self.do(lambda: self._arrived(data))

    def do(self, at_arrival: Callable[[], None]) -> None:
        """Have something done at the other side, after what was sent before."""
        network = self._network
        # What a killed process does no more reaches anybody; its code may still run while it is cleared away.
        if not self._sender.alive or self._connection.closed:
            return
        network.message_count += 1
        network.fray(self._connection)
        self._under_way.append(at_arrival)
        self._arrives_at = max(self._arrives_at, network.loop.now + network.delay(self._sender, self._receiver))
        network.loop.world(self._arrives_at, self._deliver)

    def _deliver(self) -> None:
        if not self._under_way or self._connection.closed:
            self._under_way.clear()
            return
        if self._network.is_cut(self._sender, self._receiver):
            self._arrives_at = self._network.loop.now + RETRANSMIT_SECONDS
            self._network.loop.world(self._arrives_at, self._deliver)
            return
        self._under_way.popleft()()
        if self._room is not None and not self._room.done() and len(self._under_way) <= WINDOW_MESSAGES:
            self._room.set_result(None)
