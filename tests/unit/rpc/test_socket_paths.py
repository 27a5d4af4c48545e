"""Paths of Unix sockets."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from kvferry.core.errors import AddressInUse, ConfigInvalid
from kvferry.rpc.socket_paths import SOCKET_PATH_BYTES_MAX, claim_socket_path, is_listened_to


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


def test_who_listens_is_seen_without_waiting(tmp_path: Path) -> None:
    """Also one who accepts nothing and has a full backlog; not one who has died, nor nobody."""
    path = tmp_path / "s"
    assert not is_listened_to(path)
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        assert not is_listened_to(path)
        live.listen(0)
        for _ in range(4):
            assert is_listened_to(path)
    assert not is_listened_to(path)


def test_unusable_paths_are_refused(tmp_path: Path) -> None:
    """Too long, empty, no folder, or a file that is no socket: a typed error that names the path."""
    (tmp_path / "file").write_text("")
    for path in (str(tmp_path / ("x" * SOCKET_PATH_BYTES_MAX)), "", str(tmp_path / "no" / "s"), str(tmp_path / "file")):
        with pytest.raises(ConfigInvalid) as caught:
            claim_socket_path("socket", path)
        assert "socket" == caught.value.metadata["field"]
    assert (tmp_path / "file").exists()


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    """A user who may not write to the folder is told so, by the field's name, before anything is bound."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    temporary = Path(tempfile.gettempdir())
    for parent in (tmp_path, *(parent for parent in tmp_path.parents if temporary in parent.parents)):
        parent.chmod(parent.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        # Permissions do not bind root: look at it as nobody does.
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            claim_socket_path("socket", str(folder / "dp.sock"))
        except ConfigInvalid as error:
            os._exit(7 if error.metadata["field"] == "socket" and "no permission" in error.message else 1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
