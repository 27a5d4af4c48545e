"""A reader agent that packs where that is faster, and leaves the rest to the one for NIXL."""

from collections import OrderedDict
from itertools import count

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.packed.costs import PairCosts, Verdict, WayCost
from kvferry_dataplane.packed.job import LeaseClaim, PackJob
from kvferry_dataplane.packed.reader import PackReader
from kvferry_dataplane.packed.wire import PIECES_MAX
from kvferry_dataplane.paths import BatchLimits, Path, PathPolicy, Route, choose_packed
from kvferry_dataplane.peers import PEERS_MAX, Peer
from kvferry_dataplane.reads.agent import ReadAgent
from kvferry_dataplane.reads.request import ReadPart

PACKED_LIMITS = BatchLimits(bytes_max=4 << 20, pieces_max=PIECES_MAX, in_flight=4)
_BACKEND = "stream"


class CostBook:
    """What the ways to each source cost. Outlives the agents."""

    def __init__(self, nixl: WayCost, packed: WayCost) -> None:
        """The costs before a source's first read."""
        self.nixl = nixl
        self.packed = packed
        self._pairs: OrderedDict[str, PairCosts] = OrderedDict()

    def of(self, peer: str) -> PairCosts:
        """The costs of a source; those of the least recently read are forgotten."""
        costs = self._pairs.setdefault(peer, PairCosts(self.nixl, self.packed))
        self._pairs.move_to_end(peer)
        if len(self._pairs) > PEERS_MAX:
            self._pairs.popitem(last=False)
        return costs


class PackingReadAgent:
    """A :class:`ReadAgent` of two paths. Handles of packed batches are negative."""

    def __init__(self, backend: ReadAgent, reader: PackReader, policy: PathPolicy, costs: CostBook) -> None:
        self._backend = backend
        self._reader = reader
        self._policy = policy
        self._costs = costs
        self._jobs: dict[int, PackJob] = {}
        self._handles = count(1)

    @property
    def cell_count(self) -> int:
        """Cells for words that are read back."""
        return self._backend.cell_count

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self._backend.connect(peer)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        if peer.pack is not None:
            self._reader.disconnect(peer.pack)
        self._backend.disconnect(peer)

    def route(self, part: ReadPart, piece_count: int) -> Route:
        """Pack or not, as configured or by what either is expected to cost."""

        def verdict() -> Verdict:
            return self._costs.of(part.peer.name).verdict(piece_count, part.total_bytes)

        packed, choice = choose_packed(self._policy, part.peer.pack is not None, verdict)
        if packed:
            return Route(Path.PACKED, _BACKEND, choice, PACKED_LIMITS)
        unpacked = self._backend.route(part, piece_count)
        return Route(unpacked.path, unpacked.backend, choice, unpacked.limits)

    def read_blocks(self, part: ReadPart, route: Route, batch: CopyPlan) -> int:
        """Start a batch of copies into the pool."""
        if route.path is not Path.PACKED:
            return self._backend.read_blocks(part, route, batch)
        assert part.peer.pack is not None
        job = self._reader.read(part.peer.pack, LeaseClaim(part.slot, part.word), batch)
        handle = -next(self._handles)
        self._jobs[handle] = job
        return handle

    def stop(self, handle: int) -> None:
        """Cancel a packed batch: it is done soon."""
        if handle < 0:
            self._jobs[handle].cancel()
        else:
            self._backend.stop(handle)

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Take into account how long a part took."""
        packed = route.path is Path.PACKED
        self._costs.of(part.peer.name).learn(piece_count, part.total_bytes, seconds, packed=packed)

    def read_word(self, peer: Peer, slot: int, cell: int) -> int:
        """Start reading a lease word into a cell."""
        return self._backend.read_word(peer, slot, cell)

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return self._backend.word(cell)

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether it has arrived; a packed batch that was stopped counts as arrived."""
        if handle >= 0:
            return self._backend.is_done(handle)
        try:
            done = self._jobs[handle].done
        except Exception:
            del self._jobs[handle]
            raise
        if done:
            del self._jobs[handle]
        return done

    def close(self) -> None:
        """Close the connections and destroy the backend's agent: nothing arrives after this."""
        self._reader.close()
        self._jobs.clear()
        self._backend.close()
