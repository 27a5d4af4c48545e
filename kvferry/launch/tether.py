"""Run as a script in front of a child process: ties the child's life to its parent's, then becomes the child.

``tether.py PARENT_PID PROGRAM [ARGUMENT ...]``. It uses nothing beyond the standard library, so that an
isolated interpreter starts it in some milliseconds. The parent-death signal survives ``exec``.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Ask for SIGKILL when the parent ends, and become the program."""
    parent, *program = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):
        sys.exit("the parent process has ended already")
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted here


if __name__ == "__main__":
    main(sys.argv[1:])
