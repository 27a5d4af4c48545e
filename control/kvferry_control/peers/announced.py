"""What a source has told of its publications before it was asked."""

from collections import OrderedDict

from kvferry.negotiation.v1 import negotiation_pb2 as pb

ANNOUNCED_MAX = 256
"""Of one source; the oldest is forgotten first."""


class Announced:
    """Announcements of one life of a source, by handle. One may just have ended: what a lease word says decides."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, pb.NegotiateResponse] = OrderedDict()

    def take(self, announcement: pb.Announcement) -> None:
        """Keep one."""
        self._answers[announcement.handle] = announcement.answer
        if len(self._answers) > ANNOUNCED_MAX:
            self._answers.popitem(last=False)

    def drop(self, withdrawal: pb.Withdrawal) -> None:
        """Forget one; nothing happens if it is not known."""
        self._answers.pop(withdrawal.handle, None)

    def clear(self) -> None:
        """Forget all: ends may have been missed."""
        self._answers.clear()

    def find(self, handle: bytes) -> pb.NegotiateResponse | None:
        """What the source will answer for a handle, if it has told."""
        return self._answers.get(handle)
