"""What this worker's data planes have attested of one source worker."""

import asyncio
from collections.abc import Collection, Iterable

from kvferry.core.errors import PathRefused
from kvferry.core.path_floor import PathFloor, WayFacts, floor_mismatches
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.rpc.times import seconds_of
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1 import worker_pb2 as pb

RankPair = tuple[int, int]
"""A rank of this worker and one of the source."""
_PREFIX = "PATH_"


class Attested:
    """By pair of ranks, what was told last."""

    def __init__(self) -> None:
        self._found: dict[RankPair, dp.PeerAttested] = {}
        self._changed = asyncio.Event()

    @property
    def is_known(self) -> bool:
        """Whether anything was told."""
        return bool(self._found)

    def take(self, pair: RankPair, found: dp.PeerAttested) -> None:
        """A data plane has told of a pair."""
        self._found[pair] = found
        self._changed.set()
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """Nothing is known any more."""
        self._found.clear()

    def forget(self, rank: int) -> None:
        """What a data plane has told is no longer so: it has begun another life."""
        self._found = {pair: found for pair, found in self._found.items() if pair[0] != rank}

    def forget_refused(self, pairs: Collection[RankPair]) -> bool:
        """Forget pairs that could not be attested; returns whether there were any."""
        refused = [pair for pair in pairs if pair in self._found and self._found[pair].refusal]
        for pair in refused:
            del self._found[pair]
        return bool(refused)

    async def wait(self, pairs: Collection[RankPair], seconds: float) -> None:
        """Wait until all of these pairs were told of, or so long."""
        try:
            async with asyncio.timeout(seconds):
                while not self._found.keys() >= set(pairs):
                    await self._changed.wait()
        except TimeoutError:
            return

    def require(self, pairs: Collection[RankPair], floor: PathFloor, worker: str) -> None:
        """Refuse pairs that are not what is demanded, or not known to be.

        Raises:
            PathRefused: names what is demanded, and what there is.
        """
        for rank, source_rank in sorted(pairs):
            where = f"workers/{worker} rank {source_rank} to rank {rank}"
            found = self._found.get((rank, source_rank))
            if found is None or not found.routes:
                why = "the probe has not ended in time" if found is None else found.refusal
                raise PathRefused(f"{where}: not attested, and a floor is configured: {why}")
            mismatches = floor_mismatches(floor, map(way_facts, found.routes))
            if mismatches:
                first = mismatches[0]
                raise PathRefused(
                    f"{where}: " + "; ".join(map(str, mismatches)),
                    metadata={"field": first.field, "source": first.source, "destination": first.destination},
                )

    def routes(self) -> list[pb.AttestedRoute]:
        """The ways of all pairs; of pairs alike, the figures of the slowest."""
        alike: dict[tuple[object, ...], pb.AttestedRoute] = {}
        for found in self._found.values():
            for route in found.routes:
                key = (route.path, route.backend, route.transport, route.device)
                alike[key] = _slower(alike[key], route) if key in alike else route
        return list(alike.values())

    def refusal(self) -> str:
        """Why some pairs could not be attested; empty if all were."""
        return "; ".join(dict.fromkeys(found.refusal for found in self._found.values() if found.refusal))


def way_facts(route: pb.AttestedRoute) -> WayFacts:
    """A way, as it is judged."""
    path = transfer_pb2.Path.Name(route.path).removeprefix(_PREFIX).lower()
    return WayFacts(path, route.backend, route.transport, route.gbytes_per_s)


def pair_ways(routes: Iterable[pb.AttestedRoute]) -> list[WayFacts]:
    """The ways of a pair of workers."""
    return [way_facts(route) for route in routes]


def _slower(one: pb.AttestedRoute, other: pb.AttestedRoute) -> pb.AttestedRoute:
    slower, faster = (one, other) if one.gbytes_per_s < other.gbytes_per_s else (other, one)
    merged = pb.AttestedRoute()
    merged.CopyFrom(slower)
    merged.small_gbytes_per_s = min(slower.small_gbytes_per_s, faster.small_gbytes_per_s)
    if seconds_of(faster.latency) > seconds_of(slower.latency):
        merged.latency.CopyFrom(faster.latency)
    merged.degraded = slower.degraded or faster.degraded
    merged.rank_pair_count = slower.rank_pair_count + faster.rank_pair_count
    return merged
