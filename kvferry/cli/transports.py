"""How ``demo`` and ``up`` tell their workers what moves the bytes."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry_dataplane.config import Config
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
    data_plane = (*_given(named), *engine)
    _resolved(data_plane)
    return WorkerFlags(data_plane, engine)


def data_plane_config(backend: str | None, nixl_backend: str | None) -> Config:
    """How a data plane with these flags would run in this environment, its pool and socket aside.

    Raises:
        ConfigInvalid: it would refuse them.
    """
    return _resolved(_given({"--backend": backend, "--nixl-backend": nixl_backend}))


def _resolved(flags: Sequence[str]) -> Config:
    """How a data plane with ``flags`` would run in this environment.

    Raises:
        ConfigInvalid: it would refuse them.
    """
    return config_of(data_plane_settings([*_ANY_POOL, *flags], os.environ))


def _given(named: Mapping[str, str | None]) -> list[str]:
    return [part for flag, value in named.items() if value is not None for part in (flag, value)]
