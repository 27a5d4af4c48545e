"""One child process: started until it serves, watched, signalled, stopped.

It dies with this process, however this one ends. Its output goes to a log file.
"""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from kvferry.launch.errors import ProcessEnded, ProcessNotReady

READY_TIMEOUT_S = 60.0
STOP_GRACE_S = 5.0
LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 16 * 1024
_READY_LINE_BYTES_MAX = 64 * 1024
_KILL_WAIT_S = 5.0

# The kernel sends the parent-death signal when the thread that forked ends, so one thread forks for all.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="child-spawner")


class Child:
    """A running child process. Make one with :meth:`start`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_path: Path, log_start: int = 0) -> None:
        self.name = name
        self.log_path = log_path
        self.ready: Mapping[str, object] = {}
        """What the process said when it was ready; empty if it said no more than that."""
        self._process = process
        self._log_start = log_start

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> Self:
        """Start ``python *command --ready-fd N`` and wait until it says that it serves.

        ``environment`` is added to this process's own; ``launcher`` is a program with arguments that runs what follows
        it in another place. The log file is appended to.

        Raises:
            ProcessEnded: it ended before that.
            ProcessNotReady: it took longer than ``ready_timeout_s``; it was killed.
        """
        log_start = _size(log_path)
        reader, writer = os.pipe()
        try:
            program = [*launcher, *_tethered([*command, "--ready-fd", str(writer)])]
            loop = asyncio.get_running_loop()
            process = await loop.run_in_executor(_spawner, _spawn, program, writer, log_path, environment)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        child = cls(name, process, log_path, log_start)
        try:
            await child._wait_ready(reader, ready_timeout_s)
        except BaseException:
            await child.kill()
            raise
        return child

    @property
    def pid(self) -> int:
        """Process id, also after its end."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def check_running(self) -> None:
        """Raise ProcessEnded if it has ended."""
        if (status := self.status) is not None:
            raise ProcessEnded.of_status(self.name, status, self.log_tail())

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last ``lines`` lines of its output in this life."""
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, size - _LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def log_lines(self) -> Iterator[str]:
        """All lines of its output in this life, from the first."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            for line in log:
                yield line.decode(errors="replace").rstrip()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """Freeze it (SIGSTOP)."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after :meth:`pause`."""
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it without any notice (SIGKILL), and wait until it is gone."""
        self._process.kill()
        async with asyncio.timeout(_KILL_WAIT_S):
            await self.wait()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> int:
        """Ask it to end (SIGTERM), kill it after ``grace_s`` seconds; its exit status."""
        if self.status is None:
            self.resume()
            self._process.terminate()
            try:
                async with asyncio.timeout(grace_s):
                    return await self.wait()
            except TimeoutError:
                await self.kill()
        return await self.wait()

    async def wait(self) -> int:
        """Wait for its end; its exit status, negative for a signal."""
        if (status := self.status) is not None:
            return status
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(self.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._process.wait()

    async def _wait_ready(self, reader: int, timeout_s: float) -> None:
        stream = asyncio.StreamReader(limit=_READY_LINE_BYTES_MAX)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reader, "rb", buffering=0)
        )
        try:
            async with asyncio.timeout(timeout_s):
                line = await stream.readline()
                if not line.endswith(b"\n"):
                    raise ProcessEnded.of_status(self.name, await self.wait(), self.log_tail())
        except TimeoutError:
            what = f"was not ready after {timeout_s:g} s"
            raise ProcessNotReady.of_process(self.name, what, self.log_tail()) from None
        finally:
            transport.close()
        self.ready = _ready_object(line)


def _tethered(command: Sequence[str]) -> list[str]:
    tether = importlib.util.find_spec("kvferry.launch.tether")
    if tether is None or tether.origin is None:
        raise FileNotFoundError("kvferry.launch.tether")
    python = sys.executable
    return [python, "-I", "-S", tether.origin, str(os.getpid()), python, *command]


def _spawn(
    program: Sequence[str], ready_fd: int, log_path: Path, environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - a list of arguments that this package made
            program,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready_fd,),
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            # Ctrl-C at a terminal reaches the parent alone, which then ends its children in order.
            start_new_session=True,
        )


def _ready_object(line: bytes) -> Mapping[str, object]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
