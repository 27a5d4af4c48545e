"""A machine that has no more of something: descriptors, room for the log, memory."""

import socket
import subprocess
import sys
from pathlib import Path

from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import lease_of, read_command, until
from tests.process.descriptors import no_descriptors

FULL = "/dev/full"
"""Every write to it fails as on a disk that is full."""


async def test_without_descriptors_it_goes_on_and_recovers(start: Start) -> None:
    """Out of descriptors, who connects waits and who is connected is served; with some again, all are served."""
    source, reader = await start("source"), await start("reader")
    there, here = await source.session(), await reader.session()
    peer = await source.as_peer()
    await here.send(connect_peer=peer)
    lease = await there.acquire("p", [1])
    with socket.socket(socket.AF_UNIX) as engine:
        engine.settimeout(5.0)
        with no_descriptors(source.process.pid):
            engine.connect(f"{source.socket}.pool")
            await until(lambda: "cannot be accepted" in source.log())
            renewed = await there.ask(renew_lease={"publication": "p", "ttl": {"seconds": 60}})
            assert "command_done" == renewed.WhichOneof("event")
        assert engine.recv(1), "the pool is handed over once there are descriptors again"
    await here.send(read=read_command("t", peer, lease, [1], [2]))
    assert not (await here.finished("t")).HasField("failure")


async def test_a_log_on_a_full_disk_stops_nothing(start: Start, tmp_path: Path) -> None:
    """A data plane that cannot write its log starts, serves and reads as ever."""
    for name in ("source", "reader"):
        (tmp_path / f"{name}.log").symlink_to(FULL)
    source, reader = await start("source"), await start("reader")
    peer, lease = await source.as_peer(), await lease_of(source, [1])
    here = await reader.session()
    await here.send(connect_peer=peer)
    refused = await here.ask(release_lease={"publication": ""})
    assert refused.command_id
    await here.send(read=read_command("t", peer, lease, [1], [2]))
    assert not (await here.finished("t")).HasField("failure")
    assert source.block_bytes([1]) == reader.block_bytes([2])


def test_a_pool_beyond_the_address_space_is_refused(tmp_path: Path) -> None:
    """Where the process may not have so much memory, it ends with status 2 and names the pool's size."""
    flags = ["--socket", str(tmp_path / "s"), "--pool-bytes", str(3 << 30)]
    ended = subprocess.run(  # noqa: S603 - the interpreter of this test
        ["/usr/bin/prlimit", f"--as={2 << 30}", "--", sys.executable, "-m", "kvferry_dataplane", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert 2 == ended.returncode
    assert "POOL_TOO_LARGE: pool_bytes=3221225472" in ended.stderr.splitlines()[-1]
