"""Several controls that answer alike: calls that fail over, and lists that come in pages."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
from grpc import aio

from kvferry.core.errors import KvferryError, NotReady, ResourceExhausted
from kvferry.sdk.calls import Method, control_error, has_details

ITEMS_MAX = 100_000
"""Items that a list may come to."""
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 1.0

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Item = TypeVar("_Item")


def may_do_better(error: aio.AioRpcError) -> bool:
    """Whether another control may answer what this one could not."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not has_details(error)


class Endpoints:
    """Controls with one channel each; the one that answered last is asked first."""

    def __init__(self, channels: Sequence[tuple[str, aio.Channel]]) -> None:
        self._channels = list(channels)
        self._at = 0

    @property
    def current(self) -> tuple[str, aio.Channel]:
        """Endpoint and channel of the control that is asked first."""
        return self._channels[self._at]

    def fail_over(self, endpoint: str, error: aio.AioRpcError) -> KvferryError:
        """Ask the next control first, unless that was done since; gives the error as an exception.

        Raises:
            KvferryError: no other control would do better.
        """
        failure = control_error(error, endpoint)
        if not may_do_better(error):
            raise failure from error
        if self.current[0] == endpoint:
            self._at = (self._at + 1) % len(self._channels)
        return failure

    async def call(
        self, method: Callable[[aio.Channel], Method[_Request, _Response]], request: _Request, timeout_s: float
    ) -> _Response:
        """Call an idempotent method at one control after the other, each once, within ``timeout_s`` together.

        Raises:
            KvferryError: what a control answered; NotReady when none could be reached.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        failures: list[str] = []
        for left in range(len(self._channels), 0, -1):
            endpoint, channel = self.current
            try:
                return await method(channel)(request, timeout=(deadline - loop.time()) / left)
            except aio.AioRpcError as error:
                failure = self.fail_over(endpoint, error)
                if len(self._channels) == 1:
                    raise failure from error
                failures.append(f"{endpoint}: {failure.message}")
        raise NotReady("no control answered: " + "; ".join(failures))

    async def close(self) -> None:
        """Close every channel."""
        for _, channel in self._channels:
            await channel.close()


async def all_pages(page: Callable[[str], Awaitable[tuple[list[_Item], str]]], limit: int | None = None) -> list[_Item]:
    """All items of a list, or the first ``limit``.

    Raises:
        ResourceExhausted: without a limit, more than ``ITEMS_MAX``.
    """
    items: list[_Item] = []
    token = ""
    while True:
        more, token = await page(token)
        items += more
        if limit is not None and len(items) >= limit:
            return items[:limit]
        if not token:
            return items
        if len(items) > ITEMS_MAX:
            raise ResourceExhausted(f"the list has more than {ITEMS_MAX} items")
