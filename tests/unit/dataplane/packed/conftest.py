"""Fixtures of the packed path."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvferry_dataplane.packed.bounds import ReaderBounds, ServerBounds
from tests.unit.dataplane.packed.ends import PlayedSource, Reader, Source


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed at the end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_source(stack: ExitStack) -> Callable[..., Source]:
    """Makes sources."""

    def make(size_bytes: int = 1 << 20, bounds: ServerBounds | None = None) -> Source:
        source = Source.start(size_bytes, bounds)
        stack.callback(source.server.close)
        return source

    return make


@pytest.fixture
def make_reader(stack: ExitStack) -> Callable[..., Reader]:
    """Makes readers."""

    def make(size_bytes: int = 1 << 20, bounds: ReaderBounds | None = None) -> Reader:
        reader = Reader.start(size_bytes, bounds)
        stack.callback(reader.close)
        return reader

    return make


@pytest.fixture
def played(stack: ExitStack) -> PlayedSource:
    """A source that the test plays."""
    source = PlayedSource()
    stack.callback(source.close)
    return source
