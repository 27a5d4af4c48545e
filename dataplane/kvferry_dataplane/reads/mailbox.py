"""Lets the reads' thread sleep until somebody wants something of it."""

import os
import select
from collections import deque
from collections.abc import Callable

Command = Callable[[float], None]
"""Called on the reads' thread with the time."""


class Mailbox:
    """Commands for one thread, and what wakes it: a command, a write to ``descriptor``, or the end of a connection.

    Commands are bounded by their senders: each refers to a read or a peer, and both are bounded.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """An eventfd: whoever adds to it wakes the thread. Copiers do at the end of a job."""
        self._commands: deque[Command] = deque()
        self._connections: dict[int, Command] = {}
        self._epoll = select.epoll()
        self._epoll.register(self.descriptor, select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._commands)

    def put(self, command: Command) -> None:
        """Add a command. Any thread may."""
        self._commands.append(command)
        os.eventfd_write(self.descriptor, 1)

    def watch(self, connection: int, at_end: Command) -> None:
        """Take the hang-up of a connection for ``at_end``, once. For the thread itself, like all that follows."""
        self._connections[connection] = at_end
        self._epoll.register(connection, select.EPOLLRDHUP)

    def unwatch(self, connection: int) -> None:
        """Watch a connection no more; to be called before it is closed."""
        if self._connections.pop(connection, None) is not None:
            self._epoll.unregister(connection)

    def wait(self, seconds: float | None) -> None:
        """Wait so long for the first thing to happen, None: for ever."""
        for descriptor, _ in self._epoll.poll(seconds):
            if descriptor == self.descriptor:
                os.eventfd_read(self.descriptor)
            elif (command := self._connections.get(descriptor)) is not None:
                self.unwatch(descriptor)
                self._commands.append(command)

    def take(self) -> list[Command]:
        """The commands that came, in order."""
        taken = []
        while self._commands:
            taken.append(self._commands.popleft())
        return taken

    def close(self) -> None:
        """Close the descriptors. Nobody may write any more."""
        self._epoll.close()
        os.close(self.descriptor)
