"""Finds the path of what comes from each source rank: mapped, packed, or read by the transport."""

from collections.abc import Sequence

from kvferry.core.backends import Transport
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.packed.book import CostBook
from kvferry_dataplane.paths import (
    Packing,
    Path,
    PathPolicy,
    Route,
    check_permitted,
    check_transport,
    choose,
    choose_only,
    mapped_route,
    permitted,
)
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.request import ReadPart
from kvferry_dataplane.sharing.book import SharedSources


class Routes:
    """The :class:`~kvferry_dataplane.reads.routing.Routing` of a data plane."""

    def __init__(
        self, policy: PathPolicy, transport: Transport, sources: SharedSources, costs: CostBook, rates: RateBook
    ) -> None:
        self._rates = rates
        self._policy = policy
        self._transport = transport
        self._sources = sources
        self._costs = costs

    def connect(self, peer: Peer) -> bool:
        """Learn a peer; returns whether it is known that the transport will read it."""
        return self._sources.connect(peer) and peer.transport is self._transport

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._sources.disconnect(peer)

    def route(self, part: ReadPart) -> Route | None:
        """The path of a part; None while its source is being mapped.

        Raises:
            PeerError: reason PEER_LOST: the source has died.
            TransportFailed: the configured path is impossible, or the source speaks another transport.
            PathRefused: no way that is possible may be taken.
        """
        mapping = self._sources.mapping(part.peer)
        if mapping is None:
            return None
        if mapping.backend and part.only is None and part.floor.may_take(Path.LOCAL, mapping.backend):
            return mapped_route(mapping)
        packing = self._packing(part)
        if part.only is not None:
            return choose_only(self._policy, mapping, self._transport, packing, part.only)
        mapping, packing = permitted(part.floor, self._policy, mapping, self._transport, packing)
        if not mapping.backend:
            check_transport(self._transport, part.peer.transport, mapping.why_not)
        route = choose(self._policy, mapping, self._transport, packing, has_bytes=part.total_bytes > 0)
        return check_permitted(part.floor, route)

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Learn from how long a part took."""
        if part.only is not None:
            return
        self._rates.carried(part.peer.name, route.path, piece_count, part.total_bytes, seconds)
        if part.peer.pack is not None and route.path is not Path.LOCAL:
            packed = route.path is Path.PACKED
            self._costs.of(part.peer.name).learn(piece_count, part.total_bytes, seconds, packed=packed)

    def take_lost(self) -> Sequence[Peer]:
        """Mapped peers that have died."""
        return self._sources.take_lost()

    def _packing(self, part: ReadPart) -> Packing | None:
        if part.peer.pack is None:
            return None
        costs = self._costs.of(part.peer.name)
        has_slots = part.peer.pack_slots is not None
        method = self._transport.method
        return Packing(lambda: costs.verdict(part.piece_count(), part.total_bytes, method), has_slots)
