"""Pulls that do not say how long they may take."""

import asyncio
import signal
from pathlib import Path

import pytest

from kvferry import DeadlineExceeded
from tests.process.cluster.pair import running_pair

BLOCKS = [0, 1, 2, 3]


@pytest.mark.long
async def test_a_pull_without_a_time_has_that_of_the_engines_configuration(tmp_path: Path) -> None:
    """``kv_transfer_timeout_ms`` ends it where the source stands still; a pull that says its time has that."""
    engine_file = tmp_path / "engine.yaml"
    engine_file.write_text("cache_transceiver_config: {backend: NIXL, kv_transfer_timeout_ms: 1500}")
    flags = ("--trtllm-config", str(engine_file))
    async with running_pair(control_flags=flags, data_plane_flags=("--same-host", "off", *flags)) as pair:
        loop = asyncio.get_running_loop()
        publication = await pair.publish(BLOCKS, readers=0)
        for plane in pair.prefill.data_planes.values():
            plane.send_signal(signal.SIGSTOP)
        for timeout_s, expected_s in ((None, 1.5), (0.7, 0.7)):
            began = loop.time()
            with pytest.raises(DeadlineExceeded):
                await pair.destination.pull(publication.handle, BLOCKS, timeout_s)
            assert expected_s - 0.05 <= loop.time() - began <= expected_s + 1.0
        for plane in pair.prefill.data_planes.values():
            plane.send_signal(signal.SIGCONT)
