"""The single-process run that the demo's tokens are compared with."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvferry.core.errors import NotReady
from kvferry.demo.prompts import Request
from kvferry.launch.child import Child
from kvferry.launch.errors import ProcessEnded
from kvferry.reference_engine.config import ModelConfig


@dataclass(frozen=True, slots=True)
class AloneJob:
    """What to generate: the first ``max_new_tokens`` tokens after each prompt."""

    config: ModelConfig
    requests: Sequence[Request]
    max_new_tokens: int
    block_tokens: int
    device: str


class AloneRun:
    """The single-process run, in a process of its own; its files go to ``directory``."""

    def __init__(self, job: AloneJob, directory: Path) -> None:
        self._job = job
        self._directory = directory
        self._output = directory / "alone.tokens.json"
        self._child: Child | None = None

    async def start(self) -> None:
        """Start the process. Raises ProcessError."""
        job_path = self._directory / "alone.job.json"
        job_path.write_text(json.dumps(asdict(self._job)), encoding="utf-8")
        command = ["-m", "kvferry.demo.alone_process", "--job", str(job_path), "--output", str(self._output)]
        self._child = await Child.start("single-process run", command, self._directory / "alone.log")

    async def tokens(self) -> dict[str, list[int]]:
        """Wait for the tokens by request id.

        Raises:
            ProcessEnded: the process failed.
            NotReady: it was not started.
        """
        child = self._child
        if child is None:
            raise NotReady("the single-process run was not started")
        if status := await child.wait():
            raise ProcessEnded.of_status(child.name, status, child.log_tail())
        tokens: dict[str, list[int]] = json.loads(self._output.read_text(encoding="utf-8"))
        return tokens

    async def stop(self) -> None:
        """End the process if it still runs."""
        if self._child is not None and self._child.status is None:
            await self._child.kill()
