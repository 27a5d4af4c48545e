"""Direct UCX when processes fork or end."""

import subprocess
import sys
import textwrap

PRELUDE = """
    import os, sys
    from kvferry.core.errors import NotReady
    from tests.unit.ucx.ends import SIZE, Ends, plan

    ends = Ends()
    read = ends.read(plan((0, 0, SIZE)))
"""


def run(script: str) -> str:
    """Run a script after the prelude in a process of its own; what it printed."""
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def test_a_fork_is_refused() -> None:
    """In a forked child every call is refused and closing does nothing; the parent's reads go on."""
    script = """
        child = os.fork()
        if child == 0:
            for call in (ends.reader.progress, lambda: ends.reader.is_done(read), lambda: ends.reader.cancel(read)):
                try:
                    call()
                except NotReady as error:
                    assert "fork" in error.message, error.message
                else:
                    os._exit(2)
            ends.close()
            del ends
            sys.exit(0)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ends.until(lambda: ends.reader.is_done(read))
        assert (ends.here == ends.there).all()
        print("parent goes on")
    """
    assert "parent goes on\n" == run(script)


def test_an_interpreter_ends_with_reads_under_way() -> None:
    """A process that ends without closing anything ends well."""
    assert "" == run("")
