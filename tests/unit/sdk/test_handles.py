"""Handles of several publications are joined only if they are of as many tokens."""

from typing import cast

import pytest

from kvferry import HandleMalformed, InvalidArgument, join_handles
from kvferry.core.handles import new_key, seal, split
from kvferry.publication.v1.publication_pb2 import HandlePayload


def handle(worker: str, token_count: int = 32) -> bytes:
    """A handle of a worker."""
    payload = HandlePayload(worker=worker, incarnation=1, publication="p", token_count=token_count)
    return seal(payload.SerializeToString(), new_key())


def test_joined_handles_come_apart_again() -> None:
    """The handles and their order are those that were joined."""
    handles = [handle("a"), handle("b"), handle("c")]
    assert tuple(handles) == split(join_handles(handles))


@pytest.mark.parametrize(
    ("handles", "kind", "field"),
    [
        ([handle("a"), handle("b", 33)], InvalidArgument, "handles[1].token_count"),
        ([handle("a"), cast("bytes", "b")], InvalidArgument, "handles[1]"),
        ([handle("a"), seal(b"\xff", new_key())], HandleMalformed, "handles[1]"),
        ([handle("a")], HandleMalformed, "handles"),
        ([handle("a"), join_handles([handle("b"), handle("c")])], HandleMalformed, "handles[1]"),
    ],
)
def test_what_cannot_be_joined_is_named(handles: list[bytes], kind: type[Exception], field: str) -> None:
    """Another number of tokens, no bytes, no handle, too few and nested ones are refused by position."""
    with pytest.raises(kind) as caught:
        join_handles(handles)
    assert isinstance(caught.value, InvalidArgument | HandleMalformed)
    assert field == caught.value.metadata["field"]
