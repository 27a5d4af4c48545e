"""Jobs of the native core: their order, their end, and what a cancel leaves behind."""

import os
import select
import threading
import time

import numpy as np
import pytest

from kvferry.core.errors import NotReady, ResourceExhausted, TransportFailed
from kvferry.device.native import JOBS_MAX, HostCopier, HostCopyJob, Tuning
from tests.unit.native.memory import SLOW_BYTES, WAIT_S, Bytes, copier, flat, slow_job, strided, window

SIZE = 4096


def relay(used: HostCopier, memories: list[Bytes], step: int, priority: int = 0) -> HostCopyJob:
    """Copy one memory into the next: it has the first one's bytes only if the steps before it came before."""
    source, destination = memories[step], memories[step + 1]
    return used.submit(window(source), window(destination), [flat((0, 0, SIZE))], priority=priority)


def memories(count: int) -> list[Bytes]:
    """Some, the first of ones."""
    return [np.full(SIZE, number == 0, dtype=np.uint8) for number in range(count)]


@pytest.mark.parametrize("thread_count", [1, 2, 4])
def test_a_cancelled_job_ends_early(thread_count: int) -> None:
    """After a cancel the job is done soon, it tells exactly how many bytes it wrote, and writes no more."""
    job, destination = slow_job(copier(thread_count))
    while job.copied_bytes == 0:
        assert not job.done
    job.cancel()
    assert job.wait(WAIT_S)
    copied = job.copied_bytes
    assert 0 < copied < SLOW_BYTES
    assert copied == int(np.count_nonzero(destination))
    job.cancel()
    assert copied == job.copied_bytes


def test_a_cancel_leaves_all_but_the_pieces_alone() -> None:
    """Bytes between the pieces of a cancelled job are as they were."""
    used = copier()
    source, destination = np.ones(1, dtype=np.uint8), np.full(64 << 20, 7, dtype=np.uint8)
    job = used.submit(window(source), window(destination), [strided([(0, 1)], [(16 << 20, 0, 4)], 1)])
    while job.copied_bytes == 0:
        assert not job.done
    job.cancel()
    assert job.wait(WAIT_S)
    pieces = destination.reshape(-1, 4)
    assert (pieces[:, [0, 2, 3]] == 7).all()
    assert job.copied_bytes == int((pieces[:, 1] == 1).sum())
    assert job.copied_bytes < 16 << 20


def test_a_job_that_waits_is_cancelled_at_once() -> None:
    """A job that no thread has begun is done when cancel returns, and nothing of it is ever copied."""
    used = copier(1)
    blocker, _ = slow_job(used, priority=1)
    spans = memories(2)
    job = relay(used, spans, 0)
    assert not job.wait(0)
    job.cancel()
    assert job.done
    blocker.cancel()
    assert blocker.wait(WAIT_S)
    assert 0 == job.copied_bytes == int(spans[1].sum())


def test_higher_priorities_go_first() -> None:
    """With one thread, jobs run by priority whatever the order in which they were submitted."""
    used = copier(1)
    blocker, _ = slow_job(used, priority=9)
    spans = memories(5)
    jobs = [relay(used, spans, step, priority=-step) for step in (2, 0, 3, 1)]
    blocker.cancel()
    assert all(job.wait(WAIT_S) for job in jobs)
    assert SIZE == int(spans[4].sum())


@pytest.mark.parametrize("thread_count", [1, 2])
def test_no_priority_waits_for_as_long_as_higher_ones_last(thread_count: int) -> None:
    """While a higher priority keeps every thread busy, each lower one gets its turn once its patience is over."""
    used = copier(thread_count, patience_ms=20)
    busy = [slow_job(used, priority=9) for _ in range(2)]
    spans = memories(2)
    assert all(relay(used, spans, 0, priority=priority).wait(WAIT_S) for priority in (-1, 5, 0))
    assert not any(job.done for job, _ in busy)
    for job, _ in busy:
        job.cancel()
        assert job.wait(WAIT_S)


def test_who_was_kept_back_gets_one_turn_at_a_time() -> None:
    """A priority that was kept back gets the bytes of one turn for each time that it has waited for the patience; the
    higher one has all the rest."""
    patience_s, turn_bytes = 0.02, 3 * 4096
    used = copier(1, patience_ms=20, turn_bytes=turn_bytes)
    higher, _higher_memory = slow_job(used, priority=1)
    started = time.monotonic()
    lower, _lower_memory = slow_job(used, priority=0)
    while lower.copied_bytes < 2 * turn_bytes:
        assert not higher.wait(0.001)
    copied_bytes = lower.copied_bytes
    assert copied_bytes <= turn_bytes * (time.monotonic() - started) / patience_s
    for job in (lower, higher):
        job.cancel()
        assert job.wait(WAIT_S)


def test_equal_priorities_go_in_turn() -> None:
    """With one thread, jobs of one priority run in the order in which they were submitted."""
    used = copier(1)
    blocker, _ = slow_job(used, priority=9)
    spans = memories(9)
    jobs = [relay(used, spans, step) for step in range(8)]
    blocker.cancel()
    assert all(job.wait(WAIT_S) for job in jobs)
    assert SIZE == int(spans[8].sum())


def test_a_long_job_does_not_hold_up_others() -> None:
    """A job of the same priority gets its turns while a long one is under way on the only thread."""
    used = copier(1)
    long_one, _ = slow_job(used)
    spans = memories(2)
    assert relay(used, spans, 0).wait(WAIT_S)
    assert not long_one.done
    long_one.cancel()
    assert long_one.wait(WAIT_S)


def test_jobs_are_bounded() -> None:
    """One job more than may be under way is refused; once they are done there is room again."""
    used = copier(1)
    blocker, _ = slow_job(used, priority=1)
    spans = memories(2)
    jobs = [relay(used, spans, 0) for _ in range(JOBS_MAX - 1)]
    with pytest.raises(ResourceExhausted):
        relay(used, spans, 0)
    blocker.cancel()
    assert all(job.wait(WAIT_S) for job in jobs)
    assert relay(used, spans, 0).wait(WAIT_S)


def test_every_end_is_signalled() -> None:
    """The eventfd counts each job that ends: by threads, within submit, and cancelled before it began."""
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    used = HostCopier(2, descriptor, tuning=Tuning(inline_bytes_max=1, chunk_bytes_max=4096))
    assert used.wakes
    spans = memories(2)
    assert relay(used, spans, 0).wait(WAIT_S)
    for _ in range(2):
        assert used.submit(window(spans[0]), window(spans[1]), [flat((0, 0, 1))]).done
    slow = [slow_job(used) for _ in range(4)]
    for job, _ in slow:
        job.cancel()
    ended = 0
    while ended < 7:
        assert [descriptor] == select.select([descriptor], [], [], WAIT_S)[0]
        ended += os.eventfd_read(descriptor)
    assert all(job.done for job, _ in slow)
    used.close()
    assert [] == select.select([descriptor], [], [], 0)[0]
    os.close(descriptor)


def test_the_end_of_a_silent_job_is_not_signalled() -> None:
    """Whoever waits for a job wants no signal: neither from threads, nor from submit, nor of one that was cancelled."""
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    used = HostCopier(1, descriptor, tuning=Tuning(inline_bytes_max=1, chunk_bytes_max=4096))
    spans = memories(2)
    places = window(spans[0]), window(spans[1])
    assert used.submit(*places, [flat((0, 0, 1))], silent=True).done
    assert used.submit(*places, [flat((0, 0, SIZE))], silent=True).wait(WAIT_S)
    first, _ = slow_job(used)
    waiting = used.submit(*places, [flat((0, 0, SIZE))], silent=True)
    waiting.cancel()
    assert waiting.wait(WAIT_S)
    assert [] == select.select([descriptor], [], [], 0)[0]
    first.cancel()
    assert first.wait(WAIT_S)
    used.close()
    assert 1 == os.eventfd_read(descriptor)
    os.close(descriptor)


def test_without_a_descriptor_nothing_is_signalled() -> None:
    """A copier says whether it wakes anyone; what is no descriptor is refused."""
    assert not copier().wakes
    with pytest.raises(TransportFailed):
        HostCopier(1, 1 << 20)


def test_waiting_lets_other_threads_run() -> None:
    """A thread that waits for a job holds nothing that others need, and sees the end that another one brings about."""
    job, _ = slow_job(copier(1))
    ended: list[bool] = []
    waiter = threading.Thread(target=lambda: ended.append(job.wait(WAIT_S)))
    waiter.start()
    assert not job.wait(0)
    job.cancel()
    waiter.join(WAIT_S)
    assert [True] == ended


def test_close_ends_what_is_under_way() -> None:
    """After close every job is done, cancelled where it was not finished; later jobs are refused."""
    used = HostCopier(2, tuning=Tuning(inline_bytes_max=1, chunk_bytes_max=4096))
    slow = [slow_job(used) for _ in range(3)]
    used.close()
    used.close()
    for job, destination in slow:
        assert job.done
        assert job.copied_bytes == int(np.count_nonzero(destination)) < SLOW_BYTES
        job.cancel()
        assert job.wait(0)
    with pytest.raises(NotReady):
        relay(used, memories(2), 0)


def test_dropped_jobs_are_copied() -> None:
    """Dropping a job, or the copier's own handle, ends nothing and breaks nothing."""
    used = HostCopier(2, tuning=Tuning(inline_bytes_max=1))
    spans = memories(2)
    relay(used, spans, 0)
    last = relay(used, spans, 0)
    assert last.wait(WAIT_S)
    held, _ = slow_job(used)
    del used, last
    held.cancel()
    assert held.wait(WAIT_S)


def test_many_threads_share_a_copier() -> None:
    """Jobs submitted, awaited and cancelled from many threads at once all end, with the right bytes."""
    used = copier(3, chunk_bytes_max=512)
    wrong: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for turn in range(60):
            source = rng.integers(0, 256, 20000, np.uint8)
            destination = np.zeros_like(source)
            job = used.submit(
                window(source), window(destination), [flat((0, 0, 20000))], priority=int(rng.integers(0, 3))
            )
            if turn % 3 == 0:
                job.cancel()
            if not job.wait(WAIT_S):
                wrong.append("not done")
            if job.copied_bytes == 20000 and not np.array_equal(source, destination):
                wrong.append("wrong bytes")
            if turn % 3 and job.copied_bytes != 20000:
                wrong.append(f"{job.copied_bytes} bytes")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert [] == wrong
