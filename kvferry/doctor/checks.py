"""Which checks there are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid
from kvferry.doctor import clock, dataplanes, etcd, gpu, limits, memory, namespaces, nixl, transports, versions
from kvferry.doctor.examination import Check
from kvferry_control.config_reading import config_of, control_settings
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import EtcdConfigError

CHILD_BOUND_S = 20.0
"""A child loads libraries: within a second, unless the machine is busy."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the data planes are to use."""

    transport: Transport = Transport.NIXL_UCX
    ucx_library: str | None = None
    """The file of UCX that direct UCX takes; None: the one that is found."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at beside this machine."""

    etcd: EtcdOptions | None = None
    sockets: tuple[str, ...] = field(default=())
    """Of the worker's data planes, by rank."""
    choice: Choice = Choice()
    worker: str | None = None
    """Name of the worker to which the data planes belong."""
    endpoint: str | None = None
    """Of its control."""


def subject_of(config: Path | None, endpoints: str | None, choice: Choice) -> Subject:
    """What a control's configuration and the command line say; ``endpoints``, separated by commas, go before.

    Raises:
        ConfigInvalid: names what is wrong.
    """
    loaded = None if config is None else config_of(control_settings(["--config", str(config)], os.environ))
    named: EtcdOptions | None
    if endpoints is not None:
        try:
            named = EtcdOptions(endpoints=tuple(part.strip() for part in endpoints.split(",")))
        except EtcdConfigError as error:
            raise ConfigInvalid.of_field("--etcd", error.value, error.detail) from error
    elif loaded is not None:
        named = etcd.options_of(loaded.etcd)
    else:
        named = None
    if loaded is None:
        return Subject(named, (), choice)
    sockets = tuple(rank.socket for rank in loaded.ranks)
    return Subject(named, sockets, choice, loaded.worker.name, f"unix:{loaded.worker.engine_socket}")


def etcd_checks(subject: Subject) -> list[Check]:
    """Those that time something: to be run before the others, which keep the machine busy."""
    addresses = ("",) if subject.etcd is None else subject.etcd.addresses
    return [Check(etcd.CHECK, partial(etcd.look, subject.etcd, address)) for address in addresses]


def machine_checks(subject: Subject) -> list[Check]:
    """Every check of this machine, in the order in which they are shown."""
    return [
        *_dataplane_checks(subject.sockets),
        Check(nixl.CHECK, partial(nixl.look, subject.choice.transport), CHILD_BOUND_S),
        *_transport_checks(subject.choice),
        Check("limits", limits.look),
        Check("memory", memory.look),
        Check("namespaces", namespaces.look, CHILD_BOUND_S),
        Check("gpu", gpu.look, CHILD_BOUND_S),
        Check(clock.CHECK, partial(clock.look, subject.etcd)),
        Check(versions.CHECK, versions.look),
    ]


def _transport_checks(choice: Choice) -> Iterator[Check]:
    for transport in Transport:
        name = f"{transports.CHECK}.{transport.value}"
        yield Check(name, partial(transports.look, transport, choice.transport, choice.ucx_library), CHILD_BOUND_S)


def _dataplane_checks(sockets: tuple[str, ...]) -> Iterator[Check]:
    for rank, path in enumerate(sockets):
        name = f"{dataplanes.CHECK}.{rank}"
        yield Check(name, partial(dataplanes.look, rank, path, metadata.version("kvferry")))
