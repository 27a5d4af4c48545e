"""Settings of the libraries below, which they read from the environment."""

import os
from collections.abc import Mapping

from kvferry_dataplane.transports.transport import Setting

# UCX turns zero-copy reads over CUDA IPC off where it finds no NVLink, and falls back to emulation without a word.
SETTINGS_CUDA = {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}
# Over TCP, UCX emulates reads by messages, of 8 KiB by itself. In messages of this size a read of large pieces is as
# fast as a plain stream, three to four times as fast as before; larger ones gain nothing more.
SETTINGS_TCP = {"UCX_TCP_TX_SEG_SIZE": "256k", "UCX_TCP_RX_SEG_SIZE": "256k"}


def apply_settings(settings: Mapping[str, str], prefixes: tuple[str, ...]) -> tuple[Setting, ...]:
    """Set what the user has not set; returns what holds now, of all names that begin with one of ``prefixes``."""
    chosen = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(chosen)
    return tuple(
        Setting(name, value, from_user=name not in chosen)
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
    )
