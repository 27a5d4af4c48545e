"""A wrong configuration is refused with the key's full name, its value, and the nearest known key."""

from pathlib import Path
from typing import Any

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry_control.config_reading import load_config, parse_config

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
