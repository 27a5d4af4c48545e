"""Readers of a publication, as its source counts them."""

import time

from kvferry_control.config import LimitsSection
from kvferry_control.metrics import ControlMetrics
from kvferry_control.publications.machine import Life, State
from kvferry_control.publications.manager import Publication, Publications


async def test_readers_without_an_expected_number_are_only_counted() -> None:
    """A publication that any number may read remembers none of those that are done."""
    publications = Publications([], LimitsSection(), ControlMetrics(), lambda work: work.close())  # type: ignore[arg-type, return-value]
    publication = Publication(
        id="p",
        request_id="r",
        fingerprint=b"",
        blocks={},
        token_count=1,
        expected_readers=0,
        expires_at=time.monotonic() + 60,
        ranks=frozenset({0}),
        life=Life(waiting=frozenset(), held=frozenset({0}), state=State.LIVE),
    )
    for number in range(3):
        publications.begin_read(publication, f"t-{number}")
        publications.end_read(publication, f"t-{number}", succeeded=True)
    publications.begin_read(publication, "t-3")
    publications.end_read(publication, "t-3", succeeded=False)
    assert (3, set(), set()) == (
        publication.finished_count,
        publication.finished_readers,
        publication.active_readers,
    )
    assert State.LIVE is publication.life.state
