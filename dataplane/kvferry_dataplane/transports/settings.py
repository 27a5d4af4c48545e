"""Settings of the libraries below, which they read from the environment."""

import os
from collections.abc import Mapping

from kvferry_dataplane.transports.transport import Setting

# UCX turns zero-copy reads over CUDA IPC off where it finds no NVLink, and falls back to emulation without a word.
_SETTINGS_CUDA = {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}
# Over TCP, UCX emulates reads by messages, of 8 KiB by itself. In messages of this size a read of large pieces is as
# fast as a plain stream, three to four times as fast as before; larger ones gain nothing more.
_SETTINGS_TCP = {"UCX_TCP_TX_SEG_SIZE": "256k", "UCX_TCP_RX_SEG_SIZE": "256k"}
# UCX patches the C library to hear of memory that is unmapped while it has it registered. Here all memory that peers
# read is registered by name and unmapped last; the patches would cost 0.4 s of every start, in which threads are held
# up. Pools on a GPU were not measured without them.
_SETTINGS_HOST = {"UCX_MEM_MMAP_HOOK_MODE": "none"}


def ucx_settings(*, for_cuda: bool) -> dict[str, str]:
    """What makes UCX quick, for host memory or for pools on a GPU too."""
    return _SETTINGS_TCP | (_SETTINGS_CUDA if for_cuda else _SETTINGS_HOST)


def apply_settings(settings: Mapping[str, str], prefixes: tuple[str, ...]) -> tuple[Setting, ...]:
    """Set what the user has not set; returns what holds now, of all names that begin with one of ``prefixes``."""
    chosen = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(chosen)
    return tuple(
        Setting(name, value, from_user=name not in chosen)
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
    )
