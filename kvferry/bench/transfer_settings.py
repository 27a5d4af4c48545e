"""What ``bench transfer`` measures."""

from dataclasses import dataclass

from kvferry.bench.ferry_pair import AUTO, LIBFABRIC, UCX
from kvferry.bench.network import LOOPBACK, Network
from kvferry.bench.transfer_case import Place
from kvferry.bench.workload import ORDERS, Workload, check_workload
from kvferry.core.errors import ConfigInvalid

SEED = 20
PATHS = (AUTO, "local", "nixl", "packed", UCX, LIBFABRIC)


@dataclass(frozen=True, slots=True)
class Direction:
    """From the device ``source`` to the device ``destination``."""

    source: str
    destination: str
    back: bool = False

    @property
    def devices(self) -> tuple[str, str]:
        """The source's and the destination's."""
        return self.source, self.destination

    @property
    def suffix(self) -> str:
        """Tells the names of its processes from those of the other direction."""
        return "-back" if self.back else ""

    def network(self, network: Network) -> Network:
        """The network as it lies for this direction."""
        return network.turned() if self.back else network


@dataclass(frozen=True, slots=True)
class Variant:
    """A path, and the multiprocessors that its copies may take."""

    path: str
    sm_count: str

    @property
    def name(self) -> str:
        """A part of the names of its workers."""
        return "-".join([*([] if self.path == AUTO else [self.path]), *self._sm_part])

    @property
    def label(self) -> str:
        """What it is called in a picture or a table."""
        return " ".join([self.path, *self._sm_part])

    @property
    def _sm_part(self) -> list[str]:
        return [] if self.sm_count == "all" else [f"sm{self.sm_count}"]


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What is measured: every order with every block size, ``repeats`` rounds each."""

    paths: tuple[str, ...]
    device: str
    """Where the destination's pool lies."""
    block_sizes: tuple[int, ...]
    total_bytes: int
    orders: tuple[str, ...]
    repeats: int
    threads: int
    """Of the ceilings in host memory."""
    network: str
    sm_counts: tuple[str, ...] = ("all",)
    """GPU multiprocessors that copies may take, as the data plane's flag has it; each is measured."""
    source_device: str = ""
    """Where the source's pool lies; empty: on the same device."""
    both_ways: bool = False
    """Whether as much is read in the other direction at the same time."""

    @property
    def directions(self) -> tuple[Direction, ...]:
        """What reads where."""
        forth = Direction(self.source_device or self.device, self.device)
        return (forth, Direction(forth.destination, forth.source, back=True)) if self.both_ways else (forth,)

    @property
    def place(self) -> Place:
        """Where it is measured."""
        source_device = self.directions[0].source
        return Place(self.device, source_device, self.network, len(self.directions))

    def variants(self) -> list[Variant]:
        """What workers are started for; each is a row of every case."""
        return [Variant(path, sm_count) for path in self.paths for sm_count in self.sm_counts]

    def workloads(self) -> list[Workload]:
        """The cases; blocks of one size one after the other, since engines declare a layout for each."""
        pool = self.total_bytes
        return [
            Workload(block_bytes, self.total_bytes, pool, SEED, order)
            for block_bytes in self.block_sizes
            for order in self.orders
        ]

    def check(self) -> None:
        """Raise ConfigInvalid for what cannot be measured; names the field."""
        _require_known("paths", self.paths, PATHS)
        _require_known("order", self.orders, ORDERS)
        _require_once("sm_count", self.sm_counts)
        here, there = (where.partition(":")[0] for where in (self.device, self.source_device or self.device))
        if here != there:
            raise ConfigInvalid.of_field(
                "source_device", self.source_device, f"must be {here} too: no ceiling is known"
            )
        for block_bytes in self.block_sizes:
            check_workload(block_bytes, self.total_bytes)
        if self.network != LOOPBACK and "local" in self.paths:
            raise ConfigInvalid.of_field("paths", "local", f"has no memory to map over the network {self.network}")


def _require_known(field: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise ConfigInvalid.of_field(field, value, f"must be one of {', '.join(known)}")
    _require_once(field, values)


def _require_once(field: str, values: tuple[str, ...]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise ConfigInvalid.of_field(field, value, "listed twice")
