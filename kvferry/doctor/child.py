"""Questions that are asked in a process of their own, since what answers may hang, crash or change this one.

A child is a module of this package that writes one JSON object to its standard output. What the libraries in it say
goes to its standard error, which is an answer too.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OUTPUT_BYTES_MAX = 4 << 20
_LAST_WORDS_CHARS = 300


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child said."""

    values: Mapping[str, Any]
    """The object that it wrote; empty if it ended without."""
    log: str
    """Its standard error."""
    end: str
    """How it ended, for people; empty if it ended well."""


async def ask(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Answer:
    """Run ``python -m module arguments`` with ``environment`` added to this process's own.

    The caller bounds the time: when the caller is cancelled, the child is killed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | dict(environment or {}),
    )
    try:
        output, log = await asyncio.gather(_read(process.stdout), _read(process.stderr))
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _answer(output, log.decode(errors="replace"), status)


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    """All that comes, of which the first ``OUTPUT_BYTES_MAX`` are kept."""
    kept = bytearray()
    while stream is not None and (piece := await stream.read(1 << 16)):
        kept += piece[: OUTPUT_BYTES_MAX - len(kept)]
    return bytes(kept)


def _answer(output: bytes, log: str, status: int) -> Answer:
    # Libraries write to standard output as well; the answer is the last line.
    _, _, last = output.rstrip(b"\n").rpartition(b"\n")
    try:
        values = json.loads(last)
    except ValueError:
        values = None
    if isinstance(values, dict) and status == 0:
        return Answer(values, log, "")
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    last_words = " ".join(log.split())[-_LAST_WORDS_CHARS:]
    return Answer({}, log, f"{how}: {last_words}" if last_words else how)
