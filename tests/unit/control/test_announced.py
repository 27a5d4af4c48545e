"""What a source tells of its publications before it is asked."""

from unittest.mock import Mock

import pytest

from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.config import LimitsSection
from kvferry_control.metrics import ControlMetrics
from kvferry_control.peers.announced import ANNOUNCED_MAX, Announced
from kvferry_control.publications.machine import Life, State
from kvferry_control.publications.manager import Publication
from kvferry_control.services import negotiation, peer_session
from kvferry_control.services.negotiation import TOLD_BLOCKS_MAX, NegotiationService
from kvferry_control.services.peer_session import PeerSession
from kvferry_control.worker import new_identity

LIMITS = LimitsSection(told_readers=2)


def announcement(number: int) -> pb.Announcement:
    """One of many."""
    return pb.Announcement(handle=b"handle %d" % number, answer=pb.NegotiateResponse(token_count=number))


def published(block_count: int = 2, state: State = State.LIVE) -> Publication:
    """A publication of so many blocks."""
    return Publication(
        id="p",
        request_id="r",
        fingerprint=b"",
        blocks={"full": BlockList(group="full", block_ids=range(block_count))},
        token_count=16 * block_count,
        expected_readers=1,
        expires_at=0.0,
        ranks=frozenset({0}),
        life=Life(waiting=frozenset(), held=frozenset({0}), state=state),
        leases={0: pb.RankLease(rank=0, slot=3, word=7)},
    )


def service_of(session_count: int) -> tuple[NegotiationService, list[PeerSession]]:
    """A source with so many readers."""
    worker = Mock(identity=new_identity())
    service = NegotiationService(worker, Mock(), [], ControlMetrics(), Mock(), LIMITS)
    sessions = [PeerSession(service) for _ in range(session_count)]
    service._sessions.update(dict.fromkeys(sessions))
    return service, sessions


def test_the_oldest_is_forgotten() -> None:
    """A source that announces without end takes a bounded room."""
    announced = Announced()
    for number in range(ANNOUNCED_MAX + 1):
        announced.take(announcement(number))
    assert announced.find(b"handle 0") is None
    kept = announced.find(b"handle %d" % ANNOUNCED_MAX)
    assert kept is not None
    assert ANNOUNCED_MAX == kept.token_count
    announced.drop(pb.Withdrawal(handle=b"handle %d" % ANNOUNCED_MAX))
    announced.drop(pb.Withdrawal(handle=b"unknown"))
    assert announced.find(b"handle %d" % ANNOUNCED_MAX) is None


async def test_readers_are_told_of_a_publication_and_of_its_end() -> None:
    """Each reader gets the answer to the negotiation that it has not asked for yet."""
    service, sessions = service_of(2)
    publication = published()
    service.announce(b"handle", publication)
    service.publication_ended(publication)
    service.publication_ended(publication)
    for session in sessions:
        told, ended = await session.outgoing.take()
        assert (0, b"handle") == (told.call_id, told.announced.handle)
        answer = told.announced.answer
        assert ([0, 1], 32, [7]) == (
            list(answer.blocks[0].block_ids),
            answer.token_count,
            [lease.word for lease in answer.leases],
        )
        assert b"handle" == ended.withdrawn.handle
    assert not service._announced


@pytest.mark.parametrize(
    ("readers", "publication"),
    [
        (0, published()),
        (LIMITS.told_readers + 1, published()),
        (1, published(TOLD_BLOCKS_MAX + 1)),
        (1, published(state=State.ENDING)),
        (1, published(state=State.RELEASED)),
    ],
)
def test_others_have_to_ask(readers: int, publication: Publication) -> None:
    """Nobody is told by a source of many readers, of long lists, or of what has ended; nothing is kept of it."""
    service, sessions = service_of(readers)
    service.announce(b"handle", publication)
    assert not any(len(session.outgoing) for session in sessions)
    assert not service._announced


def test_a_reader_that_is_behind_is_not_told() -> None:
    """Announcements do not pile up for a peer that does not read."""
    session = PeerSession(Mock(spec=negotiation.NegotiationService))
    for number in range(2 * peer_session.ANNOUNCEMENTS_WAITING_MAX):
        session.announce(announcement(number))
    assert peer_session.ANNOUNCEMENTS_WAITING_MAX == len(session.outgoing)
