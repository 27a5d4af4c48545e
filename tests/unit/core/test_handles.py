"""Handles tell truncation from forgery, and neither from a good one."""

import pytest
from hypothesis import given, strategies as st

from kvferry.core.errors import HandleForged, HandleMalformed
from kvferry.core.handles import new_key, payload_of, seal, verify

KEY = new_key()


@given(st.binary(max_size=900))
def test_a_sealed_payload_comes_back(payload: bytes) -> None:
    """What was sealed is what a holder of the key reads."""
    assert payload == verify(seal(payload, KEY), KEY)


@given(st.binary(min_size=1, max_size=200), st.data())
def test_every_truncation_is_malformed(payload: bytes, data: st.DataObject) -> None:
    """A handle that lost bytes at its end is told apart without the key."""
    handle = seal(payload, KEY)
    cut = data.draw(st.integers(0, len(handle) - 1))
    with pytest.raises(HandleMalformed):
        payload_of(handle[:cut])


@given(st.binary(min_size=1, max_size=200), st.data())
def test_every_flipped_bit_is_refused(payload: bytes, data: st.DataObject) -> None:
    """A changed handle never verifies."""
    handle = bytearray(seal(payload, KEY))
    position = data.draw(st.integers(0, len(handle) - 1))
    handle[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((HandleForged, HandleMalformed)):
        verify(bytes(handle), KEY)


def test_another_workers_signature_is_forged() -> None:
    """A handle that another key signed is refused as forged, not as malformed."""
    with pytest.raises(HandleForged):
        verify(seal(b"payload", new_key()), KEY)
