"""Probes of the transport and the end of their agents."""

import weakref
from dataclasses import dataclass
from typing import Any, cast

import pytest

from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry_dataplane.attestation.scratch import Scratch
from kvferry_dataplane.attestation.transport_probe import TransportProbes
from kvferry_dataplane.pool import open_pool
from kvferry_dataplane.reads.lingering import LingeringConnections
from tests.unit.dataplane.fakes import peer

POOL_BYTES = 4 << 20


class Handle:
    """What an agent keeps of a read."""


@dataclass
class FakeAgent:
    """Loses its peer at the first read. As NIXL's, it can only be destroyed once nothing refers to what it made."""

    is_reading = True
    handle: "weakref.ref[Handle] | None" = None
    destroyed: bool = False

    def register(self, region: object) -> None:
        """Any memory."""

    def add_peer(self, metadata: bytes) -> None:
        """Any peer."""

    def post_read(self, *_: object) -> int:
        """Fail, with a handle among the local variables."""
        handle = Handle()
        self.handle = weakref.ref(handle)
        raise PeerError("gone", reason=Reason.PEER_LOST) from ValueError("NIXL's own")

    def close(self) -> None:
        """End."""
        assert self.handle is not None
        self.destroyed = self.handle() is None


@dataclass
class FakeLibrary:
    """Makes one agent."""

    agent: FakeAgent

    def make_reporting_agent(self, _name: str) -> FakeAgent:
        """It."""
        return self.agent


async def test_the_agent_of_a_probe_that_failed_is_destroyed() -> None:
    """The error tells why the probe failed, and refers to nothing that would keep the agent alive."""
    pool = open_pool("cpu", POOL_BYTES)
    agent = FakeAgent()
    probes = TransportProbes(cast("Any", FakeLibrary(agent)), Scratch(pool, b"b" * 16), LingeringConnections())
    with pytest.raises(PeerError, match="gone"):
        await probes.attest(peer("source"), float("inf"))
    assert agent.destroyed
    probes.close()
    pool.close()
