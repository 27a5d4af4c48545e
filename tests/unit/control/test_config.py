"""A wrong configuration is refused with the key's full name, its value, and the nearest known key."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry_control.config import ControlConfig
from kvferry_control.config_reading import config_of, control_settings, load_config, parse_config

GOOD: dict[str, Any] = {
    "worker": {"name": "decode-0", "role": "decode", "listen": "127.0.0.1:0", "engine_socket": "/run/e.sock"},
    "ranks": [{"socket": "/run/0.sock"}, {"socket": "/run/1.sock"}],
    "etcd": {"endpoints": ["127.0.0.1:2379"]},
}


def changed(section: str, key: str, value: object) -> dict[str, Any]:
    """The good configuration with one key set."""
    return {**GOOD, section: {**GOOD.get(section, {}), key: value}}


def test_a_good_configuration_is_taken() -> None:
    """Defaults fill what is left out."""
    config = parse_config(GOOD)
    assert ("decode-0", 2, 10) == (config.worker.name, len(config.ranks), config.etcd.lease_ttl_s)


@pytest.mark.parametrize(
    ("values", "field", "hint"),
    [
        (changed("worker", "nmae", "x"), "worker.nmae", "worker.name"),
        (changed("etcd", "lease_ttl", 5), "etcd.lease_ttl", "etcd.lease_ttl_s"),
        (changed("limits", "active_transfer", 5), "limits.active_transfer", "limits.active_transfers"),
        (GOOD | {"metric": {"listen": "127.0.0.1:0"}}, "metric", "metrics"),
        (changed("worker", "role", "prefil"), "worker.role", "prefill"),
        (changed("worker", "name", "Has Space"), "worker.name", ""),
        (changed("worker", "listen", "nowhere"), "worker.listen", "host:port"),
        (changed("worker", "listen", "h:70000"), "worker.listen", "65535"),
        (changed("etcd", "endpoints", []), "etcd.endpoints", ""),
        (changed("limits", "ttl_s", -1), "limits.ttl_s", ""),
        (GOOD | {"ranks": [{"socket": "/a"}, {"socket": "/a"}]}, "ranks[1].socket", "twice"),
        (GOOD | {"ranks": []}, "ranks", ""),
        ({"ranks": GOOD["ranks"], "etcd": GOOD["etcd"]}, "worker", "required"),
    ],
)
def test_a_wrong_key_is_named(values: dict[str, Any], field: str, hint: str) -> None:
    """The error names the key, and says what would be right."""
    with pytest.raises(ConfigInvalid) as caught:
        parse_config(values)
    assert field == caught.value.metadata["field"]
    assert hint in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file and one that is no TOML are refused with their path."""
    for path, text in ((tmp_path / "missing.toml", None), (tmp_path / "bad.toml", "a = = b")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigInvalid) as caught:
            load_config(path)
        assert str(path) == caught.value.metadata["value"]


def told(tmp_path: Path, *flags: str, **environment: str) -> ControlConfig:
    """The configuration from a file, flags and variables."""
    file = tmp_path / "control.yaml"
    file.write_text(json.dumps(GOOD))
    return config_of(control_settings(["--config", str(file), *flags], environment))


def test_variables_and_flags_go_before_the_file(tmp_path: Path) -> None:
    """Also inside sections, in sections that the file lacks, and for lists."""
    config = told(
        tmp_path,
        "--worker-name=other",
        "--drain-remote=false",
        KVFERRY_WORKER_NAME="third",
        KVFERRY_RANKS="/a, /b, /c",
        KVFERRY_ETCD_LEASE_TTL_S="7",
        KVFERRY_METRICS_LISTEN="127.0.0.1:9400",
    )
    assert ("other", ["/a", "/b", "/c"], 7, False) == (
        config.worker.name,
        [rank.socket for rank in config.ranks],
        config.etcd.lease_ttl_s,
        config.drain.remote,
    )
    assert config.metrics is not None
    assert "127.0.0.1:9400" == config.metrics.listen


def test_the_environment_alone_is_enough() -> None:
    """A control needs no file."""
    environment = {
        "KVFERRY_WORKER_NAME": "decode-0",
        "KVFERRY_WORKER_ROLE": "decode",
        "KVFERRY_WORKER_LISTEN": "127.0.0.1:0",
        "KVFERRY_WORKER_ENGINE_SOCKET": "/run/e.sock",
        "KVFERRY_RANKS": "/run/0.sock",
        "KVFERRY_ETCD_ENDPOINTS": "a:1,b:2",
    }
    config = config_of(control_settings([], environment))
    assert ("decode-0", ("a:1", "b:2")) == (config.worker.name, config.etcd.endpoints)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((), {"KVFERRY_WORKER_ROLE": "prefil"}, "worker.role=prefil: .*from environment KVFERRY_WORKER_ROLE"),
        ((), {"KVFERRY_RANKS": "/a,/a"}, r"ranks\[1\].socket=/a: listed twice \(from environment KVFERRY_RANKS"),
        (("--log-format", "xml"), {}, "log.format=xml: .*from flag --log-format"),
        (("--transfers-timeout-s", "5000"), {}, "transfers.timeout_s=5000.0: is more than limits.timeout_s, 3600"),
        (
            (),
            {"KVFERRY_TRANSFERS_REQUIRE_PATH": "local,tcp"},
            r"transfers.require_path\[1\]=tcp: must be a path .*from environment KVFERRY_TRANSFERS_REQUIRE_PATH",
        ),
        (("--transfers-min-gbytes-per-s", "-1"), {}, "transfers.min_gbytes_per_s=-1: .*from flag"),
        ((), {"KVFERRY_WORKER_NMAE": "x"}, "KVFERRY_WORKER_NMAE: unknown variable; .*'KVFERRY_WORKER_NAME'"),
    ],
)
def test_a_refusal_says_where_the_value_came_from(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], expected: str
) -> None:
    """Whoever reads it knows where to change what."""
    with pytest.raises(ConfigInvalid, match=expected):
        told(tmp_path, *flags, **environment)


def test_an_engines_time_out_is_that_of_pulls_that_say_none(tmp_path: Path) -> None:
    """It holds where ``transfers.timeout_s`` is not set, and is bounded by the limit as that is."""
    engine = tmp_path / "engine.yaml"
    engine.write_text("cache_transceiver_config: {backend: MPI, kv_transfer_timeout_ms: 1500}")
    flag = ("--trtllm-config", str(engine))
    assert 1.5 == told(tmp_path, *flag).pull_timeout_s
    assert 4.0 == told(tmp_path, *flag, KVFERRY_TRANSFERS_TIMEOUT_S="4").pull_timeout_s
    with pytest.raises(ConfigInvalid, match=r"more than limits\.timeout_s, 1 .from file .*kv_transfer_timeout_ms"):
        told(tmp_path, *flag, "--limits-timeout-s=1")


def test_a_low_limit_bounds_pulls_that_say_no_time() -> None:
    """A file that has the limit alone stays valid."""
    config = parse_config(changed("limits", "timeout_s", 5))
    assert 5.0 == config.pull_timeout_s
