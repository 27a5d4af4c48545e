"""What a source answers on a session."""

from collections.abc import Callable

import pytest

from kvferry.core.errors import LeaseEnded
from kvferry.error.v1 import error_pb2
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.rpc.times import duration
from kvferry_control.services import peer_session
from kvferry_control.services.peer_session import PeerSession


class Negotiator:
    """Knows what a test tells it."""

    def __init__(self, negotiate: Callable[[pb.NegotiateRequest, float | None], pb.NegotiateResponse]) -> None:
        self._negotiate = negotiate
        self.concluded: list[str] = []

    def negotiate(self, request: pb.NegotiateRequest, time_left: float | None, into: pb.NegotiateResponse) -> None:
        """Answer."""
        into.CopyFrom(self._negotiate(request, time_left))

    def conclude(self, request: pb.ConcludeRequest) -> None:
        """Take a conclusion; one of a publication that has ended is refused."""
        if request.transfer == "ended":
            raise LeaseEnded("has ended")
        self.concluded.append(request.transfer)


def call(number: int, transfer: str) -> pb.SessionCall:
    """A negotiation."""
    return pb.SessionCall(call_id=number, negotiate=pb.NegotiateRequest(transfer=transfer), time_left=duration(2))


def conclusion(number: int, transfer: str) -> pb.SessionCall:
    """A conclusion."""
    return pb.SessionCall(call_id=number, conclude=pb.ConcludeRequest(transfer=transfer))


async def test_each_call_of_a_message_fails_by_itself() -> None:
    """A refusal, a defect and an unknown call among the calls of one message leave the others alone."""

    def negotiate(request: pb.NegotiateRequest, time_left: float | None) -> pb.NegotiateResponse:
        assert 2.0 == time_left
        if request.transfer == "refused":
            raise LeaseEnded.of_field("publication", "p", "has ended")
        if request.transfer == "defect":
            raise ZeroDivisionError
        return pb.NegotiateResponse(incarnation=7)

    session = PeerSession(Negotiator(negotiate))
    calls = [call(1, "refused"), call(2, "defect"), pb.SessionCall(call_id=3), call(4, "good")]
    session.handle(pb.SessionRequest(calls=calls))
    answers = await session.outgoing.take()
    assert [1, 2, 3, 4] == [answer.call_id for answer in answers]
    assert [error_pb2.REASON_LEASE_ENDED, error_pb2.REASON_INTERNAL, error_pb2.REASON_INVALID_ARGUMENT] == [
        answer.refused.reason for answer in answers[:3]
    ]
    assert "p" == answers[0].refused.metadata["value"]
    assert 7 == answers[3].negotiated.incarnation


async def test_conclusions_are_acknowledged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One answer acknowledges all conclusions before it, also those that had no effect any more."""
    monkeypatch.setattr(peer_session, "ACKNOWLEDGE_S", 0.0)
    negotiator = Negotiator(lambda *_: pb.NegotiateResponse())
    session = PeerSession(negotiator)
    calls = [conclusion(number, transfer) for number, transfer in ((1, "a"), (2, "ended"), (3, "b"))]
    session.handle(pb.SessionRequest(calls=calls))
    assert ["a", "b"] == negotiator.concluded
    answers = await session.outgoing.take()
    assert [(3, "concluded")] == [(answer.call_id, answer.WhichOneof("answer")) for answer in answers]
