"""What etcd's members and data planes say, and versions."""

from importlib import metadata
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid
from kvferry.doctor import dataplanes, etcd, versions
from kvferry.doctor.findings import Status
from kvferry_control.config import EtcdSection
from kvferry_control.etcd.errors import EtcdAuthFailed, EtcdError, EtcdTlsFailed, EtcdUnavailable

ROOT = Path(__file__).parents[3]


def member(**values: object) -> etcd.Member:
    """A healthy one, except for ``values``."""
    fields = {"endpoint": "10.0.0.9:2379", "version": "3.5.21", "leader_id": 7, "alarms": (), "latency_s": 0.002}
    return etcd.Member(**{**fields, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (member(), ["OK", "OK", "OK"]),
        (member(alarms=("NOSPACE",)), ["BROKEN", "OK", "OK"]),
        (member(leader_id=0), ["BROKEN", "OK", "OK"]),
        (member(version="3.5.1"), ["OK", "BROKEN", "OK"]),
        (member(version="3.5.1", endpoint="127.0.0.1:2379"), ["OK", "OK", "OK"]),
        (member(latency_s=0.3), ["OK", "OK", "SLOW"]),
    ],
)
def test_members_are_judged(found: etcd.Member, expected: list[str]) -> None:
    """Reachable, version, latency; releases that lose writes are for development on one machine."""
    assert expected == [finding.status.value for finding in etcd.judge(found)]


@pytest.mark.parametrize(
    ("error", "do"),
    [
        (EtcdUnavailable("refused", endpoint="a:1"), "start etcd at a:1"),
        (EtcdTlsFailed("handshake", endpoint="a:1"), "ca_file"),
        (EtcdAuthFailed("wrong password", endpoint="a:1"), "password_file"),
    ],
)
def test_an_unreachable_member_says_what_to_do(error: EtcdError, do: str) -> None:
    """By what went wrong."""
    finding = etcd.unreachable("a:1", error)
    assert (Status.BROKEN, True) == (finding.status, do in finding.do)


def test_options_are_those_of_the_configuration(tmp_path: Path) -> None:
    """Credentials go with them; a password file that is not there is named."""
    (tmp_path / "password").write_text("secret\n")
    section = EtcdSection(endpoints=("a:1",), prefix="/x", user="kv", password_file=tmp_path / "password")
    options = etcd.options_of(section)
    assert ("/x", "kv", "secret") == (options.prefix, options.user, options.password)
    with pytest.raises(ConfigInvalid, match=r"etcd.password_file=.*none"):
        etcd.options_of(section.model_copy(update={"password_file": tmp_path / "none"}))


def data_plane(version: str = "1.0", **settings: str) -> dataplanes.DataPlane:
    """One that runs with these settings from its environment."""
    return dataplanes.DataPlane(0, "/run/dp0.sock", version, "UCX", "cpu", 1 << 30, 0, settings, True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (data_plane(), ["OK", "OK"]),
        (data_plane("0.9"), ["SLOW", "OK"]),
        (data_plane(UCX_TLS="tcp"), ["OK", "SLOW"]),
        (data_plane(UCX_TLS="tcp,cma"), ["OK", "OK"]),
        (data_plane(UCX_TLS="^rc"), ["OK", "OK"]),
        (data_plane(UCX_NET_DEVICES="eth1"), ["OK", "OK"]),
    ],
)
def test_data_planes_are_judged(found: dataplanes.DataPlane, expected: list[str]) -> None:
    """Another release, and an environment that leaves nothing but sockets."""
    assert expected == [finding.status.value for finding in dataplanes.judge(found, "1.0")]


def test_the_tested_versions_are_the_pins() -> None:
    """What is called tested is what the constraints say."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert versions.TESTED == {name: pins[name] for name in versions.TESTED}


def test_declared_ranges_are_those_of_the_package() -> None:
    """Each package that is looked at is declared, with the range of its metadata."""
    ranges = versions.declared_ranges(metadata.requires("kvferry") or [])
    assert versions.TESTED.keys() <= ranges.keys()
    assert versions.within("1.5.0", ranges["nixl"])
    assert not versions.within("1.6.0", ranges["nixl"])
    assert not versions.within("6.30.0", ranges["protobuf"])


@pytest.mark.parametrize(
    ("name", "installed", "status"),
    [
        ("nixl", "1.5.0", Status.OK),
        ("nixl", "1.6", Status.BROKEN),
        ("nixl", "1.4.9+local", Status.BROKEN),
        ("nixl", None, Status.BROKEN),
        ("cuda-core", None, Status.NONE),
    ],
)
def test_versions_are_judged(name: str, installed: str | None, status: Status) -> None:
    """Outside of the range is broken, and the pin is what to install."""
    finding = versions.judge(versions.Package(name, installed, ">=1.5,<1.6", "1.5.1"))
    assert status == finding.status
    assert status.is_fault == (finding.do == f"pip install '{name}==1.5.1'")
