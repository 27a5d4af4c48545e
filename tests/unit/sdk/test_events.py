"""Streams of events."""

import pytest

from kvferry.core.errors import ResourceExhausted
from kvferry.sdk.events import BUFFER_EVENTS_MAX, EventHub, PoolLost


async def test_slow_reader_is_told_what_it_missed() -> None:
    """A reader that lags too far loses the oldest events, hears how many, and reads on."""
    hub = EventHub()
    stream = hub.stream()
    for rank in range(BUFFER_EVENTS_MAX + 3):
        hub.push(PoolLost(rank))
    with pytest.raises(ResourceExhausted) as caught:
        await anext(stream)
    assert caught.value.metadata == {"missed": "3"}
    assert await anext(stream) == PoolLost(3)


async def test_closed_stream_ends_after_what_is_buffered() -> None:
    """Closing ends every stream, those made later included, once they are read out."""
    hub = EventHub()
    stream = hub.stream()
    hub.push(PoolLost(1))
    hub.close()
    assert [event async for event in stream] == [PoolLost(1)]
    assert [event async for event in hub.stream()] == []
