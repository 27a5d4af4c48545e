"""A data plane whose fence is off: it takes every lease word for the right one. For the test of the check alone.

``python -m tests.chaos.unfenced``. Nothing in kvferry can switch the fence off.
"""

import sys

from kvferry_dataplane.main import main
from kvferry_dataplane.reads.active import ActiveRead
from kvferry_dataplane.reads.executor import ReadExecutor

_fenced = ReadExecutor._verify


def _unfenced(self: ReadExecutor, read: ActiveRead, part: int, word: int, now: float) -> None:
    _fenced(self, read, part, read.request.parts[part].word, now)


if __name__ == "__main__":
    sys.stderr.write("THE FENCE IS OFF: what this data plane reads may be wrong, and it will not notice\n")
    ReadExecutor._verify = _unfenced  # type: ignore[method-assign]
    sys.exit(main())
