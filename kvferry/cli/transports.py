"""How ``demo`` and ``up`` tell their workers what moves the bytes."""

import os
from dataclasses import dataclass
from pathlib import Path

from kvferry_dataplane.config_reading import config_of, data_plane_settings

_ANY_POOL = ("--pool-bytes", "1MiB", "--socket", "unused")
"""Required of a data plane, and of no interest here."""


@dataclass(frozen=True, slots=True)
class WorkerFlags:
    """What the processes of a worker are told beyond the usual."""

    data_plane: tuple[str, ...] = ()
    control: tuple[str, ...] = ()


def transport_flags(
    backend: str | None, nixl_backend: str | None, same_host: str | None, trtllm_config: Path | None
) -> WorkerFlags:
    """The flags of control and data planes.

    Raises:
        ConfigInvalid: a data plane would refuse them, in this environment.
    """
    engine = () if trtllm_config is None else ("--trtllm-config", str(trtllm_config))
    named = {"--backend": backend, "--nixl-backend": nixl_backend, "--same-host": same_host}
    chosen = [part for flag, value in named.items() if value is not None for part in (flag, value)]
    data_plane = (*chosen, *engine)
    config_of(data_plane_settings([*_ANY_POOL, *data_plane], os.environ))
    return WorkerFlags(data_plane, engine)
