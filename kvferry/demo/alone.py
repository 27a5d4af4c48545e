"""The single-process run that the demo's tokens are compared with."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    """The single-process run under way in a process of its own."""

    def __init__(self, child: Child, output: Path) -> None:
        self._child = child
        self._output = output

    @classmethod
    async def start(cls, job: AloneJob, directory: Path) -> "AloneRun":
        """Start the process; its files go to ``directory``. Raises ProcessError."""
        job_path, output = directory / "alone.job.json", directory / "alone.tokens.json"
        job_path.write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = ["-m", "kvferry.demo.alone_process", "--job", str(job_path), "--output", str(output)]
        return cls(await Child.start("single-process run", command, directory / "alone.log"), output)

    async def tokens(self) -> dict[str, list[int]]:
        """Wait for the tokens by request id.

        Raises:
            ProcessEnded: the process failed.
        """
        if status := await self._child.wait():
            raise ProcessEnded.of_status(self._child.name, status, self._child.log_tail())
        tokens: dict[str, list[int]] = json.loads(self._output.read_text(encoding="utf-8"))
        return tokens

    async def stop(self) -> None:
        """End the process if it still runs."""
        if self._child.status is None:
            await self._child.kill()
