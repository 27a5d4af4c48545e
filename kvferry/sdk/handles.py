"""Handles of several publications of the same tokens, joined to one."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from kvferry.core.errors import HandleMalformed, InvalidArgument
from kvferry.core.handles import join, payload_of
from kvferry.publication.v1.publication_pb2 import HandlePayload


def join_handles(handles: Sequence[bytes]) -> bytes:
    """One handle for 2 to 8 publications of the same tokens: a pull tries them in this order until one succeeds.

    Needs no key and no connection. Which tokens a publication holds is known to whoever had it made; here only their
    number is compared.

    Raises:
        InvalidArgument: no sequence of bytes, or a handle of another number of tokens than the first; names which.
        HandleMalformed: too few or too many, one twice, or one that is no handle or joined itself; names which.
    """
    given = list(handles)
    for index, handle in enumerate(given):
        if not isinstance(handle, bytes):
            raise InvalidArgument.of_field(f"handles[{index}]", type(handle).__name__, "must be bytes")
    joined = join(given)
    counts = [_token_count(index, handle) for index, handle in enumerate(given)]
    for index, count in enumerate(counts):
        if count != counts[0]:
            raise InvalidArgument.of_field(f"handles[{index}].token_count", count, f"handles[0] is of {counts[0]}")
    return joined


def _token_count(index: int, handle: bytes) -> int:
    try:
        return HandlePayload.FromString(payload_of(handle)).token_count
    except DecodeError as error:
        why = "its payload cannot be parsed"
        raise HandleMalformed.of_field(f"handles[{index}]", f"{len(handle)} bytes", why) from error
