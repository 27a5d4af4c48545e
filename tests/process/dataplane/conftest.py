"""Data planes for the tests of one module's function, ended with it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from kvferry.core.layouts import WorkerLayout
from tests.process.dataplane.harness import DataPlane, small_layout

Start = Callable[..., Awaitable[DataPlane]]


NIXL_FLAGS = ("--path", "nixl")
UCX_FLAGS = ("--path", "ucx")
LOCAL_FLAGS = ("--path", "local")
TRANSPORTS = ("nixl", "ucx")
"""What moves bytes between hosts, as paths name it."""
_TRANSPORT_FLAGS = {"nixl": (), "ucx": ("--backend", "UCX")}


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> str:
    """What all data planes of a test have between hosts: what the forced path needs. Tests may be given others."""
    forced = request.getfixturevalue("path_flags") if "path_flags" in request.fixturenames else NIXL_FLAGS
    return "ucx" if forced == UCX_FLAGS else "nixl"


@pytest.fixture(params=[LOCAL_FLAGS, NIXL_FLAGS, UCX_FLAGS], ids=["local", "nixl", "ucx"])
def path_flags(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Forces one path after the other."""
    flags: tuple[str, str] = request.param
    return flags


@pytest.fixture
async def start(tmp_path: Path, transport: str) -> AsyncIterator[Start]:
    """Starts data planes, adopted and with random bytes in their pools."""
    started: list[DataPlane] = []

    async def start_one(
        name: str,
        layout: WorkerLayout | None = None,
        environment: dict[str, str] | None = None,
        *flags: str,
        rank: int = 0,
        launcher: tuple[str, ...] = (),
    ) -> DataPlane:
        # Whoever chooses what UCX does wants the transport to read, unless the flags say otherwise.
        path = ("--path", transport, "--same-host", "backend") if environment and "UCX_TLS" in environment else ()
        plane = DataPlane(
            tmp_path, name, environment or {}, *_TRANSPORT_FLAGS[transport], *path, *flags, launcher=launcher
        )
        started.append(plane)
        await plane.connect(layout or small_layout(), rank)
        random = np.random.default_rng(len(started))
        plane.pool()[:] = random.integers(0, 256, plane.pool().size, dtype=np.uint8)
        return plane

    yield start_one
    for plane in started:
        await plane.close()
