"""The command line: what it offers, how it refuses, how it ends."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from kvferry.cli.main import app
from kvferry.cli.running import run
from kvferry.core.errors import ConfigInvalid, NotReady

COMMANDS = (
    *("demo", "up", "control", "dataplane", "workers", "drain", "health", "transfers"),
    *("pull", "plan", "bench", "config", "doctor"),
)


def test_help_lists_every_command_without_loading_what_they_need() -> None:
    """``kvferry --help`` names all commands and imports neither torch nor grpc nor the SDK."""
    script = (
        "import sys, json\n"
        "from kvferry.cli.main import main\n"
        "sys.argv = ['kvferry', '--help']\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    loaded = set(json.loads(done.stderr))
    assert set() == loaded & {"torch", "grpc", "numpy", "structlog", "kvferry.sdk", "kvferry.launch"}
    assert [] == [name for name in COMMANDS if name not in done.stdout]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["up", "--pool", "12xb"], "error: CONFIG_INVALID: pool=12xb: "),
        (["up", "--role", "sink"], "error: CONFIG_INVALID: role=sink: "),
        (["demo", "--device", "tpu"], "error: CONFIG_INVALID: device=tpu: "),
        (["demo", "--prefill-tp", "3"], "error: CONFIG_INVALID: prefill.tensor_parallel=3: "),
        (["demo", "--decode-pp", "9"], "error: CONFIG_INVALID: decode.pipeline_parallel=9: "),
        (["demo", "--layout-decode", "dhn"], "error: CONFIG_INVALID: decode.layout=dhn: "),
        (["demo", "--block-size-decode", "9999"], "error: CONFIG_INVALID: decode.block_tokens=9999: "),
        (["demo", "--mla", "--kv-heads", "4"], "error: CONFIG_INVALID: num_kv_heads=4: "),
        (["bench", "transfer", "--blocks", "100"], "error: CONFIG_INVALID: blocks=100: "),
        (["bench", "latency", "--device", "tpu"], "error: CONFIG_INVALID: device=tpu: "),
        (["doctor", "--etcd", "nonsense"], "error: CONFIG_INVALID: --etcd="),
        (["doctor", "--backend", "MPI"], "error: CONFIG_INVALID: backend=MPI: "),
    ],
)
def test_wrong_configuration_is_one_line_and_status_2(arguments: list[str], line: str) -> None:
    """A wrong value ends with status 2 and one line that names it."""
    result = CliRunner().invoke(app, arguments)
    assert 2 == result.exit_code
    assert result.stderr.startswith(line)
    assert 1 == result.stderr.count("\n")


def test_a_missing_option_is_named_with_status_2() -> None:
    """A command without its endpoint is refused with status 2."""
    result = CliRunner().invoke(app, ["workers"], env={"KVFERRY_ENDPOINT": None})
    assert 2 == result.exit_code
    assert "--endpoint" in result.stderr


def test_an_unreachable_endpoint_is_one_line_and_status_1() -> None:
    """Where nobody listens, the command ends with status 1 and says who could not be reached."""
    result = CliRunner().invoke(app, ["workers", "--endpoint", "127.0.0.1:1", "--json"])
    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: NOT_READY: ")
    assert "127.0.0.1:1" in result.stderr


def test_a_truncated_handle_is_refused_before_anything_is_sent() -> None:
    """A pull of what is no handle ends at once, although nobody serves the socket."""
    arguments = ["pull", "00ff", "--engine-socket", "/nowhere.sock", "--blocks", "0"]
    result = CliRunner().invoke(app, arguments)
    assert 1 == result.exit_code
    assert result.stderr.startswith("error: HANDLE_MALFORMED: ")


async def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(("error", "status"), [(NotReady("later\nor never"), 1), (ConfigInvalid("no"), 2)])
def test_errors_become_one_line_and_a_status(error: Exception, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A typed error is written on one line whatever its message holds."""
    with pytest.raises(typer.Exit) as ended:
        run(_raise(error))
    written = capsys.readouterr().err
    assert (status, 1) == (ended.value.exit_code, written.count("\n"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_after_it_has_cleaned_up(number: signal.Signals, status: int) -> None:
    """Ctrl-C and SIGTERM cancel the command, wait for its cleaning up, and give the shell's status."""
    cleaned = []

    async def wait() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    with pytest.raises(typer.Exit) as ended:
        run(wait())
    assert (status, [number]) == (ended.value.exit_code, cleaned)
