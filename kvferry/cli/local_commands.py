"""The commands that start workers of their own on this machine."""
# ruff: noqa: PLC0415 - as in kvferry.cli.main

from pathlib import Path
from typing import Annotated

import typer

from kvferry.cli.options import Backend, Json, NixlBackend, SameHost, TrtllmConfig


def demo(  # noqa: PLR0913, PLR0917 - one per option
    json_output: Json = False,
    device: Annotated[
        str,
        typer.Option(help="Where the KV pools lie: cpu, cuda, or GPUs as in cuda:0,cuda:1, which ranks take in turn."),
    ] = "cpu",
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Requests to serve.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time.")] = 8,
    logs: Annotated[Path | None, typer.Option(help="Keep configuration and logs in this directory.")] = None,
    prefill_tp: Annotated[int, typer.Option(min=1, help="Tensor parallel degree of the prefill worker.")] = 2,
    decode_tp: Annotated[int, typer.Option(min=1, help="Tensor parallel degree of the decode worker.")] = 2,
    prefill_pp: Annotated[int, typer.Option(min=1, help="Pipeline stages of the prefill worker.")] = 1,
    decode_pp: Annotated[int, typer.Option(min=1, help="Pipeline stages of the decode worker.")] = 1,
    block_size_prefill: Annotated[int, typer.Option(min=1, help="Tokens of a KV block of the prefill worker.")] = 16,
    block_size_decode: Annotated[int, typer.Option(min=1, help="Tokens of a KV block of the decode worker.")] = 16,
    layout: Annotated[str, typer.Option(help="Order of KV in memory: nhd, hnd or cross-layer.")] = "nhd",
    layout_prefill: Annotated[str | None, typer.Option(help="Another order for the prefill worker.")] = None,
    layout_decode: Annotated[str | None, typer.Option(help="Another order for the decode worker.")] = None,
    layers: Annotated[int, typer.Option(min=1, max=64, help="Layers of the model.")] = 4,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="KV heads of the model; else 4, with --mla 1.")] = None,
    kv_dtype: Annotated[str, typer.Option(help="Element type of KV: bfloat16, float16 or float32.")] = "bfloat16",
    mla: Annotated[bool, typer.Option("--mla", help="A model with multi-head latent attention.")] = False,
    window: Annotated[int, typer.Option(min=0, help="Tokens that every second layer sees; 0: all.")] = 0,
    backend: Backend = None,
    nixl_backend: NixlBackend = None,
    same_host: SameHost = None,
    trtllm_config: TrtllmConfig = None,
) -> None:
    """Serve requests on two workers, checking every token and byte. Exit status 1 if anything differs."""
    from kvferry.cli import demo as command
    from kvferry.cli.running import reported_errors, run
    from kvferry.cli.transports import transport_flags
    from kvferry.demo.settings import WorkerShape

    with reported_errors():
        flags = transport_flags(backend, nixl_backend, same_host, trtllm_config)

    options = command.DemoOptions(
        device=device,
        requests=requests,
        concurrency=concurrency,
        directory=logs,
        prefill=WorkerShape(
            tensor_parallel=prefill_tp,
            pipeline_parallel=prefill_pp,
            block_tokens=block_size_prefill,
            memory_order=layout_prefill or layout,
        ),
        decode=WorkerShape(
            tensor_parallel=decode_tp,
            pipeline_parallel=decode_pp,
            block_tokens=block_size_decode,
            memory_order=layout_decode or layout,
        ),
        layers=layers,
        kv_heads=kv_heads,
        kv_dtype=kv_dtype,
        mla=mla,
        window=window,
        flags=flags,
    )
    run(command.demo(options, json_output=json_output), log_level="error")


def up(  # noqa: PLR0913, PLR0917 - one per option
    json_output: Json = False,
    name: Annotated[str, typer.Option(help="The worker's name.")] = "worker-0",
    role: Annotated[str, typer.Option(help="prefill, decode or both.")] = "both",
    ranks: Annotated[int, typer.Option(min=1, max=64, help="Data planes.")] = 1,
    device: Annotated[
        str, typer.Option(help="cpu, cuda:N, or several as in cuda:0,cuda:1, which ranks take in turn.")
    ] = "cpu",
    pool: Annotated[str, typer.Option(help="Size of each rank's pool, such as 256MiB.")] = "256MiB",
    listen: Annotated[str, typer.Option(help="host:port of the control.")] = "127.0.0.1:0",
    engine: Annotated[bool, typer.Option("--engine", help="Start the reference engine as well.")] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep sockets and logs in this directory.")] = None,
    backend: Backend = None,
    nixl_backend: NixlBackend = None,
    same_host: SameHost = None,
    trtllm_config: TrtllmConfig = None,
) -> None:
    """Run etcd and one worker, for development, until Ctrl-C."""
    from kvferry.cli import up as command
    from kvferry.cli.running import reported_errors, run
    from kvferry.cli.transports import transport_flags

    with reported_errors():
        flags = transport_flags(backend, nixl_backend, same_host, trtllm_config)

    options = command.UpOptions(
        name=name,
        role=role,
        ranks=ranks,
        device=device,
        pool=pool,
        listen=listen,
        engine=engine,
        directory=logs,
        flags=flags,
    )
    run(command.up(options, json_output=json_output))
