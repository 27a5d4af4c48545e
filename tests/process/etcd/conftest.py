"""Real etcd servers for these tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from kvferry.dev.etcd_server import EtcdCluster, EtcdServer
from kvferry_control.etcd.client import EtcdClient
from tests.process.etcd.harness import Proxy, fast_options


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """A single etcd."""
    with EtcdServer() as started:
        yield started


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    """An etcd of three members."""
    with EtcdCluster() as started:
        yield started


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    """A client of the single etcd."""
    async with EtcdClient(fast_options(server.endpoint)) as opened:
        yield opened


@pytest.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[Proxy]:
    """A proxy in front of the single etcd."""
    async with Proxy(server.endpoint).serving() as serving:
        yield serving


@pytest.fixture
async def proxied(proxy: Proxy) -> AsyncIterator[EtcdClient]:
    """A client that reaches the single etcd through the proxy only."""
    async with EtcdClient(fast_options(proxy.endpoint)) as opened:
        yield opened
