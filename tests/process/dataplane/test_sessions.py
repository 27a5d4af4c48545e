"""Sessions with control: what outlives them, what is refused, what a busy block means."""

import signal

from kvferry.core.blocks import ids_of
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.rpc.block_lists import listed_ids
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import blocks, large_layout, read_command, seconds, small_layout, until
from tests.process.dataplane.test_stuck_sources import TCP, stop


async def test_leases_and_reads_outlive_their_session(start: Start) -> None:
    """A restarted control is told of the leases and reads that the data plane still holds, and of ends it missed."""
    source, destination = await start("source", large_layout(), TCP), await start("destination", large_layout(), TCP)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [0, 1])
    await there.ask(expect_readers={"duration": {"seconds": 50}})
    peer = await source.as_peer()
    await here.ask(connect_peer=peer)
    await stop(source)
    kept = await here.acquire("kept", [7])
    await here.send(read=read_command("t", peer, lease, [0, 1], [0, 1]))
    await here.ask(renew_lease={"publication": "kept", "ttl": {"seconds": 100}})
    await here.close()
    second = await destination.session()
    assert ["kept"] == [state.publication for state in second.opened.leases]
    state = second.opened.leases[0]
    assert (kept, b"mine", [7]) == (
        state.lease,
        state.attributes,
        ids_of(listed_ids("blocks", state.blocks[0])).tolist(),
    )
    assert 60 < state.time_left.seconds < 100
    assert ["t"] == list(second.opened.transfers)
    await second.close()
    source.signal(signal.SIGCONT)
    await until(lambda: "read succeeded" in destination.log())
    third = await destination.session()
    assert [] == list(third.opened.transfers)
    assert not (await third.finished("t")).HasField("failure")


async def test_a_newer_session_takes_over(start: Start) -> None:
    """A second session takes over and the first one ends."""
    plane = await start("plane")
    first = await plane.session()
    second = await plane.session()
    assert await first.ended()
    assert (await second.acquire("p", [1])).slot == 0


async def test_refusals_name_field_and_value(start: Start) -> None:
    """What is wrong with a command comes back as a typed refusal, and nothing has changed."""
    plane = await start("plane", small_layout(64))
    session = await plane.session()
    expected = {
        error_pb2.REASON_BLOCK_OUT_OF_RANGE: ("blocks[full].block_ids[1]", [5, 64]),
        error_pb2.REASON_BLOCK_DUPLICATE: ("blocks[full].block_ids[2]", [5, 6, 5]),
        error_pb2.REASON_INVALID_ARGUMENT: ("blocks", []),
    }
    for reason, (field, ids) in expected.items():
        command = pb.AcquireLease(publication="p", blocks=blocks(ids), ttl=seconds(1))
        refused = (await session.ask(acquire_lease=command)).command_refused
        assert (reason, field) == (refused.reason, refused.metadata["field"])
    refused = (await session.ask(read=pb.Read(transfer="t", time_left=seconds(1)))).command_refused
    assert (error_pb2.REASON_INVALID_ARGUMENT, "destination_blocks") == (refused.reason, refused.metadata["field"])
    assert 0 == (await session.acquire("p", [5])).slot


async def test_busy_blocks_are_refused(start: Start) -> None:
    """A published block is no destination, a destination cannot be published, and no block has two reads."""
    source, destination = await start("source", large_layout(), TCP), await start("destination", large_layout(), TCP)
    there, here = await source.session(), await destination.session()
    lease = await there.acquire("p", [0])
    peer = await source.as_peer()
    await here.ask(connect_peer=peer)
    await stop(source)
    await here.acquire("mine", [1])
    published = await here.ask(read=read_command("a", peer, lease, [0], [1]))
    assert error_pb2.REASON_BLOCK_BUSY == published.command_refused.reason
    await here.send(read=read_command("b", peer, lease, [0], [2]))
    taken = await here.ask(read=read_command("c", peer, lease, [0], [2]))
    assert error_pb2.REASON_BLOCK_BUSY == taken.command_refused.reason
    command = pb.AcquireLease(publication="q", blocks=blocks([2]), ttl=seconds(1))
    assert error_pb2.REASON_BLOCK_BUSY == (await here.ask(acquire_lease=command)).command_refused.reason
    await here.ask(cancel_read={"transfer": "b"})
    assert error_pb2.REASON_CANCELLED == (await here.finished("b")).failure.reason
    await here.acquire("q", [2])


async def test_another_life_of_the_worker_ends_the_leases(start: Start) -> None:
    """Adoption with the same identity keeps leases, another incarnation ends them."""
    plane = await start("plane")
    session = await plane.session()
    await session.acquire("p", [1])
    await plane.adopt(plane.layout)
    assert 1 == len((await plane.session()).opened.leases)
    await plane.adopt(plane.layout, incarnation=8)
    assert [] == list((await plane.session()).opened.leases)
