"""Stops one thread of another process where it waits, so that it is really stuck, and lets it go on again."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
_ATTEMPTS = 1_000
_IDLE_CALLS = {"232": "epoll_wait", "281": "epoll_pwait", "441": "epoll_pwait2"}
"""By their numbers on x86-64, which is where the tests run. Not futex: a thread that is stopped while it asks for the
interpreter's lock, or passes it on, keeps all others of the process from it."""


@contextlib.contextmanager
def frozen_thread(pid: int, name: str | None = None) -> Iterator[int]:
    """Stop the thread ``name`` of a process, None: its main thread, for as long as the block lasts; yields its id.

    It is stopped where it waits for events, without the interpreter's lock: the other threads go on.
    """
    thread = pid if name is None else _thread_of(pid, name)
    for _ in range(_ATTEMPTS):
        _attach(thread)
        if _is_idle(pid, thread):
            break
        _ptrace(_DETACH, thread)
    else:
        raise AssertionError(f"thread {name} of process {pid} is never idle")
    try:
        yield thread
    finally:
        # The process may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            _ptrace(_DETACH, thread)


def has_ended(thread: int) -> bool:
    """Whether a frozen thread has ended with its process, which nobody sees end before; true only once."""
    return thread == os.waitpid(thread, os.WNOHANG | _WALL)[0]


def _attach(thread: int) -> None:
    try:
        _ptrace(_SEIZE, thread)
    except PermissionError:
        pytest.skip("this system lets nobody trace processes")
    _ptrace(_INTERRUPT, thread)
    os.waitpid(thread, _WALL)


def _is_idle(pid: int, thread: int) -> bool:
    """Whether it waits for events; the first field is the call's number, or a word."""
    call = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()[0]
    return call in _IDLE_CALLS


def _thread_of(pid: int, name: str) -> int:
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            return int(task.name)
    raise AssertionError(f"process {pid} has no thread {name}")


def _ptrace(request: int, thread: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if libc.ptrace(request, thread, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
