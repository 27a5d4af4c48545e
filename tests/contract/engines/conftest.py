"""The engines that the contract is held against."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kvferry.core.backends import Transport
from tests.contract.engines.engine import Engine, Reader, Source
from tests.contract.engines.real import LocalEngine, TransportEngine
from tests.contract.engines.simulated import SimEngine


@dataclass(frozen=True)
class Kind:
    """An engine, and what may be expected of it."""

    make: Callable[[Path], Engine]
    over_sockets: bool = False
    """Whether UCX is held to sockets, where a source has to answer."""
    needs_network: bool = False
    """Whether the loopback alone does not do."""


_NIXL = ("--path", "nixl")
_LIBFABRIC = ("--nixl-backend", "LIBFABRIC", *_NIXL)
_UCX = ("--backend", "UCX", "--path", "ucx")
KINDS = {
    "simulated": Kind(lambda _: SimEngine(1)),
    "local": Kind(LocalEngine),
    "nixl-ucx": Kind(lambda folder: TransportEngine(folder, Transport.NIXL_UCX, *_NIXL)),
    "nixl-ucx-tcp": Kind(lambda folder: TransportEngine(folder, Transport.NIXL_UCX, *_NIXL), over_sockets=True),
    "nixl-libfabric": Kind(
        lambda folder: TransportEngine(folder, Transport.NIXL_LIBFABRIC, *_LIBFABRIC), needs_network=True
    ),
    "ucx": Kind(lambda folder: TransportEngine(folder, Transport.UCX, *_UCX)),
    "ucx-tcp": Kind(lambda folder: TransportEngine(folder, Transport.UCX, *_UCX), over_sockets=True),
}


def _has_network() -> bool:
    families = (socket.AF_INET, socket.AF_INET6)
    return any(
        address.family in families
        for name, addresses in psutil.net_if_addrs().items()
        if name != "lo"
        for address in addresses
    )


LONG = {"local", "nixl-ucx", "ucx-tcp"}
"""Left to the long run. Of UCX with and without NIXL the ordinary run has one over sockets and one that is not, and of
mapped memory the tests of data planes."""

LONG_BY_LIBFABRIC = {
    "test_a_source_that_died_before_is_an_error",
    "test_the_next_life_of_a_source_is_read",
    "test_reads_in_flight_do_not_outlive_the_agent",
}
"""Left to the long run of NIXL's other backend, which takes longest to see that a source is gone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is left to the long run."""
    for item in items:
        name, _, kind = item.name.partition("[")
        if name in LONG_BY_LIBFABRIC and kind == "nixl-libfabric]":
            item.add_marker(pytest.mark.long)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in KINDS]
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine after the other."""
    kind = KINDS[request.param]
    if kind.needs_network and not _has_network():
        pytest.skip("libfabric finds no device where there is the loopback alone")
    with pytest.MonkeyPatch.context() as environment:
        if kind.over_sockets:
            environment.setenv("UCX_TLS", "tcp")
        made = kind.make(tmp_path_factory.mktemp(request.param))
        yield made
        made.close()


@pytest.fixture(scope="module")
def living(engine: Engine) -> tuple[Source, Source]:
    """Two sources that no test does any harm."""
    return engine.source(), engine.source()


@pytest.fixture
def reader(engine: Engine) -> Iterator[Reader]:
    """An agent, closed afterwards if the test did not; the engine's pool is zero."""
    engine.pool[:] = 0
    made = Reader(engine, engine.agent())
    yield made
    if not made.closed:
        made.close()
