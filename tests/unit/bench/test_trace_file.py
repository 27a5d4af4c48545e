"""Trace files: what is read, and how wrong lines are named."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvferry.bench.prefixes import SeenPrefixes
from kvferry.bench.trace_file import TraceRequest, parse_line, read_trace
from kvferry.core.errors import ConfigInvalid

GOOD: dict[str, Any] = {"timestamp": 1500, "input_length": 1100, "output_length": 5, "hash_ids": [4, 5, 6]}


def line(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_line_is_a_request() -> None:
    """Milliseconds become seconds; hash ids keep their order."""
    assert TraceRequest(7, 1.5, 1100, (4, 5, 6)) == parse_line(7, line())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timestamp", -1),
        ("timestamp", True),
        ("timestamp", float("nan")),
        ("timestamp", float("inf")),
        ("timestamp", "0"),
        ("input_length", 0),
        ("input_length", 1.5),
        ("input_length", 1 << 40),
        ("output_length", None),
        ("hash_ids", [1, 2]),
        ("hash_ids", [1, 2, "3"]),
        ("hash_ids", 3),
    ],
)
def test_a_wrong_field_is_named_with_its_line(field: str, value: object) -> None:
    """Values that are missing, of another type or out of bounds are refused by line and field."""
    with pytest.raises(ConfigInvalid, match=rf"line 3, {field}"):
        parse_line(3, line(**{field: value}))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe", b" " * (2 << 20)])
def test_what_is_no_request_is_refused(text: bytes) -> None:
    """Neither broken JSON, nor another value, nor an endless line is a request."""
    with pytest.raises(ConfigInvalid, match=r"line 9, line"):
        parse_line(9, text)


def test_only_the_first_requests_are_read(tmp_path: Path) -> None:
    """Lines beyond those wanted are not looked at; empty lines count as lines only."""
    file = tmp_path / "trace.jsonl"
    file.write_bytes(b"\n".join([line(), b"", line(timestamp=1600), b"broken"]))
    assert [1, 3] == [request.line for request in read_trace(file, 2)]
    with pytest.raises(ConfigInvalid, match=r"line 4"):
        read_trace(file, 3)


def test_time_does_not_run_backwards(tmp_path: Path) -> None:
    """A request that arrives before the one above it is refused."""
    file = tmp_path / "trace.jsonl"
    file.write_bytes(b"\n".join([line(), line(timestamp=1499)]))
    with pytest.raises(ConfigInvalid, match=r"line 2, timestamp"):
        read_trace(file, 10)


def test_files_without_requests_are_refused(tmp_path: Path) -> None:
    """A file that is missing or empty is named."""
    for file in (tmp_path / "missing", tmp_path / "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(ConfigInvalid, match=file.name):
            read_trace(file, 1)


def test_a_prefix_is_present_up_to_the_first_unseen_id() -> None:
    """Ids behind one that was never seen do not count, whatever they are."""
    seen = SeenPrefixes()
    seen.learn([4, 6])
    assert 512 == seen.first_token(TraceRequest(1, 0.0, 1100, (4, 5, 6)), 16)


def test_the_last_token_is_never_present() -> None:
    """Of a request that was seen whole, the last block is still read."""
    seen = SeenPrefixes()
    seen.learn([4, 5, 6])
    assert [1088, 1008] == [
        seen.first_token(TraceRequest(1, 0.0, 1100, (4, 5, 6)), 16),
        seen.first_token(TraceRequest(1, 0.0, 1024, (4, 5)), 16),
    ]
