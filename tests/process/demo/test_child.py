"""Child processes: ready or a typed error that says what the process said."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvferry.core.reasons import Reason
from kvferry.launch.child import Child
from kvferry.launch.errors import ProcessEnded, ProcessNotReady
from tests.process.demo.commands import until

READY = "import os, sys\nfd = int(sys.argv[-1])\n"


@pytest.fixture
def log() -> Iterator[Path]:
    """Where a child's output goes."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as path:
        yield Path(path, "child.log")


def exists(pid_file: Path) -> bool:
    """Whether the process whose id the file holds is there."""
    return Path("/proc", pid_file.read_text()).exists()


async def start(script: str, log: Path, timeout_s: float = 30.0) -> Child:
    """A child that runs ``script``; ``fd`` is its ready descriptor there."""
    return await Child.start("child", ["-c", READY + script], log, ready_timeout_s=timeout_s)


async def test_a_ready_child_tells_what_it_serves(log: Path) -> None:
    """The JSON object of the ready line is the child's."""
    child = await start('os.write(fd, b\'{"listen": "x:1"}\\n\'); sys.stdin.read(); import time; time.sleep(60)', log)
    try:
        assert {"listen": "x:1"} == child.ready
        child.check_running()
    finally:
        await child.kill()
    assert child.status == -9


async def test_a_child_that_fails_at_start_is_an_error_with_its_last_words(log: Path) -> None:
    """The error carries the reason that the child named, its exit status and the end of its log."""
    with pytest.raises(ProcessEnded) as failed:
        await start("print('first'); sys.exit('error: POOL_TOO_LARGE: no room')", log)
    error = failed.value
    assert (Reason.POOL_TOO_LARGE, "first\nerror: POOL_TOO_LARGE: no room") == (error.reason, error.log_tail)
    assert "exit status 1" in error.message


async def test_an_error_shows_nothing_of_an_earlier_life(log: Path) -> None:
    """A log is appended to, but an error quotes only what this life wrote."""
    with pytest.raises(ProcessEnded):
        await start("sys.exit('error: ADDRESS_IN_USE: long ago')", log)
    with pytest.raises(ProcessEnded) as failed:
        await start("sys.exit('now')", log)
    assert (Reason.INTERNAL, "now") == (failed.value.reason, failed.value.log_tail)


async def test_a_child_that_never_gets_ready_is_killed(log: Path) -> None:
    """Past the timeout the child is gone and the error says that it was not ready."""
    pid_file = log.with_name("pid")
    with pytest.raises(ProcessNotReady) as failed:
        await start(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); import time; time.sleep(60)", log, 1.0)
    assert failed.value.reason is Reason.DEADLINE_EXCEEDED
    assert not exists(pid_file)


async def test_stop_ends_even_a_frozen_child(log: Path) -> None:
    """A child that was paused is woken to end by itself."""
    child = await start("os.write(fd, b'ready\\n'); import time; time.sleep(60)", log)
    child.pause()
    assert await child.stop() == -15


async def test_stop_kills_a_child_that_does_not_listen(log: Path) -> None:
    """A child that ignores SIGTERM is killed after the grace time."""
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); os.write(fd, b'ready\\n'); time.sleep(60)"
    child = await start(script, log)
    assert await child.stop(grace_s=0.2) == -9


async def test_a_child_ends_with_the_process_that_started_it(log: Path) -> None:
    """The child of a killed process is killed by the kernel."""
    pid_file = log.with_name("pid")
    inner = "import os, sys, time; os.write(int(sys.argv[-1]), b'ready\\n'); time.sleep(60)"
    outer = (
        "import asyncio, pathlib\nfrom kvferry.launch.child import Child\n"
        f"async def main():\n    child = await Child.start('inner', ['-c', {inner!r}], pathlib.Path({str(log)!r}))\n"
        f"    pathlib.Path({str(pid_file)!r}).write_text(str(child.pid))\n"
        "    os.write(fd, b'ready\\n')\n    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    parent = await start(outer, log.with_name("outer.log"))
    assert exists(pid_file)
    await parent.kill()
    await until(lambda: not exists(pid_file), "the child is gone")
