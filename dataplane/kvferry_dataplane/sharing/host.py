"""Which host this is, as far as sharing memory goes."""

from hashlib import blake2b
from pathlib import Path

import structlog

HOST_ID_BYTES = 16
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger("kvferry.dataplane.sharing")


def host_id(boot_id_file: Path = _BOOT_ID) -> bytes:
    """Identity of the running kernel, ``HOST_ID_BYTES`` long; empty where it does not say.

    Nothing of the namespaces goes into it: whether the share socket can be reached and its memory mapped is found out
    by trying.
    """
    try:
        boot_id = boot_id_file.read_bytes().strip()
    except OSError as error:
        _log.warning("memory is not shared: the kernel's boot id is unknown", message=str(error))
        return b""
    return blake2b(boot_id, digest_size=HOST_ID_BYTES, person=b"kvferry-host").digest()
