"""Logs go to standard error, whatever that is at the time."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from kvferry.logs import configure_logs


@pytest.fixture(autouse=True)
def _defaults_again() -> Iterator[None]:
    """Leave structlog as it was found."""
    yield
    structlog.reset_defaults()


def test_lines_go_to_the_standard_error_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that was used once goes on writing after standard error was exchanged and the former one closed."""
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", before)
    configure_logs("info", "json")
    log = structlog.get_logger("test")
    log.info("first")
    monkeypatch.setattr("sys.stderr", after)
    before.close()
    log.info("second")
    assert "second" in after.getvalue()


def test_lines_that_cannot_be_written_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk logging fails nobody, and the first line that gets through says how many did not."""
    configure_logs("info", "json")
    log = structlog.get_logger("test")
    # Its close would fail as every write does.
    full = Path("/dev/full").open("w")  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", full)
    log.info("first")
    logging.getLogger("other").warning("second")
    with pytest.raises(OSError, match="No space left"):
        full.close()
    after = io.StringIO()
    monkeypatch.setattr("sys.stderr", after)
    log.info("third")
    log.info("fourth")
    third, fourth = map(json.loads, after.getvalue().splitlines())
    assert 2 == third["unwritten_lines"]
    assert "unwritten_lines" not in fourth
