"""``kvferry doctor``: its options. What it does is imported when it is called."""
# ruff: noqa: PLC0415 - imports inside the command keep `kvferry --help` fast

from pathlib import Path
from typing import Annotated

import typer

from kvferry.cli.options import Backend, Json, NixlBackend


def doctor(
    json_output: Json = False,
    config: Annotated[Path | None, typer.Option(help="A control's configuration: its etcd and data planes.")] = None,
    etcd: Annotated[str | None, typer.Option(help="etcd's members, as HOST:PORT,HOST:PORT, instead.")] = None,
    backend: Backend = None,
    nixl_backend: NixlBackend = None,
    peer: Annotated[str | None, typer.Option(help="Move real bytes between this worker and that of --from.")] = None,
    own: Annotated[str | None, typer.Option("--from", help="The other worker; else that of --config.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(envvar="KVFERRY_ENDPOINT", help="With --peer: host:port of any control; else that of --config."),
    ] = None,
) -> None:
    """Look for what is slow or broken, and say what it costs and the one thing to do; --json writes one object.

    Looks at etcd, NIXL's plugins, UCX's transports and devices, limits, shared memory and huge pages, namespaces, GPUs,
    clocks and versions, and with --config at the worker's data planes. It changes nothing and takes a few seconds.

    With --peer, data planes read real bytes of each other on every path that is possible, in each direction in which
    KV may move, into memory of their own and after all other reads; what is not possible has its reason. Rates are
    compared with a plain copy and a plain socket of this machine.

    OK: as it should be. SLOW: works, at the cost that is named. BROKEN: does not work, or nobody can tell. NONE: there
    is nothing of the kind here. SKIPPED: not looked at.

    Exit status: 0 nothing to do, 3 the worst is SLOW, 4 the worst is BROKEN; 1 the doctor itself failed, 2 wrong usage.
    """
    from kvferry.cli import doctor_report as command
    from kvferry.cli.running import run

    options = command.DoctorOptions(
        config=config,
        etcd=etcd,
        backend=backend,
        nixl_backend=nixl_backend,
        peer=peer,
        own=own,
        endpoint=endpoint,
    )
    run(command.doctor(options, json_output=json_output))
