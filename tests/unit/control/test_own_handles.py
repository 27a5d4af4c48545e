"""Handles whose signatures were found to be right are known again, and no others."""

import pytest

from kvferry.core.errors import HandleForged, HandleMalformed, InvalidArgument, StaleIncarnation
from kvferry.core.handles import new_key
from kvferry_control import handles
from kvferry_control.handles import OwnHandles, make_handle

KEY = new_key()


def test_a_signature_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the handle comes."""
    own, handle = OwnHandles(), make_handle("w", 1, "p", 16, KEY)
    assert "p" == own.publication(handle, "w", 1, KEY)
    monkeypatch.setattr(handles, "verify", None)
    assert "p" == own.publication(bytes(handle), "w", 1, KEY)


def test_what_is_known_makes_nothing_else_right() -> None:
    """Neither another handle, nor the same one in another life of this worker, or under another name or key."""
    own, handle = OwnHandles(), make_handle("w", 1, "p", 16, KEY)
    own.publication(handle, "w", 1, KEY)
    for _ in range(2):
        with pytest.raises(HandleForged):
            own.publication(handle[:-1] + bytes([handle[-1] ^ 1]), "w", 1, KEY)
        with pytest.raises(HandleForged):
            own.publication(make_handle("w", 1, "p", 16, new_key()), "w", 1, KEY)
        with pytest.raises(HandleMalformed):
            own.publication(handle[:-1], "w", 1, KEY)
        with pytest.raises(StaleIncarnation):
            own.publication(handle, "w", 2, KEY)
        with pytest.raises(HandleForged):
            own.publication(handle, "w", 1, new_key())
        with pytest.raises(InvalidArgument):
            own.publication(handle, "v", 1, KEY)


def test_so_many_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest makes room, and is looked at again when it comes."""
    monkeypatch.setattr(handles, "KNOWN_MAX", 2)
    own = OwnHandles()
    made = [make_handle("w", 1, f"p{number}", 16, KEY) for number in range(3)]
    for number, handle in enumerate(made):
        assert f"p{number}" == own.publication(handle, "w", 1, KEY)
    assert made[1:] == list(own._publications)
    assert "p0" == own.publication(made[0], "w", 1, KEY)
