"""Which checks there are."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid
from kvferry.doctor import clock, dataplanes, etcd, gpu, limits, memory, namespaces, nixl, ucx, versions
from kvferry.doctor.examination import Check
from kvferry_control.config import load_config
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import EtcdConfigError

CHILD_BOUND_S = 20.0
"""A child loads libraries: within a second, unless the machine is busy."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at beside this machine."""

    etcd: EtcdOptions | None = None
    sockets: tuple[str, ...] = field(default=())
    """Of the worker's data planes, by rank."""
    transport: Transport = Transport.NIXL_UCX
    """What the data planes are to use."""


def subject_of(config: Path | None, endpoints: str | None, transport: Transport) -> Subject:
    """What a control's configuration and the command line say; ``endpoints``, separated by commas, go before.

    Raises:
        ConfigInvalid: names what is wrong.
    """
    loaded = None if config is None else load_config(config)
    sockets = () if loaded is None else tuple(rank.socket for rank in loaded.ranks)
    if endpoints is not None:
        try:
            named = EtcdOptions(endpoints=tuple(part.strip() for part in endpoints.split(",")))
        except EtcdConfigError as error:
            raise ConfigInvalid.of_field("--etcd", error.value, error.detail) from error
        return Subject(named, sockets, transport)
    return Subject(None if loaded is None else etcd.options_of(loaded.etcd), sockets, transport)


def local_checks(subject: Subject) -> list[Check]:
    """Every check of this machine, in the order in which they are shown."""
    return [
        *_etcd_checks(subject.etcd),
        *_dataplane_checks(subject.sockets),
        Check(nixl.CHECK, partial(nixl.look, subject.transport), CHILD_BOUND_S),
        Check(ucx.CHECK, ucx.look, CHILD_BOUND_S),
        Check("limits", limits.look),
        Check("memory", memory.look),
        Check("namespaces", namespaces.look, CHILD_BOUND_S),
        Check("gpu", gpu.look, CHILD_BOUND_S),
        Check(clock.CHECK, partial(clock.look, subject.etcd)),
        Check(versions.CHECK, versions.look),
    ]


def _etcd_checks(options: EtcdOptions | None) -> Iterator[Check]:
    addresses = ("",) if options is None else options.addresses
    for address in addresses:
        yield Check(etcd.CHECK, partial(etcd.look, options, address))


def _dataplane_checks(sockets: tuple[str, ...]) -> Iterator[Check]:
    for rank, path in enumerate(sockets):
        name = f"{dataplanes.CHECK}.{rank}"
        yield Check(name, partial(dataplanes.look, rank, path, metadata.version("kvferry")))
