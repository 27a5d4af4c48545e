"""``kvferry pull``: one pull by hand."""

import base64
import binascii
import sys
from dataclasses import dataclass
from pathlib import Path

from kvferry.cli.figures import milliseconds, parse_blocks, rate_text, size_text
from kvferry.cli.terminal import console, error_console, print_json
from kvferry.core.errors import ConfigInvalid
from kvferry.core.handles import split
from kvferry.sdk.engine import EngineClient


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """The command line."""

    handle: str
    engine_socket: Path
    blocks: str
    group: str
    timeout_s: float
    request_id: str | None


async def pull(options: PullOptions, *, json_output: bool) -> None:
    """Pull a publication and show what it took. Raises HandleMalformed, PullFailed."""
    handle = read_handle(options.handle)
    split(handle)
    blocks = {options.group: parse_blocks("blocks", options.blocks)}
    async with EngineClient.connect(
        options.engine_socket, "kvferry-pull", connect_timeout_s=options.timeout_s
    ) as client:
        with error_console().status("pulling"):
            result = await client.pull(handle, blocks, options.timeout_s, options.request_id)
    if json_output:
        print_json(result.to_dict())
        return
    console().print(
        f"{result.name}: {size_text(result.received_bytes)} from {result.source_worker} over {result.path}/"
        f"{result.backend} in {result.descriptor_count} pieces, {milliseconds(result.total_s)} ms, "
        f"{rate_text(result.received_bytes, result.read_s)} GB/s"
    )


def read_handle(text: str) -> bytes:
    """The bytes of a handle given as base64 or hex, as ``@FILE``, or as ``-`` for standard input.

    Raises:
        ConfigInvalid: it is none of these. The value is not shown: a handle is a secret.
    """
    try:
        if text == "-":
            return sys.stdin.buffer.read()
        if text.startswith("@"):
            return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigInvalid.of_field("handle", text, str(error)) from error
    try:
        return bytes.fromhex(text)
    except ValueError:
        padded = text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded.translate(str.maketrans("-_", "+/")), validate=True)
    except binascii.Error as error:
        raise ConfigInvalid.of_field("handle", f"{len(text)} characters", "is neither base64 nor hex") from error
