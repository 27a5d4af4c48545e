"""One stream on which the control of a decode worker negotiates."""

import asyncio
from typing import Protocol

import structlog

from kvferry.core.errors import InternalError, InvalidArgument, KvferryError
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.rpc.refusals import refusal_to_wire
from kvferry.rpc.streams import Outgoing
from kvferry.rpc.times import seconds_of

ANSWERS_MAX = 8_192
ANNOUNCEMENTS_WAITING_MAX = 64
ACKNOWLEDGE_S = 0.1
"""Conclusions are acknowledged together, this long after the first of them."""

_log = structlog.get_logger("kvferry.control.negotiation")


class Negotiator(Protocol):
    """Who knows the publications."""

    def negotiate(self, request: pb.NegotiateRequest, time_left: float | None, into: pb.NegotiateResponse) -> None:
        """Note a reader, and write what it needs ``into`` the answer. Raises KvferryError."""

    def conclude(self, request: pb.ConcludeRequest) -> None:
        """Note that a reader is done. Raises KvferryError."""


class PeerSession:
    """Takes the calls of one stream in their order and puts the answers into ``outgoing``."""

    def __init__(self, negotiator: Negotiator) -> None:
        self.outgoing: Outgoing[pb.SessionAnswer] = Outgoing(ANSWERS_MAX)
        self._negotiator = negotiator
        self._concluded = 0
        self._acknowledging = False

    def handle(self, request: pb.SessionRequest) -> None:
        """Take some calls; a call that fails is refused by itself.

        Raises:
            ResourceExhausted: the peer does not read its answers.
        """
        for call in request.calls:
            match call.WhichOneof("call"):
                case "negotiate":
                    self.outgoing.put(self._negotiate(call))
                case "conclude":
                    self._conclude(call)
                case _:
                    unknown = InvalidArgument.of_field("call", "unset", "an unknown call")
                    self.outgoing.put(pb.SessionAnswer(call_id=call.call_id, refused=refusal_to_wire(unknown)))

    def announce(self, announcement: pb.Announcement) -> None:
        """Tell the peer of a publication, unless it is behind with reading: it can ask."""
        if len(self.outgoing) < ANNOUNCEMENTS_WAITING_MAX:
            self.outgoing.put(pb.SessionAnswer(announced=announcement))

    def withdraw(self, handle: bytes) -> None:
        """Tell the peer that an announced publication has ended."""
        self.outgoing.put_or_end(pb.SessionAnswer(withdrawn=pb.Withdrawal(handle=handle)))

    def _negotiate(self, call: pb.SessionCall) -> pb.SessionAnswer:
        # Written where it is sent from: the block lists are long.
        answer = pb.SessionAnswer(call_id=call.call_id)
        try:
            time_left = seconds_of(call.time_left) if call.HasField("time_left") else None
            self._negotiator.negotiate(call.negotiate, time_left, answer.negotiated)
        except KvferryError as error:
            refusal = error
        except Exception as error:
            _log.exception("defect in a negotiation")
            refusal = InternalError(f"{type(error).__name__} in a negotiation")
        else:
            return answer
        return pb.SessionAnswer(call_id=call.call_id, refused=refusal_to_wire(refusal))

    def _conclude(self, call: pb.SessionCall) -> None:
        try:
            self._negotiator.conclude(call.conclude)
        except KvferryError as error:
            # The reader's publication ended before it did: nothing is left to be told.
            _log.debug("conclusion without effect", transfer=call.conclude.transfer, error=str(error))
        except Exception:
            _log.exception("defect in a conclusion")
        self._concluded = call.call_id
        if not self._acknowledging:
            self._acknowledging = True
            asyncio.get_running_loop().call_later(ACKNOWLEDGE_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._acknowledging = False
        self.outgoing.put_or_end(pb.SessionAnswer(call_id=self._concluded, concluded=pb.ConcludeResponse()))


def message_of(answers: list[pb.SessionAnswer]) -> pb.SessionResponse:
    """The message that carries answers."""
    return pb.SessionResponse(answers=answers)
