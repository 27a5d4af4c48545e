"""What UCX says when it ends a process reaches whoever reads the process's log, though the rest is kept in memory."""

import os
import signal
import subprocess
import sys

import pytest

from kvferry.core.backends import Transport

# UCX's own function, which its fatal errors end in; how one comes about is not needed for what is said of it.
ENDING = """
import ctypes
from pathlib import Path
from kvferry.core.backends import Transport
from kvferry_dataplane.transports.opening import open_library
agent = open_library(Transport({transport!r}), for_cuda=False).make_agent("agent")
mapped = (line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines())
ucx = ctypes.CDLL(next(path for path in mapped if Path(path).name.startswith(("libucs-", "libucs.so"))))
ucx.ucs_fatal_error_format(b"file.c", 356, b"function", b"Fatal: unexpected error: %s", b"connection reset")
"""


@pytest.mark.parametrize("transport", [Transport.NIXL_UCX, Transport.UCX], ids=lambda value: value.name)
def test_last_words_are_on_stderr(transport: Transport) -> None:
    """The default settings of either library leave them there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UCX_", "NIXL_"))}
    ended = subprocess.run(  # noqa: S603 - the interpreter of this test
        [sys.executable, "-c", ENDING.format(transport=transport.value)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == -signal.SIGABRT
    assert "Fatal: unexpected error: connection reset" in ended.stderr.splitlines()[-1]
