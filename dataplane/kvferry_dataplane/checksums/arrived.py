"""Compares what a read has brought with its sources' sums, before the read is told to have succeeded."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvferry.core.checksums.comparisons import Comparison
from kvferry.core.errors import Cancelled, ChecksumMismatch, DeadlineExceeded, KvferryError
from kvferry.device.native import CancelFlag
from kvferry_dataplane.checksums.threads import Digest, DigestThreads
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest


@dataclass(slots=True)
class _Expected:
    comparisons: list[Comparison]
    request: ReadRequest
    flag: CancelFlag | None = None
    ended_by: KvferryError | None = None

    @property
    def total_bytes(self) -> int:
        return sum(comparison.region.total_bytes for comparison in self.comparisons)


class ArrivedSums:
    """The comparisons of outstanding reads. Every method runs on the event loop; times are monotonic."""

    def __init__(self, threads: DigestThreads) -> None:
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._expected: dict[str, _Expected] = {}

    def expect(self, request: ReadRequest, comparisons: list[Comparison]) -> None:
        """A read was accepted that is to be compared."""
        self._expected[request.transfer] = _Expected(comparisons, request)

    def begin(self, outcome: ReadOutcome, done: Callable[[ReadOutcome], None]) -> bool:
        """Whether a read that has ended is to be compared; then ``done`` is called with its final outcome."""
        expected = self._expected.get(outcome.transfer)
        if expected is None:
            return False
        if outcome.failure is not None:
            del self._expected[outcome.transfer]
            return False
        begun = time.monotonic()
        timer = self._loop.call_later(
            max(_deadline(expected.request, outcome) - begun, 0.0),
            self._end,
            outcome.transfer,
            DeadlineExceeded("the read's deadline passed while its checksums were compared"),
        )

        def compared(result: str | KvferryError) -> None:
            timer.cancel()
            del self._expected[outcome.transfer]
            failure = expected.ended_by
            if failure is None and isinstance(result, KvferryError):
                failure = result
            elif failure is None and result:
                failure = ChecksumMismatch(f"what arrived is not what was published: {result}")
            done(
                replace(
                    outcome,
                    failure=failure,
                    compared_bytes=0 if failure is not None else expected.total_bytes,
                    checksum_seconds=time.monotonic() - begun,
                )
            )

        try:
            expected.flag = self._threads.start(lambda digest: _difference(expected.comparisons, digest), compared)
        except KvferryError as error:
            compared(error)
        return True

    def cancel(self, transfer: str) -> None:
        """End a comparison early, if it is under way."""
        self._end(transfer, Cancelled("the read was cancelled"))

    def _end(self, transfer: str, error: KvferryError) -> None:
        expected = self._expected.get(transfer)
        if expected is not None and expected.flag is not None and expected.ended_by is None:
            expected.ended_by = error
            expected.flag.raise_()


def _deadline(request: ReadRequest, outcome: ReadOutcome) -> float:
    if request.queue_deadline is None:
        return request.deadline
    return min(request.deadline, request.accepted_at + outcome.queue_seconds + request.service_seconds)


def _difference(comparisons: list[Comparison], digest: Digest) -> str:
    for comparison in comparisons:
        difference = comparison.difference(digest(comparison.region))
        if difference:
            return difference
    return ""
