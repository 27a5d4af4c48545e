"""One negotiation with a source: asked again while the source cannot be reached, until an answer or the deadline."""

import asyncio
import time
from collections.abc import Callable

from kvferry.core.errors import DeadlineExceeded, KvferryError
from kvferry.core.reasons import Reason
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.peers.source import Source, located

ATTEMPTS = 3
ATTEMPT_PAUSE_S = 0.1
_WORTH_ANOTHER = (Reason.PEER_UNREACHABLE, Reason.NOT_READY)

Answered = Callable[[Source, pb.NegotiateResponse | KvferryError], None]
"""Told once of the answer, or why there is none."""


class Negotiation:
    """Calls instead of a task: the question is on its way when :meth:`ask` returns, and who takes the answer hears it.

    What has to wait in between, before another attempt, waits on a timer.
    """

    def __init__(
        self,
        source: Source,
        request: pb.NegotiateRequest,
        deadline: float,
        take: Callable[[Source, pb.NegotiateResponse], None],
        answered: Answered,
    ) -> None:
        """``deadline`` is monotonic. ``take`` learns from an answer, or raises a KvferryError if it is of no use."""
        self._source = source
        self._request = request
        self._deadline = deadline
        self._take = take
        self._answered = answered
        self._attempts = 0
        self._cancel: Callable[[], None] = lambda: None
        """Ends what is waited for now: the answer, or the next attempt."""

    def ask(self) -> None:
        """Ask, once more."""
        self._attempts += 1
        left = self._deadline - time.monotonic()
        try:
            if left <= 0:
                raise DeadlineExceeded(f"no answer from workers/{self._source.worker} before the deadline")
            self._cancel = self._source.session.ask(self._request, left, self._hear)
        except KvferryError as error:
            self._cancel = asyncio.get_running_loop().call_soon(self._hear, error).cancel

    def ask_soon(self) -> None:
        """Ask in the next turn of the event loop, after what is to be done in this one."""
        self._cancel = asyncio.get_running_loop().call_soon(self.ask).cancel

    def cancel(self) -> None:
        """Tell nobody of the answer."""
        self._cancel()

    def _hear(self, answer: pb.NegotiateResponse | KvferryError) -> None:
        if isinstance(answer, KvferryError):
            if answer.reason in _WORTH_ANOTHER and self._attempts < ATTEMPTS:
                pause = min(ATTEMPT_PAUSE_S, max(self._deadline - time.monotonic(), 0))
                self._cancel = asyncio.get_running_loop().call_later(pause, self.ask).cancel
            else:
                self._answered(self._source, located(answer, self._source))
            return
        try:
            self._take(self._source, answer)
        except KvferryError as error:
            self._answered(self._source, error)
        else:
            self._answered(self._source, answer)
