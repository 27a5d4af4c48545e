"""Handles tell truncation from forgery, and neither from a good one."""

import pytest
from hypothesis import given, strategies as st

from kvferry.core.errors import HandleForged, HandleMalformed
from kvferry.core.handles import JOINED_MAX, join, new_key, payload_of, seal, split, verify

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


HANDLES = st.lists(st.binary(max_size=60), min_size=2, max_size=JOINED_MAX, unique=True).map(
    lambda payloads: [seal(payload, KEY) for payload in payloads]
)


@given(HANDLES)
def test_joined_handles_are_split_again(handles: list[bytes]) -> None:
    """Each comes back unchanged, in order; a single handle stands for itself."""
    assert tuple(handles) == split(join(handles))
    assert (handles[0],) == split(handles[0])


@given(HANDLES, st.data())
def test_a_truncated_joined_handle_is_malformed(handles: list[bytes], data: st.DataObject) -> None:
    """Bytes that are missing, or that follow, are noticed."""
    joined = join(handles)
    cut = data.draw(st.integers(0, len(joined) - 1))
    for wrong in (joined[:cut], joined + b"\0"):
        with pytest.raises(HandleMalformed):
            split(wrong)


@given(st.binary(max_size=200).map(lambda rest: b"\x02" + rest))
def test_noise_is_malformed(handle: bytes) -> None:
    """Whatever follows the version of a joined handle, there is a typed refusal."""
    with pytest.raises(HandleMalformed):
        split(handle)


@pytest.mark.parametrize(
    ("handles", "field"),
    [
        ([], "handles"),
        ([seal(b"a", KEY)], "handles"),
        ([seal(bytes([number]), KEY) for number in range(JOINED_MAX + 1)], "handles"),
        ([seal(b"a", KEY), seal(b"b", KEY), seal(b"a", KEY)], "handles[2]"),
        ([seal(b"a", KEY), join([seal(b"b", KEY), seal(b"c", KEY)])], "handles[1]"),
        ([seal(b"a", KEY), seal(b"b", KEY)[:-1]], "handles[1]"),
    ],
)
def test_what_cannot_be_joined_is_named(handles: list[bytes], field: str) -> None:
    """Too few, too many, one twice, a joined one and a broken one are refused by position."""
    with pytest.raises(HandleMalformed) as caught:
        join(handles)
    assert field == caught.value.metadata["field"]


def test_a_joined_handle_has_a_bound() -> None:
    """More bytes than the largest joined handle are refused before anything is read of them."""
    with pytest.raises(HandleMalformed, match="longer"):
        split(bytes([2, JOINED_MAX]) + bytes(10_000))
