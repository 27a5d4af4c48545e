"""Paths of Unix sockets."""

import socket
from pathlib import Path

import pytest

from kvferry.core.errors import AddressInUse, ConfigInvalid
from kvferry.rpc.socket_paths import SOCKET_PATH_BYTES_MAX, claim_socket_path


def test_a_free_path_is_given_back(tmp_path: Path) -> None:
    """A path where nothing lies can be bound."""
    assert tmp_path / "s.pool" == claim_socket_path("socket", str(tmp_path / "s"), suffix=".pool")


def test_a_dead_processes_socket_is_removed(tmp_path: Path) -> None:
    """A socket file that nobody listens on is in nobody's way."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    claim_socket_path("socket", str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_a_live_processes_socket_is_in_use(tmp_path: Path) -> None:
    """A socket that somebody listens on is left alone."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(tmp_path / "s"))
        live.listen()
        with pytest.raises(AddressInUse) as caught:
            claim_socket_path("socket", str(tmp_path / "s"))
    assert {"field": "socket", "value": str(tmp_path / "s")} == caught.value.metadata
    assert (tmp_path / "s").exists()


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    """Too long, empty, no folder, or a file that is no socket: a typed error that names the path."""
    (tmp_path / "file").write_text("")
    for path in (str(tmp_path / ("x" * SOCKET_PATH_BYTES_MAX)), "", str(tmp_path / "no" / "s"), str(tmp_path / "file")):
        with pytest.raises(ConfigInvalid) as caught:
            claim_socket_path("socket", path)
        assert "socket" == caught.value.metadata["field"]
    assert (tmp_path / "file").exists()
