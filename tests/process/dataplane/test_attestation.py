"""Real data planes attest each other: which way, by which transport, with the right bytes."""

import mmap
import os
import signal

import numpy as np
import pytest

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.transfer.v1 import transfer_pb2
from kvferry.worker.v1.worker_pb2 import AttestedRoute
from kvferry_dataplane.attestation.pattern import PROBE_BYTES
from kvferry_dataplane.attestation.rate_watch import WINDOW_READS
from tests.process.dataplane.conftest import LOCAL_FLAGS, NIXL_FLAGS, Start
from tests.process.dataplane.harness import DataPlane, Session, large_layout, lease_of, read_command, seconds
from tests.process.dataplane.throttle import Throttle

UNMAPPED = ("--same-host", "backend")
TCP = {"UCX_TLS": "tcp"}


async def expect_readers(source: DataPlane) -> None:
    """Have a source make progress, as its control does where somebody reads it."""
    session = await source.session()
    await session.ask(expect_readers=pb.ExpectReaders(duration=seconds(60)))


async def attested(here: Session, peer: pb.ConnectPeer) -> pb.PeerAttested:
    """What a data plane finds out about a peer that it is told of."""
    await here.ask(connect_peer=peer)
    return await told(here)


async def told(here: Session) -> pb.PeerAttested:
    """The next attestation that it tells of."""
    return (await here.event(lambda event: event.WhichOneof("event") == "peer_attested")).peer_attested


def overwrite_pattern(source: DataPlane) -> None:
    """Change one byte of what a source lets probes read."""
    offer, (descriptor,) = source.pool_offer()
    with mmap.mmap(descriptor, offer.pool_bytes + PROBE_BYTES) as memory:
        memory[offer.pool_bytes + PROBE_BYTES - 1] ^= 1
    os.close(descriptor)


def require_figures(route: AttestedRoute) -> None:
    """Every figure of a route is there, and is one that there can be."""
    assert 0.01 < route.small_gbytes_per_s < 1000
    assert 0.01 < route.gbytes_per_s < 1000
    assert route.gbytes_per_s == pytest.approx(route.best_gbytes_per_s)
    assert 0 < route.latency.ToMicroseconds() < 1_000_000
    assert not route.degraded


async def test_a_mapped_pool_is_attested_as_local(start: Start) -> None:
    """Where the pool is mapped that is the only way, and no transport is named."""
    source, destination = await start("source"), await start("destination", None, None, *LOCAL_FLAGS)
    found = await attested(await destination.session(), await source.as_peer())
    (route,) = found.routes
    assert ("", transfer_pb2.PATH_LOCAL, "memory", "memory") == (
        found.refusal,
        route.path,
        route.backend,
        route.transport,
    )
    require_figures(route)


@pytest.mark.parametrize(
    ("environments", "used"),
    [(({}, {}), "cma"), (({}, TCP), "tcp"), ((TCP, {}), "tcp")],
    ids=["none", "destination", "source"],
)
@pytest.mark.long
async def test_the_transport_is_the_one_that_ucx_uses(
    start: Start, environments: tuple[dict[str, str], dict[str, str]], used: str
) -> None:
    """Two data planes of one host read each other through the kernel, and over TCP if either has nothing else."""
    flags = (*NIXL_FLAGS, *UNMAPPED)
    source, destination = [
        await start(name, None, environment, *flags)
        for name, environment in zip(("source", "destination"), environments, strict=True)
    ]
    await expect_readers(source)
    found = await attested(await destination.session(), await source.as_peer())
    (route,) = found.routes
    assert ("", transfer_pb2.PATH_NIXL, "UCX", used) == (found.refusal, route.path, route.backend, route.transport)
    assert "memory" == route.device if used == "cma" else route.device
    require_figures(route)


@pytest.mark.parametrize("transport", ["ucx"])
@pytest.mark.parametrize(("environment", "used"), [({}, "cma"), (TCP, "tcp")], ids=["none", "destination"])
async def test_direct_ucx_is_attested_too(start: Start, transport: str, environment: dict[str, str], used: str) -> None:
    """Without NIXL, UCX says what it uses as well."""
    source = await start("source", None, None, *UNMAPPED)
    destination = await start("destination", None, environment, "--path", transport, *UNMAPPED)
    await expect_readers(source)
    found = await attested(await destination.session(), await source.as_peer())
    (route,) = found.routes
    assert ("", transfer_pb2.PATH_UCX, "UCX", used) == (found.refusal, route.path, route.backend, route.transport)
    require_figures(route)


async def test_a_source_that_packs_is_attested_on_both_ways(start: Start) -> None:
    """What is not mapped may be read by the transport or packed: both are probed."""
    source = await start("source", None, None, "--pack-listen", "127.0.0.1:0")
    destination = await start("destination", None, None, *UNMAPPED)
    await expect_readers(source)
    found = await attested(await destination.session(), await source.as_peer())
    assert "" == found.refusal
    ways = [(route.path, route.backend, route.transport) for route in found.routes]
    assert [(transfer_pb2.PATH_NIXL, "UCX", "cma"), (transfer_pb2.PATH_PACKED, "stream", "tcp")] == ways
    for route in found.routes:
        require_figures(route)


@pytest.mark.parametrize("flags", [LOCAL_FLAGS, (*NIXL_FLAGS, *UNMAPPED)], ids=["local", "nixl"])
@pytest.mark.long
async def test_other_bytes_than_the_sources_are_not_attested(start: Start, flags: tuple[str, ...]) -> None:
    """A probe that reads one wrong byte attests nothing, and says so."""
    source, destination = await start("source"), await start("destination", None, None, *flags)
    await expect_readers(source)
    overwrite_pattern(source)
    found = await attested(await destination.session(), await source.as_peer())
    assert [] == list(found.routes)
    assert "not those of the source" in found.refusal


@pytest.mark.long
async def test_a_user_who_wants_ucxs_log_gets_it(start: Start) -> None:
    """Where the user has said what UCX prints, the transport is not known, and the attestation says why."""
    source = await start("source")
    destination = await start("destination", None, {"UCX_LOG_LEVEL": "error"}, *NIXL_FLAGS, *UNMAPPED)
    await expect_readers(source)
    found = await attested(await destination.session(), await source.as_peer())
    (route,) = found.routes
    assert ("", "UCX_LOG_LEVEL is set by whoever started the process") == (route.transport, route.note)
    require_figures(route)


@pytest.mark.long
async def test_a_stopped_source_is_not_attested_until_it_goes_on(start: Start) -> None:
    """A source that does not answer delays nobody else's attestation for long, and is attested when told of again."""
    stopped, other = await start("stopped", None, TCP), await start("other", None, TCP)
    destination = await start("destination", None, TCP)
    here, peer = await destination.session(), await stopped.as_peer()
    await expect_readers(other)
    await expect_readers(stopped)
    stopped.signal(signal.SIGSTOP)
    await here.ask(connect_peer=peer)
    await here.ask(connect_peer=await other.as_peer())
    first, second = await told(here), await told(here)
    stopped.signal(signal.SIGCONT)
    assert [] == list(first.routes)
    assert first.refusal
    assert ["tcp"] == [route.transport for route in second.routes]
    assert ["tcp"] == [route.transport for route in (await attested(here, peer)).routes]


@pytest.mark.long
async def test_what_is_known_is_told_again(start: Start) -> None:
    """A control that tells of a peer again hears at once what was attested before: nothing is probed anew."""
    source, destination = await start("source"), await start("destination")
    here, peer = await destination.session(), await source.as_peer()
    assert await attested(here, peer) == await attested(here, peer)


@pytest.mark.long
async def test_probes_read_into_nothing_else(start: Start) -> None:
    """Pool and lease table of both sides are as before."""
    source, destination = await start("source"), await start("destination", None, None, *UNMAPPED)
    await expect_readers(source)
    pools = [plane.pool().copy() for plane in (source, destination)]
    await attested(await destination.session(), await source.as_peer())
    assert all(np.array_equal(pool, plane.pool()) for pool, plane in zip(pools, (source, destination), strict=True))


@pytest.mark.parametrize(
    ("flags", "require_path", "there"),
    [
        ((*NIXL_FLAGS, *UNMAPPED), ["local"], "nixl/UCX"),
        (LOCAL_FLAGS, ["nixl"], "path=local"),
        ((), ["!local", "!nixl"], "nixl/UCX"),
    ],
)
@pytest.mark.long
async def test_a_read_that_may_take_no_way_is_refused(
    start: Start, flags: tuple[str, ...], require_path: list[str], there: str
) -> None:
    """A way that is not allowed is not taken, whatever else there is: the read fails and no byte arrives."""
    source, destination = await start("source"), await start("destination", None, None, *flags)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    await here.ask(connect_peer=peer)
    before = destination.pool().copy()
    command = read_command("t", peer, lease, [1], [1])
    command.require_path.extend(require_path)
    await here.send(read=command)
    finished = await here.finished("t")
    expected = error_pb2.REASON_TRANSPORT_FAILED if "path=" in there else error_pb2.REASON_PATH_REFUSED
    assert expected == finished.failure.reason
    assert there in finished.failure.message
    assert np.array_equal(before, destination.pool())


async def test_a_way_that_becomes_slow_is_degraded(start: Start) -> None:
    """Reads of less than half the attested rate have the way probed again, and the probe says what is left of it."""
    source = await start("source", large_layout(), None, "--pack-listen", "127.0.0.1:0")
    destination = await start("destination", large_layout(), None, "--path", "packed", *UNMAPPED)
    await expect_readers(source)
    here, lease, peer = await destination.session(), await lease_of(source, [1]), await source.as_peer()
    async with Throttle(peer.access.pack_endpoint) as throttle:
        peer.access.pack_endpoint = throttle.endpoint
        quick = packed_route(await attested(here, peer))
        throttle.bytes_per_s = quick.gbytes_per_s * 1e9 / 10
        for number in range(WINDOW_READS):
            await here.send(read=read_command(f"t{number}", peer, lease, [1], [1]))
            assert not (await here.finished(f"t{number}")).HasField("failure")
        slow = packed_route(await told(here))
    assert slow.degraded
    assert slow.gbytes_per_s < quick.gbytes_per_s / 2
    assert slow.best_gbytes_per_s == pytest.approx(quick.gbytes_per_s)


def packed_route(found: pb.PeerAttested) -> AttestedRoute:
    """The packed way."""
    (route,) = [route for route in found.routes if route.path == transfer_pb2.PATH_PACKED]
    return route
