"""Paths of Unix sockets: claimed before they are bound, and whether somebody listens there."""

import os
import socket
import stat
from pathlib import Path

from kvferry.core.errors import AddressInUse, ConfigInvalid

SOCKET_PATH_BYTES_MAX = 107
"""The kernel's limit, less the terminating zero."""


def claim_socket_path(field: str, path: str, *, suffix: str = "") -> Path:
    """Check that a Unix socket can be bound at ``path + suffix``; the socket file of a dead process is removed.

    ``field`` is the configuration's name of the path, for the errors.

    Raises:
        ConfigInvalid: too long, no such folder, no permission, or something else than a socket lies there.
        AddressInUse: a live process listens there.
    """
    full = Path(path + suffix)
    _check_shape(field, path, full)
    try:
        mode = full.lstat().st_mode
    except FileNotFoundError:
        return full
    if not stat.S_ISSOCK(mode):
        raise ConfigInvalid.of_field(field, str(full), "exists and is not a socket")
    if _is_in_use(field, full):
        raise AddressInUse.of_field(field, str(full), "another process listens there")
    full.unlink(missing_ok=True)
    return full


def _check_shape(field: str, path: str, full: Path) -> None:
    length = len(os.fsencode(full))
    if not path:
        raise ConfigInvalid.of_field(field, path, "must not be empty")
    if length > SOCKET_PATH_BYTES_MAX:
        raise ConfigInvalid.of_field(
            field, str(full), f"has {length} bytes, a socket path has at most {SOCKET_PATH_BYTES_MAX}"
        )
    folder = full.parent
    if not folder.is_dir():
        raise ConfigInvalid.of_field(field, str(full), f"the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigInvalid.of_field(field, str(full), f"no permission to write to the folder {folder}")


def _is_in_use(field: str, path: Path) -> bool:
    try:
        return is_listened_to(path)
    except PermissionError as error:
        raise ConfigInvalid.of_field(field, str(path), "no permission to use the socket there") from error


def is_listened_to(path: Path) -> bool:
    """Whether a live process listens at a path, be it stopped. Does not wait.

    Raises:
        PermissionError: this process may not use the socket there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except PermissionError:
            raise
        except OSError:
            # A backlog that is full: somebody is there.
            return True
    return True
