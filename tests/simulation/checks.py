"""The invariants that a run must keep: after every step, and once all faults have ended."""

from collections import Counter
from collections.abc import Callable

from tests.simulation.cluster import Cluster, Worker
from tests.simulation.control import ControlLife
from tests.simulation.virtual_loop import Process

TERMINAL_GRACE_S = 1.0
LOOK_EVERY_SECONDS = 0.02
STREAMS = ("Session", "Pull", "WatchEngine", "Watch")
UNARY_CALLS_MAX = 3
"""Heartbeats and the like, of one kind."""
QUIET_TASKS_MAX = 80


class Checks:
    """Told of every step. ``violation`` is called with what is broken."""

    def __init__(self, cluster: Cluster, violation: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._violation = violation
        self._next_look = 0.0

    def after_step(self) -> None:
        """Look at what may have changed."""
        loop = self._cluster.loop
        if loop.defects:
            self._violation(f"defect: {loop.defects[0]}")
        if loop.now < self._next_look:
            return
        self._next_look = loop.now + LOOK_EVERY_SECONDS
        for worker in self._cluster.workers:
            process = worker.part("control").process
            control = worker.control
            if process is not None and control is not None and control.process is process and control.begun:
                self._check_bounds(worker, control)
                self._check_deadlines(worker, control, process)

    def _check_bounds(self, worker: Worker, life: ControlLife) -> None:
        parts, limits = life.control._parts, worker.config.limits
        counts = (
            ("active transfers", parts.transfers.table.active_count, limits.active_transfers),
            ("live publications", parts.publications.live_count, limits.live_publications),
        )
        for what, count, bound in counts:
            if count > bound:
                self._violation(f"{worker.name} has {count} {what}, the bound is {bound}")

    def _check_deadlines(self, worker: Worker, life: ControlLife, process: Process) -> None:
        now = self._cluster.loop.now
        if process.is_stopped(now) or process.ready or process.busy_until > now:
            return
        local = process.local(now)
        for record in life.control._parts.transfers.table.active():
            if local > record.deadline + TERMINAL_GRACE_S:
                late = local - record.deadline
                self._violation(
                    f"{record.name} of {worker.name} is {record.life.state.name} {late:.3f} s after its deadline"
                )

    def at_rest(self) -> None:
        """When nothing is under way any more: nothing may be left of what was."""
        for worker in self._cluster.workers:
            for what, count in self._left(worker).items():
                if count:
                    self._violation(f"{worker.name} is left with {count} {what}")
        streams = Counter(
            (connection.client.name, connection.server.name, connection.path)
            for connection in self._cluster.network.connections()
        )
        for (client, server, path), count in streams.items():
            if count > (1 if path.rpartition("/")[2] in STREAMS else UNARY_CALLS_MAX):
                self._violation(f"{client} is left with {count} calls of {path} at {server}")

    def _left(self, worker: Worker) -> Counter[str]:
        left: Counter[str] = Counter()
        if worker.journal.pinned:
            left[f"publications that its engine waits for ({', '.join(worker.journal.pinned)})"] += 1
        for life in worker.planes.values():
            left["leases"] += len(life.plane._leases)
            left["lease words"] += int((life.host.words != 0).sum())
            left["pinned blocks"] += life.plane._leases.pins.held_count()
            left["reads"] += len(life.desk)
            left["blocks held for reads"] += life.desk.destinations.held_count()
            left["reads in the executor"] += life.executor.queued_count + len(life.executor._active)
            left["reads in flight"] += sum(len(g.flights) for g in life.executor._generations.disposable())
        if worker.control is not None and worker.control.begun:
            parts = worker.control.control._parts
            left["live publications"] += parts.publications.live_count
            left["active transfers"] += parts.transfers.table.active_count
            left["readers noted"] += parts.publications.has_readers
            for link in worker.control.control._links:
                left["commands without answer"] += len(link._answers)
            for source in parts.sources._sources.values():
                left["negotiations and conclusions under way"] += len(source.session._waiting)
                left["negotiations and conclusions under way"] += len(source.session._conclusions)
        for part in worker.parts:
            tasks = sum(not task.done() for task in part.process.tasks) if part.process is not None else 0
            left[f"tasks in {part.name}"] += max(tasks - QUIET_TASKS_MAX, 0)
        return left
