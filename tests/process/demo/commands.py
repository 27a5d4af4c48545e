"""The ``kvferry`` command as a real process, and what is left after it."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

KVFERRY = (sys.executable, "-m", "kvferry.cli.main")
WAIT_S = 60.0


@contextlib.asynccontextmanager
async def kvferry(*arguments: str, temporary: Path | None = None) -> AsyncIterator[Process]:
    """Start ``kvferry ARGUMENTS``, its temporary files in ``temporary``; killed on leaving if it still runs."""
    environment = dict(os.environ) if temporary is None else {**os.environ, "TMPDIR": str(temporary)}
    process = await asyncio.create_subprocess_exec(
        *KVFERRY, *arguments, stdout=PIPE, stderr=PIPE, env=environment, limit=1 << 20
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def finished(process: Process) -> tuple[int, str, str]:
    """Exit status, standard output and standard error, once it has ended."""
    async with asyncio.timeout(WAIT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below ``pid``."""
    return psutil.Process(pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that still run."""
    running = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                running.append(" ".join(process.cmdline()))
    return running


def left_in(directory: Path) -> list[str]:
    """What lies in a directory."""
    return sorted(path.name for path in directory.iterdir())


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds, at most ``WAIT_S``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < deadline, f"not in {WAIT_S:g} s: {what}"
        await asyncio.sleep(0.02)
