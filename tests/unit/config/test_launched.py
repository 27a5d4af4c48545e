"""What a launched control is told cannot be changed by the environment of whoever launches it."""

from pathlib import Path

from kvferry.config.files import read_values
from kvferry.launch.control_config import ControlConfig
from kvferry_control.config_keys import PROGRAM
from kvferry_control.config_reading import config_of, control_settings

CONFIG = ControlConfig(
    name="decode-0",
    role="decode",
    listen="127.0.0.1:0",
    engine_socket=Path("/run/e.sock"),
    rank_sockets=(Path("/run/0.sock"), Path("/run/1.sock")),
    etcd_endpoints=("127.0.0.1:2379",),
    etcd_prefix="/kvferry",
    lease_ttl_s=5,
    metrics_listen="127.0.0.1:0",
    log_level="info",
    limits={"timeout_s": 60},
)


def test_every_key_of_the_file_is_kept_from_the_environment(tmp_path: Path) -> None:
    """Emptied, the variables that would go before the file do not; all others still count."""
    file = tmp_path / "control.toml"
    file.write_text(CONFIG.to_toml())
    keys = {key.name: key.variable for key in PROGRAM.keys}
    assert {keys[name] for name in read_values(file, PROGRAM.keys)} == set(CONFIG.variables())
    emptied = dict.fromkeys(CONFIG.variables(), "")
    others = {"KVFERRY_DRAIN_REMOTE": "false", "KVFERRY_TRANSFERS_VERIFY": "full", "KVFERRY_LIMITS_WATCHERS": "7"}
    config = config_of(control_settings(["--config", str(file)], {**emptied, **others}))
    assert ("decode-0", 2, 5, 60.0, "json") == (
        config.worker.name,
        len(config.ranks),
        config.etcd.lease_ttl_s,
        config.limits.timeout_s,
        config.log.format,
    )
    assert (False, "full", 7) == (config.drain.remote, config.transfers.verify, config.limits.watchers)
