"""The bound on the end of a process, in processes of their own."""

import json
import subprocess
import sys

import pytest

from kvferry.ending import EXIT_STUCK

_PROGRAM = """
import asyncio, ctypes, sys, threading
from kvferry.ending import bound_end, end_bounded
from kvferry.logs import configure_logs

configure_logs(form="json")
stuck = threading.Thread(target=threading.Event().wait, name="the-stuck-one")
"""


def run(program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that begins to end."""
    return subprocess.run(  # noqa: S603 - the interpreter of this test
        [sys.executable, "-c", _PROGRAM + program], capture_output=True, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize("wait", ["stuck.join()", ""], ids=["joined", "joined by the interpreter"])
def test_a_stuck_thread_is_not_waited_for(wait: str) -> None:
    """A process whose end waits for a thread that never ends is over after the bound, with a line in its log that
    names the thread and where it is."""
    ended = run(f"bound_end(0.3)\nbound_end(60)\nstuck.start()\n{wait}")
    assert EXIT_STUCK == ended.returncode
    (line,) = map(json.loads, ended.stderr.splitlines())
    assert ("error", 0.3) == (line["level"], line["bound_s"])
    assert "wait (threading.py:" in line["threads"]["the-stuck-one"]


def test_a_thread_that_holds_the_interpreter_is_not_waited_for() -> None:
    """A process in which nothing of Python can run any more is over soon after the bound, and standard error tells
    where it was."""
    ended = run("bound_end(0.3)\nctypes.PyDLL(None).sleep(60)")
    assert EXIT_STUCK == ended.returncode
    assert 'File "<string>"' in ended.stderr


def test_an_end_in_time_is_as_it_was() -> None:
    """A process that ends within the bound keeps its exit status and says nothing."""
    ended = run("bound_end(60)\nsys.exit(7)")
    assert (7, "") == (ended.returncode, ended.stderr)


def test_leaving_the_block_begins_the_end() -> None:
    """Also an error that leaves the block bounds what comes after it."""
    program = """
async def run():
    try:
        async with end_bounded():
            raise ValueError
    finally:
        stuck.start()
        stuck.join()

import kvferry.ending
kvferry.ending.bound_end.__defaults__ = (0.3,)
asyncio.run(run())
"""
    assert EXIT_STUCK == run(program).returncode
