"""This worker's membership in the cluster: its registration, and its view of the others."""

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from kvferry.core.errors import ConfigInvalid
from kvferry_control.cluster import Cluster
from kvferry_control.config import ControlConfig, EtcdSection
from kvferry_control.discovery.claim import ValueReader
from kvferry_control.discovery.registration import Registration, RegistrationState, RegistrationStatus
from kvferry_control.discovery.watcher import WatcherStatus, WorkerWatcher
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import EtcdConfigError
from kvferry_control.metrics import ControlMetrics
from kvferry_control.records import WorkerRecord, decode_record, encode_record, incarnation_of, instance_of
from kvferry_control.tasks import Spawn
from kvferry_control.worker import LocalWorker

PATIENCE_S = 2.0
"""A holder of our name that crashed keeps it for its lease's time: wait that long and this much more."""


class Membership:
    """Runs the registration and the watcher. ``begin`` registers the worker's present life, ending an earlier one."""

    def __init__(
        self,
        config: ControlConfig,
        worker: LocalWorker,
        cluster: Cluster,
        metrics: ControlMetrics,
        registered: Callable[[int], Coroutine[None, None, None]],
        spawn: Spawn,
    ) -> None:
        self._client = EtcdClient(etcd_options(config.etcd))
        self._worker = worker
        self._cluster = cluster
        self._metrics = metrics
        self._registered = registered
        self._spawn = spawn
        self._watcher = WorkerWatcher(self._client, decode_record, on_status=self._watched)
        self._registration: Registration | None = None
        self._begun = asyncio.Event()
        self._leaving = False
        self._told: tuple[WorkerRecord, int] | None = None
        self._log = structlog.get_logger("kvferry.control.membership")

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            WorkerNameTaken: another live worker holds the name.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watcher.run())
                group.create_task(self._follow())
                group.create_task(self._register())
        finally:
            await self._client.close()

    def begin(self) -> None:
        """The worker has begun a life, or gone on with one: register it."""
        self._told = None
        self._begun.set()

    def update(self) -> None:
        """The worker's record may have changed: let the cluster know."""
        registration, record = self._registration, self._worker.record()
        if registration is None or self._told == (record, record.incarnation):
            return
        self._told = (record, record.incarnation)
        registration.update(lambda explicit: encode_record(record, explicit))

    async def leave(self) -> None:
        """Give up the name."""
        self._leaving = True
        if self._registration is not None:
            await self._registration.close()

    async def _register(self) -> None:
        while True:
            await self._begun.wait()
            self._begun.clear()
            registration = self._make_registration()
            self._registration = registration
            async with asyncio.TaskGroup() as group:
                running = group.create_task(registration.run())
                again = group.create_task(self._begun.wait())
                await asyncio.wait({running, again}, return_when=asyncio.FIRST_COMPLETED)
                if again.done():
                    await registration.close()
                again.cancel()
            if self._leaving:
                return

    def _make_registration(self) -> Registration:
        record, identity = self._worker.record(), self._worker.identity
        self._told = (record, record.incarnation)

        def on_status(status: RegistrationStatus) -> None:
            held = status.state is RegistrationState.REGISTERED
            self._metrics.registered.set(held)
            if held and status.incarnation is not None:
                self._spawn(self._tell(identity.instance_id, status.incarnation))

        return Registration(
            self._client,
            worker_name=self._worker.name,
            instance_id=identity.instance_id,
            encode=lambda explicit: encode_record(record, explicit),
            reader=ValueReader(instance_of, incarnation_of),
            incarnation=identity.incarnation or None,
            patience_s=self._client.options.lease_ttl_s + PATIENCE_S,
            on_status=on_status,
        )

    async def _tell(self, instance_id: bytes, incarnation: int) -> None:
        if instance_id == self._worker.identity.instance_id:
            await self._registered(incarnation)

    async def _follow(self) -> None:
        with self._watcher.subscribe() as subscription:
            async for snapshot, _changes in subscription:
                workers = {name: entry.record for name, entry in snapshot.workers.items()}
                self._metrics.workers.set(len(workers))
                self._cluster.replace(workers)

    def _watched(self, status: WatcherStatus) -> None:
        self._metrics.etcd_connected.set(status.connected)
        self._cluster.set_connected(status.connected)


def etcd_options(section: EtcdSection) -> EtcdOptions:
    """The client's options.

    Raises:
        ConfigInvalid: an option is wrong, or the password file cannot be read; names the key.
    """
    password = None
    if section.password_file is not None:
        try:
            password = section.password_file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigInvalid.of_field(
                "etcd.password_file", str(section.password_file), f"cannot be read: {error}"
            ) from error
    try:
        return EtcdOptions(
            endpoints=section.endpoints,
            prefix=section.prefix,
            ca_file=section.ca_file,
            cert_file=section.cert_file,
            key_file=section.key_file,
            user=section.user,
            password=password,
            lease_ttl_s=section.lease_ttl_s,
        )
    except EtcdConfigError as error:
        raise ConfigInvalid(f"etcd: {error}", metadata={"field": "etcd"}) from error
