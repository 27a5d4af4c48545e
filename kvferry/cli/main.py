"""Every command and option of ``kvferry``; what a command does is imported when it is called.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 after Ctrl-C.
"""
# ruff: noqa: PLC0415 - imports inside the commands keep `kvferry --help` fast

import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kvferry.cli.config_command import config
from kvferry.cli.doctor import doctor
from kvferry.cli.local_commands import demo, up
from kvferry.cli.options import PASS_ON, Device, Json

app = typer.Typer(
    name="kvferry",
    help="Moves the KV cache of a request from the worker that prefilled it to the worker that decodes it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure whole pulls against what they are made of.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.command()(doctor)

Endpoint = Annotated[str, typer.Option(envvar="KVFERRY_ENDPOINT", help="host:port of any control of the cluster.")]


app.command()(demo)
app.command()(up)
app.add_typer(config, name="config")


@app.command(context_settings=PASS_ON)
def control(context: typer.Context) -> None:
    """Run the control of a worker: kvferry control --config FILE."""
    _become("kvferry_control", context.args)


@app.command(context_settings=PASS_ON)
def dataplane(context: typer.Context) -> None:
    """Run a data plane: kvferry dataplane --device cpu --pool-bytes 1GiB --socket PATH."""
    _become("kvferry_dataplane", context.args)


@app.command()
def workers(
    endpoint: Endpoint,
    json_output: Json = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Show pairs and why they do not match.")] = False,
) -> None:
    """List the live workers."""
    from kvferry.cli import workers as command

    show = command.show_pairs if pairs else command.show_workers
    _run(show(endpoint, json_output=json_output))


@app.command()
def drain(
    worker: Annotated[str, typer.Argument(help="The worker's name.")],
    endpoint: Endpoint,
    json_output: Json = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds until the rest is ended; else as configured.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show what is left until nothing is.")] = False,
    stay: Annotated[bool, typer.Option("--stay", help="Do not end the control: it stays, drained.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take work again.")] = False,
) -> None:
    """Take a worker out of service: no new work; what is published stays readable until pulled or expired; then end."""
    from kvferry.cli import drain as command

    if undo:
        _run(command.undrain(endpoint, worker, json_output=json_output))
    else:
        options = command.DrainOptions(timeout_s=timeout, wait=wait, stay=stay)
        _run(command.drain(endpoint, worker, options, json_output=json_output))


@app.command()
def health(
    endpoint: Annotated[
        str,
        typer.Argument(envvar="KVFERRY_HEALTH", help="host:port of a control, or unix: and a process's health socket."),
    ],
    json_output: Json = False,
    service: Annotated[str, typer.Option(help="A part, such as liveness or reads; else the whole process.")] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 4.0,
) -> None:
    """Ask whether a process serves and gets on. Exit status 0 if it does, else 1."""
    from kvferry.cli import health as command

    _run(command.health(endpoint, service, timeout, json_output=json_output))


@app.command()
def transfers(
    endpoint: Endpoint,
    name: Annotated[str | None, typer.Argument(help="transfers/ID, or the ID, to see one.")] = None,
    json_output: Json = False,
    worker: Annotated[str | None, typer.Option(help="Only into this worker.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with every change, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many, the newest.")] = 50,
) -> None:
    """List the transfers into a decode worker, or show one of them."""
    from kvferry.cli import transfers as command

    if watch:
        _run(command.watch_transfers(endpoint, worker, name, json_output=json_output))
    elif name is not None:
        _run(command.show_transfer(endpoint, worker, name, json_output=json_output))
    else:
        _run(command.list_transfers(endpoint, worker, limit=limit, json_output=json_output))


@app.command()
def pull(
    handle: Annotated[str, typer.Argument(help="Handle, single or joined: base64, hex, @FILE with its bytes, or -.")],
    engine_socket: Annotated[Path, typer.Option(help="The decode worker's engine socket.")],
    blocks: Annotated[str, typer.Option(help="Where to, such as 0-12,20.")],
    group: Annotated[str, typer.Option(help="The layer group of the blocks.")] = "full",
    timeout: Annotated[float, typer.Option(help="Seconds until the transfer must be over.")] = 30.0,
    request_id: Annotated[str | None, typer.Option(help="Chosen anew if not given.")] = None,
    json_output: Json = False,
) -> None:
    """Pull a publication into blocks of a decode worker, for development."""
    from kvferry.cli import pull as command

    options = command.PullOptions(
        handle=handle,
        engine_socket=engine_socket,
        blocks=blocks,
        group=group,
        timeout_s=timeout,
        request_id=request_id,
    )
    _run(command.pull(options, json_output=json_output), log_level="error")


@app.command()
def plan(
    source: Annotated[Path, typer.Argument(help="The source worker's layout: kvferry.layout.v1.WorkerLayout as JSON.")],
    destination: Annotated[Path, typer.Argument(help="The destination worker's layout, likewise.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the request.")],
    present: Annotated[int, typer.Option(min=0, help="Tokens that the destination has already.")] = 0,
    scattered: Annotated[bool, typer.Option("--scattered", help="Blocks from anywhere in the pools.")] = False,
    json_output: Json = False,
) -> None:
    """Explain what a transfer between two layouts copies, or why it cannot be. Exit status 1 if it cannot."""
    from kvferry.cli import plan as command
    from kvferry.core.planning.tokens import TokenRange

    wanted = TokenRange(present, tokens, tokens)
    _run(command.plan(source, destination, wanted, scattered=scattered, json_output=json_output))


@bench.command("plan")
def bench_plan(
    json_output: Json = False,
    tokens: Annotated[int, typer.Option(min=1, max=1 << 22, help="Tokens of the request.")] = 32_768,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Timed rounds of each case.")] = 21,
) -> None:
    """Planning for one destination rank: time, memory, and pieces before and after joining."""
    from kvferry.cli import bench_plan as command

    _run(command.plan(tokens, repeats=repeats, json_output=json_output))


@bench.command("transfer")
def bench_transfer(  # noqa: PLR0913, PLR0917 - one per option
    json_output: Json = False,
    paths: Annotated[
        str, typer.Option(help="Paths to measure, of auto, local, nixl, packed, ucx and libfabric.")
    ] = "auto",
    device: Device = "cpu",
    source_device: Annotated[str, typer.Option(help="Where the source's pool lies, if on another device.")] = "",
    both_ways: Annotated[
        bool, typer.Option("--both-ways", help="Pull as much the other way at the same time.")
    ] = False,
    blocks: Annotated[str, typer.Option(help="Block sizes.")] = "4KiB,16KiB,64KiB,256KiB,1MiB,4MiB",
    total: Annotated[str, typer.Option(help="Bytes of a pull.")] = "512MiB",
    order: Annotated[str, typer.Option(help="Where the blocks lie: random, contiguous, or both.")] = "random",
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="Timed rounds of each case.")] = 5,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of the ceilings in host memory.")] = 2,
    network: Annotated[str, typer.Option(help="loopback, or namespaces: two with a wire between (root).")] = "loopback",
    sm_count: Annotated[
        str,
        typer.Option(help="GPU multiprocessors that copies may take; of several, as in 8,16,all, each is measured."),
    ] = "all",
    plot: Annotated[Path | None, typer.Option(help="Also draw GB/s over block size (extra `plot`).")] = None,
) -> None:
    """Whole pulls over each path against raw NIXL and Mooncake (if installed) reading the same blocks, and ceilings.

    Every round has each method once; ratios are of medians of the same rounds, above 1: the pull was faster. Before
    anything is timed, each method fills poisoned memory and every byte is compared. A pull is timed from the engine's
    call to its completion; `read_gbytes_per_s` is its data plane's part alone. Each method holds two pools of `total`.
    """
    from kvferry.cli import bench_transfer as command

    options = command.TransferOptions(
        paths=paths,
        device=device,
        source_device=source_device,
        both_ways=both_ways,
        blocks=blocks,
        total=total,
        order=order,
        repeats=repeats,
        threads=threads,
        network=network,
        sm_count=sm_count,
        plot=plot,
    )
    _run(command.transfer(options, json_output=json_output), log_level="error")


@bench.command("latency")
def bench_latency(
    json_output: Json = False,
    device: Device = "cpu",
    repeats: Annotated[int, typer.Option(min=10, max=1_000_000, help="Timed rounds.")] = 1000,
    size: Annotated[str, typer.Option(help="Bytes of a pull.")] = "4KiB",
    block: Annotated[str, typer.Option(help="Block size.")] = "4KiB",
) -> None:
    """A warm pull against gRPC calls to the same control, and against its messages alone, in turns."""
    from kvferry.cli import bench as command

    _run(command.latency(size, block, device=device, repeats=repeats, json_output=json_output), log_level="error")


@bench.command("checksums")
def bench_checksums(
    json_output: Json = False,
    device: Device = "cpu",
    total: Annotated[str, typer.Option(help="Bytes of a pull.")] = "256MiB",
    threads: Annotated[int, typer.Option(min=1, max=32, help="Threads that copy and sum host memory.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Timed rounds.")] = 15,
) -> None:
    """Checksums: summing against copying the same bytes, and pulls that compare nothing, a sample and everything."""
    from kvferry.cli import bench_checksums as command

    measured = command.checksums(total, device=device, threads=threads, repeats=repeats, json_output=json_output)
    _run(measured, log_level="error")


@bench.command("control")
def bench_control(
    json_output: Json = False,
    device: Device = "cpu",
    in_flight: Annotated[int, typer.Option(min=1, max=1024, help="Pulls at once.")] = 64,
    size: Annotated[str, typer.Option(help="Bytes of a pull.")] = "64KiB",
    block: Annotated[str, typer.Option(help="Block size.")] = "64KiB",
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help="Time to measure for.")] = 5.0,
) -> None:
    """Small pulls at once over a warm pair: rate, latency, CPU of every process, and what bounds the rate."""
    from kvferry.cli import bench_control as command

    measured = command.control(
        size, block, device=device, in_flight=in_flight, seconds=seconds, json_output=json_output
    )
    _run(measured, log_level="error")


@bench.command("trace")
def bench_trace(  # noqa: PLR0913, PLR0917 - one per option
    file: Annotated[Path, typer.Argument(help="JSON lines: timestamp (ms), input_length, output_length, hash_ids.")],
    json_output: Json = False,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Replay the first so many.")] = 200,
    speed: Annotated[float, typer.Option(min=0.001, max=100_000, help="Arrivals so many times as fast.")] = 10.0,
    scale: Annotated[float, typer.Option(help="Part of the model's 80 layers, 512 bytes a token each.")] = 0.05,
    in_flight: Annotated[int, typer.Option(min=1, max=4096, help="Requests at a time; others wait.")] = 16,
    pool: Annotated[str, typer.Option(help="Size of each worker's pool.")] = "512MiB",
    prefix_present: Annotated[
        str, typer.Option(help="Prefixes seen before are at the destination already: yes, no, or both in turn.")
    ] = "both",
    verify_every: Annotated[int, typer.Option(min=1, help="Compare every so manieth request byte for byte.")] = 10,
    path: Annotated[str, typer.Option(help="auto, local, nixl or packed.")] = "auto",
    device: Device = "cpu",
    network: Annotated[str, typer.Option(help="loopback, or namespaces: two with a wire between (root).")] = "loopback",
) -> None:
    """Replay real arrivals and prompt lengths through a pair of workers: pulls of real sizes, as many at a time.

    A token has the KV of one rank of a 70 B model on eight: 80 layers of one head of 128 in bfloat16, 40 KiB; `--scale`
    keeps that part of the layers, so that pieces keep their 4 KiB. Each request is published at the source when it
    arrives and then pulled; waiting for a slot (`--in-flight`) and for blocks of the pools is told apart from the pull.
    With prefixes present, leading tokens that any request before has brought are not read again.
    """
    from kvferry.bench.trace import TraceSettings
    from kvferry.cli import bench_trace as command
    from kvferry.cli.bench import pool_device
    from kvferry.cli.figures import parse_size
    from kvferry.cli.running import reported_errors

    with reported_errors():
        settings = TraceSettings(
            file=file,
            device=pool_device(device),
            path=path,
            network=network,
            scale=scale,
            speed=speed,
            request_count=requests,
            in_flight=in_flight,
            pool_bytes=parse_size("pool", pool),
            verify_every=verify_every,
            prefix_present=command.prefix_choice(prefix_present),
        )
    _run(command.trace(settings, json_output=json_output), log_level="error")


def main() -> None:
    """The console script."""
    app()


def _run(command: Coroutine[Any, Any, None], *, log_level: str = "warning") -> None:
    from kvferry.cli.running import run

    run(command, log_level=log_level)


def _become(module: str, arguments: list[str]) -> NoReturn:
    """Replace this process, so that signals reach the real one."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
