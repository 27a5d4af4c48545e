"""A scripted control and an engine's client that is connected to it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pytest_asyncio import is_async_test

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.handles import new_key, seal
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.sdk.engine import EngineClient
from tests.contract.sdk.fake_control import FakeControl


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: gRPC loses events when loops come and go."""
    for item in items:
        if isinstance(item, pytest.Function) and is_async_test(item) and "contract/sdk" in str(item.path):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as name:
        yield Path(name)


@pytest.fixture
def layout() -> WorkerLayout:
    """One group, 64 blocks."""
    return dense_layout(DenseModel("model", 2, 2, 8, 16, ElementType.BFLOAT16), 64)


@pytest.fixture
def handle() -> bytes:
    """A handle that is well formed."""
    return seal(b"payload", new_key())


@pytest_asyncio.fixture(loop_scope="session")
async def control(folder: Path) -> AsyncIterator[FakeControl]:
    """A control that listens."""
    fake = await FakeControl(folder / "control.sock").start()
    yield fake
    await fake.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def engine(control: FakeControl, layout: WorkerLayout) -> AsyncIterator[EngineClient]:
    """A connected engine."""
    async with EngineClient.connect(control.path, "engine", layout, connect_timeout_s=10) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks that end with the test."""
    async with asyncio.TaskGroup() as group:
        yield group
