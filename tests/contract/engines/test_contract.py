"""What every engine has to keep to: one reader agent, its sources, and what may become of them."""

import ctypes
import mmap
import os
import signal

import numpy as np
import pytest

from kvferry.core.planning.copies import CopyPlan
from tests.contract.engines.engine import CLOSE_SECONDS, FAILED, Engine, Reader, Source, after, scattered

BLOCK_BYTES = 16 * 1024
POISON = 0xEE
Living = tuple[Source, Source]


def plan_of(engine: Engine, seed: int, share: float = 0.5) -> CopyPlan:
    """Blocks from everywhere to everywhere."""
    return scattered(engine.pool.size, BLOCK_BYTES, seed, share=share)


def test_a_read_brings_the_bytes_and_the_word(engine: Engine, reader: Reader, living: Living) -> None:
    """Every byte of every block arrives where it belongs, nothing beside them, and the lease word after them."""
    source, _ = living
    plan = plan_of(engine, 1)
    expected = after(engine.pool, source.pool, plan)
    reader.connect(source)
    assert source.word == reader.read(source, plan)
    assert np.array_equal(expected, engine.pool)


def test_two_sources_are_read_at_once(engine: Engine, reader: Reader, living: Living) -> None:
    """Batches of two sources, under way together, do not get into each other's way."""
    plans = [plan_of(engine, 2, 0.2), plan_of(engine, 3, 0.2)]
    half = engine.pool.size // 2
    expected = engine.pool.copy()
    for number, (source, plan) in enumerate(zip(living, plans, strict=True)):
        # Each into a half of its own.
        plan.destination_offsets[:] = plan.destination_offsets % half + number * half
        keep = np.unique(plan.destination_offsets, return_index=True)[1]
        plans[number] = CopyPlan(plan.source_offsets[keep], plan.destination_offsets[keep], plan.lengths[keep])
        expected = after(expected, source.pool, plans[number])
        reader.connect(source)
    handles = [reader.start(source, plan) for source, plan in zip(living, plans, strict=True)]
    for handle in reversed(handles):
        reader.wait(handle)
    assert np.array_equal(expected, engine.pool)
    assert [source.word for source in living] == [reader.word(source) for source in living]


def test_a_word_that_was_taken_back_is_another(engine: Engine, reader: Reader) -> None:
    """Once a lease has ended, its word is not read any more, whatever is read before."""
    source = engine.source()
    reader.connect(source)
    assert source.word == reader.word(source)
    source.end_lease()
    assert source.word != reader.read(source, plan_of(engine, 4, 0.1))


def test_a_source_is_forgotten_and_learned_again(engine: Engine, reader: Reader, living: Living) -> None:
    """Again and again."""
    source, other = living
    reader.connect(other)
    for seed in range(3):
        reader.connect(source)
        assert source.word == reader.read(source, plan_of(engine, seed, 0.1))
        reader.agent.disconnect(source.peer)
        assert other.word == reader.word(other)


def test_a_stopped_read_settles(engine: Engine, reader: Reader, living: Living) -> None:
    """A read whose early end was asked for is done some time, and then nothing of it arrives any more."""
    source, _ = living
    reader.connect(source)
    reader.word(source)
    handle = reader.start(source, plan_of(engine, 5))
    reader.agent.stop(handle)
    reader.wait(handle)
    engine.pool[:] = POISON
    engine.settle()
    assert POISON == engine.pool.min() == engine.pool.max()


def test_the_death_of_a_source_ends_its_reads_and_no_others(engine: Engine, reader: Reader, living: Living) -> None:
    """A read of a source that is killed does not get both its bytes and its word; another source's does."""
    source, dying = living[0], engine.source()
    reader.connect(source)
    reader.connect(dying)
    assert dying.word == reader.word(dying)
    dying.stop()
    lost = reader.start(dying, plan_of(engine, 6, 0.2))
    dying.kill()
    assert source.word == reader.word(source)
    with pytest.raises(FAILED):
        _both(reader, dying, lost)
    assert source.word == reader.word(source)


def test_a_source_that_died_before_is_an_error(engine: Engine, reader: Reader) -> None:
    """Whoever is told of a source that is gone finds out, at the latest from the first read."""
    dead = engine.source()
    dead.kill()

    def meet() -> None:
        reader.connect(dead)
        reader.read(dead, plan_of(engine, 7, 0.1))

    with pytest.raises(FAILED):
        meet()


def test_the_next_life_of_a_source_is_read(engine: Engine, reader: Reader) -> None:
    """An agent that lost a source reads the one that comes after it, also when it did not forget the first."""
    first = engine.source()
    reader.connect(first)
    assert first.word == reader.word(first)
    first.kill()
    with pytest.raises(FAILED):
        reader.read(first, plan_of(engine, 8, 0.1))
    second = engine.source()
    reader.connect(second)
    plan = plan_of(engine, 9, 0.1)
    engine.pool[:] = 0
    expected = after(engine.pool, second.pool, plan)
    assert second.word == reader.read(second, plan)
    assert np.array_equal(expected, engine.pool)


def test_nothing_arrives_after_close(engine: Engine, reader: Reader) -> None:
    """An agent with reads from a stopped source is destroyed in time; what comes late goes nowhere, and the source
    lives on."""
    source = engine.source()
    reader.connect(source)
    assert source.word == reader.word(source)
    source.stop()
    reader.start(source, plan_of(engine, 10))
    for _ in range(3):
        engine.pass_time()
    assert reader.close() < CLOSE_SECONDS
    engine.pool[:] = POISON
    source.resume()
    engine.settle()
    assert POISON == engine.pool.min() == engine.pool.max()
    assert source.is_alive
    again = Reader(engine, engine.agent())
    again.connect(source)
    assert source.word == again.read(source, plan_of(engine, 11, 0.1))
    again.close()


def test_reads_in_flight_do_not_outlive_the_agent(engine: Engine, reader: Reader, living: Living) -> None:
    """An agent that is destroyed while its sources answer writes nothing from then on; others go on."""
    source, other = living
    bystander = Reader(engine, engine.agent())
    bystander.connect(other)
    reader.connect(source)
    reader.word(source)
    reader.start(source, plan_of(engine, 12))
    assert reader.close() < CLOSE_SECONDS
    engine.pool[:] = POISON
    engine.settle()
    assert POISON == engine.pool.min() == engine.pool.max()
    assert other.word == bystander.read(other, plan_of(engine, 13, 0.1))
    bystander.close()


def test_a_fork_does_no_harm(engine: Engine, reader: Reader, living: Living) -> None:
    """A child that was forked while a read was under way and ends is not noticed."""
    source, _ = living
    reader.connect(source)
    plan = plan_of(engine, 14)
    expected = after(engine.pool, source.pool, plan)
    handle = reader.start(source, plan)
    child = _fork_that_ends()
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reader.wait(handle)
    assert source.word == reader.word(source)
    assert np.array_equal(expected, engine.pool)


def _fork_that_ends() -> int:
    """A child with a copy of this process's memory, which ends at once; returns its pid.

    Nothing in the process is told: gRPC would start its threads anew in the child, and they crash now and then. And the
    child never is Python: it would wait for ever for a thread of its parent that had asked for the interpreter's lock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    stack = mmap.mmap(-1, mmap.PAGESIZE)
    top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + len(stack)
    end = ctypes.cast(libc._exit, ctypes.c_void_p)
    return int(libc.clone(end, ctypes.c_void_p(top), int(signal.SIGCHLD), None))


def _both(reader: Reader, source: Source, handle: int) -> None:
    """The bytes, and then the word."""
    reader.wait(handle)
    assert source.word == reader.word(source)
