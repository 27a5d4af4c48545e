"""A worker that is started before its etcd."""

import asyncio
from pathlib import Path

import pytest

from kvferry import EngineClient
from kvferry.core.errors import NotReady
from kvferry.dev.etcd_server import EtcdServer
from kvferry.launch.worker import LocalWorker, WorkerSpec
from tests.process.cluster.pair import POOL_BYTES, eventually, layout_of


async def test_control_waits_for_etcd_and_says_so(tmp_path: Path) -> None:
    """Without etcd control serves, refuses to publish as NOT_READY, logs why, and goes on once etcd is there."""
    etcd = EtcdServer(data_dir=tmp_path / "etcd")
    await asyncio.to_thread(etcd.start)
    endpoint = etcd.endpoint
    await asyncio.to_thread(etcd.kill)
    worker = LocalWorker(
        WorkerSpec(name="early-0", role="both", ranks=2, pool_bytes=POOL_BYTES), tmp_path, [endpoint], "/kvferry"
    )
    try:
        await worker.start()
        async with EngineClient.connect(worker.engine_socket, "engine", layout_of()) as engine:
            with pytest.raises(NotReady) as caught:
                await engine.publish([1], 16, 5.0)
            assert "etcd" in caught.value.message
            assert 0 == engine.incarnation
            await eventually(lambda: "registering" in worker.control.log_tail(50), "control says what it waits for")
            assert endpoint.removeprefix("http://") in worker.control.log_tail(50)
            await asyncio.to_thread(etcd.restart)

            async def published() -> bool:
                try:
                    await engine.release(await engine.publish([1], 16, 5.0))
                except NotReady:
                    return False
                return True

            await eventually(published, "the worker registers once etcd is there")
            await eventually(lambda: engine.incarnation > 0, "the engine is told the incarnation")
    finally:
        await worker.stop()
        await asyncio.to_thread(etcd.stop)
