"""Traces of real requests: when each arrived, how long it was, and which prefixes it shared with others.

One JSON object a line: ``timestamp`` (ms), ``input_length`` and ``output_length`` (tokens), and ``hash_ids``, one for
every begun 512 tokens of the input. Two requests that begin with equal ids begin with equal tokens.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.errors import ConfigInvalid

HASHED_TOKENS = 512
"""Tokens that one hash id stands for; the last may stand for fewer."""
LINE_BYTES_MAX = 1 << 20
TOKENS_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line."""

    line: int
    """Its number in the file, from 1."""
    arrival_s: float
    """Since the trace began."""
    input_tokens: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path, request_count: int) -> list[TraceRequest]:
    """The first ``request_count`` requests of a file, or all if it has fewer.

    Raises:
        ConfigInvalid: the file cannot be read, is empty, or a line is wrong; names the line, its field and the value.
    """
    try:
        with path.open("rb") as file:
            requests = list(_requests(file, request_count))
    except OSError as error:
        raise ConfigInvalid.of_field("file", str(path), error.strerror or str(error)) from error
    if not requests:
        raise ConfigInvalid.of_field("file", str(path), "holds no request")
    return requests


def _requests(lines: Iterator[bytes], request_count: int) -> Iterator[TraceRequest]:
    last_s, made = 0.0, 0
    for number, line in enumerate(lines, start=1):
        if made == request_count:
            return
        if not line.strip():
            continue
        request = parse_line(number, line)
        if request.arrival_s < last_s:
            raise _wrong(number, "timestamp", request.arrival_s * 1e3, f"must not be before {last_s * 1e3:g}")
        last_s, made = request.arrival_s, made + 1
        yield request


def parse_line(number: int, line: bytes) -> TraceRequest:
    """The request of line ``number``.

    Raises:
        ConfigInvalid: names the line, the field and its value.
    """
    if len(line) > LINE_BYTES_MAX:
        raise _wrong(number, "line", f"{len(line)} bytes", f"at most {LINE_BYTES_MAX}")
    try:
        parsed = json.loads(line)
    except ValueError as error:
        raise _wrong(number, "line", line[:40].decode(errors="replace"), f"is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise _wrong(number, "line", parsed, "must be an object")
    arrival_s = _arrival_s(number, parsed.get("timestamp"))
    for name in ("input_length", "output_length"):
        length = parsed.get(name)
        if type(length) is not int or not 1 <= length <= TOKENS_MAX:
            raise _wrong(number, name, length, f"must be 1 to {TOKENS_MAX} tokens")
    tokens = parsed["input_length"]
    ids = parsed.get("hash_ids")
    if not isinstance(ids, list) or any(type(each) is not int for each in ids):
        raise _wrong(number, "hash_ids", ids, "must be a list of integers")
    begun = -(-tokens // HASHED_TOKENS)
    if len(ids) != begun:
        raise _wrong(
            number, "hash_ids", f"{len(ids)} ids", f"must be {begun}, one for each begun {HASHED_TOKENS} tokens"
        )
    return TraceRequest(number, arrival_s, tokens, tuple(ids))


def _arrival_s(number: int, timestamp: object) -> float:
    # A bool is an int to Python, and JSON as Python reads it knows NaN and Infinity.
    if isinstance(timestamp, int | float) and not isinstance(timestamp, bool) and 0 <= timestamp < float("inf"):
        return timestamp / 1e3
    raise _wrong(number, "timestamp", timestamp, "must be milliseconds of at least 0")


def _wrong(number: int, field: str, value: object, why: str) -> ConfigInvalid:
    text = repr(value)
    return ConfigInvalid.of_field(f"line {number}, {field}", text if len(text) <= 80 else f"{text[:77]}...", why)
