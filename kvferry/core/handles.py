"""Handles: what a router carries from the prefill worker to the decode worker.

A handle is ``version (1 byte) | payload length (2 bytes, big endian) | payload | HMAC-SHA-256 of these (32 bytes)``.
The payload is a serialized ``kvferry.publication.v1.HandlePayload``; this module treats it as bytes. Only the source
worker has the key, so only it can tell a forged handle; anyone can tell a truncated one.

Handles of several publications of the same tokens can be joined to one, which is accepted wherever one is pulled:
``2 (1 byte) | count (1 byte) | for each handle: its length (2 bytes, big endian) | the handle``. Joining needs no key:
each handle keeps its own signature.
"""

import hmac
import secrets
from collections.abc import Sequence

from kvferry.core.errors import HandleForged, HandleMalformed

HANDLE_VERSION = 1
HANDLE_BYTES_MAX = 1024
JOINED_VERSION = 2
JOINED_MAX = 8
"""Handles in a joined one; it has two at least."""
KEY_BYTES = 32
_HEADER_BYTES = 3
_MAC_BYTES = 32
_LENGTH_BYTES = 2
_JOINED_MARK = bytes([JOINED_VERSION])


def new_key() -> bytes:
    """A fresh signing key of ``KEY_BYTES``."""
    return secrets.token_bytes(KEY_BYTES)


def seal(payload: bytes, key: bytes) -> bytes:
    """Make a handle of ``payload``, signed with ``key``."""
    head = bytes([HANDLE_VERSION]) + len(payload).to_bytes(2, "big") + payload
    return head + _mac(head, key)


def payload_of(handle: bytes) -> bytes:
    """The payload of a handle, its signature not checked.

    Raises:
        HandleMalformed: the bytes are truncated, too long, or of an unknown version.
    """
    if not _HEADER_BYTES + _MAC_BYTES <= len(handle) <= HANDLE_BYTES_MAX:
        raise HandleMalformed.of_field(
            "handle", f"{len(handle)} bytes", f"a handle has {_HEADER_BYTES + _MAC_BYTES} to {HANDLE_BYTES_MAX} bytes"
        )
    if handle[0] != HANDLE_VERSION:
        raise HandleMalformed.of_field("handle", f"version {handle[0]}", f"known is version {HANDLE_VERSION}")
    length = int.from_bytes(handle[1:_HEADER_BYTES], "big")
    expected = _HEADER_BYTES + length + _MAC_BYTES
    if len(handle) != expected:
        raise HandleMalformed.of_field("handle", f"{len(handle)} bytes", f"its header says {expected} bytes")
    return handle[_HEADER_BYTES:-_MAC_BYTES]


def verify(handle: bytes, key: bytes) -> bytes:
    """The payload of a handle whose signature is ``key``'s.

    Raises:
        HandleMalformed: as for :func:`payload_of`.
        HandleForged: the signature is another key's, or the bytes were changed.
    """
    payload = payload_of(handle)
    if not hmac.compare_digest(_mac(handle[:-_MAC_BYTES], key), handle[-_MAC_BYTES:]):
        raise HandleForged.of_field("handle", f"{len(handle)} bytes", "the signature is not this worker's")
    return payload


def join(handles: Sequence[bytes]) -> bytes:
    """One handle that stands for all of these, to be tried in their order.

    Raises:
        HandleMalformed: too few or too many, one twice, or one that is no handle or joined itself; names which.
    """
    _check_joined(handles)
    parts = [len(handle).to_bytes(_LENGTH_BYTES, "big") + handle for handle in handles]
    return bytes([JOINED_VERSION, len(handles)]) + b"".join(parts)


def split(handle: bytes) -> tuple[bytes, ...]:
    """The single handles that a handle stands for, one at least; their signatures are not checked.

    Raises:
        HandleMalformed: the bytes are truncated, too long, of an unknown version, or joined wrongly.
    """
    return tuple(single for single, _ in opened(handle))


def opened(handle: bytes) -> list[tuple[bytes, bytes]]:
    """The single handles that a handle stands for, each with its payload; raises as :func:`split`."""
    if handle[:1] != _JOINED_MARK:
        return [(handle, payload_of(handle))]
    if len(handle) > 2 + JOINED_MAX * (_LENGTH_BYTES + HANDLE_BYTES_MAX):
        raise HandleMalformed.of_field("handle", f"{len(handle)} bytes", "is longer than a joined handle may be")
    found: list[bytes] = []
    count, at = int.from_bytes(handle[1:2], "big"), 2
    while at < len(handle):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(handle[at:begin], "big")
        if at > len(handle) or len(found) >= count:
            break
        found.append(handle[begin:at])
    if at != len(handle) or len(found) != count:
        raise HandleMalformed.of_field("handle", f"{len(handle)} bytes", f"is cut off: it should hold {count} handles")
    return list(zip(found, _check_joined(found), strict=True))


def _check_joined(handles: Sequence[bytes]) -> list[bytes]:
    """The payloads of handles that may be joined."""
    if not 2 <= len(handles) <= JOINED_MAX:
        raise HandleMalformed.of_field("handles", f"{len(handles)} handles", f"2 to {JOINED_MAX} can be joined")
    payloads = []
    for index, handle in enumerate(handles):
        field = f"handles[{index}]"
        if handle[:1] == _JOINED_MARK:
            raise HandleMalformed.of_field(field, f"{len(handle)} bytes", "is joined itself")
        try:
            payloads.append(payload_of(handle))
        except HandleMalformed as error:
            raise HandleMalformed(f"{field}: {error.message}", metadata={**error.metadata, "field": field}) from error
        if handle in handles[:index]:
            raise HandleMalformed.of_field(field, f"{len(handle)} bytes", f"is handles[{handles.index(handle)}] again")
    return payloads


def _mac(head: bytes, key: bytes) -> bytes:
    return hmac.digest(key, head, "sha256")
