"""UCX by itself: memory that peers may read, and bounded one-sided reads of theirs.

The only importer of the extension, and the door at which UCX's status codes become kvferry's errors. UCX is found when
it is wanted and not before: a process that does not want it needs none.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from kvferry.core.errors import ConfigInvalid, InvalidArgument, NotReady, PeerError, TransportFailed
from kvferry.core.planning.copies import CopyPlan, Offsets
from kvferry.core.reasons import Reason
from kvferry.device import _ucx
from kvferry.device.copying import Window

_INSTALL_HINT = (
    "install kvferry[ucx], which moves bytes by TCP and within a host, or the system's UCX (libucx0 in Debian), which "
    "RDMA needs, or name a libucp.so.0 with ucx_library"
)
_SONAME = "libucp.so.0"
_WHEEL = "libucx"

# Of ucs_status_t, what it says where a peer does not answer any more.
_NOT_CONNECTED = -24
_CONNECTION_RESET = -25
_ENDPOINT_FAILURES = range(-89, -59)


class MemoryKind(IntEnum):
    """What memory UCX is told that a region is."""

    HOST = 0
    CUDA = 1


@dataclass(frozen=True, slots=True)
class RemoteMemory:
    """A region of a peer, as it described it."""

    address: int
    size_bytes: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is under way at a time."""

    gets_max: int = 256
    """Gets in flight to one peer. Over TCP 64 bring as much in pieces of 4 KiB while source and reader have cores of
    their own, and 0.6 of it while they do not; 1,024 never bring more."""
    bytes_max: int = 16 << 20
    """Bytes of these. After a cancel at most so many still arrive."""
    chunk_bytes_max: int = 1 << 20
    """A longer piece is read by several gets."""
    step_gets_max: int = 256
    """Gets that one call starts; those within a host are done when it returns."""
    step_bytes_max: int = 8 << 20
    """Bytes of these."""
    polls: int = 16
    """How often one call lets UCX work at most."""


class UcxLibraryFile:
    """The UCX that was found."""

    def __init__(self, core: _ucx.Library, file: str) -> None:
        self.core = core
        self.file = file
        """What the dynamic loader was given."""

    @property
    def version(self) -> tuple[int, int, int]:
        """Major, minor, release."""
        major, minor, release = self.core.version.split(".")
        return int(major), int(minor), int(release)


def find_ucx(named: str | None = None) -> UcxLibraryFile:
    """The file that is named and no other, else the system's UCX, else the ``libucx`` wheel's.

    Raises:
        ConfigInvalid: there is none that can be used; says what was tried and what to install.
    """
    candidates = [named] if named is not None else [_SONAME, *_in_wheel()]
    refusals = []
    for file in candidates:
        try:
            return UcxLibraryFile(_ucx.Library.open(file), file)
        except _ucx.LibraryUnusable as error:
            refusals.append(f"{file}: {error}")
    why = f"no usable UCX ({'; '.join(refusals)}); {_INSTALL_HINT}"
    raise ConfigInvalid.of_field("backend" if named is None else "ucx_library", named or "UCX", why)


def _in_wheel() -> list[str]:
    spec = find_spec(_WHEEL)
    folders = spec.submodule_search_locations if spec is not None else None
    return [str(Path(folder) / "lib" / _SONAME) for folder in folders or []]


class UcxEnd:
    """One end of direct UCX: a worker of its own, without a thread: its owner makes progress.

    Any thread may use it, one at a time. In a fork every call is refused and ``close`` does nothing.
    Every method raises TransportFailed where UCX refuses, and NotReady after ``close`` and in a fork.
    """

    def __init__(self, library: UcxLibraryFile, limits: Limits | None = None) -> None:
        self._library = library.core
        self._file = library.file
        bounds = limits or Limits()
        with translated("making a UCX worker"):
            self._core = _ucx.Agent(
                library.core,
                gets_max=bounds.gets_max,
                bytes_max=bounds.bytes_max,
                chunk_bytes_max=bounds.chunk_bytes_max,
                step_gets_max=bounds.step_gets_max,
                step_bytes_max=bounds.step_bytes_max,
                polls=bounds.polls,
            )

    def add_region(self, memory: Window, kind: MemoryKind) -> int:
        """Register memory; returns its number.

        Raises:
            ConfigInvalid: this UCX cannot read and write memory of that kind.
        """
        if not self._core.supports(kind):
            others = " or ".join(file for file in _in_wheel() if file != self._file)
            example = f", such as {others}" if others else ""
            this = f"UCX {self._library.version} ({self._file})"
            why = f"{this} cannot reach it: name one that can with ucx_library{example}"
            raise ConfigInvalid.of_field("memory", kind.name, why)
        with translated(f"registering {memory.size_bytes} bytes of {kind.name} memory"):
            return self._core.add_region(memory.address, memory.size_bytes, kind)

    def region_key(self, region: int) -> bytes:
        """What a peer needs to read a region."""
        with translated("packing a key"):
            return self._core.region_key(region)

    def address(self) -> bytes:
        """What a peer needs to connect."""
        with translated("getting the worker's address"):
            return self._core.address()

    def connect(self, address: bytes, regions: Sequence[RemoteMemory], *, sees_failures: bool) -> int:
        """Begin to connect to a peer; returns its number.

        ``sees_failures``: UCX watches the connection and ends what waits for a dead peer.
        """
        described = [(region.address, region.size_bytes, region.key) for region in regions]
        with translated("connecting to a peer"):
            return self._core.connect(address, described, sees_failures)

    def disconnect(self, peer: int) -> None:
        """Forget a peer. What was not done of its reads is cancelled."""
        with translated("disconnecting from a peer"):
            self._core.disconnect(peer)

    def read(self, peer: int, remote: int, local: int, plan: CopyPlan) -> int:
        """Start reading runs from a peer's region into one's own; offsets are from their starts. Returns a number.

        Raises:
            InvalidArgument: a run leaves its region. Nothing was read.
            PeerError: reason PEER_LOST: the connection is known to be broken.
        """
        with translated(f"reading {plan.piece_count} runs"):
            return self._core.read(
                peer,
                remote,
                local,
                _array(plan.source_offsets),
                _array(plan.destination_offsets),
                _array(plan.lengths),
            )

    def cancel(self, read: int) -> None:
        """Start no more of a read. What is in flight arrives still, at most ``Limits.bytes_max``."""
        with translated("cancelling a read"):
            self._core.cancel(read)

    def is_done(self, read: int) -> bool:
        """Let UCX work, and say whether nothing of a read is in flight and no more will be. It is forgotten then.

        Raises:
            PeerError: reason PEER_LOST. What was in flight may still arrive until :meth:`close`. The read is forgotten.
            TransportFailed: likewise.
        """
        with translated("reading"):
            done, status, _ = self._core.poll(read)
        if status:
            raise _of_status(status, f"reading: {self._library.text(status)}")
        return done

    def progress(self) -> None:
        """Let UCX work, and start what there is room for. Bounded."""
        with translated("making progress"):
            self._core.progress()

    @property
    def gets_in_flight(self) -> int:
        """Gets of all peers."""
        with translated("counting"):
            return self._core.gets_in_flight()

    def close(self) -> None:
        """Destroy the worker: no read of it writes any more. Twice does no harm."""
        self._core.close()


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn the extension's exceptions into kvferry's."""
    try:
        yield
    except _ucx.PlanError as error:
        field, value, why = error.args
        raise InvalidArgument.of_field(field, value, why) from error
    except _ucx.AgentUnusable as error:
        raise NotReady(f"{action}: {error}") from error
    except _ucx.Failure as error:
        status, text = error.args
        raise _of_status(status, f"{action}: {text}") from error


def _of_status(status: int, message: str) -> PeerError | TransportFailed:
    if status in (_NOT_CONNECTED, _CONNECTION_RESET) or status in _ENDPOINT_FAILURES:
        return PeerError(message, reason=Reason.PEER_LOST)
    return TransportFailed(message)


def _array(offsets: Offsets) -> Offsets:
    return np.ascontiguousarray(offsets, dtype=np.int64)
