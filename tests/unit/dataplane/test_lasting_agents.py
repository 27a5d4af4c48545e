"""Reads by an agent that is never given up, such as the local path's."""

from dataclasses import dataclass, field

from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.request import ReadPart
from tests.unit.dataplane.fakes import WORD, Bench, FakeRouting

LOCAL = Route(Path.LOCAL, "memory", "mapped")


@dataclass
class Copies:
    """An agent whose copies are done at once, and whose peers may have died by the time their word is read."""

    dead: set[str] = field(default_factory=set)
    cell_count: int = 2
    wakes: bool = True

    def connect(self, peer: Peer) -> None:
        """Nothing to do."""

    def disconnect(self, peer: Peer) -> None:
        """Nothing to do."""

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Copy."""
        return 1

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Read a word, unless its owner has died."""
        if source.peer.name in self.dead:
            raise PeerError("dead", reason=Reason.PEER_LOST)
        return 0

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return WORD

    def is_done(self, handle: int) -> bool:
        """Everything is."""
        return True

    def wait(self, handle: int, seconds: float) -> None:
        """Nothing can be waited for."""

    def device_seconds(self, handle: int) -> float:
        """No device."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """Nothing is under way."""
        return True

    def close(self) -> None:
        """Nothing to close."""


def test_words_of_dead_sources_use_up_nothing() -> None:
    """However many sources die before their word is read, the words of the others can still be read."""
    agent = Copies(dead={f"dead-{number}" for number in range(4)})
    routes: dict[str, Route | None] = dict.fromkeys((*agent.dead, "alive"), LOCAL)
    bench = Bench(routing=FakeRouting(routes), lasting={Path.LOCAL: agent})
    for name in sorted(agent.dead):
        bench.submit(name, name)
        bench.run()
        failure = bench.outcomes[name].failure
        assert failure is not None
        assert Reason.PEER_LOST == failure.reason
    bench.submit("t", "alive")
    bench.run()
    assert bench.outcomes["t"].failure is None
