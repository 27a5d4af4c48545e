"""Logs go to standard error, whatever that is at the time."""

import io
from collections.abc import Iterator

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
