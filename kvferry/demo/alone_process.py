"""A process that generates the tokens of all prompts by itself: ``python -m kvferry.demo.alone_process``.

It reads a job as JSON, runs every prompt on one model over memory of its own, and writes tokens by request id.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from kvferry.demo.alone import AloneJob
from kvferry.demo.prompts import Request
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.generate import ReferenceEngine, tokens_in_kv
from kvferry.reference_engine.paged_kv import blocks_needed

_NICENESS = 10


def main() -> None:
    """Run the job that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m kvferry.demo.alone_process", description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args()
    # Nobody waits for this process before the workers are done.
    os.nice(_NICENESS)
    job = _job_from(json.loads(options.job.read_text(encoding="utf-8")))
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"ready\n")
        os.close(options.ready_fd)
    options.output.write_text(json.dumps(_generate(job)), encoding="utf-8")


def _job_from(raw: dict[str, Any]) -> AloneJob:
    requests = [Request(item["request_id"], tuple(item["prompt_tokens"])) for item in raw.pop("requests")]
    return AloneJob(config=ModelConfig(**raw.pop("config")), requests=requests, **raw)


def _generate(job: AloneJob) -> dict[str, list[int]]:
    torch.set_num_threads(1)
    longest = max(len(request.prompt_tokens) for request in job.requests)
    num_blocks = blocks_needed(tokens_in_kv(longest, job.max_new_tokens), job.block_tokens)
    engine = ReferenceEngine.with_private_kv(
        job.config, num_blocks=num_blocks, block_tokens=job.block_tokens, device=job.device
    )
    blocks = range(num_blocks)
    return {
        request.request_id: engine.generate(request.prompt_tokens, blocks, job.max_new_tokens)
        for request in job.requests
    }


if __name__ == "__main__":
    main()
