"""What UCX prints is kept until it is asked for, and costs no memory after that."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvferry_dataplane.transports.ucx_log import UcxLog
from tests.unit.dataplane.attestation.test_ucx_report import CMA, TCP

Say = Callable[[str], None]


@pytest.fixture
def log() -> UcxLog:
    """A log that no user has a say in."""
    return UcxLog({})


@pytest.fixture
def say(log: UcxLog) -> Iterator[Say]:
    """Writes as UCX does, which opens the file once and goes on where it was."""
    with Path(log.settings["UCX_LOG_FILE"]).open("w") as file:

        def write(text: str) -> None:
            file.write(text)
            file.flush()

        yield write


def test_each_probe_hears_of_itself(log: UcxLog, say: Say) -> None:
    """What was said before is not said again; what follows is read from where the last left off."""
    for _ in range(3):
        say(CMA)
        assert "cma" == log.use_of("read0").transport
        assert "" == log.use_of("read0").transport
        say(TCP)
        assert "tcp" == log.use_of("read1").transport


def test_what_was_read_takes_no_memory(log: UcxLog, say: Say) -> None:
    """The file grows by what is said, the memory behind it does not."""
    for _ in range(100):
        say(CMA * 20)
        log.take()
    say("\n")
    status = Path(log.settings["UCX_LOG_FILE"]).stat()
    assert status.st_size > 100 * 20 * len(CMA)
    assert status.st_blocks * 512 < 64 << 10


def test_of_several_that_speak_at_once_none_is_guessed(log: UcxLog, say: Say) -> None:
    """Without names, only what one alone has said is known."""
    say(CMA)
    assert "cma" == log.use_of_one().transport
    say(CMA + TCP)
    found = log.use_of_one()
    assert ("", "2 workers of UCX have chosen at the same time") == (found.transport, found.how)


@pytest.mark.parametrize("name", ["UCX_LOG_LEVEL", "UCX_LOG_FILE", "UCX_PROTO_INFO"])
def test_a_user_who_has_a_say_is_not_overruled(name: str) -> None:
    """Nothing is set then, and what is not known is said."""
    log = UcxLog({name: "x"})
    assert {} == log.settings
    assert f"{name} is set by whoever started the process" == log.use_of("read0").how == log.use_of_one().how
