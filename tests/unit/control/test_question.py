"""Who asks a source hears of it once, later, and not at all after taking the question back."""

import asyncio
from collections.abc import Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from kvferry.core.errors import KvferryError, NotReady, PeerError
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.peers.session import NegotiationSession

GONE = PeerError("gone", reason=Reason.PEER_LOST)
REQUEST = pb.NegotiateRequest(transfer="t")
Heard = list[pb.NegotiateResponse | KvferryError]


def session() -> NegotiationSession:
    """A session whose stream never opens."""

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        work.close()
        return Mock()

    return NegotiationSession("prefill-0", Mock(), spawn)


async def test_the_end_of_a_session_is_heard_of_in_a_turn_of_its_own() -> None:
    """What waits is told after who ended the session has done so, once; a later question is refused at once."""
    asked, heard = session(), Heard()
    asked.ask(REQUEST, 10.0, heard.append)
    asked.close(GONE)
    assert [] == heard
    await asyncio.sleep(0)
    assert [GONE] == heard
    with pytest.raises(PeerError):
        asked.ask(REQUEST, 10.0, heard.append)


async def test_a_question_taken_back_is_not_heard_of() -> None:
    """Neither of its answer, nor of the end of the session that came a moment before, nor of its time."""
    asked, heard = session(), Heard()
    forget, forget_late, forget_at_once = (asked.ask(REQUEST, 0.01, heard.append) for _ in range(3))
    forget_at_once()
    asked.close(NotReady("stops"))
    forget()
    forget_late()
    await asyncio.sleep(0.05)
    assert [] == heard
    assert not asked._waiting
