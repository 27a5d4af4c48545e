"""The native core when processes fork or end."""

import subprocess
import sys
import textwrap

PRELUDE = """
    import os, sys
    import numpy as np
    from kvferry.core.errors import NotReady
    from kvferry.device.native import HostCopier, Tuning
    from tests.unit.native.memory import WAIT_S, copy, flat, slow_job, window

    used = HostCopier(2, tuning=Tuning(inline_bytes_max=1))
    source, destination = np.ones(100000, dtype=np.uint8), np.zeros(100000, dtype=np.uint8)
    copy(used, [flat((0, 0, 100000))], source, destination)
"""


def run(script: str) -> str:
    """Run a script after the prelude in a process of its own; what it printed."""
    source = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def test_a_fork_is_refused() -> None:
    """In a forked child, which has no threads, a copier refuses at once and can be closed; the parent's goes on."""
    script = """
        job, _ = slow_job(used)
        child = os.fork()
        if child == 0:
            try:
                used.submit(window(source), window(destination), [flat((0, 0, 100000))])
            except NotReady as error:
                assert "fork" in error.message, error.message
            else:
                sys.exit(2)
            job.cancel()
            try:
                job.wait(1.0)
            except NotReady:
                used.close()
                fresh = HostCopier(1)
                copy(fresh, [flat((0, 0, 100000))], source, np.zeros(100000, dtype=np.uint8))
                sys.exit(0)
            sys.exit(3)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        job.cancel()
        assert job.wait(WAIT_S)
        copy(used, [flat((0, 0, 100000))], source, destination)
        print("parent goes on")
    """
    assert "parent goes on\n" == run(script)


def test_an_end_with_jobs_under_way() -> None:
    """A process that ends while threads copy ends cleanly and at once, whoever still holds what."""
    assert "end\n" == run("jobs = [slow_job(used) for _ in range(8)]\nprint('end')")


def test_an_end_by_an_exception_with_jobs_under_way() -> None:
    """So does one whose copier is part of a cycle, and that leaves by SystemExit."""
    script = """
        class Holder: pass
        holder = Holder()
        holder.itself, holder.copier, holder.jobs = holder, used, [slow_job(used) for _ in range(8)]
        del used
        print("end")
        sys.exit(0)
    """
    assert "end\n" == run(script)
