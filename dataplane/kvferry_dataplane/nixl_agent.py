"""NIXL agents. The only file that imports NIXL, and the door at which its errors become kvferry's.

NIXL's meta package looks for CUDA through torch, which costs a second and hundreds of megabytes; the wheel for one CUDA
release, which needs neither, is imported instead.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid, InternalError, KvferryError, PeerError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.transports.memory import Addresses, Region
from kvferry_dataplane.transports.settings import apply_settings, ucx_settings
from kvferry_dataplane.transports.transport import TransportUse
from kvferry_dataplane.transports.ucx_log import UcxLog

_OWN_REFERENCES = 2
"""A local variable and the argument of getrefcount."""
_WHEELS = ("nixl_cu13", "nixl_cu12")
# What goes wrong comes back as an error and is logged with its context; the libraries would write lines of their own to
# both standard streams. Where what UCX says is kept elsewhere, it says more.
_SETTINGS = {"UCX_LOG_LEVEL": "fatal", "NIXL_LOG_LEVEL": "FATAL"}
# UCX prints, of an agent with this, which transport each kind of read uses.
_REPORTING = {"engine_config": "PROTO_INFO=y"}


class NixlLibrary:
    """The imported NIXL wheel. A :class:`~kvferry_dataplane.transports.transport.TransportLibrary`.

    What a backend of NIXL needs beyond UCX is in subclasses.
    """

    transport = Transport.NIXL_UCX
    setting_prefixes: tuple[str, ...] = ("UCX_", "NIXL_")
    """What the names of the libraries' settings begin with."""

    def __init__(self, wheels: tuple[str, ...], settings: Mapping[str, str], ucx_log: UcxLog | None = None) -> None:
        """Import the first of ``wheels`` that can be imported, with ``settings`` where the user has set nothing.

        ``ucx_log`` holds what UCX prints, where there is UCX; its settings are among ``settings``.

        Raises:
            ConfigInvalid: there is none.
        """
        self._ucx_log = ucx_log
        self.settings = apply_settings(settings, self.setting_prefixes)
        self.api = _first_importable(wheels)
        self.wheel = self.api.__name__.partition(".")[0]
        bindings = importlib.import_module(f"{self.wheel}._bindings")
        self.peer_lost: type[Exception] = bindings.nixlRemoteDisconnectError
        named: list[object] = list(vars(bindings).values())
        raised = tuple(kind for kind in named if isinstance(kind, type) and issubclass(kind, Exception))
        self.errors: tuple[type[Exception], ...] = (*raised, RuntimeError, ValueError)
        _take_over_logging()

    @classmethod
    def with_ucx(cls, *, for_cuda: bool, cuda_major: int | None) -> NixlLibrary:
        """NIXL with UCX, for host memory or for pools on a GPU too.

        Raises:
            ConfigInvalid: no wheel can be imported.
        """
        log = UcxLog(os.environ)
        settings = _SETTINGS | ucx_settings(for_cuda=for_cuda) | log.settings
        return cls(cls.wheels_for(cuda_major if for_cuda else None), settings, log)

    @staticmethod
    def wheels_for(cuda_major: int | None) -> tuple[str, ...]:
        """Packages that serve, best first. None: host memory, or whichever release of CUDA there is."""
        return _WHEELS if cuda_major is None else (f"nixl_cu{cuda_major}",)

    @property
    def version(self) -> str:
        """Of the wheel."""
        return version(self.wheel.replace("_", "-"))

    def make_agent(self, name: str) -> NixlAgent:
        """An agent, to be used on the calling thread.

        Raises:
            TransportFailed: NIXL refuses.
            ConfigInvalid: the wheel lacks the backend's plugin.
        """
        return NixlAgent(self, name)

    def make_reporting_agent(self, name: str) -> NixlAgent:
        """As :meth:`make_agent`; what it uses can be told."""
        if self._ucx_log is None:
            return self.make_agent(name)
        return NixlAgent(self, name, reports=not self._ucx_log.refusal)

    def take_use(self, agent_name: str) -> TransportUse:
        """What an agent that reports has used for its reads."""
        if self._ucx_log is None:
            return TransportUse("", "", f"{self.transport.backend} does not say what it uses")
        return self._ucx_log.use_of(agent_name)

    def forget_reports(self) -> None:
        """Forget what UCX has printed."""
        if self._ucx_log is not None:
            self._ucx_log.take()

    @contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Turn NIXL's exceptions into kvferry's.

        Raises:
            PeerError: reason PEER_LOST, when the remote side disconnected.
            TransportFailed: anything else.
        """
        try:
            yield
        except self.errors as error:
            raise self.translate(action, error) from error

    def translate(self, action: str, error: Exception) -> KvferryError:
        """What one of NIXL's exceptions is to the rest of kvferry."""
        if isinstance(error, self.peer_lost):
            return PeerError(f"{action}: the peer disconnected", reason=Reason.PEER_LOST)
        return TransportFailed(f"{action}: {type(error).__name__}: {error}")


class NixlAgent:
    """A NIXL agent without a progress thread. A :class:`~kvferry_dataplane.transports.transport.TransportAgent`."""

    def __init__(self, library: NixlLibrary, name: str, *, reports: bool = False) -> None:
        self.name = name
        self._library = library
        self._backends = [library.transport.backend]
        self._handles: dict[int, Any] = {}
        self._next_handle = 0
        config = library.api.nixl_agent_config(enable_prog_thread=False, backends=[])
        with library.translated(f"making agent {name}"):
            self._agent = library.api.nixl_agent(name, config)
        backend = library.transport.backend
        if backend not in self._agent.plugin_list:
            raise ConfigInvalid.of_field("nixl_backend", backend, f"{library.wheel} has no such plugin")
        with library.translated(f"making agent {name}"):
            self._agent.create_backend(backend, _REPORTING if reports else {})

    @property
    def is_reading(self) -> bool:
        """Whether a read was started that is not known to be done."""
        return bool(self._handles)

    def register(self, region: Region) -> None:
        """Make a region readable by peers, and usable as the local side of reads."""
        row = [(region.address, region.size_bytes, region.device_index, "")]
        with self._library.translated(f"registering {region.size_bytes} bytes of {region.segment}"):
            self._agent.register_memory(row, region.segment, backends=self._backends)

    def metadata(self) -> bytes:
        """What a peer needs to read the registered regions."""
        with self._library.translated("getting agent metadata"):
            metadata: bytes = self._agent.get_agent_metadata()
        return metadata

    def add_peer(self, metadata: bytes) -> str:
        """Learn a peer; returns its agent name."""
        with self._library.translated("adding a peer"):
            name = self._agent.add_remote_agent(metadata)
        return name.decode() if isinstance(name, bytes) else str(name)

    def remove_peer(self, name: str) -> None:
        """Forget a peer."""
        with self._library.translated(f"removing peer {name}"):
            self._agent.remove_remote_agent(name)

    def progress(self) -> None:
        """Let the backend work once. Never blocks."""
        with self._library.translated("making progress"):
            self._agent.get_new_notifs(backends=self._backends)

    def post_read(
        self,
        peer: str,
        remote: Region,
        remote_addresses: Addresses,
        local: Region,
        local_addresses: Addresses,
        lengths: Addresses,
    ) -> int:
        """Start reading runs of bytes; returns a handle for :meth:`is_done`. Arrays of one length, absolute addresses.

        Backends that copy in the calling thread may be done when this returns.
        """
        agent = self._agent
        with self._library.translated(f"reading {lengths.size} runs from {peer}"):
            request = agent.initialize_xfer(
                "READ",
                agent.get_xfer_descs(_rows(local_addresses, lengths, local.device_index), local.segment),
                agent.get_xfer_descs(_rows(remote_addresses, lengths, remote.device_index), remote.segment),
                peer,
                backends=self._backends,
            )
        self._next_handle += 1
        self._handles[self._next_handle] = request
        with self._library.translated(f"reading {lengths.size} runs from {peer}"):
            agent.transfer(request)
        return self._next_handle

    def is_done(self, handle: int) -> bool:
        """Make progress and say whether a read is done; a handle that is done is forgotten.

        Raises:
            PeerError: reason PEER_LOST. Whether bytes may still arrive is not known before :meth:`close`.
            TransportFailed: likewise.
        """
        request = self._handles[handle]
        with self._library.translated("reading"):
            state = self._agent.check_xfer_state(request)
        if state == "PROC":
            return False
        if state != "DONE":
            raise TransportFailed(f"reading: NIXL says {state}")
        del self._handles[handle]
        with self._library.translated("releasing a read"):
            request.release()
        return True

    def stop(self, handle: int) -> bool:
        """False: NIXL has asked for all of it, and cannot take that back."""
        return False

    def close(self) -> None:
        """Destroy the agent: after this, none of its reads writes any more.

        Releasing a read's handle does not stop the read; only the end of the agent does.
        """
        while self._handles:
            _, request = self._handles.popitem()
            try:
                with self._library.translated("releasing a read"):
                    request.release()
            except KvferryError:
                # Some reads in flight refuse. The end of the agent, checked below, is what counts.
                request._released = True
            del request
        core = self._agent.agent
        del self._agent
        gc.collect()
        holders = sys.getrefcount(core) - _OWN_REFERENCES
        if holders:
            raise InternalError(f"agent {self.name} cannot be destroyed: {holders} references remain")


def _rows(addresses: Addresses, lengths: Addresses, device_index: int) -> npt.NDArray[np.uint64]:
    rows = np.empty((lengths.size, 3), dtype=np.uint64)
    rows[:, 0] = addresses
    rows[:, 1] = lengths
    rows[:, 2] = device_index
    return rows


def _first_importable(wheels: tuple[str, ...]) -> Any:
    failures = []
    for wheel in wheels:
        try:
            return importlib.import_module(f"{wheel}._api")
        except ImportError as error:
            failures.append(f"{wheel}: {error}")
    raise ConfigInvalid.of_field("backend", "NIXL", f"no NIXL wheel can be imported ({'; '.join(failures)})")


def _take_over_logging() -> None:
    """NIXL's Python face logs to standard output by itself; its lines belong where this process logs."""
    logger = logging.getLogger("nixl")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)
