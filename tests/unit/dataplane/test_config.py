"""What a data plane is told comes to its configuration, or to a refusal that names the value and its origin."""

from pathlib import Path

import pytest

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid
from kvferry_dataplane.config import Config, Listen
from kvferry_dataplane.config_reading import config_of, data_plane_settings
from kvferry_dataplane.paths import SameHost

ENGINE = "cache_transceiver_config:\n  backend: {}\n"


def read(*flags: str, **environment: str) -> Config:
    """The configuration from flags and variables."""
    return config_of(data_plane_settings(["--pool-bytes", "1MiB", "--socket", "/s", *flags], environment))


def test_all_three_sources_come_together(tmp_path: Path) -> None:
    """Each key is taken from the first of flag, environment and file that has it, numbers of a file as numbers."""
    file = tmp_path / "dp.yaml"
    file.write_text("same_host: off\nmax_reads: 12\nstall_timeout: 2.5\nbackend: UCX\nchecksums: off\n")
    config = read("--config", str(file), "--backend", "NIXL", KVFERRY_MAX_READS="13", KVFERRY_BACKEND="DEFAULT")
    assert (SameHost.OFF, 13, 2.5, Transport.NIXL_UCX, 0) == (
        config.paths.same_host,
        config.max_reads,
        config.stall_seconds,
        config.transport,
        config.checksum_every,
    )


def test_a_file_alone_is_enough(tmp_path: Path) -> None:
    """Nothing has to be a flag."""
    file = tmp_path / "dp.toml"
    file.write_text('pool_bytes = 4096\nsocket = "/s"\nmetrics_listen = "[::1]:9401"\nnixl_backend = "LIBFABRIC"\n')
    config = config_of(data_plane_settings(["--config", str(file)], {}))
    assert (4096, Listen("::1", 9401), Transport.NIXL_LIBFABRIC) == (
        config.pool_bytes,
        config.metrics_listen,
        config.transport,
    )


@pytest.mark.parametrize(
    ("backend", "environment", "transport"),
    [
        ("DEFAULT", {}, Transport.NIXL_UCX),
        ("NIXL", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, Transport.NIXL_LIBFABRIC),
        ("UCX", {"TRTLLM_NIXL_KVCACHE_BACKEND": "LIBFABRIC"}, Transport.UCX),
        ("UCX", {"KVFERRY_BACKEND": "NIXL"}, Transport.NIXL_UCX),
        ("MPI", {"KVFERRY_BACKEND": "NIXL"}, Transport.NIXL_UCX),
    ],
)
def test_an_engines_file_is_followed(
    tmp_path: Path, backend: str, environment: dict[str, str], transport: Transport
) -> None:
    """Where kvferry's own keys do not say otherwise."""
    file = tmp_path / "engine.yaml"
    file.write_text(ENGINE.format(backend))
    assert transport is read("--trtllm-config", str(file), **environment).transport
    assert transport is read(KVFERRY_TRTLLM_CONFIG=str(file), **environment).transport


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((), {"KVFERRY_MAX_READS": "0"}, "max_reads=0: must be 1 to 65536 (from environment KVFERRY_MAX_READS)"),
        (("--same-host", "on"), {}, "same_host=on: must be one of fused, backend, off (from flag --same-host)"),
        (("--backend", "MPI"), {}, "backend=MPI: must be one of DEFAULT, NIXL, UCX (from flag --backend)"),
        (
            ("--backend", "UCX"),
            {"KVFERRY_NIXL_BACKEND": "UCX"},
            "nixl_backend=UCX: goes with backend NIXL or DEFAULT only, and backend is UCX: leave one of the two out "
            "(from environment KVFERRY_NIXL_BACKEND)",
        ),
        (("--trtllm-config", "/nowhere.yaml"), {}, "trtllm_config=/nowhere.yaml: cannot be read"),
        (("--poll-time", "0.2"), {}, "poll_time=0.2: must be 0 to 0.1 seconds (from flag --poll-time)"),
        (("--path", "ucx"), {}, "path=ucx: the transport is nixl/UCX"),
    ],
)
def test_a_refusal_names_value_and_origin(flags: tuple[str, ...], environment: dict[str, str], expected: str) -> None:
    """Whoever reads it knows where to change what."""
    with pytest.raises(ConfigInvalid) as caught:
        read(*flags, **environment)
    assert caught.value.message.startswith(expected)
