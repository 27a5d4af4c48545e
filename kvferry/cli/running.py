"""Runs a command's coroutine and turns its end into an exit status."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import typer

from kvferry.core.errors import KvferryError
from kvferry.core.reasons import Reason
from kvferry.logs import configure_logs

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


def run(command: Coroutine[Any, Any, None], *, log_level: str = "warning") -> None:
    """Run ``command`` to its end. Logs go to standard error, and an error becomes one line there and an exit status.

    1 for a failure, 2 for wrong configuration, 130 after Ctrl-C, 143 after SIGTERM; cleaning up comes first.
    """
    configure_logs(log_level)
    with reported_errors():
        try:
            terminated = asyncio.run(_until_terminated(command))
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if terminated:
            raise typer.Exit(EXIT_TERMINATED)


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Turn kvferry's errors into a line and an exit status.

    Raises:
        typer.Exit: instead of the error.
    """
    try:
        yield
    except KvferryError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)  # noqa: T201 - this is the command's output
        raise typer.Exit(EXIT_USAGE if error.reason is Reason.CONFIG_INVALID else EXIT_FAILED) from None
    except BrokenPipeError:
        # The reader of a pipe has gone. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_FAILED) from None


async def _until_terminated(command: Coroutine[Any, Any, None]) -> bool:
    """Run ``command``; SIGTERM cancels it as Ctrl-C does. True if that happened."""
    terminated = False
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        await command
    except asyncio.CancelledError:
        if not terminated:
            raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    return terminated
