"""Wires what attests peers, and what peers read to attest this data plane."""

from collections.abc import Callable
from dataclasses import dataclass

from kvferry_dataplane.attestation.prober import Prober
from kvferry_dataplane.attestation.rate_book import RateBook
from kvferry_dataplane.attestation.read_probe import ReadProbes
from kvferry_dataplane.attestation.scratch import Scratch
from kvferry_dataplane.attestation.transport_probe import TransportProbes
from kvferry_dataplane.attestation.way_finder import WayFinder
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.paths import PathPolicy
from kvferry_dataplane.pool import Pool
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest
from kvferry_dataplane.transports.transport import TransportLibrary


@dataclass(frozen=True, slots=True)
class Attester:
    """What attests peers."""

    prober: Prober
    finished: Callable[[ReadOutcome], bool]
    """Takes in how a read ended; False if it was no probe."""
    close: Callable[[], None]
    """Ends its thread."""


def open_attester(
    library: TransportLibrary,
    pool: Pool,
    boot_id: bytes,
    policy: PathPolicy,
    lingering: LingeringConnections,
    rates: RateBook,
    submit: Callable[[ReadRequest], None],
    desk: ReadDesk,
) -> Attester:
    """Write the pattern that peers read, and make the prober, which the caller runs.

    ``submit`` queues a read; ``desk`` has those of control, which come first.
    """
    scratch = Scratch(pool, boot_id)
    reads = ReadProbes(submit, scratch)
    transports = TransportProbes(library, scratch, lingering)
    finder = WayFinder(policy, reads, transports, desk.wait_until_idle)
    return Attester(Prober(finder, rates), reads.finished, transports.close)
