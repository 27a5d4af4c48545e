"""Where the two sides of a benchmark run: on one host's loopback, or on two sides of a wire."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from kvferry.core.errors import ConfigInvalid
from kvferry.launch.namespaces import Namespace, NamespacePair

LOOPBACK = "loopback"
NAMESPACES = "namespaces"
NETWORKS = (LOOPBACK, NAMESPACES)


@dataclass(frozen=True, slots=True)
class Side:
    """The source's or the destination's host."""

    address: str = "127.0.0.1"
    namespace: Namespace | None = None

    @property
    def launcher(self) -> tuple[str, ...]:
        """What to put in front of a program to run it there."""
        return () if self.namespace is None else self.namespace.launcher


@dataclass(frozen=True, slots=True)
class Network:
    """Both sides, and what holds for all that run on them."""

    name: str = LOOPBACK
    source: Side = Side()
    destination: Side = Side()
    same_host: str = "fused"
    """What data planes do that share a host: ``fused``, or ``backend`` as if they did not."""
    transports: Mapping[str, str] = field(default_factory=dict)
    """UCX settings that keep every library to the wire."""

    def turned(self) -> "Network":
        """The same with the sides exchanged."""
        return replace(self, source=self.destination, destination=self.source)


@contextmanager
def open_network(name: str, device: str) -> Iterator[Network]:
    """Make the network called ``name``; what was made for it is gone afterwards.

    Raises:
        ConfigInvalid: there is no such network, or the system does not let us make it.
    """
    if name not in NETWORKS:
        raise ConfigInvalid.of_field("network", name, f"must be one of {', '.join(NETWORKS)}")
    if name == LOOPBACK:
        yield Network()
        return
    with NamespacePair() as pair:
        yield Network(
            NAMESPACES,
            Side(pair.source.address, pair.source),
            Side(pair.destination.address, pair.destination),
            same_host="backend",
            # Two namespaces of one host still share memory, which two hosts do not.
            transports={"UCX_TLS": "tcp" if device == "cpu" else "tcp,cuda_copy"},
        )
