"""An event loop in virtual time that runs several simulated processes, interleaved as a seed wants it.

Code of a process runs as it does in asyncio: its callbacks in their order. Which process goes on next, and how long it
takes for a callback, is drawn from the seed. A process that is stopped runs nothing, one that is killed never again.
"""

import asyncio
import heapq
import math
import random
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any
from weakref import WeakSet

STEP_SECONDS_MAX = 20e-6
"""What a callback takes at most, unless its process is slow."""
STEPS_AT_A_TIME = 64
STEPS_MAX = 1_000_000
"""A run that takes more does not come to an end."""


@dataclass
class Clock:
    """The clocks of a host. ``rate`` is how fast they go; the monotonic one began at ``offset``."""

    rate: float = 1.0
    offset: float = 0.0
    wall_offset: float = 0.0


@dataclass(eq=False)
class Process:
    """A simulated process: what runs, and on which clock."""

    name: str
    clock: Clock = field(default_factory=Clock)
    alive: bool = True
    stopped_until: float = 0.0
    busy_until: float = 0.0
    slowness: float = 1.0
    ready: deque[asyncio.Handle] = field(default_factory=deque)
    tasks: "WeakSet[asyncio.Task[Any]]" = field(default_factory=WeakSet)
    remains: list[object] = field(default_factory=list)
    """What a killed process left: kept, so that none of its code runs when it would be collected."""
    context: Context = field(default_factory=copy_context)

    def __post_init__(self) -> None:
        self.context.run(CURRENT.set, self)

    def local(self, now: float) -> float:
        """What its monotonic clock shows."""
        return now * self.clock.rate + self.clock.offset

    def instant(self, local: float) -> float:
        """When its monotonic clock shows so much."""
        return (local - self.clock.offset) / self.clock.rate

    def is_stopped(self, now: float) -> bool:
        """Whether it gets no processor at the moment."""
        return now < self.stopped_until


CURRENT: ContextVar[Process | None] = ContextVar("simulated_process", default=None)


def describe(error: BaseException) -> str:
    """An exception, and where it comes from; of a group the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{error!r} at {where}"


class _Task(asyncio.Task[Any]):
    """A task whose place in a set does not depend on where it lies in memory."""

    _made = 0

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        _Task._made += 1
        self._number = _Task._made
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs until nothing is left to do, in no time. ``random`` decides what may be decided either way."""

    def __init__(self, seeded: random.Random) -> None:
        super().__init__()
        self.now = 0.0
        self.steps = 0
        self.defects: list[str] = []
        self.after_step: Callable[[], None] = lambda: None
        self._random = seeded
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._outside = Process("world", context=Context())
        self._outside.context = Context()
        self._processes: list[Process] = [self._outside]
        self._agens: list[object] = []
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.set_exception_handler(self._on_defect)

    def spawn(self, name: str, clock: Clock) -> Process:
        """Begin a process."""
        process = Process(name, clock)
        self._processes.append(process)
        return process

    def kill(self, process: Process) -> None:
        """End a process where it stands: no handler, no clean-up."""
        process.alive = False
        process.remains += [task for task in process.tasks if not task.done()]
        process.remains += process.ready
        process.ready.clear()
        self._processes.remove(process)
        self._outside.remains.append(process)

    def start(self, process: Process, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run ``work`` in a process."""
        return process.context.run(self.create_task, work)

    def world(self, when: float, callback: Callable[[], None]) -> None:
        """Call something that belongs to no process, at an instant."""
        timer = asyncio.TimerHandle(when, callback, (), self, self._outside.context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))

    def defect(self, what: str) -> None:
        """Note something that must never happen."""
        process = CURRENT.get()
        self.defects.append(f"{process.name if process else 'world'}: {what}")

    # What asyncio asks of a loop.

    def time(self) -> float:
        process = CURRENT.get()
        return self.now if process is None else process.local(self.now)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        process = CURRENT.get() if context is None else context.get(CURRENT)
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._timer_count += 1
        instant = when if process is None else process.instant(when)
        heapq.heappush(self._timers, (instant, self._timer_count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Its place in the heap is passed over when its turn comes."""

    def _process_events(self, event_list: object) -> None:
        raise NotImplementedError

    def _asyncgen_finalizer_hook(self, agen: object) -> None:
        self._agens.append(agen)

    def _run_once(self) -> None:
        for _ in range(STEPS_AT_A_TIME):
            if self._stopping:  # type: ignore[attr-defined]
                return
            self._step()

    def _step(self) -> None:
        """Run a callback of a process that can go on."""
        runnable = self._runnable()
        process = runnable[0] if len(runnable) == 1 else self._random.choice(runnable)
        handle = process.ready.popleft()
        process.busy_until = self.now + self._random.random() * STEP_SECONDS_MAX * process.slowness
        if handle.cancelled():
            return
        self.steps += 1
        handle._run()
        self.after_step()
        if self.steps > STEPS_MAX:
            raise AssertionError(f"the run goes on after {STEPS_MAX} steps, at {self.now:.3f} s")

    def _runnable(self) -> list[Process]:
        """The processes that can go on; lets time pass until there is one."""
        while True:
            self._fire()
            runnable, soonest = [], math.inf
            for process in self._processes:
                if process.ready:
                    at = max(process.busy_until, process.stopped_until)
                    if at <= self.now:
                        runnable.append(process)
                    elif at < soonest:
                        soonest = at
            if runnable:
                return runnable
            if self._timers and self._timers[0][0] < soonest:
                soonest = self._timers[0][0]
            if soonest == math.inf:
                raise AssertionError(f"nothing is left to do at {self.now:.3f} s, and somebody waits")
            self.now = soonest

    def _fire(self) -> None:
        """Hand out the timers that are due."""
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                self._enqueue(timer)

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(CURRENT) or self._outside  # type: ignore[attr-defined]
        if process.alive:
            process.ready.append(handle)
        else:
            process.remains.append(handle)

    def _make_task(
        self, _loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> "asyncio.Task[Any]":
        task = _Task(coro, loop=self, **options)
        (CURRENT.get() or self._outside).tasks.add(task)
        return task

    def _on_defect(self, _loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        error = what.get("exception")
        self.defect(f"{what['message']}: {describe(error) if error else ''}")
