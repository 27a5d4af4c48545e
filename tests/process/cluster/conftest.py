"""One pair of workers for all tests of a module that leave it as they found it."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.process.cluster.pair import Pair, running_pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[Pair]:
    """Both workers, ready."""
    async with running_pair() as running:
        yield running
