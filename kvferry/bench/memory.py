"""The memory of a benchmark as a byte tensor: filled, poisoned and compared block by block."""

import torch

from kvferry.bench.workload import POISON, BlockIds, Workload, random_bytes


def fill(pool: torch.Tensor, seed: int) -> None:
    """Fill a pool (uint8, one dimension) with the noise of ``seed``."""
    pool.copy_(torch.from_numpy(random_bytes(seed, pool.numel())))
    finish(pool)


def poison(pool: torch.Tensor) -> None:
    """Overwrite a pool, so that a read that does nothing shows."""
    pool.fill_(POISON)
    finish(pool)


def first_wrong_block(pool: torch.Tensor, workload: Workload, seed: int) -> int | None:
    """The first destination block that does not hold its source block's bytes, where the source was filled by ``seed``.

    None if all are right.
    """
    source = torch.from_numpy(random_bytes(seed, workload.pool_bytes)).view(-1, workload.block_bytes)
    arrived = pool.view(-1, workload.block_bytes)
    sources, destinations = workload.source_blocks(), workload.destination_blocks()
    step = max(1, (64 << 20) // workload.block_bytes)
    for start in range(0, workload.block_count, step):
        expected = source[_index(sources[start : start + step])]
        actual = arrived[_index(destinations[start : start + step]).to(pool.device)].cpu()
        wrong = (expected != actual).any(dim=1).nonzero()
        if wrong.numel():
            return int(destinations[start + int(wrong[0, 0])])
    return None


def finish(pool: torch.Tensor) -> None:
    """Wait until it is written: reads that other processes or NIXL make know nothing of torch's stream."""
    if pool.is_cuda:
        torch.cuda.synchronize(pool.device)


def _index(blocks: BlockIds) -> torch.Tensor:
    return torch.from_numpy(blocks)
