"""Handles: what a router carries from the prefill worker to the decode worker.

A handle is ``version (1 byte) | payload length (2 bytes, big endian) | payload | HMAC-SHA-256 of these (32 bytes)``.
The payload is a serialized ``kvferry.publication.v1.HandlePayload``; this module treats it as bytes. Only the source
worker has the key, so only it can tell a forged handle; anyone can tell a truncated one.
"""

import hashlib
import hmac
import secrets

from kvferry.core.errors import HandleForged, HandleMalformed

HANDLE_VERSION = 1
HANDLE_BYTES_MAX = 1024
KEY_BYTES = 32
_HEADER_BYTES = 3
_MAC_BYTES = 32


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


def _mac(head: bytes, key: bytes) -> bytes:
    return hmac.new(key, head, hashlib.sha256).digest()
